%% What a gen_server under a supervisor costs: the gold standard beside which bench/actors.py puts our actors.
%%   erlc contender.erl; erl -noshell -run contender main TOLD ASKED COUNT
%% Prints a JSON object: messages told a second, microseconds of a call (median, 99th percentile) and of a start,
%% KiB of an idle one, seconds to stop all.
-module(contender).
-behaviour(gen_server).
-behaviour(supervisor).
-export([main/1, start_one/0, init/1, handle_call/3, handle_cast/2]).

start_one() -> gen_server:start_link(?MODULE, server, []).

init(server) -> {ok, 0};
init(supervisor) ->
    Child = #{id => one, start => {?MODULE, start_one, []}, shutdown => 5000},
    {ok, {#{strategy => simple_one_for_one}, [Child]}}.

handle_call(Number, _From, Last) -> {reply, Number, Last}.

handle_cast(Number, _Last) -> {noreply, Number}.

main(Arguments) ->
    [Told, Asked, Count] = [list_to_integer(Text) || Text <- Arguments],
    {ok, Supervisor} = supervisor:start_link(?MODULE, supervisor),
    {ok, One} = supervisor:start_child(Supervisor, []),
    TellUs = microseconds(fun() ->
        [gen_server:cast(One, Number) || Number <- lists:seq(1, Told)],
        gen_server:call(One, 0)
    end),
    Times = lists:sort([nanoseconds(fun() -> gen_server:call(One, 1) end) || _ <- lists:seq(1, Asked)]),
    Before = settled(Supervisor),
    SpawnUs = microseconds(fun() -> [supervisor:start_child(Supervisor, []) || _ <- lists:seq(1, Count)] end),
    Idle = settled(Supervisor) - Before,
    unlink(Supervisor),
    Monitor = monitor(process, Supervisor),
    StopUs = microseconds(fun() ->
        exit(Supervisor, shutdown),
        receive {'DOWN', Monitor, process, Supervisor, _} -> ok end
    end),
    io:format(
        "{\"tell\":~f,\"ask_p50\":~f,\"ask_p99\":~f,\"spawn\":~f,\"idle\":~f,\"stop_s\":~f,\"count\":~b}",
        [Told / TellUs * 1.0e6, lists:nth(Asked div 2 + 1, Times) / 1000, lists:nth(Asked * 99 div 100, Times) / 1000,
         SpawnUs / Count, Idle / 1024 / Count, StopUs / 1.0e6, Count]),
    halt(0).

microseconds(Fun) -> nanoseconds(Fun) / 1000.

nanoseconds(Fun) ->
    Began = erlang:monotonic_time(nanosecond),
    Fun(),
    erlang:monotonic_time(nanosecond) - Began.

settled(Supervisor) ->
    erlang:garbage_collect(),
    erlang:garbage_collect(Supervisor),
    erlang:memory(processes).
