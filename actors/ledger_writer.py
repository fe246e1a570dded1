"""The ledger writer: the one actor that writes the database.

Units of work that arrive while a commit is on its way to the disk are committed together by the next one (group
commit), so that sixty-four busy sessions cost few more synchronous writes than one. The commit runs in a thread: a
stalled disk stops no heartbeat. trio's own worker threads are used, because they are kept and reused, and handing
one a job costs about as much as a queue to a thread of our own would.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import apsw
import trio

from actors.kernel import Actor, Future, Ref
from store.database import StorageError, checkpoint
from store.unit_of_work import Outcome, UnitOfWork, Write, commit_units

BATCH_MAX: Final = 256
"""At most so many units share a transaction."""

WAITING_MAX: Final = 4_096
"""With more units than this before the disk, the mailbox itself makes senders wait."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit a unit; the answer is the list of its writes' results, once it is durable."""

    unit: UnitOfWork


@dataclass(slots=True)
class WriterFigures:
    """What the writer has done since the daemon started, and how it is."""

    units: int = 0
    commits: int = 0
    failures: int = 0
    failing: str | None = None


class LedgerWriter(Actor):
    """Commits units of work, many at a time; restarted, it opens the database anew."""

    def __init__(self, open_database: Callable[[], apsw.Connection], figures: WriterFigures) -> None:
        super().__init__()
        self._open = open_database
        self._figures = figures
        self._waiting: deque[tuple[UnitOfWork, Future]] = deque()
        self._arrived = trio.Event()
        self._room = trio.Event()
        self._idle = trio.Event()
        self._idle.set()
        self._database: apsw.Connection | None = None

    async def on_start(self) -> None:
        """Open the database and begin to commit."""
        self._database = await trio.to_thread.run_sync(self._open)
        self.start_task(self._commit_for_ever, name="group commit")

    async def on_receive(self, message: Commit) -> None:
        """Put the unit before the disk; its asker is answered when it is durable."""
        while len(self._waiting) >= WAITING_MAX:
            self._room = trio.Event()
            await self._room.wait()
        future = self.reply_later()
        self._waiting.append((message.unit, future))
        self._arrived.set()

    async def on_stop(self) -> None:
        """Commit what is waiting, then fold the log into the database and close it."""
        if self._database is None:
            return
        while self._waiting:
            await self._commit_batch(self._database)
        await trio.to_thread.run_sync(_close, self._database)

    async def _commit_for_ever(self) -> None:
        assert self._database is not None  # noqa: S101 - on_start opened it
        while True:
            if not self._waiting:
                self._arrived = trio.Event()
                await self._arrived.wait()
            await self._commit_batch(self._database)

    async def _commit_batch(self, database: apsw.Connection) -> None:
        batch = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
        units = [unit for unit, _ in batch]
        # Shielded: a batch that is on its way to the disk is answered, whoever is being stopped.
        with trio.CancelScope(shield=True):
            outcomes = await trio.to_thread.run_sync(commit_units, database, units)
        self._count(outcomes)
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set(outcome)
        self._room.set()

    def _count(self, outcomes: list[Outcome]) -> None:
        failed = next((outcome for outcome in outcomes if isinstance(outcome, StorageError)), None)
        self._figures.units += len(outcomes)
        self._figures.commits += 1
        self._figures.failures += failed is not None
        self._figures.failing = None if failed is None else failed.message


def _close(database: apsw.Connection) -> None:
    checkpoint(database)
    database.close()


async def commit(writer: Ref, *writes: Write) -> list[Any]:
    """Commit writes as one unit; return their results once they are durable.

    Raises ConflictError when a write's condition no longer holds, StorageError when the disk refused; nothing of the
    unit is in the database then.
    """
    results: list[Any] = await writer.ask(Commit(UnitOfWork(writes)))
    return results
