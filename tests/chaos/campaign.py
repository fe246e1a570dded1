"""The campaign: a real daemon under load is killed again and again, started again, and held to what it had said."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import trio

from actors.runtime.rehearsal import Answer
from store.clock import StrictClock
from store.content import load_content
from store.mailbox import count_unread, reader_of
from tests.chaos.check import Checker
from tests.chaos.load import Load, Visitor
from tests.chaos.record import Life, Told, Violation
from tests.chaos.report import Report
from tests.chaos.victim import Victim
from tests.support.daemon import START_S, Daemon, edit
from tests.support.model_server import Pause, Recorded, Response, serve

PLANS: Final = {"load": 28, "moment": 26, "start": 14, "recovery": 12, "ready": 10, "drain": 6, "hurry": 4}
"""How often each kind of end is chosen, by weight; see `Campaign._end_as_planned`."""

MOMENTS: Final = {
    "turn_started": 10,
    "policy_gate": 60,
    "mailbox_injected": 3,
    "tool_call": 5,
    "tool_result": 5,
    "tool_execute": 1,
    "ledger_append": 20,
    "text_delta": 60,
    "done": 8,
    "error": 2,
    "mail.send": 3,
    "board.post": 3,
    "session.init": 60,
    "session.close": 2,
    "session.cancel": 1,
}
"""What a client is told at the moment of a kill, and up to the how-manieth time in a life that may be."""

REST_S: Final = 120.0
"""How long the last daemon of a root may take until all mail is read and no turn runs."""

KILLS_PER_ROOT: Final = 30
MOMENT_S: Final = 2.5
_LIMITS: Final = {"wakeups_per_10_min": 10_000, "tokens_per_agent_day": 10**12, "tokens_per_day": 10**12}


@dataclass(frozen=True, slots=True)
class Order:
    """How long a campaign goes on and under how many sessions.

    `keep` is where the roots stay, None: none does. `warm`: daemons start from a process that has the program loaded.
    """

    kills: int = 500
    seed: int = 1
    minutes: float = 1_000.0
    sessions: int = 40
    keep: Path | None = None
    warm: bool = False


@dataclass(slots=True)
class Campaign:
    """Runs an order and fills `report`, also when it is stopped in the middle."""

    order: Order
    report: Report = field(default_factory=Report)
    say: Callable[[str], None] = lambda _line: None
    _rng: random.Random = field(init=False)
    _seen: set[tuple[str, str]] = field(default_factory=set)
    _began: float = field(default_factory=time.monotonic)
    _life: Life = field(default_factory=lambda: Life(0, "none"))

    def __post_init__(self) -> None:
        self._rng = random.Random(self.order.seed)
        self.report.seed = self.order.seed

    @property
    def _is_over(self) -> bool:
        out_of_time = time.monotonic() - self._began > self.order.minutes * 60
        return out_of_time or self.report.kills >= self.order.kills

    async def run(self) -> None:
        """Take one root after another until there were enough kills, or the time is over."""
        number = 0
        while not self._is_over:
            number += 1
            folder = self.order.keep or Path(tempfile.mkdtemp(prefix="agent-runner-chaos-"))
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with Victim(folder / f"root-{number}", warm=self.order.warm) as house:
                    _lift_limits(house)
                    # Every third root asks a model server over HTTP, which answers by the same simple words.
                    # Every second goes on with what a kill cut off.
                    further = ("--resume-turns",) if number % 2 == 0 else ()
                    async with _backend(house, over_http=number % 3 == 0) as arguments:
                        await self._one_root(house, (*arguments, *further))
            finally:
                if self.order.keep is None:
                    shutil.rmtree(folder, ignore_errors=True)

    async def _one_root(self, house: Victim, arguments: tuple[str, ...]) -> None:
        told = Told()
        load = Load(told)
        checker = Checker(house.root, told)
        seeds = [self._rng.randrange(2**32) for _ in range(self.order.sessions)]
        visitors = [Visitor(number, load, random.Random(seed)) for number, seed in enumerate(seeds)]
        try:
            before = self.report.kills
            while not self._is_over and self.report.kills - before < KILLS_PER_ROOT:
                await self._one_life(house, arguments, load, visitors, checker)
            await self._come_to_rest(house, arguments, load, visitors, checker)
        finally:
            self.report.count(told, checker)

    async def _one_life(
        self,
        house: Victim,
        arguments: tuple[str, ...],
        load: Load,
        visitors: list[Visitor],
        checker: Checker,
    ) -> None:
        plan = self._rng.choices(list(PLANS), list(PLANS.values()))[0]
        life = self._begin_life(house, arguments, plan, checker)
        began = time.monotonic()
        if plan in ("start", "recovery"):
            became_ready = await self._end_before_ready(house, plan)
        else:
            became_ready = await house.ready()
            if not became_ready:
                self._add(
                    [Violation("a daemon that was killed starts again", house.log[-1500:])],
                )
        if became_ready:
            life.ready_s = time.monotonic() - began
            life.files_at_ready = house.open_files()
            self._add(checker.after_a_start(_began_at(house)))
            await self._load_until_the_end(house, life, load, visitors)
        await self._note_the_end(house, life)
        life.lived_s = time.monotonic() - began
        self._add([*checker.after_an_end(), *_processes_left(house), *_log_faults(house, self.report, life)])
        self._add(load.told.faults)
        load.told.faults.clear()
        self.say(
            f"life {life.number} ({life.plan}): {life.end} after {life.lived_s:.1f} s; {self.report.kills} kills, "
            f"{len(self.report.violations)} violations"
        )

    def _begin_life(self, house: Victim, arguments: tuple[str, ...], plan: str, checker: Checker) -> Life:
        self._life = Life(len(self.report.lives) + 1, plan, StrictClock().stamp())
        self.report.lives.append(self._life)
        checker.lives.append(self._life)
        house.spawn(*arguments)
        return self._life

    async def _end_before_ready(self, house: Victim, plan: str) -> bool:
        """Kill while the daemon starts: at any moment, or just when it has begun to write; whether it was ready."""
        if plan == "start":
            await trio.sleep(self._rng.uniform(0.0, 1.1) * self.report.usual_start_s)
        else:
            before = _written(house)
            with trio.move_on_after(START_S):
                while _written(house) == before and house.is_alive:  # noqa: ASYNC110 - another process sets no event
                    await trio.sleep(0.001)
            await trio.sleep(self._rng.choice((0.0, 0.0, self._rng.uniform(0, 0.1))))
        house.strike(signal.SIGKILL)
        return False

    async def _load_until_the_end(
        self, house: Victim, life: Life, load: Load, visitors: list[Visitor]
    ) -> None:
        load.living = True
        async with trio.open_nursery() as nursery:
            for visitor in visitors:
                nursery.start_soon(visitor.live, house)
            await self._end_as_planned(house, life, load)
            load.living = False
            load.watch.reached = None
            nursery.cancel_scope.deadline = trio.current_time() + 20
        if nursery.cancel_scope.cancelled_caught:
            load.told.fault(
                "every client learns of the end", f"clients hang after the end of life {life.number}"
            )

    async def _end_as_planned(self, house: Victim, life: Life, load: Load) -> None:
        rng = self._rng
        match life.plan:
            case "load":
                await trio.sleep(rng.uniform(0.05, 2.0))
            case "ready":
                await trio.sleep(rng.uniform(0.0, 0.3))
            case "moment":
                reached = trio.Event()

                def now() -> None:
                    life.files_at_end = house.open_files()
                    house.strike(signal.SIGKILL)  # here and now, before the loop goes on
                    reached.set()

                load.watch.expect = rng.choice(list(MOMENTS))
                load.watch.count = rng.randint(1, MOMENTS[load.watch.expect])
                life.plan = f"moment: {load.watch.expect}"
                load.watch.reached = now
                with trio.move_on_after(MOMENT_S):
                    await reached.wait()
            case "drain" | "hurry":
                await trio.sleep(rng.uniform(0.1, 1.0))
                house.strike(signal.SIGTERM)
                if life.plan == "hurry":
                    life.was_hurried = True
                    await trio.sleep(rng.uniform(0.0, 0.1))
                    house.strike(signal.SIGTERM)
                await trio.sleep(rng.uniform(0.0, 0.5))
        load.watch.reached = None
        life.files_at_end = house.open_files() or life.files_at_end
        house.strike(signal.SIGKILL)

    async def _note_the_end(self, house: Victim, life: Life) -> None:
        code = await house.ended()
        life.end = {-signal.SIGKILL: "killed", 0: "ended"}.get(code, f"exit {code}")
        if code == -signal.SIGKILL:
            self.report.kills += 1
        elif not (code == 0 and life.plan in ("drain", "hurry")):
            self._add([Violation("the daemon ends only when it is ended", f"{life}: {house.log[-1500:]}")])

    async def _come_to_rest(
        self,
        house: Victim,
        arguments: tuple[str, ...],
        load: Load,
        visitors: list[Visitor],
        checker: Checker,
    ) -> None:
        """Start once more, let every client settle what is open, wait until all mail is read, end in good order."""
        life = self._begin_life(house, arguments, "rest", checker)
        began = time.monotonic()
        if not await house.ready():
            self._add([Violation("a daemon that was killed starts again", house.log[-1500:])])
            return
        life.ready_s = time.monotonic() - began
        life.files_at_ready = house.open_files()
        load.living = True
        async with trio.open_nursery() as nursery:
            for visitor in visitors:
                nursery.start_soon(visitor.live, house)
            await trio.sleep(1.0)
            load.living = False
        with trio.move_on_after(REST_S) as scope:
            while not await is_at_rest(house):  # noqa: ASYNC110 - another process sets no event
                await trio.sleep(0.2)
        if scope.cancelled_caught:
            self._add([Violation("everything comes to rest", f"not within {REST_S} s")])
        life.files_at_end = house.open_files()
        house.strike(signal.SIGTERM)
        life.end = "ended" if await house.ended() == 0 else "failed"
        if life.end != "ended":
            self._add([Violation("the daemon ends only when it is ended", f"{life}: {house.log[-1500:]}")])
        self._add([*checker.at_the_last(), *_processes_left(house), *_log_faults(house, self.report, life)])
        self._add(load.told.faults)

    def _add(self, violations: Iterable[Violation]) -> None:
        for found in violations:
            if (found.rule, found.evidence) in self._seen:
                continue
            self._seen.add((found.rule, found.evidence))
            self.say(f"VIOLATION: {found.rule}: {found.evidence}")
            self.report.violations.append(
                replace(found, seed=self.order.seed, life=self._life.number, moment=StrictClock().stamp())
            )


# --- the daemon and its surroundings


def _lift_limits(house: Daemon) -> None:
    for name, limit in _LIMITS.items():
        edit(house.root.platform / "constitution.yaml", rf"^  {name}: \d+", f"  {name}: {limit}")


@asynccontextmanager
async def _backend(house: Daemon, *, over_http: bool) -> AsyncIterator[tuple[str, ...]]:
    if not over_http:
        yield ("--backend", "rehearsal", "--heartbeat-interval", "5")
        return
    async with serve(fallback=_rehearse) as server:
        house.environment |= {"ANTHROPIC_API_KEY": "chaos", "ANTHROPIC_BASE_URL": server.url}
        yield ("--backend", "anthropic", "--heartbeat-interval", "5")


def _rehearse(recorded: Recorded) -> Response:
    """Answer a request for a message as rehearsal would; the name never repeats, and so the ids of its calls."""
    parts = Answer(recorded.body, f"{time.monotonic_ns()}").parts()
    return Response(tuple(Pause(part) if isinstance(part, float) else part for part in parts))


def _began_at(house: Daemon) -> str:
    found = house.root.read_runner()
    return "" if found is None else found.started_at


def _written(house: Daemon) -> tuple[int, int]:
    with suppress(OSError):
        found = house.root.database.with_name(f"{house.root.database.name}-wal").stat()
        return found.st_size, found.st_mtime_ns
    return (0, 0)


async def is_at_rest(house: Daemon) -> bool:
    roster = load_content(house.root.platform).roster
    now = StrictClock().stamp()
    async with house.database() as database:
        running = database.execute("SELECT count(*) FROM turns WHERE status = 'running'").get
        return running == 0 and not any(
            count_unread(database, reader_of(identity), now) for identity in roster.standing()
        )


def _processes_left(house: Daemon) -> list[Violation]:
    """Return each process that still works for the root, or is an unreaped child of ours."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            words = (folder / "cmdline").read_bytes().split(b"\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()
            is_zombie = state[0] == "Z" and int(state[1]) == os.getpid()
            if str(house.root.path).encode() in words or is_zombie:
                found.append(Violation("no process is left", f"{folder.name}: {words} {state[0]}"))
    return found


def _log_faults(house: Daemon, report: Report, life: Life) -> list[Violation]:
    """Return what the daemon logged as its own fault just now; wake-ups that a hurried end cuts off are none."""
    text = house.log
    fresh, report.log_read[str(house.root.path)] = (
        text[report.log_read.get(str(house.root.path), 0) :],
        len(text),
    )
    return [
        Violation("the daemon logs no fault of its own", line[:3000])
        for line in fresh.splitlines()
        if (re.search(r'"level": ?"(error|critical)"', line) or line.startswith("Traceback"))
        and not (life.was_hurried and "wake-up failed" in line)
    ]
