"""A real database for tests, and the records that most of them put into it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import apsw

from protocol.entry import Entry, make_entry
from protocol.tiers import Tier
from store.clock import rfc3339
from store.ledger import AppendEntry
from store.mailbox import Mail, compose
from store.sessions import BeginTurn, CreateSession, EndTurn, SessionRow, session_id, turn_id
from store.unit_of_work import Outcome, UnitOfWork, Write, commit_units

NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)


def at(seconds: float = 0.0) -> str:
    """Return a moment some seconds after noon."""
    return rfc3339(NOON + dt.timedelta(seconds=seconds))


def commit(database: apsw.Connection, *writes: Write) -> list[Any]:
    """Commit writes as one unit; return their results, or raise what undid them."""
    [outcome] = commit_units(database, [UnitOfWork(writes)])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def outcomes(database: apsw.Connection, *units: tuple[Write, ...]) -> list[Outcome]:
    """Commit several units in one transaction; return what each came to."""
    return commit_units(database, [UnitOfWork(writes) for writes in units])


def a_session(key: str = "reed:cli:local", **fields: Any) -> SessionRow:
    """Return a session that is not stored yet."""
    agent = key.partition(":")[0]
    row = {
        "id": session_id(agent, key, at()),
        "agent_id": agent,
        "session_key": key,
        "owner": "operator",
        "backend": "rehearsal",
        "model": None,
        "mode": "domain",
        "state": "idle",
        "pubkey": None,
        "last_activity": at(),
        "created_at": at(),
    }
    return SessionRow(**{**row, **fields})


def stored_session(database: apsw.Connection, key: str = "reed:cli:local", **fields: Any) -> SessionRow:
    """Store a session and return it."""
    row = a_session(key, **fields)
    commit(database, CreateSession(row))
    return row


def stored_turn(
    database: apsw.Connection, session: SessionRow, number: int = 0, *, cid: str | None = None
) -> str:
    """Store a turn, ended where it is given its entry; return its id."""
    turn = turn_id(session.id, number)
    commit(database, BeginTurn(turn, session.id, number, None, None, at(number)))
    if cid is not None:
        commit(database, EndTurn(turn, session.id, "complete", cid, None, "end_turn", {}, at(number)))
    return turn


def an_entry(number: int = 0, parents: tuple[str, ...] = (), **fields: Any) -> Entry:
    """Return a ledger entry; different numbers are different entries."""
    values: dict[str, Any] = {
        "entity_id": "reed:cli:local",
        "target": "session",
        "quality": "session_lifecycle",
        "timestamp": at(number),
        "source": "reed:cli:local",
        "actor": "reed",
        "parents": list(parents),
        "payload": {"event": "opened", "reason": None, "number": number},
    }
    return make_entry(**{**values, **fields})


def a_mail(number: int = 0, recipient: str = "reed", **fields: Any) -> Mail:
    """Return a message that is not sent yet."""
    values: dict[str, Any] = {
        "sender": "operator",
        "subject": f"subject {number}",
        "body": f"body {number}",
        "moment": NOON + dt.timedelta(seconds=number),
        "tier": Tier.STANDING,
    }
    return compose(**{**values, "recipient": recipient, **fields})


def a_chain(database: apsw.Connection, length: int) -> list[Entry]:
    """Append entries that have each other for parents, and return them."""
    entries: list[Entry] = []
    for number in range(length):
        entries.append(an_entry(number, (entries[-1].cid,) if entries else ()))
    commit(database, *(AppendEntry(entry) for entry in entries))
    return entries
