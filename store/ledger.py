"""The ledger's table: append, read, verify (section 6 of the specification)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apsw
import orjson

from protocol.canonical import canonical_json
from protocol.entry import Entry
from protocol.errors import CanonicalError, LedgerError

_COLUMNS = (
    "cid, quality, entity_id, target, timestamp, source, actor, parents, tags, payload, proof, envelope"
)

_APPEND = f"INSERT INTO ledger ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (cid) DO NOTHING"

# A payload that somebody put in by hand need not be JSON.
_IN_PAYLOAD = "CASE WHEN json_valid(payload) THEN json_extract(payload, '$.{}') END"


@dataclass(frozen=True, slots=True)
class AppendEntry:
    """Append an entry; appending the same one again changes nothing.

    `payload` is the canonical text of the entry's payload, where whoever made the entry has it at hand.
    """

    entry: Entry
    payload: str | None = None

    def apply(self, database: apsw.Connection) -> None:
        """Insert the row."""
        entry = self.entry
        database.execute(
            _APPEND,
            (
                entry.cid,
                entry.quality,
                entry.entity_id,
                entry.target,
                entry.timestamp,
                entry.source,
                entry.actor,
                _text(entry.parents) if entry.parents else "[]",
                _text(entry.tags) if entry.tags else "[]",
                _text(entry.payload) if self.payload is None else self.payload,
                None if entry.proof is None else _text(entry.proof),
                None if entry.envelope is None else _text(entry.envelope),
            ),
        )


def _text(value: Any) -> str:
    return canonical_json(value).decode()


def entry_from_row(row: tuple[Any, ...]) -> Entry:
    """Return the entry that a row (in the order of the table, without `seq`) holds, unverified."""
    cid, quality, entity_id, target, timestamp, source, actor, parents, tags, payload, proof, envelope = row
    return Entry(
        cid=cid,
        entity_id=entity_id,
        target=target,
        quality=quality,
        timestamp=timestamp,
        source=source,
        actor=actor,
        parents=orjson.loads(parents),
        tags=orjson.loads(tags),
        payload=orjson.loads(payload),
        proof=None if proof is None else orjson.loads(proof),
        envelope=None if envelope is None else orjson.loads(envelope),
    )


def read_entries(
    database: apsw.Connection,
    *,
    entity_id: str | None = None,
    quality: str | None = None,
    actor: str | None = None,
    tool: str | None = None,
    verdict: str | None = None,
    since: str | None = None,
    until: str | None = None,
    after: int | None = None,
    limit: int | None = None,
    newest_first: bool = False,
) -> list[tuple[int, Entry]]:
    """Return `(seq, entry)` of the entries that match every filter given, in ledger order or newest first.

    `tool` and `verdict` are those of the payload; `since` and `until` (which is not included) are RFC 3339 times as
    the ledger writes them; `after` is a position.
    """
    conditions, values = [], []
    for condition, value in (
        ("entity_id = ?", entity_id),
        ("quality = ?", quality),
        ("actor = ?", actor),
        (f"{_IN_PAYLOAD.format('tool')} = ?", tool),
        (f"{_IN_PAYLOAD.format('verdict')} = ?", verdict),
        ("timestamp >= ?", since),
        ("timestamp < ?", until),
        ("seq > ?", after),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    order = "DESC" if newest_first else "ASC"
    rows: list[Any] = database.execute(
        f"SELECT seq, {_COLUMNS} FROM ledger {where} ORDER BY seq {order} LIMIT ?",
        (*values, -1 if limit is None else limit),
    ).fetchall()
    return [(row[0], entry_from_row(row[1:])) for row in rows]


def find_entry(database: apsw.Connection, cid_prefix: str) -> tuple[int, Entry] | None:
    """Return the one entry whose CID begins with `cid_prefix`, or None if there is none or more than one."""
    rows: list[Any] = database.execute(
        f"SELECT seq, {_COLUMNS} FROM ledger WHERE cid >= ? AND cid < ? LIMIT 2",
        (cid_prefix, cid_prefix + "g"),
    ).fetchall()
    return (rows[0][0], entry_from_row(rows[0][1:])) if len(rows) == 1 else None


def count_entries(database: apsw.Connection) -> int:
    """Return how many entries the ledger holds (its highest position, since none is ever deleted)."""
    return int(database.execute("SELECT coalesce(max(seq), 0) FROM ledger").get)


def last_timestamp(database: apsw.Connection) -> str | None:
    """Return the newest timestamp in the ledger, or None while it is empty.

    Entries stand in the order in which they were committed, which for those of one moment need not be that of their
    timestamps: the newest is among the last few.
    """
    newest = database.execute(
        "SELECT max(timestamp) FROM (SELECT timestamp FROM ledger ORDER BY seq DESC LIMIT 4096)"
    ).get
    return None if newest is None else str(newest)


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing that is wrong in a ledger: position, CID and what it is."""

    seq: int
    cid: str
    problem: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found: how many entries were checked, and the first fault or None."""

    entries: int
    first_bad: Fault | None

    @property
    def ok(self) -> bool:
        """Whether every entry is what it says, in its place."""
        return self.first_bad is None


def verify(database: apsw.Connection) -> Verification:
    """Check every row: canonical text, CID, parents that stand before it, no position missing.

    Stored JSON is parsed and canonicalised again: hashing it as it lies would accept duplicate keys.
    """
    known: set[str] = set()
    checked = 0
    for seq, row in _rows(database):
        problem = _problem(row, known)
        if problem is None and seq != checked + 1:
            problem = f"position {checked + 1} is missing: an entry was removed"
        if problem is not None:
            return Verification(checked, Fault(seq, str(row[0]), problem))
        known.add(row[0])
        checked += 1
    return Verification(checked, None)


def _rows(database: apsw.Connection) -> Iterator[tuple[int, tuple[Any, ...]]]:
    for row in database.execute(f"SELECT seq, {_COLUMNS} FROM ledger ORDER BY seq"):
        yield row[0], row[1:]


def _problem(row: tuple[Any, ...], known: set[str]) -> str | None:
    try:
        entry = entry_from_row(row)
        for stored, value in zip(row[7:12], _json_fields(entry), strict=True):
            if stored is not None and canonical_json(value).decode() != stored:
                return "a stored JSON column is not canonical"
        entry.verify()
    except (orjson.JSONDecodeError, CanonicalError, LedgerError, TypeError) as error:
        return str(error)
    missing = [parent for parent in entry.parents if parent not in known]
    return f"the parent {missing[0]} does not stand before it" if missing else None


def _json_fields(entry: Entry) -> tuple[Any, ...]:
    return entry.parents, entry.tags, entry.payload, entry.proof, entry.envelope
