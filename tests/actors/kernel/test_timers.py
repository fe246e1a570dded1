"""Durable timers: what ticks when, what never ticks twice at a time, and what outlives whom."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.kernel import (
    Actor,
    Backoff,
    ChildSpec,
    Intensity,
    Ref,
    Refusal,
    RootFailedError,
    Supervisor,
    SupervisorRef,
    Tick,
    Timer,
    Timers,
    TimersRef,
    open_system,
)
from actors.kernel.timers import RECHECK_S, SAVE_AGAIN_S, SAVE_DELAY_S, TRY_AGAIN

NOON = 1_800_000_000.0
DAY_S = 86_400.0


class Wall:
    """A clock that can be set: it goes with trio's, `shift` seconds away from it."""

    shift = 0.0

    def __call__(self) -> float:
        return NOON + trio.current_time() + self.shift


@dataclass
class Shelf:
    """What lasts; `writes` has what each save changed and removed."""

    timers: dict[str, Timer] = field(default_factory=dict)
    writes: list[tuple[list[str], list[str]]] = field(default_factory=list)
    failure: Exception | None = None
    slow_s: float = 0.0

    async def load(self) -> list[Timer]:
        await trio.lowlevel.checkpoint()
        return list(self.timers.values())

    async def save(self, changed: Sequence[Timer], removed: Sequence[str]) -> None:
        await trio.sleep(self.slow_s)
        if self.failure is not None:
            raise self.failure
        self.writes.append(([timer.name for timer in changed], list(removed)))
        self.timers.update((timer.name, timer) for timer in changed)
        for name in removed:
            del self.timers[name]


@dataclass
class Work:
    """What targets do with ticks: each is noted with its time, and takes as long as `takes_s` says."""

    ticks: list[tuple[str, float]] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)
    takes_s: float = 0.0
    at_work: int = 0
    most_at_work: int = 0
    then: Callable[[], Any] = lambda: None

    async def do(self, tick: Tick) -> Any:
        self.ticks.append((tick.name, trio.current_time()))
        self.missed.append(tick.missed)
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            await trio.sleep(self.takes_s)
        finally:
            self.at_work -= 1
        return self.then()

    def times(self, name: str) -> list[float]:
        return [round(at, 3) for ticked, at in self.ticks if ticked == name]


class Target(Actor):
    def __init__(self, work: Work) -> None:
        self.work = work

    async def on_receive(self, message: Any) -> Any:
        return await self.work.do(message)


class Deferring(Actor):
    """Answers from a task, which goes on beside the mailbox: nothing but the timers keep two of its ticks apart."""

    def __init__(self, work: Work) -> None:
        self.work = work

    async def on_receive(self, message: Any) -> None:
        self.start_task(self._do, message, self.reply_later())

    async def _do(self, tick, future) -> None:
        future.set(await self.work.do(tick))


class House:
    """A tree of timers and targets `a` and `b`; it runs while `open_house` does."""

    def __init__(self, shelf: Shelf, work: Work, wall: Wall, target: type[Actor]) -> None:
        self.wall = wall
        self.children = [
            ChildSpec("timers", lambda: Timers(shelf, self.find, now=wall)),
            ChildSpec("a", lambda: target(work), park=True, intensity=Intensity(1, 60.0)),
            ChildSpec("b", lambda: target(work)),
        ]
        self.trunk: SupervisorRef

    def find(self, name: str) -> Ref | None:
        return self.trunk.find(name)

    @property
    def timers(self) -> TimersRef:
        ref = self.trunk.child("timers")
        assert isinstance(ref, TimersRef)
        return ref

    def kill(self) -> None:
        """End everything as `kill -9` does: no hook runs, nothing more is saved."""
        self.trunk.kill()


class _Trunk(Supervisor):
    def __init__(self, house: House) -> None:
        super().__init__(house.children, backoff=Backoff(first_s=0.0))
        self._house = house

    async def on_start(self) -> None:
        assert isinstance(self.ref, SupervisorRef)
        self._house.trunk = self.ref


@asynccontextmanager
async def open_house(
    shelf: Shelf, work: Work | None = None, *, wall: Wall | None = None, target: type[Actor] = Target
) -> AsyncIterator[House]:
    house = House(shelf, work or Work(), wall or Wall(), target)
    async with open_system(ChildSpec("root", lambda: _Trunk(house))):
        await wait_all_tasks_blocked()
        yield house


async def after(seconds: float) -> None:
    """Let so much time pass, and what is due then be done."""
    await trio.sleep(seconds)
    await wait_all_tasks_blocked()


def timer(name: str = "t", due_s: float = 10.0, every_s: float | None = None, **fields: Any) -> Timer:
    """A timer that is due so long after the clock of a test began."""
    return Timer(name, fields.pop("target", "a"), NOON + due_s, every_s, **fields)


def shelf_of(*timers: Timer) -> Shelf:
    return Shelf({one.name: one for one in timers})


# --- when


async def test_one_shot_ticks_once_at_its_time_and_is_gone(autojump_clock: MockClock):
    shelf, work = Shelf(), Work()
    async with open_house(shelf, work) as house:
        await house.timers.start_timer(timer(due_s=10, payload="hello"))
        assert list(shelf.timers) == ["t"]  # durable as soon as the call returned
        await after(9.999)
        assert work.ticks == []
        await after(1000)
        assert work.times("t") == [10.0]
        assert shelf.timers == {}
        assert await house.timers.timers() == ()


async def test_periodic_timer_ticks_in_its_rhythm_whatever_the_work_takes(autojump_clock: MockClock):
    shelf, work = Shelf(), Work(takes_s=3.0)
    async with open_house(shelf, work) as house:
        await house.timers.start_timer(timer(due_s=10, every_s=20))
        await after(75)
        assert work.times("t") == [10.0, 30.0, 50.0, 70.0]
        assert shelf.timers["t"].due_at == NOON + 90
        assert work.missed == [0] * 4


async def test_timer_started_again_is_due_anew_and_a_cancelled_one_is_not(autojump_clock: MockClock):
    shelf, work = Shelf(), Work()
    async with open_house(shelf, work) as house:
        await house.timers.start_timer(timer(due_s=10))
        await house.timers.start_timer(timer(due_s=30))
        await house.timers.start_timer(timer("u", due_s=10))
        assert await house.timers.cancel_timer("u") is True
        assert await house.timers.cancel_timer("u") is False
        assert list(shelf.timers) == ["t"]
        await after(100)
        assert work.ticks == [("t", 30.0)]


async def test_timer_that_was_due_before_it_was_started_ticks_at_once(autojump_clock: MockClock):
    work = Work()
    async with open_house(Shelf(), work) as house:
        await house.timers.start_timer(timer(due_s=-1000))
        await after(0.001)
        assert work.times("t") == [0.0]


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"target": ""},
        {"due_at": float("nan")},
        {"due_at": -1.0},
        {"due_at": 1e12},
        {"interval_s": 0.0},
        {"interval_s": 1e-310},
        {"interval_s": float("inf")},
    ],
)
def test_impossible_timers_are_refused(fields: dict[str, Any]):
    with pytest.raises(ValueError, match=r"timer"):
        replace(timer(), **fields)


# --- never two at a time, and one for many


async def test_ticks_of_one_timer_never_overlap_and_what_slow_work_missed_is_one_tick(
    autojump_clock: MockClock,
):
    work = Work(takes_s=35.0)
    async with open_house(Shelf(), work, target=Deferring) as house:
        await house.timers.start_timer(timer(due_s=10, every_s=10))
        await after(44)
        work.takes_s = 0.0
        await after(20)
        # In work from 10 to 45: 20, 30 and 40 are missed; the next in the rhythm is 50.
        assert work.times("t") == [10.0, 50.0, 60.0]
        assert work.most_at_work == 1


async def test_work_that_outlives_a_crash_of_the_timers_still_holds_the_next_tick_back(
    autojump_clock: MockClock,
):
    work = Work(takes_s=35.0)
    async with open_house(shelf := Shelf(), work, target=Deferring) as house:
        await house.timers.start_timer(timer(due_s=10, every_s=10))
        await after(15)
        house.timers.kill()
        await after(1)
        assert house.timers.generation == 2
        [state] = await house.timers.timers()
        assert (state.is_running, state.timer.due_at) == (True, NOON + 10)
        await after(27)  # 43 s
        assert work.times("t") == [10.0]
        await after(8)  # 51 s
        assert work.times("t") == [10.0, 50.0]
        assert work.most_at_work == 1
        assert shelf.timers["t"].due_at == NOON + 50


async def test_slow_target_delays_no_other_timer(autojump_clock: MockClock):
    work = Work()

    class Slow(Target):
        async def on_receive(self, message: Any) -> Any:
            if message.name == "slow":
                await trio.sleep_forever()
            return await super().on_receive(message)

    async with open_house(Shelf(), work, target=Slow) as house:
        await house.timers.start_timer(timer("slow", due_s=5, every_s=10))
        await house.timers.start_timer(timer("t", due_s=10, every_s=10, target="b"))
        await after(35)
        assert work.times("t") == [10.0, 20.0, 30.0]
        assert [state.is_running for state in await house.timers.timers()] == [True, False]


async def test_ticks_that_were_missed_while_nothing_ran_are_one_tick_at_the_start(autojump_clock: MockClock):
    shelf, work = shelf_of(timer(due_s=-95, every_s=10), timer("once", due_s=-95)), Work()
    async with open_house(shelf, work):
        await after(1.5)
        assert sorted(work.ticks) == [("once", 0.0), ("t", 0.0)]
        assert sorted(work.missed) == [0, 9]
        assert list(shelf.timers) == ["t"]
        assert shelf.timers["t"].due_at == NOON + 5  # the rhythm is kept


# --- clocks that are set


async def test_clock_set_forward_is_one_tick_soon_and_then_the_rhythm(autojump_clock: MockClock):
    work, wall = Work(), Wall()
    async with open_house(Shelf(), work, wall=wall) as house:
        await house.timers.start_timer(timer(due_s=3600, every_s=3600))
        await house.timers.start_timer(timer("once", due_s=7200))
        await after(10)
        wall.shift = 5 * 3600 + 60
        await after(RECHECK_S)
        [[first], [once]] = work.times("t"), work.times("once")
        assert first == once <= 10 + RECHECK_S
        assert max(work.missed) == 4
        await after(7200)
        assert len(work.times("t")) == 3
        assert work.times("once") == [once]


async def test_clock_set_back_does_not_silence_a_periodic_timer(autojump_clock: MockClock):
    shelf, work, wall = Shelf(), Work(), Wall()
    async with open_house(shelf, work, wall=wall) as house:
        await house.timers.start_timer(timer(due_s=100, every_s=300))
        await after(50)
        wall.shift = -10 * DAY_S
        await after(300 + RECHECK_S)
        assert len(work.ticks) == 1
        await after(3000)
        assert len(work.ticks) == 11
        assert shelf.timers["t"].due_at < NOON - 9 * DAY_S


async def test_clock_set_back_while_a_tick_is_in_work_or_nothing_runs_changes_nothing_of_it(
    autojump_clock: MockClock,
):
    shelf, work, wall = Shelf(), Work(takes_s=10.0), Wall()
    async with open_house(shelf, work, wall=wall) as house:
        await house.timers.start_timer(timer(due_s=10, every_s=300))
        await after(15)
        wall.shift = -DAY_S
        await after(320)
        assert len(work.ticks) == 2
    wall.shift = -2 * DAY_S
    async with open_house(shelf, work, wall=wall):
        await after(301)
        assert len(work.ticks) == 3


async def test_one_shot_is_an_appointment_and_waits_for_its_time_on_a_clock_that_was_set_back(
    autojump_clock: MockClock,
):
    work, wall = Work(), Wall()
    async with open_house(Shelf(), work, wall=wall) as house:
        await house.timers.start_timer(timer(due_s=100))
        await after(50)
        wall.shift = -1000
        await after(1000)
        assert work.ticks == []
        await after(50)
        assert work.times("t") == [1100.0]


# --- what does not answer


@pytest.mark.parametrize("every_s", [None, 500.0])
async def test_tick_for_nobody_is_logged_once_and_comes_again_until_it_is_done(
    every_s: float | None, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
):
    shelf, work = (
        shelf_of(timer(due_s=10, every_s=every_s, target="c"), timer("u", due_s=10, target="b")),
        Work(),
    )
    async with open_house(shelf, work) as house:
        await after(100)  # the second try comes 48 to 72 s after the first, the third 96 to 144 s later
        assert work.times("u") == [10.0]
        assert (await house.timers.timers())[0].failures == 2
        [record] = [one for one in caplog.records if "not done" in one.message]
        assert "timer t" in record.message
        assert "nobody is found as 'c'" in record.message
        assert shelf.timers["t"].due_at == NOON + 10
        await house.trunk.start_child(ChildSpec("c", lambda: Target(work)))
        await after(200)
        assert len(work.times("t")) == 1
        assert list(shelf.timers) == ([] if every_s is None else ["t"])


async def test_tick_that_its_target_refuses_comes_again(autojump_clock: MockClock):
    work = Work(then=lambda: Refusal(OSError("no space")))
    async with open_house(shelf := shelf_of(timer(due_s=10)), work):
        await after(11)
        assert list(shelf.timers) == ["t"]
        work.then = lambda: None
        await after(1.2 * TRY_AGAIN.first_s)
        assert len(work.ticks) == 2
        assert shelf.timers == {}


async def test_tick_that_comes_again_waits_longer_each_time_but_a_periodic_one_never_past_its_interval(
    autojump_clock: MockClock,
):
    work = Work(then=lambda: Refusal(OSError("no space")))
    async with open_house(shelf_of(timer(), timer("often", every_s=20.0)), work):
        await after(10 * 3600)
        gaps = [later - earlier for earlier, later in itertools.pairwise(work.times("t"))]
        expected = [min(TRY_AGAIN.max_s, TRY_AGAIN.first_s * 2**number) for number in range(len(gaps))]
        assert len(gaps) > 8
        assert all(0.8 * want <= gap <= 1.2 * want for gap, want in zip(gaps, expected, strict=True))
        often = [later - earlier for earlier, later in itertools.pairwise(work.times("often"))]
        assert set(often) == {20.0}


async def test_target_that_dies_over_a_tick_or_is_parked_stops_no_other(autojump_clock: MockClock):
    def crash() -> None:
        raise ValueError("told to crash")

    work = Work()
    async with open_house(
        shelf_of(timer(every_s=100.0), timer("u", every_s=100.0, target="b")), work
    ) as house:
        for _ in range(2):
            house.trunk.child("a").kill()
            await wait_all_tasks_blocked()
        assert house.trunk.child("a").state == "parked"
        await after(350)
        assert work.times("t") == []
        assert work.times("u") == [10.0, 110.0, 210.0, 310.0]
        work.then = crash
        assert await house.trunk.retry("a") is True
        await after(100)
        assert len(work.times("t")) == 1
        assert house.trunk.child("a").generation == 4
        work.then = lambda: None
        await after(100)
        assert [state.failures for state in await house.timers.timers()] == [0, 0]


async def test_target_that_waits_for_its_restart_gets_the_tick_then(autojump_clock: MockClock):
    work = Work()

    class Hesitant(Target):
        async def on_start(self) -> None:
            await trio.sleep(30.0 if self.ref.generation > 1 else 0.0)

    async with open_house(shelf_of(timer()), work, target=Hesitant) as house:
        await after(5)
        house.trunk.child("a").kill()
        await after(40)
        assert work.times("t") == [35.0]


# --- what lasts


async def test_crash_of_the_timers_loses_nothing(autojump_clock: MockClock):
    shelf, work = Shelf(), Work()
    async with open_house(shelf, work) as house:
        for name, due_s in (("t", 10.0), ("u", 20.0), ("v", 30.0)):
            await house.timers.start_timer(timer(name, due_s=due_s))
        await house.timers.start_timer(timer("w", due_s=5, every_s=10))
        await after(10)
        house.timers.kill()
        await after(30)
        assert [name for name, _ in work.ticks if name != "w"].count("t") >= 1
        assert [name for name, _ in work.ticks if name in "uv"] == ["u", "v"]
        assert work.times("w")[-3:] == [15.0, 25.0, 35.0]


@pytest.mark.parametrize("when", ["before the tick", "during it", "before it is saved", "after it is saved"])
@pytest.mark.parametrize("every_s", [None, 100.0])
async def test_tick_is_done_at_least_once_wherever_the_process_is_killed(
    when: str, every_s: float | None, autojump_clock: MockClock
):
    shelf, work = Shelf(), Work(takes_s=2.0)
    done: list[float] = []
    work.then = lambda: done.append(trio.current_time())
    moments = {"before the tick": 9, "during it": 11, "before it is saved": 12.5, "after it is saved": 20}

    async def run_and_kill() -> None:
        async with open_house(shelf, work) as house:
            await house.timers.start_timer(timer(due_s=10, every_s=every_s))
            await after(moments[when])
            house.kill()
            await trio.sleep_forever()

    with pytest.raises(RootFailedError):
        await run_and_kill()
    assert len(done) == (when in ("before it is saved", "after it is saved"))
    async with open_house(shelf, work):
        await after(50)
        assert len(done) == (2 if when == "before it is saved" else 1)
        assert list(shelf.timers) == ([] if every_s is None else ["t"])
        if every_s is not None:
            assert shelf.timers["t"].due_at == NOON + 110


async def test_orderly_stop_saves_what_was_done_so_that_it_does_not_come_again(autojump_clock: MockClock):
    shelf, work = shelf_of(timer(due_s=0, every_s=100.0), timer("once", due_s=0)), Work()
    async with open_house(shelf, work):
        await after(SAVE_DELAY_S / 2)
        assert shelf.writes == []
    assert shelf.writes == [(["t"], ["once"])]
    async with open_house(shelf, work):
        await after(10)
    assert len(work.ticks) == 2


async def test_many_timers_that_beat_at_one_instant_are_saved_in_one_go(autojump_clock: MockClock):
    shelf, work = Shelf(), Work()
    async with open_house(shelf, work) as house:
        await house.timers.keep_timers(
            "beat/", [timer(f"beat/{number}", every_s=60.0) for number in range(26)]
        )
        await after(140)
        assert len(work.ticks) == 3 * 26
        assert [len(changed) for changed, _ in shelf.writes] == [26] * 4
        assert {one.due_at for one in shelf.timers.values()} == {NOON + 190}


async def test_nothing_is_written_while_nothing_is_due(autojump_clock: MockClock):
    async with open_house(shelf := shelf_of(timer(due_s=DAY_S, every_s=DAY_S))):
        await after(DAY_S - 1)
        assert shelf.writes == []


async def test_kept_timers_are_exactly_those_and_stay_due_when_they_were(autojump_clock: MockClock):
    shelf = shelf_of(
        timer("beat/a", due_s=70, every_s=100.0), timer("beat/gone", every_s=100.0), timer("other", due_s=500)
    )
    work = Work()
    async with open_house(shelf, work) as house:
        wanted = [timer("beat/a", due_s=100, every_s=100.0), timer("beat/b", due_s=100, every_s=100.0)]
        await house.timers.keep_timers("beat/", wanted)
        await house.timers.keep_timers("beat/", wanted)
        assert {name: one.due_at - NOON for name, one in shelf.timers.items()} == {
            "beat/a": 70,
            "beat/b": 100,
            "other": 500,
        }
        assert len(shelf.writes) == 1
        # A shorter interval counts from now, a longer one from the next tick.
        await house.timers.keep_timers("beat/", [timer("beat/a", due_s=30, every_s=30.0)])
        await after(65)
        assert work.times("beat/a") == [30.0, 60.0]
        await house.timers.keep_timers("beat/", [timer("beat/a", due_s=1000, every_s=200.0)])
        await after(60)
        assert work.times("beat/a") == [30.0, 60.0, 90.0]
        assert shelf.timers["beat/a"].due_at == NOON + 290
        await house.timers.keep_timers("beat/", [])
        assert list(shelf.timers) == ["other"]
        for wrong in (timer("beat/c"), timer("c", every_s=1.0)):
            with pytest.raises(ValueError, match="periodic"):
                await house.timers.keep_timers("beat/", [wrong])


async def test_store_that_refuses_is_told_to_the_caller_and_silences_nothing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
):
    shelf, work = shelf_of(timer(every_s=10.0)), Work()
    shelf.failure = OSError("no space")
    async with open_house(shelf, work) as house:
        with pytest.raises(OSError, match="no space"):
            await house.timers.start_timer(timer("u", due_s=15))
        with pytest.raises(OSError, match="no space"):
            await house.timers.cancel_timer("t")
        await after(35)
        assert work.times("t") == [10.0, 20.0, 30.0]
        assert work.times("u") == []
        assert shelf.timers["t"].due_at == NOON + 10
        assert len([one for one in caplog.records if "not saved" in one.message]) == 1
        shelf.failure = None
        await after(SAVE_AGAIN_S)
        assert shelf.timers["t"].due_at == NOON + 70
        assert await house.timers.cancel_timer("t") is True


async def test_what_the_store_refused_is_saved_later_by_itself(autojump_clock: MockClock):
    shelf, work = shelf_of(timer()), Work()
    shelf.failure = OSError("no space")
    async with open_house(shelf, work):
        await after(10 + SAVE_DELAY_S)
        assert (len(work.ticks), list(shelf.timers)) == (1, ["t"])
        shelf.failure = None
        await after(SAVE_AGAIN_S)
        assert (len(work.ticks), list(shelf.timers)) == (1, [])


async def test_store_that_is_slow_holds_up_no_tick(autojump_clock: MockClock):
    shelf, work = shelf_of(timer(every_s=10.0)), Work()
    shelf.slow_s = 1000.0
    async with open_house(shelf, work) as house:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.timers.start_timer, timer("u", due_s=500))
            await after(95)
            assert len(work.times("t")) == 9
            assert [state.timer.name for state in await house.timers.timers()] == ["t"]
        assert trio.current_time() >= 1000
        assert {state.timer.name for state in await house.timers.timers()} == {"t", "u"}
        shelf.slow_s = 0.0


async def test_command_about_a_timer_whose_tick_is_in_work_is_not_undone_by_its_end(
    autojump_clock: MockClock,
):
    shelf, work = Shelf(), Work(takes_s=10.0)
    async with open_house(shelf, work) as house:
        await house.timers.start_timer(timer(due_s=10, every_s=100.0))
        await house.timers.start_timer(timer("gone", due_s=10, target="b"))
        await after(12)
        await house.timers.start_timer(timer(due_s=15, payload="another"))
        assert await house.timers.cancel_timer("gone") is True
        await after(4)
        assert work.times("t") == [10.0]  # the new one is due, the old one's work goes on
        await after(60)
        assert work.times("t") == [10.0, 20.0]
        assert work.times("gone") == [10.0]
        assert shelf.timers == {}


async def test_message_that_is_no_command_is_only_logged(caplog: pytest.LogCaptureFixture):
    async with open_house(Shelf()) as house:
        house.timers.tell("hello")
        await wait_all_tasks_blocked()
        assert house.timers.generation == 1
        assert "does not handle" in caplog.text


async def test_descendants_are_found_by_path():
    async with open_house(Shelf()) as house:
        assert house.trunk.find("timers") is house.timers
        assert house.trunk.find("timers/x") is None
        assert house.trunk.find("x/y") is None
        assert house.trunk.find("") is None
