"""Mail between agents and people (section 9 of the specification).

A message is addressed to an identity, a role, a tag or everybody. Delivery is at least once: a message is unread for
a reader until a turn that carried it has ended well, and one turn at a time may carry it (a claim).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import apsw

from protocol.canonical import blake3_hex
from protocol.roster import Identity
from protocol.tiers import Tier
from store.clock import rfc3339
from store.unit_of_work import ConflictError

DIRECT_LIFETIME: Final = dt.timedelta(hours=24)
"""How long mail to one identity, or to a tag, is delivered."""

BROADCAST_LIFETIME: Final = dt.timedelta(hours=4)
"""How long mail to `all` is delivered."""

BODY_CHARACTERS_MAX: Final = 64_000
SUBJECT_CHARACTERS_MAX: Final = 400
UNREAD_PER_TURN_MAX: Final = 50
"""At most so many messages are carried by one turn; the rest waits for the next."""

UNREAD_CHARACTERS_MAX: Final = 50_000
"""With this much mail a turn carries no more, the first message apart: nobody can fill a model's context by mail."""


@dataclass(frozen=True, slots=True)
class Mail:
    """One message. `tier` is the trust under which it was sent, `hops` how often its thread was continued.

    `again`: for mail whose turn did not end well, the calls of that turn that had run; None the first time.
    """

    id: str
    sender: str
    recipient: str
    subject: str
    body: str
    thread: str
    sent_at: str
    expires_at: str | None
    tier: Tier
    hops: int
    again: str | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads: the addresses under which mail reaches an identity."""

    id: str
    role: str | None = None
    tags: tuple[str, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every recipient that means this reader."""
        role = () if self.role is None else (self.role,)
        return (self.id, *role, "all", *(f"tag:{tag}" for tag in self.tags))


def reader_of(identity: Identity) -> Reader:
    """Return under which addresses mail reaches an identity of the roster."""
    return Reader(identity.id, identity.role, tuple(identity.tags))


def compose(
    *,
    sender: str,
    recipient: str,
    subject: str,
    body: str,
    moment: dt.datetime,
    tier: Tier,
    hops: int = 0,
    thread: str | None = None,
    to_role: bool = False,
) -> Mail:
    """Return a message with its id and its end of life.

    Mail to an identity or a tag lives 24 h, to `all` 4 h, to a role until it was read. `moment` must never repeat.
    """
    sent_at = rfc3339(moment)
    lifetime = BROADCAST_LIFETIME if recipient == "all" else DIRECT_LIFETIME
    expires_at = None if to_role else rfc3339(moment + lifetime)
    identifier = blake3_hex(f"{sender}:{recipient}:{sent_at}".encode())[:32]
    return Mail(
        identifier, sender, recipient, subject, body, thread or identifier, sent_at, expires_at, tier, hops
    )


# --- writes


@dataclass(frozen=True, slots=True)
class SendMail:
    """Store a message; sending the same one again changes nothing."""

    mail: Mail

    def apply(self, database: apsw.Connection) -> None:
        """Insert the row."""
        mail = self.mail
        database.execute(
            "INSERT INTO mail (id, sender, recipient, subject, body, thread, sent_at, expires_at, tier, hops) "
            "VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT (id) DO NOTHING",
            (
                mail.id,
                mail.sender,
                mail.recipient,
                mail.subject,
                mail.body,
                mail.thread,
                mail.sent_at,
                mail.expires_at,
                str(mail.tier),
                mail.hops,
            ),
        )


@dataclass(frozen=True, slots=True)
class ClaimMail:
    """Let one turn carry messages; ConflictError if another turn carries or somebody has read one of them."""

    mail_ids: Sequence[str]
    reader: str
    turn_id: str

    def apply(self, database: apsw.Connection) -> None:
        """Insert the claims. Mail to a role (it does not expire) is for one of its holders, whoever comes first."""
        for mail_id in self.mail_ids:
            if self._stands(database, "mail_receipts", mail_id):
                raise ConflictError(f"the message {mail_id} was read meanwhile")
            if self._stands(database, "mail_claims", mail_id):
                raise ConflictError(f"the message {mail_id} is carried by another turn")
            database.execute("INSERT INTO mail_claims VALUES (?,?,?)", (mail_id, self.reader, self.turn_id))

    def _stands(self, database: apsw.Connection, table: str, mail_id: str) -> bool:
        found = database.execute(
            f"SELECT 1 FROM {table} t JOIN mail m ON m.id = t.mail_id "
            "WHERE t.mail_id = ? AND (t.reader = ? OR m.expires_at IS NULL)",
            (mail_id, self.reader),
        )
        return found.fetchone() is not None


@dataclass(frozen=True, slots=True)
class SettleMail:
    """End the claims of a turn: its messages become read (`read_at` given) or unread again (None)."""

    turn_id: str
    read_at: str | None

    def apply(self, database: apsw.Connection) -> None:
        """Move the claims to receipts, or drop them."""
        if self.read_at is not None:
            database.execute(
                "INSERT OR IGNORE INTO mail_receipts SELECT mail_id, reader, ? FROM mail_claims WHERE turn_id = ?",
                (self.read_at, self.turn_id),
            )
            if database.changes():
                database.execute(
                    "DELETE FROM mail_again WHERE (mail_id, reader) IN "
                    "(SELECT mail_id, reader FROM mail_claims WHERE turn_id = ?)",
                    (self.turn_id,),
                )
        database.execute("DELETE FROM mail_claims WHERE turn_id = ?", (self.turn_id,))


@dataclass(frozen=True, slots=True)
class NoteDeliveredAgain:
    """Note of the mail that a turn carries, before its claims end, which calls had run when it was cut off."""

    turn_id: str
    calls: str

    def apply(self, database: apsw.Connection) -> None:
        """Insert or replace."""
        database.execute(
            "INSERT OR REPLACE INTO mail_again SELECT mail_id, reader, ? FROM mail_claims WHERE turn_id = ?",
            (self.calls, self.turn_id),
        )


@dataclass(frozen=True, slots=True)
class MarkRead:
    """Note that a reader has read messages; what was read before stays as it is."""

    mail_ids: Sequence[str]
    reader: str
    read_at: str

    def apply(self, database: apsw.Connection) -> None:
        """Insert the receipts."""
        for mail_id in self.mail_ids:
            database.execute(
                "INSERT OR IGNORE INTO mail_receipts VALUES (?,?,?)", (mail_id, self.reader, self.read_at)
            )


# --- reads


_MAIL = "SELECT id, sender, recipient, subject, body, thread, sent_at, expires_at, tier, hops FROM mail"


def _mail(row: Any) -> Mail:
    values: list[Any] = [*row[:8], Tier(row[8]), row[9]]
    return Mail(*values)


def _unread_condition(reader: Reader) -> tuple[str, list[Any]]:
    """Addressed to the reader, alive, not read by the reader, not carried; a role's mail not read by anybody."""
    marks = ",".join("?" * len(reader.addresses))
    condition = (
        f"recipient IN ({marks}) AND (sender != ? OR recipient = ?) AND (expires_at IS NULL OR expires_at > ?) "
        "AND NOT EXISTS (SELECT 1 FROM mail_receipts r WHERE r.mail_id = mail.id AND (r.reader = ? OR "
        "mail.recipient = ?)) "
        "AND NOT EXISTS (SELECT 1 FROM mail_claims c WHERE c.mail_id = mail.id AND (c.reader = ? OR "
        "mail.recipient = ?))"
    )
    return condition, list(reader.addresses)


def _unread_values(reader: Reader, now: str) -> list[Any]:
    # No role or id is the empty string, so that a reader without a role matches nobody's role mail.
    role = reader.role or ""
    return [reader.id, reader.id, now, reader.id, role, reader.id, role]


def unread(
    database: apsw.Connection, reader: Reader, now: str, *, limit: int = UNREAD_PER_TURN_MAX
) -> list[Mail]:
    """Return the reader's unread and unclaimed mail, oldest first; one's own broadcasts left out.

    At most `limit` messages, and of more than one only what fits UNREAD_CHARACTERS_MAX.
    """
    condition, addresses = _unread_condition(reader)
    rows = database.execute(
        # As a number: SQLite compiles a statement anew each time that its limit is bound.
        f"{_MAIL} WHERE {condition} ORDER BY number LIMIT {limit:d}",
        (*addresses, *_unread_values(reader, now)),
    ).fetchall()
    found: list[Mail] = []
    size = 0
    for mail in map(_mail, rows):
        size += len(mail.subject) + len(mail.body)
        if found and size > UNREAD_CHARACTERS_MAX:
            break
        found.append(mail)
    if not found:
        return found
    again = dict(
        database.execute(
            f"SELECT mail_id, calls FROM mail_again WHERE reader = ? AND mail_id IN ({','.join('?' * len(found))})",
            (reader.id, *(mail.id for mail in found)),
        )
    )
    return [replace(mail, again=again[mail.id]) if mail.id in again else mail for mail in found]


def count_unread(database: apsw.Connection, reader: Reader, now: str) -> int:
    """Return how many messages `unread` would find without a limit."""
    condition, addresses = _unread_condition(reader)
    return int(
        database.execute(
            f"SELECT count(*) FROM mail WHERE {condition}",
            (*addresses, *_unread_values(reader, now)),
        ).get
    )


def list_mail(
    database: apsw.Connection,
    *,
    reader: Reader | None = None,
    limit: int = 100,
    unread_at: str | None = None,
) -> list[tuple[Mail, bool | None]]:
    """Return the newest messages, oldest first, each with whether it was read.

    Read by `reader` where one is given (only mail to that reader is listed then), else by the single identity that it
    is addressed to, else None (mail to a role, a tag or all). With `unread_at` (RFC 3339) only what is still
    delivered at that time: to `reader`, else to anybody and read by nobody.
    """
    where, values = "", []
    if reader is not None and unread_at is not None:
        condition, addresses = _unread_condition(reader)
        where, values = f"WHERE {condition}", [*addresses, *_unread_values(reader, unread_at)]
    elif reader is not None:
        where = f"WHERE recipient IN ({','.join('?' * len(reader.addresses))})"
        values = list(reader.addresses)
    elif unread_at is not None:
        where = (
            "WHERE (expires_at IS NULL OR expires_at > ?) "
            "AND NOT EXISTS (SELECT 1 FROM mail_receipts r WHERE r.mail_id = mail.id)"
        )
        values = [unread_at]
    rows = database.execute(f"{_MAIL} {where} ORDER BY number DESC LIMIT ?", (*values, limit)).fetchall()
    return [(mail, _was_read(database, mail, reader)) for mail in map(_mail, reversed(rows))]


def _was_read(database: apsw.Connection, mail: Mail, reader: Reader | None) -> bool | None:
    if reader is None and (
        mail.recipient == "all" or mail.recipient.startswith("tag:") or mail.expires_at is None
    ):
        return None
    name = mail.recipient if reader is None else reader.id
    row = database.execute(
        "SELECT 1 FROM mail_receipts WHERE mail_id = ? AND reader = ?", (mail.id, name)
    ).fetchone()
    return row is not None


def find_mail(database: apsw.Connection, mail_id: str) -> Mail | None:
    """Return a message by its id, or None."""
    row = database.execute(f"{_MAIL} WHERE id = ?", (mail_id,)).fetchone()
    return None if row is None else _mail(row)


def matching_mail(database: apsw.Connection, id_prefix: str) -> list[Mail]:
    """Return the messages whose id begins with `id_prefix`: at most two, so that one alone is meant."""
    rows = database.execute(
        f"{_MAIL} WHERE id >= ? AND id < ? ORDER BY id LIMIT 2", (id_prefix, id_prefix + "g")
    ).fetchall()
    return [_mail(row) for row in rows]


def thread_of(database: apsw.Connection, thread: str) -> list[tuple[Mail, dict[str, str]]]:
    """Return the messages of a thread, oldest first, each with its readers and when they read it (RFC 3339)."""
    mails = [
        _mail(row)
        for row in database.execute(f"{_MAIL} WHERE thread = ? ORDER BY number", (thread,)).fetchall()
    ]
    return [(mail, _readers(database, mail.id)) for mail in mails]


def _readers(database: apsw.Connection, mail_id: str) -> dict[str, str]:
    rows = database.execute(
        "SELECT reader, read_at FROM mail_receipts WHERE mail_id = ? ORDER BY read_at, reader", (mail_id,)
    )
    return {str(reader): str(read_at) for reader, read_at in rows}


def carried_by(database: apsw.Connection, turn: str) -> list[Mail]:
    """Return the messages that a turn has claimed."""
    rows = database.execute(
        f"{_MAIL} WHERE id IN (SELECT mail_id FROM mail_claims WHERE turn_id = ?) ORDER BY number", (turn,)
    ).fetchall()
    return [_mail(row) for row in rows]
