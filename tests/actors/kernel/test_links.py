"""Monitors and links: who hears of whose end."""

import trio
from trio.testing import wait_all_tasks_blocked

from actors.kernel import ChildSpec, Down, Exit, ExitKind, Intensity, Restart, Supervisor, open_system
from tests.actors.kernel.recorder import Recorder


class Trapping(Recorder):
    trap_exit = True


def tree(log, **classes):
    specs = [ChildSpec(name, lambda name=name, c=c: c(log, name)) for name, c in classes.items()]
    return ChildSpec("root", lambda: Supervisor(specs, intensity=Intensity(1000, 1.0)))


def of(log, kind):
    return [entry for entry in log if isinstance(entry, kind)]


async def test_monitor_hears_of_each_incarnation_once():
    log = []
    async with open_system(tree(log, watcher=Recorder, a=Recorder)) as system:
        watcher, a = system.supervisor.child("watcher"), system.supervisor.child("a")
        leave_off = a.monitor(watcher)
        a.monitor(watcher)
        a.tell("crash")
        await wait_all_tasks_blocked()
        a.stop()
        await a.ask("restarted, though later")
        downs = of(log, Down)
        assert [(down.ref, down.generation, down.reason.kind) for down in downs] == [
            (a, 1, ExitKind.CRASHED),
            (a, 2, ExitKind.NORMAL),
        ]
        assert str(downs[0].reason) == "crashed: ValueError: told to crash"
        leave_off()
        a.kill()
        await wait_all_tasks_blocked()
        assert len(of(log, Down)) == 2


async def test_monitor_of_a_dead_actor_hears_at_once():
    log = []
    async with open_system(tree(log, watcher=Recorder, a=Recorder)) as system:
        watcher, a = system.supervisor.child("watcher"), system.supervisor.child("a")
        await system.supervisor.terminate_child("a")
        a.monitor(watcher)
        await wait_all_tasks_blocked()
        assert [down.reason.kind for down in of(log, Down)] == [ExitKind.NOT_ALIVE]


async def test_down_comes_after_what_the_dead_actor_had_sent():
    log = []
    async with open_system(tree(log, watcher=Recorder, a=Recorder)) as system:
        watcher, a = system.supervisor.child("watcher"), system.supervisor.child("a")
        a.monitor(watcher)

        async def speak_and_die(_actor):
            watcher.tell("last words")
            raise ValueError

        a.tell(("run", speak_and_die))
        await wait_all_tasks_blocked()
        heard = [entry for entry in log if entry == "last words" or isinstance(entry, Down)]
        assert heard[0] == "last words"
        assert len(heard) == 2


async def test_linked_actors_crash_together_but_not_on_a_normal_exit():
    log = []
    async with open_system(tree(log, a=Recorder, b=Recorder, c=Recorder)) as system:
        a, b, c = (system.supervisor.child(name) for name in "abc")
        a.link(b)
        a.stop()
        await wait_all_tasks_blocked()
        assert (a.generation, b.generation) == (2, 1)
        b.tell("crash")
        await wait_all_tasks_blocked()
        await a.ask("up")
        await b.ask("up")
        assert (b.generation, c.generation) == (2, 1)
        assert "a failure LinkedExitError" in log
        a.unlink(b)
        b.kill()
        await b.ask("up")
        assert log.count("a failure LinkedExitError") == 1


async def test_actor_that_traps_exits_receives_them_as_messages():
    log = []
    async with open_system(tree(log, a=Trapping, b=Recorder)) as system:
        a, b = (system.supervisor.child(name) for name in "ab")
        a.link(b)
        b.tell("crash")
        await wait_all_tasks_blocked()
        b.stop()
        await b.ask("up")
        await a.ask("still here")
        assert [(e.ref, e.reason.kind) for e in of(log, Exit)] == [
            (b, ExitKind.CRASHED),
            (b, ExitKind.NORMAL),
        ]
        assert a.generation == 1


async def test_link_interrupts_a_handler_that_waits():
    log = []
    async with open_system(tree(log, a=Recorder, b=Recorder)) as system:
        a, b = (system.supervisor.child(name) for name in "ab")
        a.link(b)
        a.tell(("sleep", 1e6))
        await wait_all_tasks_blocked()
        b.tell("crash")
        assert await a.ask("up") == "up"


async def test_cycle_of_links_settles_after_each_ended_once():
    log = []
    async with open_system(tree(log, a=Recorder, b=Recorder, c=Recorder)) as system:
        refs = [system.supervisor.child(name) for name in "abc"]
        for index, ref in enumerate(refs):
            ref.link(refs[(index + 1) % 3])
        refs[0].tell("crash")
        await wait_all_tasks_blocked()
        for ref in refs:
            await ref.ask("up")
        assert [ref.generation for ref in refs] == [2, 2, 2]


async def test_link_to_a_dead_actor_is_felt_at_once():
    log = []
    async with open_system(tree(log, a=Trapping, b=Recorder, c=Recorder)) as system:
        a, b, c = (system.supervisor.child(name) for name in "abc")
        await system.supervisor.terminate_child("b")
        a.link(b)
        b.link(c)
        await wait_all_tasks_blocked()
        assert [e.reason.kind for e in of(log, Exit)] == [ExitKind.NOT_ALIVE]
        assert "c failure LinkedExitError" in log


async def test_burial_leaves_no_link_behind():
    log = []
    async with open_system(tree(log, a=Recorder)) as system:
        a = system.supervisor.child("a")
        for number in range(5):
            b = await system.supervisor.start_child(
                ChildSpec(str(number), lambda: Recorder(log), restart=Restart.TEMPORARY)
            )
            a.link(b)
            b.stop()
            await b.wait_stopped()
        await trio.lowlevel.checkpoint()
        assert not a.links


async def test_late_end_of_a_linked_actor_does_not_end_the_first_a_second_time(autojump_clock):
    log = []

    class SlowToDie(Recorder):
        async def on_failure(self, exception_type, exception_value, traceback):
            await trio.sleep(10)

    async with open_system(tree(log, a=Recorder, b=SlowToDie)) as system:
        a, b = (system.supervisor.child(name) for name in "ab")
        a.link(b)
        a.tell("crash")
        await trio.sleep(5)
        assert (a.generation, a.state, b.state) == (2, "idle", "stopping")
        await trio.sleep(10)
        assert (a.generation, b.generation) == (2, 2)
