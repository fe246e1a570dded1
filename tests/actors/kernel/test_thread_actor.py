"""Actors whose code runs in a thread: the same mailbox, the same supervisor, the same ends."""

from __future__ import annotations

import threading
from typing import Any

import outcome
import pytest
import trio
import trio.testing

from actors.kernel import (
    Actor,
    ActorDeadError,
    ChildSpec,
    ChildStartError,
    Down,
    Overflow,
    Refusal,
    Restart,
    Supervisor,
    ThreadActor,
    open_system,
)
from actors.kernel.child import KILL_GRACE_S
from tests.actors.kernel.recorder import one


class Desk(ThreadActor):
    """Does what it is told, in its thread, and writes it down."""

    def __init__(self, log: list[Any]) -> None:
        super().__init__()
        self.log = log
        self.born_in: threading.Thread | None = None

    def thread_start(self) -> None:
        self.born_in = threading.current_thread()
        self.log.append("start")

    def thread_receive(self, message: Any) -> Any:
        match message:
            case "crash":
                raise ValueError("told to crash")
            case "refuse":
                return Refusal(KeyError("no such thing"))
            case "thread":
                return threading.current_thread() is self.born_in
            case ("wait", reached, release):
                reached.set()
                assert release.wait(20)
        self.log.append(message)
        return message

    def thread_stop(self) -> None:
        self.log.append("stop")


class Batches(Desk):
    batch_max = 3

    def thread_receive_batch(self, messages: list[Any]) -> list[Any]:
        self.log.append(len(messages))
        return super().thread_receive_batch(messages)


class Stall:
    """Holds the thread of a desk until it is released."""

    def __init__(self) -> None:
        self.reached, self.release = threading.Event(), threading.Event()
        self.message = ("wait", self.reached, self.release)

    async def until_reached(self) -> None:
        await trio.to_thread.run_sync(self.reached.wait)


async def test_it_is_told_and_asked_as_any_actor_and_works_in_one_thread_that_is_not_the_loops():
    log: list[Any] = []
    async with open_system(one(lambda: Desk(log))) as system:
        ref = system.supervisor.child("a")
        ref.tell("first")
        assert await ref.ask("second") == "second"
        assert await ref.ask("thread")
        with pytest.raises(KeyError):
            await ref.ask("refuse")
    assert log == ["start", "first", "second", "stop"]


async def test_its_crash_is_reported_and_a_fresh_object_serves_what_waited():
    log: list[Any] = []
    downs: list[Down] = []

    class Watcher(Actor):
        async def on_receive(self, message):
            downs.append(message)

    specs = [ChildSpec("watcher", Watcher), ChildSpec("a", lambda: Desk(log))]
    async with open_system(ChildSpec("root", lambda: Supervisor(specs))) as system:
        ref = system.supervisor.child("a")
        ref.monitor(system.supervisor.child("watcher"))
        stall = Stall()
        ref.tell(stall.message)
        await stall.until_reached()
        causes: list[BaseException | None] = []

        async def ask_to_crash():
            with pytest.raises(ActorDeadError) as caught:
                await ref.ask("crash")
            causes.append(caught.value.__cause__)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_to_crash)
            await trio.testing.wait_all_tasks_blocked()
            ref.tell("waited")
            stall.release.set()
        assert isinstance(causes[0], ValueError)
        await ref.ask("last")
    assert [item for item in log if isinstance(item, str)] == [
        "start",
        "stop",
        "start",
        "waited",
        "last",
        "stop",
    ]
    assert "told to crash" in str(downs[0].reason)


async def test_a_start_that_raises_fails_the_start_and_cleans_up():
    log: list[Any] = []

    class Broken(Desk):
        def thread_start(self):
            raise OSError("no such file")

    with pytest.raises(ChildStartError) as caught:
        async with open_system(one(lambda: Broken(log))):
            pass
    cause: BaseException | None = caught.value
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__
    assert isinstance(cause, OSError)
    assert log == ["stop"]


async def test_the_loop_goes_on_while_the_thread_works():
    log: list[Any] = []
    async with open_system(one(lambda: Desk(log))) as system, trio.open_nursery() as nursery:
        stall = Stall()
        nursery.start_soon(system.supervisor.child("a").ask, stall.message)
        await stall.until_reached()
        await trio.testing.wait_all_tasks_blocked()
        assert log == ["start"]
        stall.release.set()


async def test_messages_that_wait_are_handed_over_together_in_order_without_those_given_up():
    log: list[Any] = []
    async with open_system(one(lambda: Batches(log))) as system:
        ref = system.supervisor.child("a")
        answers: list[Any] = []

        async def ask(message):
            answers.append(await ref.ask(message))

        async with trio.open_nursery() as nursery:
            stall = Stall()
            ref.tell(stall.message)
            await stall.until_reached()
            ref.tell("a")
            with trio.move_on_after(0.001):
                await ref.ask("nobody waits for this")
            for message in "bcd":
                nursery.start_soon(ask, message)
                await trio.testing.wait_all_tasks_blocked()
            stall.release.set()
        assert sorted(answers) == ["b", "c", "d"]
    assert log == ["start", 1, stall.message, 3, "a", "b", "c", 1, "d", "stop"]


async def test_a_crash_over_a_batch_leaves_none_of_its_askers_waiting():
    log: list[Any] = []
    async with open_system(one(lambda: Batches(log))) as system:
        ref = system.supervisor.child("a")
        dead: list[str] = []

        async def ask(message):
            try:
                await ref.ask(message)
            except ActorDeadError:
                dead.append(message)

        async with trio.open_nursery() as nursery:
            stall = Stall()
            ref.tell(stall.message)
            await stall.until_reached()
            for message in ("a", "crash", "b", "c"):
                nursery.start_soon(ask, message)
                await trio.testing.wait_all_tasks_blocked()
            stall.release.set()
        assert sorted(dead) == ["a", "b", "crash"]
        assert log[-2:] == [1, "c"]


async def test_those_who_wait_for_room_are_let_in_when_a_batch_is_taken():
    class Narrow(Batches):
        mailbox_size_max = 2
        mailbox_overflow = Overflow.WAIT

    log: list[Any] = []
    async with open_system(one(lambda: Narrow(log))) as system, trio.open_nursery() as nursery:
        ref = system.supervisor.child("a")
        stall = Stall()
        nursery.start_soon(ref.ask, stall.message)
        await stall.until_reached()
        for number in range(9):
            nursery.start_soon(ref.ask, number)
        await trio.testing.wait_all_tasks_blocked()
        stall.release.set()
    handled = [item for item in log if isinstance(item, int)]
    assert sum(handled) >= sum(range(9))
    assert {*range(9)} <= {*handled}


async def test_a_kill_takes_effect_when_the_function_returns_and_the_next_incarnation_waits_for_it():
    log: list[Any] = []
    async with open_system(one(lambda: Desk(log))) as system:
        ref = system.supervisor.child("a")
        stall = Stall()
        ref.tell(stall.message)
        await stall.until_reached()
        ref.kill()
        await trio.testing.wait_all_tasks_blocked()
        assert log == ["start"]
        stall.release.set()
        assert await ref.ask("again") == "again"
    assert log == ["start", stall.message, "start", "again", "stop"]


async def test_a_thread_that_does_not_return_is_reported_and_the_system_ends_without_it(autojump_clock):
    log: list[Any] = []
    stall = Stall()
    specs = [
        ChildSpec("before", lambda: Desk(log)),
        ChildSpec("a", lambda: Desk(log), shutdown_s=2),
    ]
    reached = trio.Event()
    try:
        async with open_system(
            ChildSpec("root", lambda: Supervisor(specs)), workers=lambda _name: Endless(reached)
        ) as system:
            system.supervisor.child("a").tell("for ever")
            await reached.wait()
            began = trio.current_time()
        assert system.stuck == []  # nothing of it runs on the loop any more
        assert trio.current_time() - began == 2 + KILL_GRACE_S
    finally:
        stall.release.set()


class Endless:
    """A worker whose first job after the start never returns."""

    def __init__(self, reached: trio.Event) -> None:
        self.reached = reached

    def submit(self, job, done):
        if "receive" in repr(job):
            self.reached.set()
            return
        trio.lowlevel.current_trio_token().run_sync_soon(done, outcome.capture(job))

    def close(self):
        return


async def test_a_transient_thread_actor_stays_down_after_a_normal_stop():
    log: list[Any] = []
    async with open_system(one(lambda: Desk(log), restart=Restart.TRANSIENT)) as system:
        ref = system.supervisor.child("a")
        assert await ref.ask(1) == 1
        ref.stop()
        await ref.wait_stopped()
        assert log == ["start", 1, "stop"]
        assert not ref.is_alive()


async def test_its_thread_ends_with_it():
    log: list[Any] = []
    threads: list[threading.Thread] = []

    class Known(Desk):
        def thread_start(self):
            super().thread_start()
            threads.append(threading.current_thread())

    async with open_system(one(lambda: Known(log))) as system:
        ref = system.supervisor.child("a")
        with pytest.raises(ActorDeadError):
            await ref.ask("crash")
        await ref.ask("up again")
    for thread in threads:
        await trio.to_thread.run_sync(thread.join, 20)
        assert not thread.is_alive()
    assert len(threads) == 2
