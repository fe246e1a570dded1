"""Promises that the state machine found broken or seeded bugs broke unseen, each alone."""

import random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from actors.kernel import (
    ActorDeadError,
    Backoff,
    ChildSpec,
    ChildStartError,
    Intensity,
    Restart,
    Supervisor,
    open_system,
)
from tests.actors.kernel.recorder import Recorder, one


async def test_actor_that_leaves_memory_twice_over_stays_out_of_it():
    log = []
    async with open_system(one(lambda: Recorder(log))) as system:
        ref = system.supervisor.child("a")

        async def leave_twice(actor):
            actor.passivate()
            actor.passivate()

        await ref.ask(("run", leave_twice))
        await wait_all_tasks_blocked()
        assert ref.state == "passive"
        assert log == ["actor start", "actor stop"]


async def test_stop_that_crashed_on_its_way_does_not_end_a_later_incarnation():
    log = []

    class Clumsy(Recorder):
        async def on_stop(self):
            await super().on_stop()
            if log.count("actor stop") == 1:
                raise OSError("in on_stop")

    async def leave(actor):
        actor.passivate()

    async with open_system(one(lambda: Clumsy(log), restart=Restart.TRANSIENT)) as system:
        ref = system.supervisor.child("a")
        ref.stop()
        await wait_all_tasks_blocked()
        await ref.ask(("run", leave))
        await wait_all_tasks_blocked()
        assert ref.state == "passive"
        assert await ref.ask("comes back") == "comes back"


async def test_child_that_fails_in_restart_child_can_be_restarted_again():
    log = []

    class Moody(Recorder):
        async def on_start(self):
            if log.count("actor start") == 1 and "well" not in log:
                raise OSError("not today")
            await super().on_start()

    async with open_system(
        ChildSpec("root", lambda: Supervisor([ChildSpec("a", lambda: Moody(log))]))
    ) as system:
        root = system.supervisor
        ref = root.child("a")
        await root.terminate_child("a")
        with pytest.raises(ChildStartError):
            await root.restart_child("a")
        await wait_all_tasks_blocked()
        assert root.child("a") is ref
        assert not ref.is_alive()
        log.append("well")
        assert await root.restart_child("a") is ref
        assert await ref.ask("up") == "up"


async def test_restarts_are_as_jittery_as_the_injected_generator_says(autojump_clock):
    backoff = Backoff(first_s=10, factor=1, jitter=0.5)

    async def waits(seed):
        spec = ChildSpec("a", lambda: Recorder([]))
        root = ChildSpec("root", lambda: Supervisor([spec], backoff=backoff, intensity=Intensity(99, 1000)))
        found = []
        async with open_system(root, rng=random.Random(seed)) as system:
            ref = system.supervisor.child("a")
            for _ in range(4):
                with pytest.raises(ActorDeadError):
                    await ref.ask("crash")
                crashed_at = trio.current_time()
                await ref.ask("up?")
                found.append(trio.current_time() - crashed_at)
        return found

    first = await waits(1)
    assert first[0] == 0
    assert all(5 <= wait <= 15 for wait in first[1:])
    assert await waits(1) == pytest.approx(first)
    assert await waits(2) != pytest.approx(first)


async def test_child_that_stayed_up_for_its_window_comes_back_at_once_again(autojump_clock):
    backoff = Backoff(first_s=8, jitter=0)
    spec = ChildSpec("a", lambda: Recorder([]))
    root = ChildSpec("root", lambda: Supervisor([spec], backoff=backoff, intensity=Intensity(9, 10)))
    async with open_system(root) as system:
        ref = system.supervisor.child("a")
        waits = []
        for up_s in (0, 0, 10, 10.5, 0):
            await trio.sleep(up_s)
            with pytest.raises(ActorDeadError):
                await ref.ask("crash")
            crashed_at = trio.current_time()
            await ref.ask("up?")
            waits.append(trio.current_time() - crashed_at)
        assert waits == [0, 8, 16, 0, 8]
