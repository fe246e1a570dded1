"""Timers in SQLite: what is to happen when, so that it is known after a restart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import apsw

HEARTBEAT = "heartbeat/"
"""What the names of the timers begin with that have standing agents look for mail; the agent's id follows."""

RETENTION = "retention"
"""The name of the timer of the retention, which is also that of the actor."""


@dataclass(frozen=True, slots=True)
class TimerRow:
    """A timer as it is stored: `due_at` is RFC 3339, `interval_s` None for one that ticks once."""

    name: str
    target: str
    payload: str
    due_at: str
    interval_s: float | None


@dataclass(frozen=True, slots=True)
class SaveTimers:
    """Write timers, each in place of the one of its name."""

    rows: Sequence[TimerRow]

    def apply(self, database: apsw.Connection) -> None:
        """Insert or replace."""
        database.executemany(
            "INSERT INTO timers (name, target, payload, due_at, interval_s) VALUES (?,?,?,?,?) "
            "ON CONFLICT (name) DO UPDATE SET target = excluded.target, payload = excluded.payload, "
            "due_at = excluded.due_at, interval_s = excluded.interval_s",
            [astuple(row) for row in self.rows],
        )


@dataclass(frozen=True, slots=True)
class DeleteTimers:
    """Delete timers by name; one that is not there is no fault."""

    names: Sequence[str]

    def apply(self, database: apsw.Connection) -> None:
        """Delete the rows."""
        database.executemany("DELETE FROM timers WHERE name = ?", [(name,) for name in self.names])


def stored_timers(database: apsw.Connection) -> list[TimerRow]:
    """Return every timer, the one that is due first before the others."""
    rows = database.execute(
        "SELECT name, target, payload, due_at, interval_s FROM timers ORDER BY due_at, name"
    )
    return [TimerRow(*row) for row in rows]


def next_heartbeats(database: apsw.Connection) -> dict[str, str]:
    """Return for each standing agent that has a heartbeat when (RFC 3339) it looks for mail next."""
    rows = database.execute(
        "SELECT substr(name, ?), due_at FROM timers WHERE substr(name, 1, ?) = ?",
        (len(HEARTBEAT) + 1, len(HEARTBEAT), HEARTBEAT),
    )
    return dict(rows)
