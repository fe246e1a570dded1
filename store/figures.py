"""What the store holds, in figures: the ledger, tokens spent, sessions, and the room they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import apsw

from store.sessions import SessionRow


def database_bytes(path: Path) -> int:
    """Return the bytes that a database takes on the disk, with its write-ahead log; 0 where there is none."""
    return sum(_bytes_of(path.with_name(path.name + suffix)) for suffix in ("", "-wal"))


def _bytes_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


# --- the ledger


@dataclass(frozen=True, slots=True)
class LedgerFigures:
    """How many entries there are, by what they are; the counts are largest first, times are RFC 3339 or None."""

    entries: int
    first: str | None
    last: str | None
    by_quality: dict[str, int]
    by_actor: dict[str, int]
    by_verdict: dict[str, int]


def ledger_figures(database: apsw.Connection) -> LedgerFigures:
    """Count the ledger; verdicts are counted by what was decided, whether offered or called."""
    # A payload that somebody put in by hand need not be JSON, and is counted as one without a verdict.
    verdict = "CASE WHEN json_valid(payload) THEN json_extract(payload, '$.verdict') END"
    return LedgerFigures(
        int(database.execute("SELECT count(*) FROM ledger").get),
        _timestamp(database, "ASC"),
        _timestamp(database, "DESC"),
        _counts(database, "quality"),
        _counts(database, "actor"),
        _counts(database, f"coalesce({verdict}, 'none')", "WHERE quality = 'policy_verdict'"),
    )


def _timestamp(database: apsw.Connection, order: str) -> str | None:
    row = database.execute(f"SELECT timestamp FROM ledger ORDER BY seq {order} LIMIT 1").fetchone()
    return None if row is None else str(row[0])


def _counts(database: apsw.Connection, what: str, where: str = "") -> dict[str, int]:
    rows = database.execute(
        f"SELECT {what} AS what, count(*) AS often FROM ledger {where} GROUP BY 1 ORDER BY often DESC, 1"
    )
    return {str(name): int(str(often)) for name, often in rows}


# --- tokens


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens that an agent (or `guest`), a day (UTC, YYYY-MM-DD) or a session key spent; input has what was cached."""

    name: str
    input_tokens: int
    output_tokens: int

    @property
    def total(self) -> int:
        """Input and output together, which the daily limits count."""
        return self.input_tokens + self.output_tokens


def spent_by_agent(database: apsw.Connection, since_day: str) -> list[Spent]:
    """Return what each account spent from a day on (UTC, YYYY-MM-DD), the most first."""
    return _spent(
        database,
        "SELECT agent, sum(input_tokens), sum(output_tokens) FROM usage WHERE day >= ? GROUP BY agent "
        "ORDER BY sum(input_tokens + output_tokens) DESC, agent",
        since_day,
    )


def spent_by_day(database: apsw.Connection, since_day: str) -> list[Spent]:
    """Return what was spent on each day, the newest first."""
    return _spent(
        database,
        "SELECT day, sum(input_tokens), sum(output_tokens) FROM usage WHERE day >= ? GROUP BY day "
        "ORDER BY day DESC",
        since_day,
    )


def spent_by_session(database: apsw.Connection, since_day: str) -> list[Spent]:
    """Return what the turns of each session spent that began on a day or later, the most first."""
    counted = " + ".join(
        f"coalesce(json_extract(t.usage, '$.{name}'), 0)"
        for name in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    )
    return _spent(
        database,
        f"SELECT s.session_key, sum({counted}) AS taken, sum(coalesce(json_extract(t.usage, '$.output_tokens'), 0)) "
        "AS given FROM turns t JOIN sessions s ON s.id = t.session_id "
        "WHERE t.usage IS NOT NULL AND t.started_at >= ? GROUP BY s.id HAVING taken + given > 0 "
        "ORDER BY taken + given DESC, s.session_key",
        since_day,
    )


def _spent(database: apsw.Connection, statement: str, since_day: str) -> list[Spent]:
    return [
        Spent(str(name), int(str(taken)), int(str(given)))
        for name, taken, given in database.execute(statement, (since_day,))
    ]


SPENT_BY: Final[dict[str, Callable[[apsw.Connection, str], list[Spent]]]] = {
    "agent": spent_by_agent,
    "day": spent_by_day,
    "session": spent_by_session,
}
"""Each way to add tokens up."""


# --- sessions


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """A session and how many turns it has."""

    row: SessionRow
    turns: int


def summarise_sessions(
    database: apsw.Connection,
    *,
    state: str | None = None,
    agent: str | None = None,
    limit: int = -1,
) -> list[SessionSummary]:
    """Return sessions, newest activity first; `state` is idle, running, closed, or open (not closed)."""
    conditions, values = ["1"], []
    if state == "open":
        conditions.append("state != 'closed'")
    elif state is not None:
        conditions.append("state = ?")
        values.append(state)
    if agent is not None:
        conditions.append("agent_id = ?")
        values.append(agent)
    rows = database.execute(
        "SELECT id, agent_id, session_key, owner, backend, model, mode, state, pubkey, last_activity, created_at, "
        "(SELECT count(*) FROM turns WHERE session_id = sessions.id) FROM sessions "
        f"WHERE {' AND '.join(conditions)} ORDER BY last_activity DESC, session_key LIMIT ?",
        (*values, limit),
    )
    return [SessionSummary(SessionRow(*row[:11]), row[11]) for row in rows]
