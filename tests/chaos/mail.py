"""Mail when everything has come to rest: none lost, none carried by two turns that ended well, the right readers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import apsw

from protocol.roster import Roster
from tests.chaos.record import Life, Violation
from tests.chaos.view import SETTLED, LedgerView, read_by_tool


def check_mail(
    database: apsw.Connection, view: LedgerView, roster: Roster, checks: Counter[str]
) -> Iterator[Violation]:
    """Each message was carried to each of its readers by one turn that ended well, and is read by exactly those."""
    by_tool = read_by_tool(database)
    injected = Counter((mail, agent) for mail, agent, status in view.carried if status in SETTLED)
    receipts: dict[str, set[str]] = defaultdict(set)
    for mail_id, reader in database.execute("SELECT mail_id, reader FROM mail_receipts"):
        receipts[mail_id].add(reader)
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for mail_id, sender, recipient, subject, body, expires in database.execute(
        "SELECT id, sender, recipient, subject, body, expires_at FROM mail ORDER BY number"
    ):
        if recipient == "operator":
            continue
        readers = _readers(roster, sender, recipient)
        checks["mail is carried by one completed turn"] += 1
        read = receipts.get(mail_id, set())
        if (expires is not None and read != readers) or (expires is None and len(read & readers) != 1):
            yield Violation(
                "no mail is lost", f"{mail_id} to {recipient} ({subject}): read by {read} of {readers}"
            )
        for reader in read:
            alike[reader, f"[mailbox from {sender}] {subject}\n{body}"].append(mail_id)
            if injected[mail_id, reader] > 1:
                yield Violation(
                    "mail is carried by one completed turn",
                    f"{mail_id} to {reader}: by {injected[mail_id, reader]}",
                )
    for (reader, text), ids in alike.items():
        shown = sum(_times(text, result) for result in by_tool.get(reader, ()))
        carried = sum(injected[mail_id, reader] for mail_id in ids) + shown
        if carried != len(ids):
            yield Violation(
                "mail is carried by one completed turn",
                f"{ids} to {reader} ({text[:80]!r}): carried {carried} times, {shown} of them by the tool",
            )


def _readers(roster: Roster, sender: str, recipient: str) -> set[str]:
    found = {identity.id for identity in roster.resolve(recipient) if identity.kind == "role"}
    return found if recipient in found else found - {sender}


def check_notices(
    database: apsw.Connection, view: LedgerView, roster: Roster, lives: Sequence[Life], checks: Counter[str]
) -> Iterator[Violation]:
    """The agent of each interrupted turn was told, once; only a hurried end interrupts without telling."""
    bodies = [
        (str(recipient), str(body))
        for recipient, body in database.execute("SELECT recipient, body FROM mail WHERE sender = 'runner'")
    ]
    told = Counter((who, turn) for who, body in bodies for turn in re.findall(r"\bturn ([0-9a-f]{32})", body))
    rows = database.execute(
        "SELECT t.id, t.cid, t.completed_at, s.agent_id, s.owner FROM turns t JOIN sessions s ON s.id = session_id "
        "WHERE t.status = 'interrupted'"
    ).fetchall()
    for turn, cid, completed_at, agent, owner in rows:
        checks["the agent of an interrupted turn is told"] += 1
        if cid not in view.interrupted:
            if not any(life.was_hurried and life.began_at <= completed_at for life in lives):
                yield Violation("an interruption is on record", f"turn {turn} of {agent}")
        elif owner in ("operator", "runner") and roster.get(agent) is not None and told[agent, turn] != 1:
            yield Violation(
                "the agent of an interrupted turn is told",
                f"turn {turn}: {told[agent, turn]} times to {agent}",
            )


def _times(text: str, result: str) -> int:
    """Return how often a message is among those that `read_mailbox` gave."""
    return sum(
        part == text or part.startswith(f"{text}\n\n[delivered again: ")
        for part in re.split(r"\n\n(?=\[mailbox from |\[\d+ more unread)", result)
    )
