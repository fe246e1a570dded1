"""Who is stuck is said once, with the place, and once when it is over; a loop that stands still is noticed."""

import logging
import threading
import time

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from actors.kernel import Actor, ChildSpec, Supervisor, ThreadActor, Watchdog, open_system
from actors.kernel.loop_watch import LoopWatch
from tests.actors.kernel.recorder import Recorder

SECOND = 1.0


class Slow(Recorder):
    """Takes its time in every hook; a hook that is not wanted takes none."""

    def __init__(self, log, *, start_s=0.0, stop_s=0.0):
        super().__init__(log)
        self.start_s = start_s
        self.stop_s = stop_s

    async def on_start(self):
        await trio.sleep(self.start_s)

    async def on_stop(self):
        await trio.sleep(self.stop_s)

    async def on_receive(self, message):
        if message == "wait":
            await wait_here()
            return None
        return await super().on_receive(message)


class Patient(Slow):
    stuck_after_s = 100.0


async def wait_here():
    await trio.sleep(62)


def watched(*specs, **settings):
    settings = {"interval_s": 5 * SECOND, "stall_after_s": None, **settings}
    children = [*specs, ChildSpec("watchdog", lambda: Watchdog(**settings))]
    return ChildSpec("root", lambda: Supervisor(children))


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "actors.kernel"]


async def test_a_long_message_is_named_once_with_its_place_and_again_when_it_is_over(autojump_clock, caplog):
    async with open_system(watched(ChildSpec("a", lambda: Slow([])))) as system:
        ref = system.supervisor.child("a")
        ref.tell("wait")
        await trio.sleep(29.5)
        assert (system.overdue, said(caplog)) == ({}, [])
        await trio.sleep(10)
        node = system.tree().find("root/a")
        assert (node.state, node.current, node.state_age_s) == ("busy", "str", 39.5)
        assert node.needs_attention
        assert node.stuck_at.startswith("tests.actors.kernel.test_watchdog:")
        assert node.stuck_at.endswith(", wait_here")
        [line] = said(caplog)
        assert line == f"root/a is stuck: for 30 s in str, at {node.stuck_at}"
        await trio.sleep(23)
        assert system.tree().find("root/a").stuck_at is None  # at once, and not when the watchdog comes by
        await trio.sleep(5)
        assert system.overdue == {}
        assert said(caplog)[1:] == ["root/a goes on after about 65 s in str"]


async def test_a_second_message_that_takes_too_long_is_said_again(autojump_clock, caplog):
    async with open_system(watched(ChildSpec("a", lambda: Slow([])))) as system:
        ref = system.supervisor.child("a")
        ref.tell("wait")
        ref.tell("wait")
        await trio.sleep(150)
        assert [line.partition(" ")[2].partition(" ")[0] for line in said(caplog)] == [
            "is",
            "goes",
            "is",
            "goes",
        ]


async def test_a_long_start_and_a_long_end_are_stuck_too(autojump_clock, caplog):
    children = [ChildSpec("a", lambda: Slow([], stop_s=50), shutdown_s=70)]
    async with open_system(watched(ChildSpec("group", lambda: Supervisor(children)))) as system:
        group = system.supervisor.supervisor("group")

        async def start_slowly():
            await group.start_child(ChildSpec("slow", lambda: Slow([], start_s=50)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start_slowly)
            await trio.sleep(36)
            node = system.tree().find("root/group/slow")
            assert (node.state, node.stuck_at is not None) == ("starting", True)
            assert "root/group/slow is stuck: for 30 s in on_start" in said(caplog)[0]
        await group.terminate_child("a")
        lines = said(caplog)
        assert any(line.startswith("root/group/a is stuck: for 30 s in its end, at ") for line in lines)
        # Who waits for it is stuck as well: an operator sees both.
        assert any(line.startswith("root/group is stuck: for 30 s in TerminateChild") for line in lines)
        await trio.sleep(6)
        assert system.overdue == {}
        assert any(line.startswith("root/group/a has ended after about") for line in said(caplog))


async def test_a_class_says_for_itself_how_long_its_handlers_may_take(autojump_clock, caplog):
    async with open_system(watched(ChildSpec("a", lambda: Patient([])), stuck_after_s=1.0)) as system:
        system.supervisor.child("a").tell("wait")
        await trio.sleep(70)
        assert said(caplog) == []


async def test_child_tasks_and_idle_actors_are_never_stuck(autojump_clock, caplog):
    async with open_system(watched(ChildSpec("a", lambda: Slow([])))) as system:
        system.supervisor.child("a").tell(("task", trio.sleep_forever))
        await trio.sleep(1000)
        assert said(caplog) == []


async def test_a_crash_of_the_watchdog_loses_and_repeats_nothing(autojump_clock, caplog):
    async with open_system(watched(ChildSpec("a", lambda: Slow([])))) as system:
        system.supervisor.child("a").tell("wait")
        await trio.sleep(40)
        system.supervisor.child("watchdog").kill()
        await trio.sleep(15)
        assert len(said(caplog)) == 1
        assert system.tree().find("root/a").stuck_at is not None


async def test_a_watchdog_that_was_held_up_itself_accuses_nobody(mock_clock, caplog):
    async with open_system(watched(ChildSpec("a", lambda: Slow([])))) as system:
        system.supervisor.child("a").tell("wait")
        await wait_all_tasks_blocked()
        mock_clock.jump(50)  # the loop comes back after a long stall; nobody had a chance to go on
        await wait_all_tasks_blocked()
        assert said(caplog) == []
        mock_clock.autojump_threshold = 0  # so that it can end


async def test_the_place_of_a_thread_actor_is_in_its_thread(caplog):
    goes_on = threading.Event()

    def wait_in_thread():
        goes_on.wait()

    class Blocks(ThreadActor):
        def thread_receive(self, message):
            wait_in_thread()

    settings = {"interval_s": 0.01, "stuck_after_s": 0.01}
    async with open_system(watched(ChildSpec("a", Blocks), **settings)) as system:
        ref = system.supervisor.child("a")
        ref.tell("wait")
        await until(lambda: ref in system.overdue)
        place = system.overdue[ref].place
        goes_on.set()
        assert place.endswith("<locals>.wait_in_thread")


# -- the loop itself: a real thread and a real, short stall -----------------------------------------------------------


class Holder(Recorder):
    """Holds the loop, in its handler or in a task of its own."""

    async def on_receive(self, message):
        match message:
            case ("hold", stalls):
                hold_until(stalls)
            case ("hold in a task", stalls):
                self.start_task(self.hold, stalls)
            case ("hold in a nursery", stalls):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.hold, stalls)
            case _:
                return await super().on_receive(message)
        return None

    async def hold(self, stalls):
        hold_until(stalls)


def hold_until(happened):
    deadline = time.monotonic() + 20
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.001)


def loop_watched(**settings):
    settings = {"stall_after_s": 0.05, "loop_interval_s": 0.005, **settings}
    return watched(ChildSpec("a", lambda: Holder([])), **settings)


def stalls(caplog):
    return [record for record in caplog.records if "has not turned" in record.getMessage()]


def turns(caplog):
    return [record for record in caplog.records if "turns again" in record.getMessage()]


async def until(happened):
    with trio.fail_after(20):
        while not happened():  # noqa: ASYNC110 - what happens in a thread sets no event
            await trio.sleep(0.005)


@pytest.mark.parametrize(
    ("how", "who"),
    [
        ("hold", "root/a, in tuple, holds it"),
        ("hold in a task", "root/a, in its task Holder.hold, holds it"),
        ("hold in a nursery", "root/a, in tuple, holds it"),
    ],
)
async def test_a_handler_that_holds_the_loop_is_named_with_its_stack_and_its_end_is_told(caplog, how, who):
    async with open_system(loop_watched()) as system:
        # Held until it was noticed, so that no length of time is guessed.
        system.supervisor.child("a").tell((how, lambda: bool(stalls(caplog))))
        await until(lambda: turns(caplog))
        [record] = stalls(caplog)
        assert record.levelno == logging.ERROR
        assert record.getMessage().endswith(who)
        assert "hold_until(stalls)" in record.stack_info
        assert len(turns(caplog)) == 1


async def test_each_stall_is_said_once_however_long_it_is(caplog):
    async with open_system(loop_watched()) as system:
        for number in (1, 2):
            noticed_at = []

            def long_after(number=number, noticed_at=noticed_at):
                if len(stalls(caplog)) >= number:
                    noticed_at.append(time.monotonic())
                return bool(noticed_at) and noticed_at[-1] - noticed_at[0] > 0.2  # four times its patience

            system.supervisor.child("a").tell(("hold", long_after))
            await until(lambda number=number: len(turns(caplog)) == number)
            assert len(stalls(caplog)) == number


async def test_what_is_no_actors_is_told_as_such(caplog):
    async with open_system(loop_watched()):
        hold_until(lambda: bool(stalls(caplog)))
        await until(lambda: turns(caplog))
        assert "no actor but the task" in stalls(caplog)[0].getMessage()


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "loop watch"]


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_the_thread_lives_as_long_as_its_watchdog_and_ends_with_the_system(how):
    async with open_system(loop_watched()) as system:
        await until(threads)
        [first] = threads()
        getattr(system.supervisor.child("watchdog"), how)()
        await until(lambda: threads() not in ([], [first]))
        [second] = threads()
        assert not first.is_alive()
    assert not second.is_alive()
    assert threads() == []


class EndsJustBefore(threading.Event):
    """Has a watch ended just before its thread gets ready for the next answer, where a wake-up is easily lost."""

    watch: LoopWatch

    def clear(self):
        self.watch._ended.set()
        self.set()
        super().clear()


async def test_a_watch_that_ends_at_the_worst_moment_takes_that_for_no_stall(caplog):
    async with open_system(ChildSpec("root", Actor)) as system:
        watch = LoopWatch(system, stall_after_s=0.2, interval_s=0.001)
        watch._turned = EndsJustBefore()
        watch._turned.watch = watch
        watch.start()
        hold_until(lambda: not threads())
    assert stalls(caplog) == []


async def test_a_thread_whose_loop_has_gone_ends_by_itself():
    async def forgotten():
        async with open_system(ChildSpec("root", Actor)) as system:
            LoopWatch(system, stall_after_s=0.2, interval_s=0.005).start()

    await trio.to_thread.run_sync(trio.run, forgotten)
    await until(lambda: not threads())
