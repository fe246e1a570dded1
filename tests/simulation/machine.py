"""The machine that a simulated daemon runs on: clock, scheduler, disk and threads are ours, and all follow a seed.

trio shuffles the tasks that are ready; with `_ALLOW_DETERMINISTIC_SCHEDULING` it sorts them first, so that its
generator `_r`, seeded, decides alone. Both names are private: the version of trio is pinned where this is used.
"""

from __future__ import annotations

import datetime as dt
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import apsw
import outcome
import structlog
import trio
import trio._core._run as trio_run

from store.content import Content, load_content
from store.database import StorageError
from store.mailbox import ClaimMail
from store.sessions import CreateSession
from store.unit_of_work import ConflictError, Outcome, UnitOfWork, begin_units, finish_units
from tests.simulation.trace import Trace

BEGINNING = dt.datetime(2026, 11, 23, 6, tzinfo=dt.UTC)


class Machine:
    """What the processes of one run share: the power is cut for all of them at once."""

    def __init__(self, seed: int, trace: Trace) -> None:
        self.rng = random.Random(f"machine {seed}")
        self.trace = trace
        self.generation = 0
        self._cut = trio.Event()
        self.full_until = 0.0
        self.slow_until = 0.0
        self.conflicts = 0
        self.content_changed = trio.Event()
        self.on_durable: Callable[[Sequence[UnitOfWork], Sequence[Outcome]], None] = lambda _units, _found: (
            None
        )
        self._connections: set[apsw.Connection] = set()
        self._begun: Sequence[UnitOfWork] = ()
        self._elapsed_s = 0.0
        self.nursery: trio.Nursery  # where the workers run

    @property
    def is_troubled(self) -> bool:
        """Whether the disk is full or slow at this moment."""
        return trio.current_time() < max(self.full_until, self.slow_until)

    def utc(self) -> dt.datetime:
        """Return the time of day."""
        return BEGINNING + dt.timedelta(seconds=trio.current_time())

    def cut_power(self) -> None:
        """Let nothing that runs now reach the disk any more."""
        self.generation += 1
        for database in self._connections:
            # What was begun and not committed is gone.
            database.close(force=True)
        self._connections.clear()
        self._cut.set()
        self._cut = trio.Event()

    async def work(self, generation: int) -> None:
        """Take the time that a piece of work takes, or until the power is cut."""
        latency_s = self.latency_s()
        if generation == self.generation and latency_s > 0:
            with trio.move_on_after(latency_s):
                await self._cut.wait()
        else:
            await trio.lowlevel.checkpoint()

    def touch_content(self) -> None:
        """Let those who watch the content see that it changed."""
        self.content_changed.set()
        self.content_changed = trio.Event()

    def latency_s(self) -> float:
        """Return how long the disk takes for its next piece of work."""
        if trio.current_time() < self.slow_until:
            return self.rng.uniform(0.2, 3.0)
        return self.rng.choice((0.0, 0.0003, 0.002, 0.01))

    # --- threads

    async def run_sync(
        self,
        function: Callable[..., Any],
        *args: Any,
        abandon_on_cancel: bool = False,
        limiter: trio.CapacityLimiter | None = None,
        **_others: Any,
    ) -> Any:
        """Do what `trio.to_thread.run_sync` does, in the loop, at a moment of the seed's choice."""
        await trio.lowlevel.checkpoint_if_cancelled()
        generation = self.generation
        async with limiter or trio.CapacityLimiter(1):
            with trio.CancelScope(shield=not abandon_on_cancel):
                await trio.sleep(self.latency_s())
            if generation != self.generation:
                await trio.sleep_forever()
            result = outcome.capture(function, *args)
            with trio.CancelScope(shield=not abandon_on_cancel):
                await trio.sleep(self.latency_s())
        return result.unwrap()

    def worker(self, name: str) -> SimulatedWorker:
        """Make what stands in for the thread of an actor."""
        return SimulatedWorker(self, name)

    async def watch(self, _folder: Any, *, stop_event: trio.Event, **_others: Any) -> AsyncIterator[set[Any]]:
        """Do what `watchfiles.awatch` does: say that the content changed, once it has been quiet."""
        while not stop_event.is_set():
            await self.content_changed.wait()
            await trio.sleep(0.5)
            yield set()

    def load(self, folder: Path) -> Content:
        """Do what `load_content` does, once for each state of the roster: nothing else changes, and it takes long."""
        roster = (folder / "roster.yaml").read_bytes()
        if roster not in _contents:
            _contents[roster] = load_content(folder)
        return _contents[roster]

    # --- disk

    def begin(self, database: apsw.Connection, units: Sequence[UnitOfWork], **how: Any) -> list[Outcome]:
        """Do what `begin_units` does; some units lose a race for the row that they want."""
        self._connections.add(database)
        found: dict[int, Outcome] = {}
        for number, unit in enumerate(units):
            if self.conflicts and any(isinstance(write, ClaimMail | CreateSession) for write in unit.writes):
                self.conflicts -= 1
                found[number] = ConflictError("somebody else was quicker")
        passed = [unit for number, unit in enumerate(units) if number not in found]
        others = iter(begin_units(database, passed, **how))
        self._begun = units
        return [found[number] if number in found else next(others) for number in range(len(units))]

    def finish(self, database: apsw.Connection, outcomes: list[Outcome]) -> list[Outcome]:
        """Do what `finish_units` does, on a disk that may be full."""
        if trio.current_time() < self.full_until:
            self.trace.note("disk", f"refuses {len(outcomes)}")
            if not database.get_autocommit():
                database.execute("ROLLBACK")
            failure = StorageError("the database did not take a commit: database or disk is full")
            return [failure for _ in outcomes]
        finished = finish_units(database, outcomes)
        self.on_durable(self._begun, finished)
        return finished

    def perf_counter(self) -> float:
        """Return a reading that says now and then that the last piece of work was slow."""
        self._elapsed_s += self.rng.choice((0.0, 0.0, 0.0, 0.01))
        return self._elapsed_s


_contents: dict[bytes, Content] = {}


class PowerCutError(Exception):
    """The machine of this worker is no more."""


class SimulatedWorker:
    """Runs jobs in the loop, one after another, each at a moment of the seed's choice; see kernel.worker.Worker."""

    def __init__(self, machine: Machine, name: str) -> None:
        self._machine = machine
        self._name = name
        self._generation = machine.generation
        self._jobs: deque[tuple[Callable[[], Any], Callable[[outcome.Outcome[Any]], None]]] = deque()
        self._more = trio.Event()
        self._closed = False
        machine.nursery.start_soon(self._run, name=f"worker {name}")

    def submit(self, job: Callable[[], Any], done: Callable[[outcome.Outcome[Any]], None]) -> None:
        """Have a job run behind those before it."""
        self._jobs.append((job, done))
        self._more.set()

    def close(self) -> None:
        """End behind the last job."""
        self._closed = True
        self._more.set()

    async def _run(self) -> None:
        machine = self._machine
        while True:
            while not self._jobs and not self._closed:
                self._more = trio.Event()
                await self._more.wait()
            if not self._jobs:
                return
            job, done = self._jobs.popleft()
            await machine.work(self._generation)
            if machine.generation == self._generation:
                result = outcome.capture(job)
                await machine.work(self._generation)
            else:
                result = outcome.Error(PowerCutError(self._name))
            done(result)


@contextmanager
def running_on(machine: Machine, seed: int) -> Iterator[None]:
    """Replace, inside the block, what the shipped code asks of clock, threads, disk and chance."""
    names = random.Random(f"names {seed}")

    def token_hex(size: int = 32) -> str:
        return names.randbytes(size).hex()

    trio_run._r.seed(f"scheduler {seed}")
    with (
        patch.object(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        patch("trio.to_thread.run_sync", machine.run_sync),
        patch("watchfiles.awatch", machine.watch),
        patch("secrets.token_hex", token_hex),
        patch("store.clock.utc_now", machine.utc),
        patch("actors.retention.time", SimpleNamespace(time=lambda: machine.utc().timestamp())),
        # A thread of the real machine, which would have the loop turn at moments of its own.
        patch("actors.kernel.loop_watch.LoopWatch.start", lambda _watch: None),
        patch("actors.kernel.loop_watch.LoopWatch.end", lambda _watch: None),
        patch("actors.court.load_content", machine.load),
        patch("actors.ledger_writer.begin_units", machine.begin),
        patch("actors.ledger_writer.finish_units", machine.finish),
        patch("actors.ledger_writer.time", SimpleNamespace(perf_counter=machine.perf_counter)),
    ):
        yield


@contextmanager
def silence() -> Iterator[None]:
    """Let nothing be logged inside the block: most of a run's time would go into tracebacks of its own faults."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
        structlog.configure(**before)
