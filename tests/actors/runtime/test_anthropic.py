import datetime as dt
import gc
import json
import pathlib
import random
import socket

import httpx
import pytest
import trio

from actors.runtime.anthropic import AnthropicRuntime
from actors.runtime.anthropic_environment import MODEL_DEFAULT, Connection
from actors.runtime.messages_loop import ModelSettings
from protocol.errors import BackendError, ConfigurationError
from protocol.events import TextDelta
from tests.support.model_server import (
    EVENT_STREAM,
    Cut,
    ModelServer,
    Pause,
    Response,
    Stall,
    calls,
    event,
    message_start,
    raw,
    says,
    serve,
    status,
    text_block,
)
from tests.support.turns import RememberingHost, request, session

FIXTURES = pathlib.Path(__file__).parents[3].parent / "shared" / "fixtures" / "anthropic"
KEY = "sk-ant-test-0123456789"
WEATHER = "I'll check the current weather in Paris for you."
TAXES = (
    "I'll create a comprehensive tax guide for someone with multiple W2s and save it in a file called taxes.txt."
    " Let me do that for you now."
)
NOW = dt.datetime(2026, 11, 22, 12, 0, 0, tzinfo=dt.UTC)


class NoWaits(random.Random):
    """Jitter that leaves nothing of a wait; the clock of the sockets is the real one, which none may outrun."""

    def uniform(self, a: float, b: float) -> float:
        return 0.0


@pytest.fixture
async def server():
    async with serve() as running:
        yield running


def runtime_for(server: ModelServer, **options) -> AnthropicRuntime:
    return AnthropicRuntime(Connection(KEY, server.url, **options), rng=NoWaits())


async def run(runtime: AnthropicRuntime, text: str = "hi", model: str | None = None) -> RememberingHost:
    host = RememberingHost()
    try:
        host.stop_reason = await runtime.run_turn(session(model), request(text), host)
    finally:
        await runtime.aclose()
    return host


async def fail(runtime: AnthropicRuntime) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await run(runtime)
    gc.collect()  # a stream that was left half read would be reported here, and warnings are errors
    return caught.value


async def test_turn_over_http_streams_calls_and_answers(server):
    server.script(calls("read_file", {"path": "a"}), says("Hel", "lo"))
    host = await run(runtime_for(server))
    assert host.stop_reason == "end_turn"
    assert host.called == [("read_file", {"path": "a"})]
    assert [item.text for item in host.events if isinstance(item, TextDelta)] == ["Hel", "lo"]
    assert len(server.requests) == 2


async def test_request_is_what_the_messages_api_asks_for(server):
    await run(runtime_for(server))
    (received,) = server.requests
    assert (received.method, received.path) == ("POST", "/v1/messages")
    assert received.headers["x-api-key"] == KEY
    assert received.headers["anthropic-version"] == "2023-06-01"
    assert received.headers["content-type"] == "application/json"
    assert received.body["stream"] is True
    assert received.body["model"] == MODEL_DEFAULT
    assert [tool["name"] for tool in received.body["tools"]][:2] == ["read_file", "list_files"]


async def test_request_says_its_own_length_and_names_the_host_each_time(server):
    runtime = runtime_for(server)
    for text in ("a", "something longer"):
        await runtime.run_turn(session(), request(text), RememberingHost())
    await runtime.aclose()
    lengths = [int(one.headers["content-length"]) for one in server.requests]
    assert lengths[1] - lengths[0] == len("something longer") - len("a")
    assert {one.headers["host"] for one in server.requests} == {server.url.removeprefix("http://")}


async def test_password_in_the_url_goes_to_the_server(server):
    url = server.url.replace("http://", "http://user:secret@")
    await run(AnthropicRuntime(Connection(KEY, url)))
    assert server.requests[0].headers["authorization"] == "Basic dXNlcjpzZWNyZXQ="


async def test_proxy_of_the_environment_is_used(server, monkeypatch):
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url)
    host = await run(AnthropicRuntime(Connection(KEY, "http://model.test/prefix")))
    assert host.text == "Hello from the model server."
    assert server.requests[0].path == "http://model.test/prefix/v1/messages"
    assert server.requests[0].headers["host"] == "model.test"


async def test_tool_that_is_not_offered_is_not_in_the_request(server):
    runtime = runtime_for(server)
    await runtime.run_turn(session(), request("x", offered=["read_file"]), RememberingHost())
    await runtime.aclose()
    assert [tool["name"] for tool in server.requests[0].body["tools"]] == ["read_file"]
    assert "bash" not in json.dumps(server.requests[0].body)


async def test_model_of_the_session_wins_over_the_setting(server):
    await run(runtime_for(server), model="claude-other")
    assert server.requests[0].body["model"] == "claude-other"


async def test_connection_is_kept_for_the_next_call(server):
    server.script(calls("read_file", {}), says("a"))
    runtime = runtime_for(server)
    for _ in range(2):
        await runtime.run_turn(session(), request("x"), RememberingHost())
    await runtime.aclose()
    assert {one.connection for one in server.requests} == {1}


async def test_turns_run_side_by_side(server):
    server.script(Response((message_start(), Stall())))
    runtime, host = runtime_for(server), RememberingHost()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runtime.run_turn, session(), request("x"), RememberingHost())
        await server.wait_for(lambda one: one.open_streams == 1)
        await runtime.run_turn(session(), request("x"), host)
        nursery.cancel_scope.cancel()
    await runtime.aclose()
    assert host.text == "Hello from the model server."


async def test_stream_in_dribbles_is_the_same_stream(server):
    whole = b"".join(chunk for chunk in says("héllo", " 🙂").chunks if isinstance(chunk, bytes))
    server.script(raw(whole, 7))
    assert (await run(runtime_for(server))).text == "héllo 🙂"


async def test_pieces_arrive_when_they_are_sent_and_not_at_the_end(server):
    server.script(Response((message_start(), *text_block(0, "first"), Stall())))
    runtime, host = runtime_for(server), RememberingHost()
    with trio.fail_after(5), trio.CancelScope() as scope:
        host.on_event = lambda item: scope.cancel() if isinstance(item, TextDelta) else None
        await runtime.run_turn(session(), request("x"), host)
    await runtime.aclose()
    assert scope.cancelled_caught


async def test_cancelling_a_turn_closes_its_connection_at_once(server):
    server.script(Response((message_start(), *text_block(0, "whole"), *text_block(1, "torn")[:2], Stall())))
    runtime, host = runtime_for(server), RememberingHost()
    with trio.fail_after(5):
        with trio.CancelScope() as scope:
            host.on_event = lambda item: scope.cancel() if getattr(item, "text", "") == "torn" else None
            await runtime.run_turn(session(), request("x"), host)
        await server.wait_for(lambda one: one.open_streams == 0)
        assert host.kept == [{"type": "text", "text": "whole"}]
        await runtime.run_turn(session(), request("x"), RememberingHost())
    await runtime.aclose()
    gc.collect()


async def test_cancelling_before_the_first_byte_closes_the_connection(server):
    server.script(Response((message_start(),), head_delay_s=60))
    runtime = runtime_for(server)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.run_turn, session(), request("x"), RememberingHost())
            await server.wait_for(lambda one: one.open_streams == 1)
            nursery.cancel_scope.cancel()
        await server.wait_for(lambda one: one.open_streams == 0)
    await runtime.aclose()


@pytest.mark.parametrize("code", [429, 500, 502, 503, 529])
async def test_busy_server_is_asked_again(server, code):
    server.script(status(code, {"retry-after": "0"}), says("at last"))
    runtime = runtime_for(server)
    assert (await run(runtime)).text == "at last"
    assert (len(server.requests), runtime.status()["retries"], runtime.status()["health"]) == (2, 1, "ok")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (400, "The request is at fault"),
        (401, "Check ANTHROPIC_API_KEY"),
        (403, "check ANTHROPIC_API_KEY"),
        (404, "AGENT_RUNNER_MODEL"),
        (413, "history_tokens_max"),
    ],
)
async def test_request_that_is_refused_is_not_repeated_and_the_next_step_is_named(server, code, said):
    server.script(status(code))
    error = await fail(runtime_for(server))
    assert (error.code, len(server.requests)) == ("backend_error", 1)
    assert said in error.message
    assert f"scripted {code}" in error.message


async def test_key_is_never_in_a_message(server):
    body = f"<html><b>bad</b> key {KEY}".encode()
    server.script(Response((body,), 401, {"content-type": "text/html"}))
    runtime = runtime_for(server)
    error = await fail(runtime)
    assert "bad key [key]" in error.message
    assert KEY not in error.message + str(runtime.status())


async def test_page_instead_of_a_stream_is_an_error_with_a_clean_excerpt(server):
    page = b"<html><head><style>p {}</style><script>go()</script></head><body>\n<h1>Sign in</h1>\x00</body></html>"
    server.script(Response((page,), 200, {"content-type": "text/html"}))
    error = await fail(runtime_for(server))
    assert "'text/html' instead of an event stream: 'Sign in'" in error.message
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body", ['{"detail": "no such route"}', '["no such route"]', '{"error": "no such route"}', "7"]
)
async def test_error_of_another_shape_is_quoted_as_it_is(server, body):
    server.script(Response((body.encode(),), 404, {"content-type": "application/json"}))
    assert body in (await fail(runtime_for(server))).message


async def test_redirect_is_not_followed_since_the_key_would_go_with_it(server):
    server.script(Response((), 307, {"location": f"{server.url}/v1/messages"}))
    assert "answered 307" in (await fail(runtime_for(server))).message
    assert len(server.requests) == 1


async def test_endless_body_of_an_error_is_not_read_to_its_end(server):
    server.script(Response((b"x" * 65_536, b"x" * 65_536, Stall()), 400, {"content-type": "text/plain"}))
    with trio.fail_after(5):
        error = await fail(runtime_for(server))
    assert len(error.message) < 500


async def test_garbage_in_the_stream_is_named(server):
    server.script(raw(message_start() + b"data: <oops>\n\n" + b"data: {}\n\n" * 2000))
    assert "not JSON: '<oops>'" in (await fail(runtime_for(server))).message


async def test_garbage_that_never_ends_is_left_at_once(server):
    server.script(Response((message_start(), b"data: <oops>\n\n", Stall())))
    with trio.fail_after(5):
        assert "not JSON" in (await fail(runtime_for(server))).message
        await server.wait_for(lambda one: one.open_streams == 0)


async def test_loss_in_mid_stream_is_an_error_and_not_another_try(server):
    server.script(Response((message_start(), *text_block(0, "a"), Cut())))
    error = await fail(runtime_for(server))
    assert "lost in the middle of an answer" in error.message
    assert len(server.requests) == 1


async def test_connection_that_breaks_before_the_first_byte_is_tried_again(server):
    server.script(Response((Cut(),)), says("at last"))
    assert (await run(runtime_for(server))).text == "at last"
    assert len(server.requests) == 2


async def test_empty_answer_is_tried_again(server):
    server.script(Response(()), says("at last"))
    assert (await run(runtime_for(server))).text == "at last"


async def test_overload_that_is_the_whole_answer_is_tried_again(server):
    overloaded = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    server.script(raw(overloaded), says("at last"))
    assert (await run(runtime_for(server))).text == "at last"


async def test_overload_after_the_beginning_is_not_tried_again(server):
    overloaded = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    server.script(Response((message_start(), Pause(0.01), overloaded)))
    error = await fail(runtime_for(server))
    assert (error.code, len(server.requests)) == ("backend_overloaded", 1)


@pytest.mark.parametrize("chunks", [(Stall(),), (message_start(), Stall())])
async def test_silent_server_is_given_up_and_not_asked_again(server, chunks):
    server.script(Response(chunks))
    error = await fail(runtime_for(server, read_timeout_s=0.1))
    assert "silent for 0.1 s" in error.message
    assert len(server.requests) == 1


async def test_server_that_is_not_there_is_an_error_that_names_it():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        error = await fail(AnthropicRuntime(Connection(KEY, url), rng=NoWaits()))
    assert url in error.message
    assert "Check ANTHROPIC_BASE_URL" in error.message


class Waits:
    """A transport in memory: answers from a list, and knows when each request came."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.moments: list[float] = []
        self.transport = httpx.MockTransport(self.answer)

    def answer(self, _request: httpx.Request) -> httpx.Response:
        self.moments.append(trio.current_time())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def waits(self) -> list[float]:
        return [after - before for before, after in zip(self.moments, self.moments[1:], strict=False)]

    def runtime(self, seed: int = 7) -> AnthropicRuntime:
        connection = Connection(KEY, "http://model.test")
        return AnthropicRuntime(
            connection, transport=self.transport, rng=random.Random(seed), now=lambda: NOW
        )


def ok() -> httpx.Response:
    chunks = b"".join(chunk for chunk in says("ok").chunks if isinstance(chunk, bytes))
    return httpx.Response(200, headers=EVENT_STREAM, content=chunks)


def refused(code: int, retry_after: str | None = None) -> httpx.Response:
    headers = {"retry-after": retry_after} if retry_after is not None else {}
    error = {
        "type": "error",
        "error": {"type": "overloaded_error" if code == 529 else "x", "message": "busy"},
    }
    return httpx.Response(code, headers=headers, json=error)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("Sun, 22 Nov 2026 12:00:30 GMT", 30.0), ("60", 60.0)],
)
async def test_wait_is_what_the_server_asks_for_and_a_little_more(autojump_clock, header, seconds):
    played = Waits(refused(429, header), ok())
    await run(played.runtime())
    (wait,) = played.waits
    assert seconds <= wait <= min(60.0, seconds * 1.1 + 0.05) + 1e-6


@pytest.mark.parametrize("header", ["-5", "Sun, 22 Nov 2026 11:00:00 GMT", "soon", "nan", "", None])
async def test_retry_after_that_says_nothing_useful_still_waits_shortly(autojump_clock, header):
    played = Waits(refused(529, header), ok())
    await run(played.runtime())
    assert played.waits[0] <= 1.0


async def test_wait_grows_without_a_header_and_has_jitter(autojump_clock):
    played, other = Waits(refused(503), refused(503), refused(503), ok()), Waits(refused(503), ok())
    await run(played.runtime())
    first, second, third = played.waits
    assert 0.5 <= first <= 1.0 <= second <= 2.0 <= third <= 4.0
    await run(other.runtime(seed=8))
    assert other.waits[0] != first


@pytest.mark.parametrize(
    ("code", "said"), [(429, "rate_limited"), (503, "backend_overloaded"), (529, "backend_overloaded")]
)
async def test_four_tries_are_all(autojump_clock, code, said):
    played = Waits(refused(code, "1"))
    error = await fail(played.runtime())
    assert (error.code, error.retry_after_s, len(played.moments)) == (said, 1.0, 4)


async def test_server_that_asks_for_a_long_wait_is_not_asked_again_and_the_error_says_how_long(
    autojump_clock,
):
    played = Waits(refused(429, "600"), ok())
    error = await fail(played.runtime())
    assert (error.code, error.retry_after_s, len(played.moments)) == ("rate_limited", 600.0, 1)


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout(""),
        httpx.ReadError(""),
        httpx.RemoteProtocolError("gone"),
    ],
)
async def test_lost_connection_is_tried_again(autojump_clock, failure):
    played = Waits(failure, ok())
    assert (await run(played.runtime())).text == "ok"


@pytest.mark.parametrize("failure", [httpx.ReadTimeout(""), httpx.LocalProtocolError("bad header")])
async def test_what_would_not_get_better_is_not_tried_again(autojump_clock, failure):
    played = Waits(failure, ok())
    await fail(played.runtime())
    assert len(played.moments) == 1


async def test_wait_between_tries_can_be_cancelled(autojump_clock):
    played = Waits(refused(429, "50"), ok())
    with trio.move_on_after(10) as scope:
        await run(played.runtime())
    assert scope.cancelled_caught
    assert len(played.moments) == 1


async def test_what_json_cannot_hold_is_an_error_of_the_request(server):
    with pytest.raises(BackendError, match="cannot be written as JSON"):
        await run(runtime_for(server), text="a\ud800")
    assert server.requests == []


async def test_last_error_is_shown_until_a_call_succeeds(server):
    server.script(status(400))
    runtime = runtime_for(server)
    assert runtime.status()["health"] == "unused"
    with pytest.raises(BackendError):
        await run(runtime)
    assert "400" in runtime.status()["health"]
    await run(runtime)
    assert runtime.status()["health"] == "ok"


def test_password_in_the_url_is_not_shown():
    runtime = AnthropicRuntime(Connection(KEY, "http://user:secret@model.test/prefix"))
    assert runtime.status()["base_url"] == "http://model.test/prefix"


def test_environment_sets_what_it_names():
    runtime = AnthropicRuntime.from_environment(
        {
            "ANTHROPIC_API_KEY": f" {KEY}\n",
            "ANTHROPIC_BASE_URL": "http://127.0.0.1:9/prefix/",
            "AGENT_RUNNER_MODEL": "claude-x",
            "AGENT_RUNNER_MAX_TOKENS": "1000",
            "AGENT_RUNNER_THINKING": "2048",
            "AGENT_RUNNER_READ_TIMEOUT": "5",
        }
    )
    assert runtime.connection == Connection(KEY, "http://127.0.0.1:9/prefix", read_timeout_s=5)
    assert runtime.settings == ModelSettings("claude-x", 1000, 2048)


def test_environment_with_only_a_key_is_enough():
    runtime = AnthropicRuntime.from_environment({"ANTHROPIC_API_KEY": KEY})
    assert runtime.connection.base_url == "https://api.anthropic.com"
    assert runtime.settings == ModelSettings(MODEL_DEFAULT, 32_000, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ANTHROPIC_API_KEY", ""),
        ("ANTHROPIC_API_KEY", "a key"),
        ("ANTHROPIC_API_KEY", "schlüssel"),
        ("ANTHROPIC_BASE_URL", "api.anthropic.com"),
        ("ANTHROPIC_BASE_URL", "ftp://x"),
        ("ANTHROPIC_BASE_URL", "http://[::1"),
        ("AGENT_RUNNER_MAX_TOKENS", "0"),
        ("AGENT_RUNNER_MAX_TOKENS", "many"),
        ("AGENT_RUNNER_THINKING", "1023"),
        ("AGENT_RUNNER_THINKING", "deep"),
        ("AGENT_RUNNER_READ_TIMEOUT", "-1"),
    ],
)
def test_environment_that_cannot_be_used_is_refused_by_name(name, value):
    with pytest.raises(ConfigurationError) as caught:
        AnthropicRuntime.from_environment({"ANTHROPIC_API_KEY": KEY, name: value})
    assert caught.value.path == name
    assert value == "" or name != "ANTHROPIC_API_KEY" or value not in str(caught.value)


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the recorded streams lie beside the project only")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("basic", ("Hello there!", [], "end_turn", (11, 6))),
        ("message_delta_fields", ("Hello there!", [], "end_turn", (40, 8))),
        ("tool_use", (WEATHER, [{"location": "Paris"}], "end_turn", (387, 70))),
        ("tool_use_invalid_json", (WEATHER, [{}], "end_turn", (387, 70))),
        ("incomplete_partial_json", (TAXES, [], "max_tokens", (450, 124))),
    ],
)
async def test_recorded_streams_over_http_give_the_right_events(server, name, expected):
    server.script(raw((FIXTURES / f"{name}.sse").read_bytes(), 100), says())
    host = await run(runtime_for(server))
    inputs = [arguments for _, arguments in host.called]
    assert (host.text, inputs, host.stop_reason, host.usage[-1]) == expected
