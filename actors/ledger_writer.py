"""The ledger writer: the one actor that writes the database.

Units of work that arrive while a commit is on its way to the disk are committed together by the next one (group
commit), so that sixty-four busy sessions cost few more synchronous writes than one. The commits run in a thread of
the actor's own: a stalled disk stops no heartbeat. A thread that waits at a queue is used, and not trio's workers,
because a job for those passes two more turns of the loop on its way there and back, which a turn that commits twice
feels.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
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


_Waiting = tuple[UnitOfWork, Future]


class LedgerWriter(Actor):
    """Commits units of work, many at a time; restarted, it opens the database anew."""

    def __init__(self, open_database: Callable[[], apsw.Connection], figures: WriterFigures) -> None:
        super().__init__()
        self._open = open_database
        self._figures = figures
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._waiting = 0
        self._room = trio.Event()
        self._thread_ended = trio.Event()
        self._fault: BaseException | None = None

    async def on_start(self) -> None:
        """Open the database and begin to commit."""
        database = await trio.to_thread.run_sync(self._open)
        token = trio.lowlevel.current_trio_token()
        # Not waited for at the end of the process: a disk that never answers must not keep a daemon from ending.
        threading.Thread(
            target=self._commit_for_ever, args=(database, token), name="ledger", daemon=True
        ).start()
        self.start_task(self._keep_thread, name="group commit")

    async def on_receive(self, message: Commit) -> None:
        """Put the unit before the disk; its asker is answered when it is durable."""
        while self._waiting >= WAITING_MAX:
            self._room = trio.Event()
            await self._room.wait()
        self._waiting += 1
        self._queue.put((message.unit, self.reply_later()))

    async def on_stop(self) -> None:
        """Wait until what was put before the disk is committed, and the database is closed."""
        await self._thread_ended.wait()

    async def _keep_thread(self) -> None:
        """End the thread with the incarnation, however that ends; a fault of the thread is one of the actor."""
        try:
            await self._thread_ended.wait()
        finally:
            self._queue.put(None)
        if self._fault is not None:
            raise self._fault

    # --- in the thread

    def _commit_for_ever(self, database: apsw.Connection, token: trio.lowlevel.TrioToken) -> None:
        fault: BaseException | None = None
        try:
            while batch := self._take():
                outcomes = commit_units(database, [unit for unit, _ in batch])
                token.run_sync_soon(self._answer, batch, outcomes)
            checkpoint(database)
            database.close()
        except trio.RunFinishedError:
            return
        except BaseException as error:  # noqa: BLE001 - it is raised again in the actor
            fault = error
        try:
            token.run_sync_soon(self._thread_has_ended, fault)
        except trio.RunFinishedError:
            return

    def _take(self) -> list[_Waiting]:
        """Wait for units and return those that are there, at most BATCH_MAX; none means the end."""
        batch: list[_Waiting] = []
        item = self._queue.get()
        while item is not None:
            batch.append(item)
            if len(batch) == BATCH_MAX:
                return batch
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch
        if batch:
            # The end came behind units: they are committed first.
            self._queue.put(None)
        return batch

    # --- back on the loop

    def _answer(self, batch: Sequence[_Waiting], outcomes: Sequence[Outcome]) -> None:
        self._waiting -= len(batch)
        self._count(outcomes)
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set(outcome)
        self._room.set()

    def _thread_has_ended(self, fault: BaseException | None) -> None:
        self._fault = fault
        self._thread_ended.set()

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        failed = next((outcome for outcome in outcomes if isinstance(outcome, StorageError)), None)
        self._figures.units += len(outcomes)
        self._figures.commits += 1
        self._figures.failures += failed is not None
        self._figures.failing = None if failed is None else failed.message


async def commit(writer: Ref, *writes: Write) -> list[Any]:
    """Commit writes as one unit; return their results once they are durable.

    Raises ConflictError when a write's condition no longer holds, StorageError when the disk refused; nothing of the
    unit is in the database then.
    """
    results: list[Any] = await writer.ask(Commit(UnitOfWork(writes)))
    return results
