"""The ledger writer: the one actor that writes the database.

Units of work that arrive while a commit is on its way to the disk wait in the mailbox and are committed together by
the next one (group commit), so that sixty-four busy sessions cost few more synchronous writes than one. What waits
for the disk runs in a thread of the actor's own: a stalled disk stops no heartbeat.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Final

import apsw

from actors.kernel import Ref, Refusal, ThreadActor
from store.database import StorageError, checkpoint
from store.unit_of_work import Outcome, UnitOfWork, Write, begin_units, finish_units

BATCH_FAST: Final = 32
"""With a fast disk: while one half of the busy waits for it, the other half gets on with its work."""

BATCH_SLOW: Final = 256
"""With a slow disk the time is in the wait, which as many as possible share."""

SLOW_S: Final = 0.002

RECENT_MAX: Final = 1_024
"""Of so many commits it is known how long they took."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit a unit; the answer is the list of its writes' results, once it is durable."""

    unit: UnitOfWork


@dataclass(slots=True)
class WriterFigures:
    """What the writer has done since the daemon started, and how it is.

    `failing` says what the last commit failed of, `cause` is SQLite's error. `waiting_since` is when the commit began
    that waits for the disk now, `recent` are when the last ones ended and how long they took, by `time.perf_counter`.
    """

    units: int = 0
    commits: int = 0
    failures: int = 0
    failing: str | None = None
    cause: BaseException | None = None
    waiting_since: float | None = None
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=RECENT_MAX))


class LedgerWriter(ThreadActor):
    """Commits units of work, many at a time; restarted, it opens the database anew."""

    batch_max: int = BATCH_FAST  # units that share a transaction, at most
    mailbox_size_max: ClassVar[int | None] = 4_096  # with more before the disk, senders wait

    def __init__(self, open_database: Callable[[], apsw.Connection], figures: WriterFigures) -> None:
        super().__init__()
        self._open = open_database
        self._figures = figures
        self._database: apsw.Connection | None = None

    async def on_drain(self) -> None:
        """Commit what waits: whoever asks meant it to be kept."""
        await self.handle_waiting()

    def thread_start(self) -> None:
        """Open the database."""
        self._database = self._open()

    def batch_job(self, messages: list[Commit]) -> Callable[[], list[Any]]:
        """Apply the units here and have the thread make them durable; each asker is answered then.

        SQL that changes pages in memory takes microseconds, but in a thread each statement gives Python's lock up and
        may wait milliseconds to get it back from a busy loop. What can wait for the disk, the commit, is one
        statement. While another process holds the database the whole batch goes to the thread.
        """
        database = self._database
        assert database is not None  # noqa: S101 - messages come only after thread_start
        units = [message.unit for message in messages]
        outcomes = begin_units(database, units, wait_s=0)
        if any(_is_busy(outcome) for outcome in outcomes[:1]):
            return partial(self._commit, database, units)
        return partial(self._finish_commit, database, outcomes)

    def _commit(self, database: apsw.Connection, units: list[UnitOfWork]) -> list[Any]:
        return self._finish_commit(database, begin_units(database, units))

    def _finish_commit(self, database: apsw.Connection, outcomes: list[Outcome]) -> list[Any]:
        began = self._figures.waiting_since = time.perf_counter()
        try:
            outcomes = finish_units(database, outcomes)
        finally:
            self._figures.waiting_since = None
        ended = time.perf_counter()
        self.batch_max = BATCH_FAST if ended - began < SLOW_S else BATCH_SLOW
        self._figures.recent.append((ended, ended - began))
        self._count(outcomes)
        return [Refusal(outcome) if isinstance(outcome, Exception) else outcome for outcome in outcomes]

    def thread_stop(self) -> None:
        """Fold the write-ahead log into the database and close it."""
        database, self._database = self._database, None
        if database is not None:
            try:
                checkpoint(database)
            finally:
                database.close()

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        failed = next((outcome for outcome in outcomes if isinstance(outcome, StorageError)), None)
        self._figures.units += len(outcomes)
        self._figures.commits += 1
        self._figures.failures += failed is not None
        self._figures.cause = None if failed is None else failed.__cause__
        self._figures.failing = None if failed is None else failed.message


def _is_busy(outcome: Outcome) -> bool:
    return isinstance(outcome, StorageError) and isinstance(outcome.__cause__, apsw.BusyError)


async def commit(writer: Ref, *writes: Write) -> list[Any]:
    """Commit writes as one unit; return their results once they are durable.

    Raises ConflictError when a write's condition no longer holds, StorageError when the disk refused; nothing of the
    unit is in the database then.
    """
    results: list[Any] = await writer.ask(Commit(UnitOfWork(writes)))
    return results
