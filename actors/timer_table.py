"""The timers of the kernel in the database of the runner."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence

import apsw
import structlog

from actors.kernel import Ref, Timer
from actors.ledger_writer import commit
from store.clock import parse_rfc3339, rfc3339
from store.timers import DeleteTimers, SaveTimers, TimerRow, stored_timers

_log = structlog.get_logger("schedule")


class TimerTable:
    """Loads timers from the table and has the ledger writer save them, what changes together in one unit."""

    def __init__(self, database: Callable[[], apsw.Connection], writer: Callable[[], Ref]) -> None:
        self._database = database
        self._writer = writer

    async def load(self) -> list[Timer]:
        """Return every timer of the table; a row that is none is logged, and left for who starts it anew."""
        timers = []
        for row in stored_timers(self._database()):
            try:
                due_at = parse_rfc3339(row.due_at).timestamp()
                timers.append(Timer(row.name, row.target, due_at, row.interval_s, row.payload))
            except ValueError as error:
                # One row that somebody changed by hand must not keep the daemon from starting.
                _log.warning("timer cannot be read", timer=row.name, problem=str(error))
        return timers

    async def save(self, changed: Sequence[Timer], removed: Sequence[str]) -> None:
        """Write timers and delete others; raises StorageError when the disk refused, nothing has changed then."""
        rows = [
            TimerRow(timer.name, timer.target, timer.payload, _moment(timer.due_at), timer.interval_s)
            for timer in changed
        ]
        await commit(self._writer(), SaveTimers(rows), DeleteTimers(removed))


def _moment(due_at: float) -> str:
    return rfc3339(dt.datetime.fromtimestamp(due_at, dt.UTC))
