"""What one actor promises: one message at a time, in order, and an answer for whoever asks."""

import gc
import weakref

import pykka
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from actors.kernel import (
    Actor,
    ActorDeadError,
    ActorParkedError,
    AlreadyAnsweredError,
    AskCycleError,
    AskTimeoutError,
    ChildSpec,
    ChildStartError,
    Future,
    Intensity,
    Ref,
    Restart,
    RootFailedError,
    Supervisor,
    open_system,
)
from tests.actors.kernel.recorder import Recorder, one


async def test_actor_and_ref_are_pykkas_by_type():
    log = []
    async with open_system(one(lambda: Recorder(log))) as system:
        ref = system.supervisor.child("a")
        assert isinstance(ref, Ref)
        assert isinstance(ref, pykka.ActorRef)
        assert issubclass(Recorder, pykka.Actor)
        assert isinstance(Future(), pykka.Future)

        async def look(actor):
            return isinstance(actor, pykka.Actor), actor.ref, actor.actor_ref, actor.actor_urn

        assert await ref.ask(("run", look)) == (True, ref, ref, "urn:actor:root/a")


async def test_messages_are_handled_in_order_one_at_a_time():
    log = []
    async with open_system(one(lambda: Recorder(log))) as system:
        ref = system.supervisor.child("a")
        ref.tell(("sleep", 0))
        for number in range(200):
            ref.tell(number)
        await ref.ask("last")
    assert log == ["actor start", *range(200), "last", "actor stop"]


async def test_busy_mailbox_does_not_starve_the_loop():
    class Feeder(Actor):
        async def on_receive(self, message):
            if not done.is_set():
                self.ref.tell(message)

    done = trio.Event()
    async with open_system(one(Feeder)) as system:
        system.supervisor.child("a").tell("again")
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        done.set()


async def test_ask_returns_the_handlers_value_and_raises_its_refusal():
    log = []
    async with open_system(one(lambda: Recorder(log))) as system:
        ref = system.supervisor.child("a")
        assert await ref.ask(7) == 7
        with pytest.raises(KeyError, match="no such thing"):
            await ref.ask("refuse")
        assert ref.generation == 1


@pytest.mark.parametrize("asked", [True, False])
async def test_crash_restarts_behind_the_same_address_whether_told_or_asked(asked):
    log = []
    async with open_system(one(lambda: Recorder(log))) as system:
        ref = system.supervisor.child("a")
        if asked:
            with pytest.raises(ActorDeadError) as caught:
                await ref.ask("crash")
            assert isinstance(caught.value.__cause__, ValueError)
        else:
            ref.tell("crash")
        assert await ref.ask("after") == "after"
        assert ref.is_alive()
        assert ref.generation == 2
    assert log == ["actor start", "actor failure ValueError", "actor start", "after", "actor stop"]


async def test_crashed_message_is_not_delivered_again_and_the_rest_is_kept():
    log = []
    async with open_system(one(lambda: Recorder(log))) as system:
        ref = system.supervisor.child("a")
        for message in ("one", "crash", "two", "three"):
            ref.tell(message)
        await ref.ask("four")
    assert log == [
        "actor start",
        "one",
        "actor failure ValueError",
        "actor start",
        "two",
        "three",
        "four",
        "actor stop",
    ]


async def test_timed_out_ask_is_not_executed(autojump_clock):
    log = []
    async with open_system(one(lambda: Recorder(log))) as system:
        ref = system.supervisor.child("a")
        ref.tell(("sleep", 10))
        with pytest.raises(AskTimeoutError) as caught:
            await ref.ask("too late", timeout_s=1)
        assert isinstance(caught.value, pykka.Timeout)
        assert await ref.ask("in time") == "in time"
        assert trio.current_time() == pytest.approx(10)
    assert "too late" not in log


async def test_cancelled_ask_is_not_executed(autojump_clock):
    log = []
    async with open_system(one(lambda: Recorder(log))) as system:
        ref = system.supervisor.child("a")
        ref.tell(("sleep", 10))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ref.ask, "withdrawn")
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await ref.ask("next")
    assert "withdrawn" not in log


async def test_killed_actor_answers_its_askers():
    log = []
    async with open_system(one(lambda: Recorder(log), restart=Restart.TEMPORARY)) as system:
        ref = system.supervisor.child("a")
        errors = []

        async def ask(message):
            with pytest.raises(ActorDeadError):
                await ref.ask(message)
            errors.append(message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, ("sleep", 1e9))
            await wait_all_tasks_blocked()
            nursery.start_soon(ask, "waiting")
            await wait_all_tasks_blocked()
            ref.kill()
        assert sorted(map(str, errors)) == ["('sleep', 1000000000.0)", "waiting"]
        await ref.wait_stopped()
        assert not ref.is_alive()
        with pytest.raises(ActorDeadError):
            ref.tell("anyone there?")
        with pytest.raises(ActorDeadError):
            await ref.ask("anyone there?")
        assert system.dead_letters.undelivered_count == 1
    assert log == ["actor start"]


async def test_ask_cycle_fails_at_once_and_names_the_ring():
    log = []
    spec = ChildSpec(
        "root",
        lambda: Supervisor([ChildSpec("a", lambda: Recorder(log)), ChildSpec("b", lambda: Recorder(log))]),
    )

    async def ask_and_catch(actor):
        with pytest.raises(AskCycleError) as caught:
            await actor.ref.ask("myself")
        return caught.value.path

    async with open_system(spec) as system:
        a, b = system.supervisor.child("a"), system.supervisor.child("b")
        assert await a.ask(("run", ask_and_catch)) == ("root/a", "root/a")

        async def back_to_a(_actor):
            with pytest.raises(AskCycleError) as caught:
                await a.ask("closes the ring")
            return caught.value.path

        assert await a.ask(("ask", b, ("run", back_to_a))) == ("root/b", "root/a", "root/b")
        assert await a.ask(("ask", b, "no ring")) == "no ring"


async def test_ask_cycle_of_two_unrelated_messages_is_found():
    log = []
    spec = ChildSpec(
        "root",
        lambda: Supervisor([ChildSpec("a", lambda: Recorder(log)), ChildSpec("b", lambda: Recorder(log))]),
    )
    async with open_system(spec) as system:
        a, b = system.supervisor.child("a"), system.supervisor.child("b")

        async def b_asks_a(_actor):
            await wait_all_tasks_blocked()
            with pytest.raises(AskCycleError):
                await a.ask("while a waits for me")
            return "refused"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.ask, ("run", b_asks_a))
            await trio.lowlevel.checkpoint()
            assert await a.ask(("ask", b, "after that")) == "after that"


async def test_child_task_may_ask_its_own_actor():
    log = []
    async with open_system(one(lambda: Recorder(log))) as system:
        ref = system.supervisor.child("a")
        answers = []

        async def ask_own_actor():
            answers.append(await ref.ask("from my task"))

        await ref.ask(("task", ask_own_actor))
        await wait_all_tasks_blocked()
        assert answers == ["from my task"]


async def test_child_task_crash_is_the_actors_and_interrupts_its_handler():
    log = []
    async with open_system(one(lambda: Recorder(log))) as system:
        ref = system.supervisor.child("a")

        gate = trio.Event()

        async def fail():
            await gate.wait()
            raise OSError("the task failed")

        async def ask_for_long():
            with pytest.raises(ActorDeadError) as caught:
                await ref.ask(("sleep", 1e9))
            assert isinstance(caught.value.__cause__, OSError)

        await ref.ask(("task", fail))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_for_long)
            await wait_all_tasks_blocked()
            gate.set()
        assert await ref.ask("after") == "after"
    assert log[:3] == ["actor start", "actor failure OSError", "actor start"]


@pytest.mark.parametrize("how", ["stop", "crash"])
async def test_child_tasks_have_ended_before_the_next_incarnation_starts(how, autojump_clock):
    log = []
    async with open_system(one(lambda: Recorder(log))) as system:
        ref = system.supervisor.child("a")

        async def slow_to_end():
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(3)
                log.append("task ended")

        await ref.ask(("task", slow_to_end))
        await wait_all_tasks_blocked()
        if how == "stop":
            ref.stop()
        else:
            ref.tell("crash")
        await ref.ask("after")
    ending = "actor stop" if how == "stop" else "actor failure ValueError"
    assert log[:4] == ["actor start", "task ended", ending, "actor start"]


async def test_start_task_returns_the_scope_that_cancels_it():
    log = []
    async with open_system(one(lambda: Recorder(log))) as system:
        ref = system.supervisor.child("a")

        async def start_and_cancel(actor):
            scope = actor.start_task(trio.sleep_forever)
            scope.cancel()
            return scope

        scope = await ref.ask(("run", start_and_cancel))
        await wait_all_tasks_blocked()
        assert scope.cancelled_caught
        assert system.tree().find("root/a").tasks == 0
        assert ref.generation == 1


async def test_reply_later_is_answered_by_a_task_while_the_mailbox_serves():
    log = []
    async with open_system(one(lambda: Recorder(log))) as system:
        ref = system.supervisor.child("a")
        gate = trio.Event()

        async def defer(actor):
            future = actor.reply_later()

            async def answer():
                await gate.wait()
                future.set("late answer")

            actor.start_task(answer)
            return "ignored"

        async with trio.open_nursery() as nursery:

            async def ask():
                assert await ref.ask(("run", defer)) == "late answer"

            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            assert await ref.ask("meanwhile") == "meanwhile"
            gate.set()


async def test_reply_later_shows_that_the_asker_gave_up(autojump_clock):
    log = []
    futures = []
    async with open_system(one(lambda: Recorder(log))) as system:
        ref = system.supervisor.child("a")

        async def defer(actor):
            futures.append(actor.reply_later())

        with pytest.raises(AskTimeoutError):
            await ref.ask(("run", defer), timeout_s=1)
        assert futures[0].abandoned
        futures[0].set("to nobody")


async def test_reply_later_that_is_never_set_dies_with_the_actor():
    log = []
    async with open_system(one(lambda: Recorder(log))) as system:
        ref = system.supervisor.child("a")
        futures = []

        async def defer(actor):
            futures.append(actor.reply_later())

        async with trio.open_nursery() as nursery:

            async def ask():
                with pytest.raises(ActorDeadError):
                    await ref.ask(("run", defer))

            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            ref.tell("crash")
        futures[0].set("too late, and harmless")


async def test_future_answered_twice_is_refused():
    future = Future()
    future.set(1)
    with pytest.raises(AlreadyAnsweredError):
        future.set(2)
    with pytest.raises(AlreadyAnsweredError):
        future.set_exception(ValueError())
    assert await future == 1


async def test_base_exception_of_a_handler_ends_that_actor_only():
    class Odd(BaseException):
        pass

    log = []
    spec = ChildSpec(
        "root",
        lambda: Supervisor([ChildSpec("a", lambda: Recorder(log)), ChildSpec("b", lambda: Recorder(log))]),
    )
    async with open_system(spec) as system:
        a, b = system.supervisor.child("a"), system.supervisor.child("b")

        async def raise_odd(_actor):
            raise Odd

        with pytest.raises(ActorDeadError):
            await a.ask(("run", raise_odd))
        assert await a.ask("back") == "back"
        assert b.generation == 1


async def test_keyboard_interrupt_in_a_handler_stops_the_tree_in_order_and_is_raised():
    log = []
    spec = ChildSpec(
        "root",
        lambda: Supervisor(
            [ChildSpec("a", lambda: Recorder(log, "a")), ChildSpec("b", lambda: Recorder(log, "b"))]
        ),
    )

    async def interrupt(_actor):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # noqa: PT012  # what raises is the end of the block
        async with open_system(spec) as system:
            system.supervisor.child("a").tell(("run", interrupt))
            await trio.sleep_forever()
    assert "b stop" in log


async def test_stop_goes_ahead_of_the_backlog_and_the_rest_are_dead_letters():
    log = []
    async with open_system(one(lambda: Recorder(log), restart=Restart.TRANSIENT)) as system:
        ref = system.supervisor.child("a")
        for number in range(5):
            ref.tell(number)
        ref.stop()
        await ref.wait_stopped()
        assert log == ["actor start", "actor stop"]
        assert system.dead_letters.undelivered_count == 5
        assert system.dead_letters.recent[0].path == "root/a"


async def test_parked_actor_answers_askers_at_once_and_keeps_what_it_is_told():
    log = []
    spec = one(lambda: Recorder(log), park=True, intensity=Intensity(0, 10))
    async with open_system(spec) as system:
        ref = system.supervisor.child("a")
        ref.tell("crash")
        ref.tell("kept")
        with pytest.raises(ActorParkedError):
            await ref.ask("waiting when it parks")
        with pytest.raises(ActorParkedError):
            await ref.ask("asked when it is parked")
        ref.tell("kept too")
        assert ref.state == "parked"
        assert ref.is_alive()
        assert await system.supervisor.retry("a")
        await ref.ask("last")
    assert log[-5:] == ["actor start", "kept", "kept too", "last", "actor stop"]


async def test_start_failure_of_the_root_is_raised():
    class Broken(Actor):
        async def on_start(self):
            raise OSError("no disk")

    with pytest.raises(ChildStartError) as caught:
        async with open_system(ChildSpec("root", Broken)):
            raise AssertionError("the block must not run")
    assert isinstance(caught.value.__cause__, OSError)


async def test_root_crash_cancels_the_block_and_is_raised():
    log = []
    with pytest.raises(RootFailedError) as caught:  # noqa: PT012  # what raises is the end of the block
        async with open_system(ChildSpec("root", lambda: Recorder(log))) as system:
            system.root.tell("crash")
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, ValueError)


async def test_starting_without_a_supervisor_is_refused():
    with pytest.raises(TypeError, match="ChildSpec"):
        Recorder.start([])


async def test_asker_hears_of_a_crash_before_the_last_hooks_have_run(autojump_clock):
    class SlowToDie(Recorder):
        async def on_failure(self, exception_type, exception_value, traceback):
            await trio.sleep(100)

    async with open_system(one(lambda: SlowToDie([]))) as system:
        with pytest.raises(ActorDeadError):
            await system.supervisor.child("a").ask("crash")
        assert trio.current_time() == 0


async def test_kill_cuts_a_last_hook_short(autojump_clock):
    class SlowToDie(Recorder):
        async def on_failure(self, exception_type, exception_value, traceback):
            await trio.sleep(1000)

    async with open_system(one(lambda: SlowToDie([]))) as system:
        ref = system.supervisor.child("a")
        ref.tell("crash")
        await wait_all_tasks_blocked()
        assert ref.state == "stopping"
        ref.kill()
        assert await ref.ask("up") == "up"
        assert trio.current_time() == 0


async def test_on_drain_lets_tasks_finish_within_the_deadline(autojump_clock):
    log = []

    class Draining(Recorder):
        async def on_drain(self):
            await self.finished.wait()
            self.log.append("drained")

        async def work(self, seconds):
            await trio.sleep(seconds)
            self.log.append("work done")
            self.finished.set()

    async def begin(actor, seconds):
        actor.finished = trio.Event()
        actor.start_task(actor.work, seconds)

    for seconds, ending in ((3, ["work done", "drained", "actor stop"]), (8, [])):
        log.clear()
        async with open_system(one(lambda: Draining(log), shutdown_s=5)) as system:
            await system.supervisor.child("a").ask(("run", lambda actor, s=seconds: begin(actor, s)))
        assert log[1:] == ending


async def test_a_crash_lets_go_at_once_of_what_the_handler_held():
    class Held:
        """Something that others wait for, a cursor say."""

    held: list[weakref.ref[Held]] = []

    class Holder(Actor):
        async def on_receive(self, message):
            thing = Held()
            held.append(weakref.ref(thing))
            raise ValueError(message, type(thing))

    async with open_system(one(Holder)) as system:
        ref = system.supervisor.child("a")
        gc.collect()
        gc.disable()
        try:
            with pytest.raises(ActorDeadError):
                await ref.ask("crash")
            assert held[0]() is None
        finally:
            gc.enable()
