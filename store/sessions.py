"""Sessions, turns and history in SQLite (section 3 of the specification): the writes, and the reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import apsw
import orjson

from protocol.canonical import blake3_hex, canonical_json
from store.unit_of_work import ConflictError


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session as it is stored; see store/migrations/ for what each column holds."""

    id: str
    agent_id: str
    session_key: str
    owner: str
    backend: str
    model: str | None
    mode: str
    state: str
    pubkey: str | None
    last_activity: str
    created_at: str


@dataclass(frozen=True, slots=True)
class TurnRow:
    """A turn as it is stored."""

    id: str
    session_id: str
    seq: int
    status: str
    cid: str | None
    prev_cid: str | None
    input_hash: str | None
    output_hash: str | None
    stop_reason: str | None
    usage: dict[str, int] | None
    started_at: str
    completed_at: str | None


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One message of a session's history; `content` is text or a list of blocks."""

    turn_id: str
    seq: int
    role: str
    content: Any
    created_at: str


def session_id(agent_id: str, session_key: str, created_at: str) -> str:
    """Return the id of a session: BLAKE3 hex of `agent_id:session_key:created_at` (RFC 3339)."""
    return blake3_hex(f"{agent_id}:{session_key}:{created_at}".encode())


def turn_id(session: str, seq: int) -> str:
    """Return the id of the turn number `seq` of a session: re-derivable, no random number in it."""
    return blake3_hex(f"{session}:turn:{seq}".encode())[:32]


# --- writes


@dataclass(frozen=True, slots=True)
class CreateSession:
    """Insert a session; ConflictError if its key is taken."""

    row: SessionRow

    def apply(self, database: apsw.Connection) -> None:
        """Insert the row."""
        row = self.row
        try:
            database.execute(
                "INSERT INTO sessions VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                (
                    row.id,
                    row.agent_id,
                    row.session_key,
                    row.owner,
                    row.backend,
                    row.model,
                    row.mode,
                    row.state,
                    row.pubkey,
                    row.last_activity,
                    row.created_at,
                ),
            )
        except apsw.ConstraintError as error:
            raise ConflictError(f"the session key {row.session_key!r} is taken") from error


@dataclass(frozen=True, slots=True)
class UpdateSession:
    """Set what is given of a session's state, model, mode and backend, and when it was last active."""

    id: str
    last_activity: str
    state: str | None = None
    model: str | None = None
    mode: str | None = None
    backend: str | None = None

    def apply(self, database: apsw.Connection) -> None:
        """Update the row."""
        database.execute(
            "UPDATE sessions SET last_activity = ?, state = coalesce(?, state), model = coalesce(?, model), "
            "mode = coalesce(?, mode), backend = coalesce(?, backend) WHERE id = ?",
            (self.last_activity, self.state, self.model, self.mode, self.backend, self.id),
        )


@dataclass(frozen=True, slots=True)
class BeginTurn:
    """Insert a running turn and mark its session running."""

    id: str
    session_id: str
    seq: int
    prev_cid: str | None
    input_hash: str | None
    started_at: str
    key: str | None = None
    request_hash: str | None = None
    continuable: bool = False
    continues: str | None = None

    def apply(self, database: apsw.Connection) -> None:
        """Insert and mark."""
        database.execute(
            "INSERT INTO turns (id, session_id, seq, status, prev_cid, input_hash, started_at, idempotency_key, "
            "request_hash, continuable, continues) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            (
                self.id,
                self.session_id,
                self.seq,
                "running",
                self.prev_cid,
                self.input_hash,
                self.started_at,
                self.key,
                self.request_hash,
                int(self.continuable),
                self.continues,
            ),
        )
        database.execute(
            "UPDATE sessions SET state = 'running', last_activity = ? WHERE id = ?",
            (self.started_at, self.session_id),
        )


@dataclass(frozen=True, slots=True)
class EndTurn:
    """Record how a turn ended and mark its session idle; ConflictError where it has ended already."""

    id: str
    session_id: str
    status: str
    cid: str
    output_hash: str | None
    stop_reason: str | None
    usage: dict[str, int]
    completed_at: str

    def apply(self, database: apsw.Connection) -> None:
        """Update both rows."""
        database.execute(
            "UPDATE turns SET status = ?, cid = ?, output_hash = ?, stop_reason = ?, usage = ?, completed_at = ? "
            "WHERE id = ? AND status = 'running'",
            (
                self.status,
                self.cid,
                self.output_hash,
                self.stop_reason,
                canonical_json(self.usage).decode(),
                self.completed_at,
                self.id,
            ),
        )
        if not database.changes():
            raise ConflictError(f"turn {self.id} has ended already")
        database.execute(
            "UPDATE sessions SET state = 'idle', last_activity = ? WHERE id = ? AND state = 'running'",
            (self.completed_at, self.session_id),
        )


@dataclass(frozen=True, slots=True)
class AppendHistory:
    """Append one message to a session's history; its `seq` is the next one."""

    session_id: str
    turn_id: str
    role: str
    content: Any
    created_at: str
    mail: bool = False

    def apply(self, database: apsw.Connection) -> None:
        """Insert the row."""
        database.execute(
            "INSERT INTO history (session_id, turn_id, seq, role, content, created_at, mail) VALUES (?, ?, "
            "(SELECT coalesce(max(seq) + 1, 0) FROM history WHERE session_id = ?), ?, ?, ?, ?)",
            (
                self.session_id,
                self.turn_id,
                self.session_id,
                self.role,
                canonical_json(self.content).decode(),
                self.created_at,
                int(self.mail),
            ),
        )


MAIL_TAKEN_BACK: Final = "The mail that was read here will be delivered again."
"""What stands in the history for what `read_mailbox` returned in a turn that did not end well."""


@dataclass(frozen=True, slots=True)
class ForgetCarriedMail:
    """Take the mail that a turn carried out of the history again: it will be delivered anew."""

    session_id: str
    turn_id: str

    def apply(self, database: apsw.Connection) -> None:
        """Delete the injected message and close its gap; replace what `read_mailbox` returned."""
        rows = database.execute(
            "SELECT id, seq, content, mail FROM history WHERE turn_id = ? ORDER BY seq", (self.turn_id,)
        ).fetchall()
        calls: set[str] = set()
        for number, _, text, _ in rows:
            content = orjson.loads(str(text))
            if _forget_results(content, calls):
                database.execute(
                    "UPDATE history SET content = ? WHERE id = ?", (canonical_json(content).decode(), number)
                )
        for number, seq, _, mail in rows:
            if mail:
                database.execute("DELETE FROM history WHERE id = ?", (number,))
                self._close_gap(database, int(str(seq)))

    def _close_gap(self, database: apsw.Connection, seq: int) -> None:
        # Two steps, because a number may not stand twice even for a moment.
        database.execute(
            "UPDATE history SET seq = -seq WHERE session_id = ? AND seq > ?", (self.session_id, seq)
        )
        database.execute(
            "UPDATE history SET seq = -seq - 1 WHERE session_id = ? AND seq < 0", (self.session_id,)
        )


def _forget_results(content: Any, calls: set[str]) -> bool:
    """Note the `read_mailbox` calls of a message in `calls`; replace the results of those noted before."""
    changed = False
    for block in content if isinstance(content, list) else ():
        if block.get("type") == "tool_use" and block.get("name") == "read_mailbox":
            calls.add(block["id"])
        elif block.get("type") == "tool_result" and block.get("tool_use_id") in calls:
            block["content"] = MAIL_TAKEN_BACK
            changed = True
    return changed


@dataclass(frozen=True, slots=True)
class AddUsage:
    """Add tokens to what an agent spent on a day (UTC, YYYY-MM-DD)."""

    agent: str
    day: str
    input_tokens: int
    output_tokens: int

    def apply(self, database: apsw.Connection) -> None:
        """Insert or add."""
        database.execute(
            "INSERT INTO usage VALUES (?,?,?,?) ON CONFLICT (agent, day) DO UPDATE SET "
            "input_tokens = input_tokens + excluded.input_tokens, "
            "output_tokens = output_tokens + excluded.output_tokens",
            (self.agent, self.day, self.input_tokens, self.output_tokens),
        )


@dataclass(frozen=True, slots=True)
class ForgetSession:
    """Delete a closed session with its turns and its history; what the ledger says of it stays."""

    id: str

    def apply(self, database: apsw.Connection) -> None:
        """Delete the rows, unless the session was opened again meanwhile."""
        closed = "SELECT id FROM sessions WHERE id = ? AND state = 'closed'"
        database.execute(f"DELETE FROM history WHERE session_id IN ({closed})", (self.id,))
        database.execute(f"DELETE FROM turns WHERE session_id IN ({closed})", (self.id,))
        database.execute("DELETE FROM sessions WHERE id = ? AND state = 'closed'", (self.id,))


@dataclass(frozen=True, slots=True)
class ForgetHistory:
    """Delete the history of turns that ended before a moment (RFC 3339); the turns themselves stay."""

    before: str

    def apply(self, database: apsw.Connection) -> None:
        """Delete the rows."""
        database.execute(
            "DELETE FROM history WHERE turn_id IN (SELECT id FROM turns WHERE completed_at < ?)",
            (self.before,),
        )


@dataclass(frozen=True, slots=True)
class RecordWake:
    """Note when a standing agent woke by itself."""

    agent: str
    moment: str

    def apply(self, database: apsw.Connection) -> None:
        """Insert or replace."""
        database.execute(
            "INSERT INTO wakes VALUES (?,?) ON CONFLICT (agent) DO UPDATE SET last_wake = excluded.last_wake",
            (self.agent, self.moment),
        )


# --- reads


_SESSION = (
    "SELECT id, agent_id, session_key, owner, backend, model, mode, state, pubkey, last_activity, created_at "
    "FROM sessions"
)
_TURN = (
    "SELECT id, session_id, seq, status, cid, prev_cid, input_hash, output_hash, stop_reason, usage, started_at, "
    "completed_at FROM turns"
)


def _turn_row(row: Any) -> TurnRow:
    usage = None if row[9] is None else orjson.loads(row[9])
    values: list[Any] = [*row[:9], usage, *row[10:]]
    return TurnRow(*values)


def find_session(database: apsw.Connection, session_key: str) -> SessionRow | None:
    """Return the session of a key, or None."""
    row = database.execute(f"{_SESSION} WHERE session_key = ?", (session_key,)).fetchone()
    return None if row is None else SessionRow(*row)


def find_session_by_id(database: apsw.Connection, identifier: str) -> SessionRow | None:
    """Return a session by its id, or None."""
    row = database.execute(f"{_SESSION} WHERE id = ?", (identifier,)).fetchone()
    return None if row is None else SessionRow(*row)


def idle_session_keys(database: apsw.Connection, since: str) -> list[str]:
    """Return the keys of the open `domain` sessions that were last active at `since` (RFC 3339) or before."""
    rows = database.execute(
        "SELECT session_key FROM sessions WHERE mode = 'domain' AND state != 'closed' AND last_activity <= ?",
        (since,),
    )
    return [str(row[0]) for row in rows]


def count_open_sessions(database: apsw.Connection, *, running: bool = False) -> int:
    """Return how many sessions are not closed, or how many are running."""
    condition = "state = 'running'" if running else "state != 'closed'"
    return int(database.execute(f"SELECT count(*) FROM sessions WHERE {condition}").get)


def list_sessions(database: apsw.Connection, *, state: str | None = None) -> list[SessionRow]:
    """Return the sessions (of one state, if given), newest activity first."""
    where, values = ("", ()) if state is None else (" WHERE state = ?", (state,))
    return [
        SessionRow(*row) for row in database.execute(f"{_SESSION}{where} ORDER BY last_activity DESC", values)
    ]


def last_turn(database: apsw.Connection, session: str) -> TurnRow | None:
    """Return the newest turn of a session, or None."""
    row = database.execute(f"{_TURN} WHERE session_id = ? ORDER BY seq DESC LIMIT 1", (session,)).fetchone()
    return None if row is None else _turn_row(row)


def find_turn(database: apsw.Connection, session: str, identifier: str) -> TurnRow | None:
    """Return a turn of a session by its id, or None."""
    row = database.execute(f"{_TURN} WHERE id = ? AND session_id = ?", (identifier, session)).fetchone()
    return None if row is None else _turn_row(row)


def find_turn_by_key(database: apsw.Connection, session: str, key: str) -> tuple[TurnRow, str] | None:
    """Return the turn of a session that was asked for with an idempotency key, and the hash of what was asked for."""
    row = database.execute(
        f"{_TURN.replace(' FROM', ', request_hash FROM')} WHERE session_id = ? AND idempotency_key = ?",
        (session, key),
    ).fetchone()
    return None if row is None else (_turn_row(row[:-1]), str(row[-1]))


def last_ended_cid(database: apsw.Connection, session: str) -> str | None:
    """Return the CID of the newest turn of a session that has ended, or None."""
    row = database.execute(
        "SELECT cid FROM turns WHERE session_id = ? AND cid IS NOT NULL ORDER BY seq DESC LIMIT 1", (session,)
    ).fetchone()
    return None if row is None else str(row[0])


def running_turns(database: apsw.Connection) -> list[TurnRow]:
    """Return the turns that are recorded as running: at a start, those that a crash cut off."""
    return [
        _turn_row(row)
        for row in database.execute(f"{_TURN} WHERE status = 'running' ORDER BY started_at").fetchall()
    ]


def continuable_turns(database: apsw.Connection) -> set[str]:
    """Return the ids of the running turns that can be gone on with after a crash: none that carries mail by now.

    Mail comes again by itself, and with it the trust that a turn has which carries it.
    """
    return {
        str(row[0])
        for row in database.execute(
            "SELECT id FROM turns WHERE status = 'running' AND continuable = 1 "
            "AND id NOT IN (SELECT turn_id FROM mail_claims)"
        )
    }


def continuation_of(database: apsw.Connection, turn: str) -> str | None:
    """Return the id of the turn that went on with a cut-off one, or None."""
    row = database.execute("SELECT id FROM turns WHERE continues = ?", (turn,)).fetchone()
    return None if row is None else str(row[0])


def turns_of(database: apsw.Connection, session: str) -> list[TurnRow]:
    """Return the turns of a session in order."""
    return [
        _turn_row(row)
        for row in database.execute(f"{_TURN} WHERE session_id = ? ORDER BY seq", (session,)).fetchall()
    ]


def history_of(
    database: apsw.Connection, session: str, *, characters_max: int | None = None
) -> list[HistoryRow]:
    """Return the history of a session in order; with `characters_max`, only whole newest rows up to that size."""
    rows: list[HistoryRow] = []
    size = 0
    found = database.execute(
        "SELECT turn_id, seq, role, content, created_at FROM history WHERE session_id = ? ORDER BY seq DESC",
        (session,),
    )
    try:
        for turn, seq, role, content, created_at in found:
            size += len(content)
            if characters_max is not None and size > characters_max and rows:
                break
            rows.append(HistoryRow(turn, seq, role, orjson.loads(content), created_at))
    finally:
        found.close(force=True)
    rows.reverse()
    return rows


def history_of_turn(database: apsw.Connection, turn: str) -> list[HistoryRow]:
    """Return the messages of one turn in order."""
    rows: list[Any] = database.execute(
        "SELECT turn_id, seq, role, content, created_at FROM history WHERE turn_id = ? ORDER BY seq", (turn,)
    ).fetchall()
    return [HistoryRow(found, seq, role, orjson.loads(content), at) for found, seq, role, content, at in rows]


def closed_guest_sessions(database: apsw.Connection, since: str) -> list[SessionRow]:
    """Return the closed sessions of guests that were last active at `since` (RFC 3339) or before, oldest first."""
    rows = database.execute(
        f"{_SESSION} WHERE state = 'closed' AND owner LIKE 'guest:%' AND last_activity <= ? ORDER BY last_activity",
        (since,),
    )
    return [SessionRow(*row) for row in rows]


def spending_of_day(database: apsw.Connection, day: str) -> dict[str, int]:
    """Return the tokens that each account spent on a day (UTC, YYYY-MM-DD)."""
    return dict(
        database.execute("SELECT agent, input_tokens + output_tokens FROM usage WHERE day = ?", (day,))
    )


def last_wakes(database: apsw.Connection) -> dict[str, str]:
    """Return when each standing agent last woke by itself."""
    return dict(database.execute("SELECT agent, last_wake FROM wakes"))


def session_states(database: apsw.Connection, keys: Sequence[str]) -> dict[str, str]:
    """Return the stored state of each of the sessions that exist."""
    marks = ",".join("?" * len(keys))
    rows = database.execute(
        f"SELECT session_key, state FROM sessions WHERE session_key IN ({marks})",
        tuple(keys),
    )
    return dict(rows)
