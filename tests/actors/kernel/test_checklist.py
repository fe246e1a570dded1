"""What else goes wrong in supervised trees: several things at one instant, and every hook at every moment."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from actors.kernel import (
    Actor,
    ActorDeadError,
    ActorParkedError,
    AskTimeoutError,
    Backoff,
    ChildSpec,
    ChildStartError,
    DynamicSupervisor,
    Intensity,
    MailboxFullError,
    Overflow,
    Restart,
    RestartIntensityError,
    RootFailedError,
    Strategy,
    Supervisor,
    open_system,
)
from tests.actors.kernel.recorder import Recorder, one

PLENTY = Intensity(1000, 1.0)
AT_ONCE = Backoff(first_s=0.0)


class Troubled(Recorder):
    """A recorder that raises in the hooks that `faults` names, in the incarnations that it names for them."""

    def __init__(self, log, name, faults):
        super().__init__(log, name)
        self.faults = faults

    def meet(self, hook):
        if self.ref.generation in self.faults.get((self.name, hook), ()):
            self.log.append(f"{self.name} {hook} raises")
            raise OSError(f"in {hook}")

    async def on_start(self):
        self.meet("on_start")
        await super().on_start()

    async def on_drain(self):
        self.meet("on_drain")

    async def on_stop(self):
        self.meet("on_stop")
        await super().on_stop()

    async def on_failure(self, exception_type, exception_value, traceback):
        self.meet("on_failure")
        await super().on_failure(exception_type, exception_value, traceback)


def troubled(log, names, faults, fields=None, **options):
    specs = [
        ChildSpec(name, lambda name=name: Troubled(log, name, faults), **(fields or {})) for name in names
    ]
    return ChildSpec("root", lambda: Supervisor(specs, **{"backoff": AT_ONCE, **options}))


async def crash(ref):
    ref.tell("crash")
    await wait_all_tasks_blocked()


# --- crashes in the hooks


@pytest.mark.parametrize("strategy", [Strategy.REST_FOR_ONE, Strategy.ONE_FOR_ALL])
async def test_member_that_does_not_start_again_takes_its_group_down_once_more(strategy):
    log = []
    faults = {("c", "on_start"): (2,)}
    async with open_system(troubled(log, "abcd", faults, strategy=strategy, intensity=PLENTY)) as system:
        refs = [system.supervisor.child(name) for name in "abcd"]
        await crash(refs[1])
        assert [ref.state for ref in refs] == ["idle"] * 4
        begun = log[log.index("b failure ValueError") + 1 :]
        # Nobody behind the one that failed was started before it was up in a second round.
        assert begun.index("c on_start raises") < begun.index("c start") < begun.index("d start")
        assert begun.count("d start") == 1
        assert refs[2].generation == 3


async def test_crash_in_on_failure_of_a_first_start_is_the_callers_with_the_first_fault():
    log = []
    faults = {("x", "on_start"): (1,), ("x", "on_failure"): (1,)}
    async with open_system(troubled(log, "a", {})) as system:
        with pytest.raises(ChildStartError) as caught:
            await system.supervisor.start_child(ChildSpec("x", lambda: Troubled(log, "x", faults)))
        assert str(caught.value.__cause__) == "in on_start"
        await wait_all_tasks_blocked()
        assert system.supervisor.child("x") is None
        assert system.supervisor.child("a").state == "idle"


@pytest.mark.parametrize("hook", ["on_drain", "on_stop"])
async def test_crash_in_a_last_hook_at_shutdown_stops_the_others_and_is_no_failure_of_the_tree(hook):
    log = []
    async with open_system(troubled(log, "abc", {("b", hook): (1,)})):
        log.clear()
    ended = {"on_drain": "b failure OSError"}.get(hook)
    assert [line for line in log if line != ended] == ["c stop", f"b {hook} raises", "a stop"]


@pytest.mark.parametrize("hook", ["on_drain", "on_stop"])
async def test_crash_in_a_last_hook_of_a_terminated_child_is_not_a_reason_to_restart_it(hook):
    log = []
    async with open_system(troubled(log, "ab", {("b", hook): (1,)}, intensity=Intensity(0, 1.0))) as system:
        b = system.supervisor.child("b")
        await system.supervisor.terminate_child("b")
        await wait_all_tasks_blocked()
        assert not b.is_alive()
        assert log.count("b start") == 1
        assert (await system.supervisor.restart_child("b")) is b
        assert await b.ask("again") == "again"


async def test_crash_in_on_drain_of_a_normal_exit_is_a_crash_and_restarts():
    log = []
    async with open_system(
        troubled(log, "a", {("a", "on_drain"): (1,)}, {"restart": Restart.TRANSIENT})
    ) as system:
        a = system.supervisor.child("a")
        a.stop()
        await wait_all_tasks_blocked()
        assert a.generation == 2
        assert await a.ask("up") == "up"


# --- the supervisor itself


async def test_crash_of_a_supervisors_own_task_stops_its_children_in_reverse_and_restarts_them():
    log = []

    async def fail():
        raise ValueError("a bug beside the loop")

    class Faulty(Supervisor):
        async def on_receive(self, message):
            if message == "task":
                self.start_task(fail)
                return None
            return await super().on_receive(message)

    inner = ChildSpec("inner", lambda: Faulty([ChildSpec(n, lambda n=n: Recorder(log, n)) for n in "ab"]))
    async with open_system(ChildSpec("root", lambda: Supervisor([inner]))) as system:
        a = system.supervisor.supervisor("inner").child("a")
        system.supervisor.child("inner").tell("task")
        await wait_all_tasks_blocked()
        assert log == ["a start", "b start", "b stop", "a stop", "a start", "b start"]
        assert await a.ask("same address") == "same address"


async def test_crash_of_a_dynamic_supervisor_answers_everybody_who_asked_below_it(autojump_clock):
    class Faulty(DynamicSupervisor):
        async def on_receive(self, message):
            if message == "crash":
                raise ValueError("a bug in the supervisor")
            return await super().on_receive(message)

    async with open_system(ChildSpec("root", lambda: Supervisor([ChildSpec("d", Faulty)]))) as system:
        below = system.supervisor.supervisor("d")
        refs = [await below.start_child(ChildSpec(str(n), lambda: Recorder([]))) for n in range(5)]
        dead = []

        async def ask(ref):
            with pytest.raises(ActorDeadError):
                await ref.ask(("sleep", 1e9))
            dead.append(ref)

        async with trio.open_nursery() as nursery:
            for ref in refs:
                nursery.start_soon(ask, ref)
            await wait_all_tasks_blocked()
            below.tell("crash")
        await wait_all_tasks_blocked()
        assert len(dead) == 5
        assert below.generation == 2
        assert (below.children or {}) == {}


async def test_escalation_climbs_to_the_root_when_every_level_is_out_of_restarts():
    log = []

    def level(name, below, **options):
        return ChildSpec(name, lambda: Supervisor([below], backoff=AT_ONCE, **options))

    leaf = ChildSpec("leaf", lambda: Recorder(log, "leaf"))
    low = level("low", leaf, intensity=Intensity(1, 60.0))
    middle = level("middle", low, intensity=Intensity(1, 60.0))
    root = level("root", middle, intensity=Intensity(1, 60.0))
    crashes = 0

    async def until_it_ends():
        nonlocal crashes
        async with open_system(root) as system:
            found = system.supervisor.find("middle/low/leaf")
            while True:
                crashes += 1
                await crash(found)

    with pytest.raises(RootFailedError) as caught:
        await until_it_ends()
    # Two lives for each level: 2 * 2 * 2 crashes of the leaf use them all up.
    assert crashes == 8
    assert log.count("leaf start") == 8
    causes = []
    cause = caught.value.__cause__
    while cause is not None:
        causes.append(type(cause))
        cause = cause.__cause__
    assert causes == [RestartIntensityError] * 3 + [ValueError]


async def test_more_crashes_at_one_instant_than_are_allowed_escalate_once():
    log = []
    specs = [ChildSpec(n, lambda n=n: Recorder(log, n)) for n in "abcdef"]
    middle = ChildSpec("middle", lambda: Supervisor(specs, intensity=Intensity(3, 60.0), backoff=AT_ONCE))
    async with open_system(ChildSpec("root", lambda: Supervisor([middle]))) as system:
        found = system.supervisor.supervisor("middle")
        refs = [found.child(n) for n in "abcdef"]
        for ref in refs:
            ref.tell("crash")
        await wait_all_tasks_blocked()
        assert found.generation == 2
        assert [ref.state for ref in refs] == ["idle"] * 6
        for ref in refs:
            assert await ref.ask("up") == "up"


# --- clocks and edges


@pytest.mark.parametrize(("gap_s", "state"), [(10.0, "parked"), (10.001, "idle")])
async def test_edge_of_a_childs_own_window_belongs_to_it(gap_s, state, autojump_clock):
    spec = ChildSpec("a", lambda: Recorder([]), intensity=Intensity(1, 10.0), park=True)
    async with open_system(ChildSpec("root", lambda: Supervisor([spec], backoff=AT_ONCE))) as system:
        a = system.supervisor.child("a")
        await crash(a)
        await trio.sleep(gap_s)
        await crash(a)
        assert a.state == state


async def test_jump_of_the_clock_ends_every_wait_once(mock_clock):
    """As after a machine that was stopped and goes on: everything that was due is due at one instant."""
    log = []

    class Idler(Recorder):
        passivate_after_s = 60.0

    specs = [
        ChildSpec("a", lambda: Recorder(log, "a"), intensity=Intensity(2, 10.0), park=True),
        ChildSpec("b", lambda: Idler(log, "b")),
        ChildSpec("c", lambda: Recorder(log, "c")),
    ]
    backoff = Backoff(first_s=5.0, jitter=0.0)
    timed_out = []
    async with open_system(ChildSpec("root", lambda: Supervisor(specs, backoff=backoff))) as system:
        a, b, c = (system.supervisor.child(n) for n in "abc")
        await crash(a)
        await crash(a)
        assert a.state == "waiting"

        async def ask_in_vain():
            with pytest.raises(AskTimeoutError):
                await c.ask(("sleep", 100), timeout_s=30.0)
            timed_out.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_in_vain)
            await wait_all_tasks_blocked()
            mock_clock.jump(1e6)
            await wait_all_tasks_blocked()
        assert timed_out == [1e6]
        assert (a.state, a.generation) == ("idle", 3)
        assert b.state == "passive"
        # The crashes before the jump are out of the window; the row of back-offs ends with a life, not with time.
        await crash(a)
        assert (a.state, a.generation) == ("waiting", 3)
        assert system.tree().find("root/a").restarts_in_window == 1
        assert await b.ask("back") == "back"


@pytest.mark.parametrize("first", ["the timer", "the stop"])
async def test_restart_that_is_due_in_the_moment_of_the_shutdown_leaves_nothing_running(
    first, autojump_clock
):
    log = []
    backoff = Backoff(first_s=10.0, jitter=0.0)
    spec = ChildSpec(
        "root", lambda: Supervisor([ChildSpec("a", lambda: Recorder(log, "a"))], backoff=backoff)
    )
    async with open_system(spec) as system:
        a = system.supervisor.child("a")
        await crash(a)
        await crash(a)
        assert a.state == "waiting"
        if first == "the timer":
            await trio.sleep(10.0)
            await trio.lowlevel.checkpoint()
        else:
            await trio.sleep(10.0 - 1e-9)
        system.begin_stop()
        await system.wait_stopped()
        assert not a.is_alive()
        assert a.incarnation is None
    starts, ends = log.count("a start"), log.count("a stop") + log.count("a failure ValueError")
    assert starts == ends
    assert trio.current_time() <= 10.0


async def test_crash_in_the_moment_of_the_shutdown_is_not_restarted():
    log = []
    async with open_system(one(lambda: Recorder(log, "a"))) as system:
        a = system.supervisor.child("a")
        a.tell("crash")
        system.begin_stop()
        await system.wait_stopped()
    assert log.count("a start") == 1
    assert not a.is_alive()


@pytest.mark.parametrize("checkpoints", range(8))
async def test_child_that_crashes_while_it_is_terminated_stays_down(checkpoints):
    log = []
    async with open_system(one(lambda: Recorder(log, "a"))) as system:
        a = system.supervisor.child("a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(system.supervisor.terminate_child, "a")
            for _ in range(checkpoints):
                await trio.lowlevel.checkpoint()
            if a.is_alive():
                a.tell("crash")
        # A crash that came first may have been followed by a restart; the command to end it comes behind that.
        ended = list(log)
        await wait_all_tasks_blocked()
        assert log == ended
        assert not a.is_alive()
        assert log.count("a start") == log.count("a stop") + log.count("a failure ValueError")


@pytest.mark.parametrize("checkpoints", range(8))
async def test_killed_at_any_moment_of_its_restart_an_actor_comes_back_once(checkpoints):
    log = []

    class Stepping(Recorder):
        async def on_start(self):
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            await super().on_start()

    spec = ChildSpec("a", lambda: Stepping(log, "a"))
    tree = ChildSpec("root", lambda: Supervisor([spec], intensity=PLENTY, backoff=AT_ONCE))
    async with open_system(tree) as system:
        a = system.supervisor.child("a")
        a.tell("crash")
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        a.kill()
        await wait_all_tasks_blocked()
        assert a.state == "idle"
        assert a.generation in (2, 3)
        assert await a.ask("up") == "up"


# --- askers that give up


class Narrow(Recorder):
    mailbox_size_max = 1
    mailbox_overflow = Overflow.WAIT


@pytest.mark.parametrize("where", ["idle", "busy", "full", "deferred", "restarting"])
@pytest.mark.parametrize("checkpoints", range(6))
async def test_asker_that_is_cancelled_at_any_checkpoint_leaves_nothing_behind(where, checkpoints):
    log, futures = [], []
    gate = trio.Event()

    async def hold(_actor):
        await gate.wait()

    async def defer(actor):
        futures.append(actor.reply_later())

    class Asker(Actor):
        """Asks from its handler, so that a ring that is not forgotten would be seen."""

        async def on_receive(self, message):
            ref, question, scope = message
            with scope:
                return await ref.ask(question)
            return "gave up"

    specs = [ChildSpec("a", lambda: Narrow(log, "a")), ChildSpec("asker", Asker)]
    backoff = Backoff(first_s=0.0)
    async with open_system(
        ChildSpec("root", lambda: Supervisor(specs, backoff=backoff, intensity=PLENTY))
    ) as system:
        a, asker = system.supervisor.child("a"), system.supervisor.child("asker")
        if where in ("busy", "full"):
            a.tell(("run", hold))
            await wait_all_tasks_blocked()
        if where == "full":
            a.tell("in the lane")
        if where == "restarting":
            a.tell("crash")
        question = ("run", defer) if where == "deferred" else "question"
        scope = trio.CancelScope()
        answers = []

        async def ask():
            answers.append(await asker.ask((a, question, scope)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            for _ in range(checkpoints):
                await trio.lowlevel.checkpoint()
            scope.cancel()
            await wait_all_tasks_blocked()
            gate.set()
        await wait_all_tasks_blocked()
        # Either it was answered, or it gave up; one that gave up before the work began had none of it done.
        assert answers in (["gave up"], ["question"])
        if answers == ["gave up"] and where in ("busy", "full"):
            assert "question" not in log
        assert not a.mailbox.waiting
        assert a.mailbox_length == 0
        assert asker.asking == ()
        for future in futures:
            assert future.abandoned
        assert await a.ask("next") == "next"
        assert await asker.ask((a, "again", trio.CancelScope())) == "again"


# --- full mailboxes


@pytest.mark.parametrize("policy", list(Overflow))
async def test_full_mailbox_at_a_crash_that_parks_keeps_what_was_told_and_answers_who_asked(policy):
    log = []
    gate = trio.Event()

    class Full(Recorder):
        mailbox_size_max = 2
        mailbox_overflow = policy

    async def hold(_actor):
        await gate.wait()
        raise ValueError("told to crash")

    spec = ChildSpec("a", lambda: Full(log, "a"), intensity=Intensity(0, 10.0), park=True)
    async with open_system(ChildSpec("root", lambda: Supervisor([spec]))) as system:
        a = system.supervisor.child("a")
        a.tell(("run", hold))
        await wait_all_tasks_blocked()
        a.tell("told")
        errors = []

        async def ask(number):
            with pytest.raises((ActorParkedError, MailboxFullError)) as caught:
                await a.ask(number)
            errors.append(caught.type)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 1)
            await wait_all_tasks_blocked()
            nursery.start_soon(ask, 2)
            await wait_all_tasks_blocked()
            gate.set()
        assert len(errors) == 2
        assert a.state == "parked"
        await system.supervisor.retry("a")
        await wait_all_tasks_blocked()
        # The one whose turn it was to be dropped is the oldest, which here was told.
        assert [line for line in log if line == "told"] == ([] if policy is Overflow.DROP_OLD else ["told"])
        assert 1 not in log
        assert 2 not in log
        assert await a.ask("up") == "up"


# --- monitors and links at the edge


async def test_monitor_taken_while_its_target_is_between_two_lives_hears_of_the_next_end_only(autojump_clock):
    log = []
    specs = [ChildSpec(n, lambda n=n: Recorder(log if n == "w" else [], n)) for n in "wa"]
    backoff = Backoff(first_s=10.0, jitter=0.0)
    async with open_system(
        ChildSpec("root", lambda: Supervisor(specs, backoff=backoff, intensity=PLENTY))
    ) as system:
        watcher, a = system.supervisor.child("w"), system.supervisor.child("a")
        await crash(a)
        await crash(a)
        assert a.state == "waiting"
        a.monitor(watcher)
        await trio.sleep(20)
        assert log == ["w start"]
        await crash(a)
        [down] = log[1:]
        assert (down.ref, down.generation) == (a, 3)


async def test_ring_of_links_that_is_killed_at_one_instant_comes_back_whole():
    specs = [ChildSpec(n, lambda n=n: Recorder([], n)) for n in "abcd"]
    async with open_system(
        ChildSpec("root", lambda: Supervisor(specs, backoff=AT_ONCE, intensity=PLENTY))
    ) as system:
        refs = [system.supervisor.child(n) for n in "abcd"]
        for index, ref in enumerate(refs):
            ref.link(refs[(index + 1) % 4])
        for ref in refs:
            ref.kill()
        await wait_all_tasks_blocked()
        for ref in refs:
            assert await ref.ask("up") == "up"
        assert {ref.generation for ref in refs} == {2}


# --- dead letters


@pytest.mark.parametrize("threaded", [False, True])
async def test_dead_letter_says_for_whom_of_which_type_and_why_and_nothing_of_the_content(threaded):
    class Dropping(Recorder):
        mailbox_size_max = 1
        mailbox_overflow = Overflow.DROP_NEW

    gate = trio.Event()

    async def hold(_actor):
        await gate.wait()

    async def tell(ref, message):
        if threaded:
            await trio.to_thread.run_sync(ref.tell, message)
        else:
            ref.tell(message)

    async with open_system(one(lambda: Dropping([]), shutdown_s=0)) as system:
        a = system.supervisor.child("a")
        a.tell(("run", hold))
        await wait_all_tasks_blocked()
        for message in ("kept until the end", 1.5):
            await tell(a, message)
        await system.supervisor.terminate_child("a")
        with pytest.raises(ActorDeadError):
            await tell(a, b"secret")
        await wait_all_tasks_blocked()
        assert [(letter.path, letter.message_type, letter.why) for letter in system.dead_letters.recent] == [
            ("root/a", "float", "mailbox full"),
            ("root/a", "str", "the actor ended first"),
            ("root/a", "bytes", "told to a dead actor"),
        ]
        assert (system.dead_letters.undelivered_count, system.dead_letters.dropped_count) == (2, 1)


@pytest.mark.parametrize("hook", ["on_drain", "on_stop"])
async def test_kill_of_an_actor_whose_last_hook_waits_in_a_nursery_is_a_kill_and_no_crash(hook):
    class Waiting(Recorder):
        async def wait_twice(self):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(trio.sleep_forever)

    setattr(Waiting, hook, Waiting.wait_twice)
    Waiting.drains = Waiting.cleans_up = True
    log = []
    spec = ChildSpec("a", lambda: Waiting(log, "a"), restart=Restart.TEMPORARY)
    async with open_system(ChildSpec("root", lambda: Supervisor([spec]))) as system:
        a = system.supervisor.child("a")
        a.stop()
        await wait_all_tasks_blocked()
        assert a.state == "stopping"
        a.kill()
        await a.wait_stopped()
        assert a.last_reason == "killed"
        assert log == ["a start"]


async def test_many_children_that_overrun_their_deadline_share_the_grace(autojump_clock):
    class Slow(Recorder):
        async def on_stop(self):
            with trio.CancelScope(shield=True):
                await trio.sleep(4)

    async with open_system(ChildSpec("root", DynamicSupervisor)) as system:
        for number in range(5):
            spec = ChildSpec(f"slow {number}", lambda: Slow([], "slow"), shutdown_s=1)
            await system.supervisor.start_child(spec)
        begun = trio.current_time()
    assert trio.current_time() - begun == pytest.approx(4)
