"""What supervisors promise: order, restarts, limits, and a stop in reverse."""

import random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from actors.kernel import (
    Actor,
    ActorDeadError,
    AskCycleError,
    AutoShutdown,
    Backoff,
    ChildExistsError,
    ChildSpec,
    ChildStartError,
    ChildStuckError,
    DynamicSupervisor,
    Intensity,
    Restart,
    RestartIntensityError,
    RootFailedError,
    Strategy,
    Supervisor,
    TooManyChildrenError,
    UnknownChildError,
    open_system,
)
from tests.actors.kernel.recorder import Recorder

PLENTY = Intensity(1000, 1.0)


def tree(log, names="abc", **options):
    fields = options.pop("fields", {})
    specs = [ChildSpec(name, lambda name=name: Recorder(log, name), **fields.get(name, {})) for name in names]
    return ChildSpec("root", lambda: Supervisor(specs, **options))


async def crash(ref):
    with pytest.raises(ActorDeadError):
        await ref.ask("crash")
    await wait_all_tasks_blocked()


async def test_children_start_in_order_each_when_the_last_is_up_and_stop_in_reverse(autojump_clock):
    log = []

    class Slow(Recorder):
        async def on_start(self):
            self.log.append(f"{self.name} starting")
            await trio.sleep(1)
            await super().on_start()

        async def on_stop(self):
            await trio.sleep(1)
            await super().on_stop()

    specs = [ChildSpec(name, lambda name=name: Slow(log, name)) for name in "abc"]
    async with open_system(ChildSpec("root", lambda: Supervisor(specs))):
        assert log == ["a starting", "a start", "b starting", "b start", "c starting", "c start"]
        log.clear()
    assert log == ["c stop", "b stop", "a stop"]


async def test_failed_first_start_stops_those_started_in_reverse_and_is_raised():
    log = []

    class Broken(Recorder):
        async def on_start(self):
            raise OSError("no port")

    specs = [ChildSpec(name, lambda name=name: Recorder(log, name)) for name in "ab"]
    specs += [ChildSpec("broken", lambda: Broken(log, "broken")), ChildSpec("c", lambda: Recorder(log, "c"))]
    with pytest.raises(ChildStartError) as caught:
        async with open_system(ChildSpec("root", lambda: Supervisor(specs))):
            raise AssertionError("the block must not run")
    assert isinstance(caught.value.__cause__, ChildStartError)
    assert isinstance(caught.value.__cause__.__cause__, OSError)
    assert log == ["a start", "b start", "broken failure OSError", "b stop", "a stop"]


@pytest.mark.parametrize(
    ("strategy", "downs", "ups"),
    [
        (Strategy.ONE_FOR_ONE, [], ["b start"]),
        (Strategy.REST_FOR_ONE, ["d stop", "c stop"], ["b start", "c start", "d start"]),
        (Strategy.ONE_FOR_ALL, ["d stop", "c stop", "a stop"], ["a start", "b start", "c start", "d start"]),
    ],
)
async def test_strategy_decides_who_restarts_with_a_crashed_child(strategy, downs, ups):
    log = []
    async with open_system(tree(log, "abcd", strategy=strategy)) as system:
        log.clear()
        await crash(system.supervisor.child("b"))
        assert log == ["b failure ValueError", *downs, *ups]


async def test_group_restart_leaves_down_what_had_ended_normally_and_forgets_the_temporary():
    log = []
    fields = {"a": {"restart": Restart.TRANSIENT}, "c": {"restart": Restart.TEMPORARY}}
    async with open_system(tree(log, strategy=Strategy.ONE_FOR_ALL, fields=fields)) as system:
        root = system.supervisor
        root.child("a").stop()
        await root.child("a").wait_stopped()
        temporary = root.child("c")
        log.clear()
        await crash(root.child("b"))
        assert log == ["b failure ValueError", "c stop", "b start"]
        assert not temporary.is_alive()
        assert root.child("c") is None


@pytest.mark.parametrize(
    ("restart", "generation"), [(Restart.PERMANENT, 2), (Restart.TRANSIENT, 1), (Restart.TEMPORARY, 1)]
)
async def test_restart_type_decides_over_a_normal_exit(restart, generation):
    log = []
    async with open_system(tree(log, "a", fields={"a": {"restart": restart}})) as system:
        ref = system.supervisor.child("a")
        ref.stop()
        await wait_all_tasks_blocked()
        assert ref.generation == generation
        assert ref.is_alive() is (generation == 2)


@pytest.mark.parametrize(
    ("restart", "generation"), [(Restart.PERMANENT, 2), (Restart.TRANSIENT, 2), (Restart.TEMPORARY, 1)]
)
@pytest.mark.parametrize("how", ["crash", "kill"])
async def test_restart_type_decides_over_an_abnormal_exit(restart, generation, how):
    log = []
    async with open_system(tree(log, "a", fields={"a": {"restart": restart}})) as system:
        ref = system.supervisor.child("a")
        ref.kill() if how == "kill" else ref.tell("crash")
        await wait_all_tasks_blocked()
        assert ref.generation == generation
        assert ref.is_alive() is (generation == 2)


async def test_more_than_the_allowed_restarts_escalate_and_the_tree_stops_in_reverse():
    log = []
    options = {"intensity": Intensity(2, 10), "backoff": Backoff(first_s=0)}
    with pytest.raises(RootFailedError) as caught:  # noqa: PT012  # what raises is the end of the block
        async with open_system(tree(log, **options)) as system:
            ref = system.supervisor.child("b")
            for allowed in (2, 3):
                await crash(ref)
                assert ref.generation == allowed
            log.clear()
            await crash(ref)
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, RestartIntensityError)
    assert isinstance(caught.value.__cause__.__cause__, ValueError)
    assert log == ["b failure ValueError", "c stop", "a stop"]


@pytest.mark.parametrize(("gap_s", "survives"), [(10.0, False), (10.001, True)])
async def test_window_slides_and_its_edge_belongs_to_it(gap_s, survives, autojump_clock):
    log = []
    options = {"intensity": Intensity(1, 10), "backoff": Backoff(first_s=0)}
    root = ChildSpec("root", lambda: Supervisor([ChildSpec("middle", tree(log, "a", **options).factory)]))
    async with open_system(root) as system:
        middle = system.supervisor.supervisor("middle")
        ref = middle.child("a")
        await crash(ref)
        await trio.sleep(gap_s)
        await crash(ref)
        assert middle.generation == (1 if survives else 2)


async def test_addresses_below_a_restarted_supervisor_stay_and_keep_their_mail(autojump_clock):
    log = []
    options = {"intensity": Intensity(0, 10)}
    backoff = Backoff(first_s=5, jitter=0)
    root = ChildSpec(
        "root",
        lambda: Supervisor(
            [ChildSpec("middle", tree(log, "ab", **options).factory)],
            intensity=Intensity(9, 1),
            backoff=backoff,
        ),
    )
    async with open_system(root) as system:
        middle = system.supervisor.supervisor("middle")
        a, b = middle.child("a"), middle.child("b")
        await crash(a)
        assert middle.generation == 2
        await crash(a)
        assert middle.state == "waiting"
        b.tell("sent while all of it was down")
        assert await b.ask("answered afterwards") == "answered afterwards"
        assert log[-2:] == ["sent while all of it was down", "answered afterwards"]
        assert (middle.child("a"), middle.child("b")) == (a, b)


async def test_first_restart_is_immediate_and_later_ones_back_off_exponentially(autojump_clock):
    log = []
    backoff = Backoff(first_s=1, factor=2, max_s=5, jitter=0)
    async with open_system(tree(log, "a", intensity=Intensity(99, 1000), backoff=backoff)) as system:
        ref = system.supervisor.child("a")
        waits = []
        for _ in range(5):
            with pytest.raises(ActorDeadError):
                await ref.ask("crash")
            crashed_at = trio.current_time()
            await ref.ask("up?")
            waits.append(trio.current_time() - crashed_at)
        assert waits == pytest.approx([0, 1, 2, 4, 5])


async def test_jitter_comes_from_the_injected_generator():
    backoff = Backoff(first_s=1, jitter=0.5)
    delays = [backoff.delay_s(2, random.Random(seed)) for seed in range(50)]
    assert delays == [backoff.delay_s(2, random.Random(seed)) for seed in range(50)]
    assert 0.5 <= min(delays) < 0.7
    assert 1.3 < max(delays) <= 1.5
    assert backoff.delay_s(10_000, random.Random(1)) <= 45


async def test_backoff_of_one_child_delays_no_sibling(autojump_clock):
    log = []
    backoff = Backoff(first_s=1000, max_s=1000, jitter=0)
    async with open_system(tree(log, "ab", intensity=PLENTY, backoff=backoff)) as system:
        root = system.supervisor
        a, b = root.child("a"), root.child("b")
        await crash(a)
        await crash(a)
        assert a.state == "waiting"
        assert a.is_alive()
        await crash(b)
        assert await b.ask("at once") == "at once"
        extra = await root.start_child(ChildSpec("c", lambda: Recorder(log, "c")))
        assert await extra.ask("at once too") == "at once too"
        assert trio.current_time() == 0


async def test_slow_restart_of_one_child_delays_no_sibling(autojump_clock):
    log = []

    class SlowToComeBack(Recorder):
        async def on_start(self):
            if log.count("slow start"):
                await trio.sleep(1000)
            await super().on_start()

    specs = [
        ChildSpec("slow", lambda: SlowToComeBack(log, "slow")),
        ChildSpec("b", lambda: Recorder(log, "b")),
    ]
    async with open_system(ChildSpec("root", lambda: Supervisor(specs))) as system:
        await crash_without_waiting(system.supervisor.child("slow"))
        await crash_without_waiting(system.supervisor.child("b"))
        assert await system.supervisor.child("b").ask("at once") == "at once"
        assert trio.current_time() == 0


async def crash_without_waiting(ref):
    with pytest.raises(ActorDeadError):
        await ref.ask("crash")


async def test_crash_in_on_start_of_a_restart_is_tried_again_until_the_window_is_full(autojump_clock):
    log = []

    class BreaksLater(Recorder):
        async def on_start(self):
            self.log.append("try")
            if len(self.log) > 1:
                raise OSError("gone")

    spec = ChildSpec("a", lambda: BreaksLater(log))
    with pytest.raises(RootFailedError):  # noqa: PT012  # what raises is the end of the block
        async with open_system(
            ChildSpec("root", lambda: Supervisor([spec], intensity=Intensity(3, 60)))
        ) as system:
            system.supervisor.child("a").tell("crash")
            await trio.sleep_forever()
    assert log.count("try") == 4


async def test_factory_that_raises_on_a_restart_counts_as_a_crash(autojump_clock):
    log = []

    def build():
        log.append("built")
        if len(log) == 2:
            raise OSError("not now")
        return Recorder([])

    async with open_system(ChildSpec("root", lambda: Supervisor([ChildSpec("a", build)]))) as system:
        ref = system.supervisor.child("a")
        await crash_without_waiting(ref)
        assert await ref.ask("third time") == "third time"
        assert ref.generation == 3


async def test_factory_that_returns_the_same_object_is_refused():
    log = []
    actor = Recorder(log)
    with pytest.raises(RootFailedError):  # noqa: PT012  # what raises is the end of the block
        async with open_system(
            ChildSpec("root", lambda: Supervisor([ChildSpec("a", lambda: actor)], intensity=Intensity(1, 5)))
        ) as system:
            system.supervisor.child("a").tell("crash")
            await trio.sleep_forever()
    assert log.count("actor start") == 1


@pytest.mark.parametrize("hook", ["on_stop", "on_failure"])
async def test_crash_in_a_last_hook_is_a_crash_and_restarts(hook):
    log = []

    class Clumsy(Recorder):
        async def on_stop(self):
            if hook == "on_stop" and log.count("a start") == 1:
                raise OSError("in on_stop")

        async def on_failure(self, exception_type, exception_value, traceback):
            if hook == "on_failure":
                raise OSError("in on_failure")

    spec = ChildSpec("a", lambda: Clumsy(log, "a"), restart=Restart.TRANSIENT)
    async with open_system(ChildSpec("root", lambda: Supervisor([spec]))) as system:
        ref = system.supervisor.child("a")
        if hook == "on_stop":
            ref.stop()
        else:
            ref.tell("crash")
        await wait_all_tasks_blocked()
        assert await ref.ask("up again") == "up again"
        assert ref.generation == 2


async def test_on_start_never_runs_while_the_old_on_stop_does(autojump_clock):
    log = []

    class SlowStop(Recorder):
        async def on_stop(self):
            self.log.append("stopping")
            await trio.sleep(30)
            await super().on_stop()

    spec = ChildSpec("a", lambda: SlowStop(log, "a"), shutdown_s=60)
    async with open_system(ChildSpec("root", lambda: Supervisor([spec]))) as system:
        ref = system.supervisor.child("a")
        ref.stop()
        await ref.ask("after")
        assert log == ["a start", "stopping", "a stop", "a start", "after"]


async def test_crashes_at_one_instant_are_each_restarted_once():
    log = []
    names = "abcdefgh"
    async with open_system(tree(log, names, intensity=PLENTY)) as system:
        refs = [system.supervisor.child(name) for name in names]
        for ref in refs:
            ref.tell("crash")
        await wait_all_tasks_blocked()
        assert [ref.generation for ref in refs] == [2] * len(refs)


async def test_crashes_at_one_instant_in_a_group_are_one_restart():
    log = []
    options = {"strategy": Strategy.ONE_FOR_ALL, "intensity": Intensity(1, 60)}
    async with open_system(tree(log, "abcd", **options)) as system:
        refs = [system.supervisor.child(name) for name in "abcd"]
        for ref in refs:
            ref.tell("crash")
        await wait_all_tasks_blocked()
        assert [ref.generation for ref in refs] == [2] * 4
        assert system.root.generation == 1


async def test_own_window_parks_one_child_and_leaves_the_others_alone(autojump_clock):
    log = []
    fields = {"a": {"intensity": Intensity(2, 100), "park": True}}
    options = {"intensity": Intensity(0, 100), "backoff": Backoff(first_s=0)}
    async with open_system(tree(log, "ab", fields=fields, **options)) as system:
        root = system.supervisor
        a, b = root.child("a"), root.child("b")
        for _ in range(3):
            await crash(a)
        assert a.state == "parked"
        assert await b.ask("here") == "here"
        node = system.tree().find("root/a")
        assert (node.state, node.restarts_in_window, node.generation) == ("parked", 3, 3)
        assert node.last_reason == "crashed: ValueError: told to crash"
        assert await root.retry("a")
        assert await a.ask("back") == "back"
        assert not await root.retry("a")
        for _ in range(2):
            await crash(a)
        assert a.state == "idle"


async def test_kill_during_backoff_changes_nothing_and_retry_cuts_it_short(autojump_clock):
    log = []
    backoff = Backoff(first_s=1000, max_s=1000, jitter=0)
    async with open_system(tree(log, "a", intensity=PLENTY, backoff=backoff)) as system:
        ref = system.supervisor.child("a")
        await crash(ref)
        await crash(ref)
        ref.kill()
        await wait_all_tasks_blocked()
        assert ref.state == "waiting"
        assert await system.supervisor.retry("a")
        assert await ref.ask("early") == "early"
        assert trio.current_time() == 0
        await trio.sleep(2000)
        assert ref.generation == 3


async def test_stop_during_backoff_ends_a_transient_child_for_good(autojump_clock):
    log = []
    backoff = Backoff(first_s=10, jitter=0)
    fields = {"a": {"restart": Restart.TRANSIENT}}
    async with open_system(tree(log, "a", intensity=PLENTY, backoff=backoff, fields=fields)) as system:
        ref = system.supervisor.child("a")
        await crash(ref)
        await crash(ref)
        ref.stop()
        await ref.wait_stopped()
        assert not ref.is_alive()


async def test_terminated_child_stays_down_and_restart_child_revives_its_address():
    log = []
    async with open_system(tree(log, "ab")) as system:
        root = system.supervisor
        ref = root.child("a")
        await root.terminate_child("a")
        assert log[-1] == "a stop"
        assert not ref.is_alive()
        with pytest.raises(ActorDeadError):
            await ref.ask("anyone?")
        assert await root.restart_child("a") is ref
        assert await ref.ask("again") == "again"
        with pytest.raises(ChildExistsError):
            await root.restart_child("a")
        with pytest.raises(ChildExistsError):
            await root.delete_child("a")
        await root.terminate_child("a")
        await root.delete_child("a")
        assert root.child("a") is None
        for command in (root.terminate_child, root.restart_child, root.delete_child, root.retry):
            with pytest.raises(UnknownChildError):
                await command("a")


async def test_terminate_during_backoff_wins_over_the_timer(autojump_clock):
    log = []
    backoff = Backoff(first_s=10, jitter=0)
    async with open_system(tree(log, "a", intensity=PLENTY, backoff=backoff)) as system:
        ref = system.supervisor.child("a")
        await crash(ref)
        await crash(ref)
        await system.supervisor.terminate_child("a")
        await trio.sleep(100)
        assert not ref.is_alive()
        assert log.count("a start") == 2


async def test_shutdown_during_backoff_ends_at_once(autojump_clock):
    log = []
    backoff = Backoff(first_s=1000, max_s=1000, jitter=0)
    async with open_system(tree(log, "ab", intensity=PLENTY, backoff=backoff)) as system:
        ref = system.supervisor.child("a")
        await crash(ref)
        await crash(ref)
    assert trio.current_time() == 0
    assert log[-1] == "b stop"


async def test_each_child_has_its_own_shutdown_deadline_and_is_then_cancelled(autojump_clock):
    log = []

    class Lingering(Recorder):
        async def on_stop(self):
            try:
                await trio.sleep_forever()
            finally:
                self.log.append((self.name, trio.current_time()))

    specs = [
        ChildSpec(name, lambda name=name: Lingering(log, name), shutdown_s=seconds)
        for name, seconds in (("a", 2), ("b", 0), ("c", 7))
    ]
    async with open_system(ChildSpec("root", lambda: Supervisor(specs))):
        log.clear()
    assert log == [("c", 7), ("a", 9)]


async def test_child_that_ignores_cancellation_is_reported_and_the_others_still_stop(autojump_clock):
    log = []

    class Stubborn(Recorder):
        async def on_stop(self):
            with trio.CancelScope(shield=True):
                await trio.sleep(1000)

    specs = [
        ChildSpec("a", lambda: Recorder(log, "a")),
        ChildSpec("b", lambda: Stubborn(log, "b"), shutdown_s=1),
        ChildSpec("c", lambda: Recorder(log, "c")),
    ]
    reported = []
    async with (
        open_system(ChildSpec("root", lambda: Supervisor(specs)), on_stuck=reported.append) as system,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(system.stop)
        await trio.sleep(30)
        assert log[-2:] == ["c stop", "a stop"]
        assert system.stuck == ["root/b"]
        assert reported == [["root/b"]]


async def test_outer_cancellation_becomes_an_orderly_stop_in_reverse(autojump_clock):
    log = []

    class SlowStop(Recorder):
        async def on_stop(self):
            await trio.sleep(1)
            await super().on_stop()

    specs = [ChildSpec(name, lambda name=name: SlowStop(log, name)) for name in "abc"]
    with trio.move_on_after(10) as scope:
        async with open_system(ChildSpec("root", lambda: Supervisor(specs))):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert log[3:] == ["c stop", "b stop", "a stop"]
    assert trio.current_time() == 13


async def test_outer_cancellation_while_a_child_starts_is_an_orderly_stop(autojump_clock):
    log = []

    class Hangs(Recorder):
        async def on_start(self):
            await trio.sleep_forever()

    specs = [
        ChildSpec("a", lambda: Recorder(log, "a")),
        ChildSpec("b", lambda: Hangs(log, "b"), shutdown_s=2),
    ]
    with trio.move_on_after(1):
        async with open_system(ChildSpec("root", lambda: Supervisor(specs))):
            raise AssertionError("the block must not run")
    assert log == ["a start", "a stop"]
    assert trio.current_time() == 3


async def test_nested_supervisors_stop_in_reverse_as_one_tree():
    log = []

    def inner(prefix):
        return Supervisor([ChildSpec(n, lambda n=n: Recorder(log, f"{prefix}{n}")) for n in "12"])

    specs = [ChildSpec(name, lambda name=name: inner(name)) for name in "xy"]
    async with open_system(ChildSpec("root", lambda: Supervisor(specs))):
        log.clear()
    assert log == ["y2 stop", "y1 stop", "x2 stop", "x1 stop"]


async def test_crash_of_the_supervisors_own_code_stops_its_children_and_restarts_them():
    log = []

    class Faulty(Supervisor):
        async def on_receive(self, message):
            if message == "crash":
                raise ValueError("a bug in the supervisor")
            return await super().on_receive(message)

    inner = ChildSpec("inner", lambda: Faulty([ChildSpec(n, lambda n=n: Recorder(log, n)) for n in "ab"]))
    async with open_system(ChildSpec("root", lambda: Supervisor([inner]))) as system:
        a = system.supervisor.supervisor("inner").child("a")
        await crash(system.supervisor.child("inner"))
        assert log == ["a start", "b start", "b stop", "a stop", "a start", "b start"]
        assert await a.ask("same address") == "same address"


async def test_killed_supervisor_takes_its_children_with_it_without_hooks():
    log = []
    inner = ChildSpec("inner", tree(log, "ab").factory)
    async with open_system(ChildSpec("root", lambda: Supervisor([inner]))) as system:
        system.supervisor.child("inner").kill()
        await wait_all_tasks_blocked()
        assert log == ["a start", "b start", "a start", "b start"]


async def test_ask_to_the_own_supervisor_from_on_start_is_a_cycle():
    log = []

    class Asks(Recorder):
        async def on_start(self):
            with pytest.raises(AskCycleError):
                await self.ref.parent.ask("anything")
            await super().on_start()

    async with open_system(ChildSpec("root", lambda: Supervisor([ChildSpec("a", lambda: Asks(log, "a"))]))):
        assert log == ["a start"]


@pytest.mark.parametrize(
    ("mode", "stops_needed"), [(AutoShutdown.ANY_SIGNIFICANT, 1), (AutoShutdown.ALL_SIGNIFICANT, 2)]
)
async def test_significant_children_take_their_supervisor_down(mode, stops_needed):
    log = []
    fields = {name: {"restart": Restart.TRANSIENT, "significant": True} for name in "ab"}
    inner = tree(log, "abc", auto_shutdown=mode, fields=fields)
    specs = [ChildSpec("inner", inner.factory, restart=Restart.TRANSIENT)]
    async with open_system(ChildSpec("root", lambda: Supervisor(specs))) as system:
        middle = system.supervisor.supervisor("inner")
        for number, name in enumerate("ab", 1):
            assert middle.is_alive() is (number <= stops_needed)
            if middle.is_alive():
                middle.child(name).stop()
                await wait_all_tasks_blocked()
        assert not middle.is_alive()
        assert "c stop" in log


async def test_impossible_specs_are_refused():
    with pytest.raises(ValueError, match="same id"):
        Supervisor([ChildSpec("a", Actor), ChildSpec("a", Actor)])
    with pytest.raises(ValueError, match="parked"):
        Supervisor([ChildSpec("a", Actor, park=True)], strategy=Strategy.ONE_FOR_ALL)
    with pytest.raises(ValueError, match="significant"):
        Supervisor([ChildSpec("a", Actor, restart=Restart.TRANSIENT, significant=True)])
    with pytest.raises(ValueError, match="permanent"):
        ChildSpec("a", Actor, significant=True)
    with pytest.raises(ValueError, match="shutdown_s"):
        ChildSpec("a", Actor, shutdown_s=-1)


# -- dynamic supervisors ---------------------------------------------------------------------------------------------


async def test_dynamic_children_are_found_by_id_and_forgotten_when_they_end():
    log = []
    async with open_system(ChildSpec("root", lambda: DynamicSupervisor(max_children=2))) as system:
        root = system.supervisor
        spec = ChildSpec("k", lambda: Recorder(log, "k"), restart=Restart.TRANSIENT)
        ref = await root.start_child(spec)
        assert root.child("k") is ref
        with pytest.raises(ChildExistsError) as caught:
            await root.start_child(spec)
        assert caught.value.ref is ref
        await root.start_child(ChildSpec("other", lambda: Recorder(log)))
        with pytest.raises(TooManyChildrenError):
            await root.start_child(ChildSpec("third", lambda: Recorder(log)))
        await crash(ref)
        assert root.child("k") is ref
        ref.stop()
        await ref.wait_stopped()
        assert root.child("k") is None
        again = await root.start_child(spec)
        assert again is not ref


async def test_dynamic_start_failure_is_the_callers_and_leaves_nothing():
    class Broken(Actor):
        async def on_start(self):
            raise OSError("no")

    def cannot_build():
        raise OSError("not even built")

    async with open_system(ChildSpec("root", DynamicSupervisor)) as system:
        for factory in (Broken, cannot_build):
            with pytest.raises(ChildStartError) as caught:
                await system.supervisor.start_child(ChildSpec("x", factory))
            assert isinstance(caught.value.__cause__, OSError)
            await wait_all_tasks_blocked()
            assert system.supervisor.child("x") is None
        assert system.root.generation == 1


async def test_slow_dynamic_start_holds_up_no_other(autojump_clock):
    log = []

    class Slow(Recorder):
        async def on_start(self):
            await trio.sleep(100)

    async with open_system(ChildSpec("root", DynamicSupervisor)) as system, trio.open_nursery() as nursery:
        nursery.start_soon(system.supervisor.start_child, ChildSpec("slow", lambda: Slow(log)))
        await trio.sleep(1)
        await system.supervisor.start_child(ChildSpec("quick", lambda: Recorder(log)))
        assert trio.current_time() == 1


async def test_dynamic_shutdown_asks_all_at_once_and_keeps_each_deadline(autojump_clock):
    log = []

    class Lingering(Recorder):
        async def on_stop(self):
            try:
                await trio.sleep_forever()
            finally:
                self.log.append((self.name, trio.current_time()))

    async with open_system(ChildSpec("root", DynamicSupervisor)) as system:
        for name, seconds in (("a", 9), ("b", 2), ("c", 5)):
            await system.supervisor.start_child(
                ChildSpec(name, lambda name=name: Lingering(log, name), shutdown_s=seconds)
            )
        log.clear()
    assert log == [("b", 2), ("c", 5), ("a", 9)]


async def test_dynamic_children_end_with_their_supervisors_incarnation():
    log = []
    inner = ChildSpec("inner", DynamicSupervisor)
    async with open_system(ChildSpec("root", lambda: Supervisor([inner]))) as system:
        dynamic = system.supervisor.supervisor("inner")
        ref = await dynamic.start_child(ChildSpec("k", lambda: Recorder(log, "k")))
        dynamic.stop()
        await wait_all_tasks_blocked()
        assert dynamic.generation == 2
        assert not ref.is_alive()
        assert dynamic.child("k") is None


async def test_timer_of_an_earlier_backoff_does_not_cut_a_later_one_short(autojump_clock):
    log = []
    backoff = Backoff(first_s=10, factor=4, max_s=1000, jitter=0)
    async with open_system(tree(log, "a", intensity=PLENTY, backoff=backoff)) as system:
        root = system.supervisor
        ref = root.child("a")
        await crash(ref)
        await crash(ref)  # due at 10
        await root.retry("a")
        await crash(ref)  # the first in its row again: at once
        await crash(ref)  # due at 10
        await trio.sleep(5)
        await root.retry("a")
        await crash(ref)
        await crash(ref)  # due at 15
        assert ref.state == "waiting"
        await trio.sleep(6)
        assert ref.state == "waiting"
        await trio.sleep(5)
        assert ref.state == "idle"


async def test_stuck_child_can_be_terminated_without_harm_to_its_siblings(autojump_clock):
    log = []

    class Stubborn(Recorder):
        async def on_stop(self):
            with trio.CancelScope(shield=True):
                await trio.sleep(100)

    async with open_system(ChildSpec("root", DynamicSupervisor)) as system:
        root = system.supervisor
        stuck = await root.start_child(ChildSpec("stuck", lambda: Stubborn(log), shutdown_s=1))
        other = await root.start_child(ChildSpec("other", lambda: Recorder(log)))
        with pytest.raises(ChildStuckError):
            await root.terminate_child("stuck")
        assert not stuck.is_alive()
        assert root.child("stuck") is None
        assert await other.ask("here") == "here"
        assert (root.generation, other.generation) == (1, 1)
        await trio.sleep(200)
        assert not stuck.is_alive()


async def test_passive_and_ended_members_are_left_out_of_a_group_restart():
    log = []
    fields = {"a": {"restart": Restart.TRANSIENT}}
    async with open_system(tree(log, strategy=Strategy.ONE_FOR_ALL, fields=fields)) as system:
        root = system.supervisor

        async def leave(actor):
            actor.passivate()

        root.child("c").tell(("run", leave))
        root.child("a").stop()
        await wait_all_tasks_blocked()
        await crash(root.child("b"))
        assert root.child("c").state == "passive"
        assert [root.child(name).generation for name in "abc"] == [1, 2, 1]
        assert await root.child("c").ask("wakes") == "wakes"


async def test_endless_starting_and_stopping_leaves_nothing_behind():
    log = []
    async with open_system(ChildSpec("root", DynamicSupervisor)) as system:
        root = system.supervisor
        for number in range(200):
            ref = await root.start_child(
                ChildSpec(str(number), lambda: Recorder(log), restart=Restart.TEMPORARY)
            )
            ref.stop() if number % 2 else ref.kill()
            await ref.wait_stopped()
        await wait_all_tasks_blocked()
        assert not root.children
        assert len(system.nursery.child_tasks) == 1


async def test_a_question_to_a_member_of_a_restarting_group_is_answered_and_holds_nobody_up(autojump_clock):
    """Who may be waited for by the supervisor must not wait for what it is about to start."""
    log, answers = [], []

    class Persistent(Recorder):
        async def on_stop(self):
            a = self.ref.parent.child("a")
            with trio.CancelScope(shield=True):
                try:
                    answers.append(await a.ask("ping"))
                except ActorDeadError:
                    answers.append("dead")
            await super().on_stop()

    specs = [
        ChildSpec("a", lambda: Recorder(log, "a")),
        ChildSpec("b", lambda: Persistent(log, "b"), shutdown_s=2),
    ]
    root = ChildSpec("root", lambda: Supervisor(specs, strategy=Strategy.REST_FOR_ONE))
    async with open_system(root) as system:
        a, b = system.supervisor.child("a"), system.supervisor.child("b")
        a.tell("crash")
        a.tell("kept")
        await wait_all_tasks_blocked()
        assert answers == ["dead"]
        assert (a.generation, b.generation) == (2, 2)
        assert log.count("kept") == 1
        assert trio.current_time() < 1
        assert await a.ask("ping") == "ping"
    assert system.stuck == []


async def test_a_child_that_asks_in_on_start_who_has_just_died_does_not_wait_for_its_restart(autojump_clock):
    """Its supervisor waits for it, and would bring the other back only afterwards."""
    log = []

    class Brief(Recorder):
        async def on_start(self):
            await super().on_start()
            if self.ref.generation == 1:
                self.start_task(self.fail)

        async def fail(self):
            raise OSError("as soon as it was up")

    class Curious(Recorder):
        async def on_start(self):
            await trio.sleep(1)
            await self.ref.parent.child("a").ask("ping")

    for wait_s in (0, 0.5):

        class Waiting(Brief):
            async def fail(self, wait_s=wait_s):
                await trio.sleep(wait_s)
                await super().fail()

        specs = [ChildSpec("a", lambda: Waiting(log, "a")), ChildSpec("b", lambda: Curious(log, "b"))]
        with trio.fail_after(10), pytest.raises(ChildStartError):
            async with open_system(
                ChildSpec("root", lambda specs=specs: Supervisor(specs, strategy=Strategy.REST_FOR_ONE))
            ):
                pass
