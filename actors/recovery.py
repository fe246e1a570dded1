"""What a crash cut off is recorded: turns that never ended, and calls whose outcome nobody knows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import apsw

from actors.journal import Journal
from actors.turn import CUT_OFF, calls_that_ran
from protocol.acting import RUNNER
from protocol.canonical import hash_of
from protocol.entry import Entry
from protocol.tiers import Tier
from store.clock import rfc3339
from store.ledger import read_entries
from store.mailbox import NoteDeliveredAgain, SendMail, SettleMail, compose
from store.sessions import (
    AppendHistory,
    EndTurn,
    ForgetCarriedMail,
    SessionRow,
    TurnRow,
    history_of_turn,
)


@dataclass(frozen=True, slots=True)
class Interruption:
    """What is known of a cut-off turn: its calls without an outcome, by tool; `ran` says which had run, and how."""

    turn: TurnRow
    unknown: list[str]
    ran: str


def record_interruption(
    database: apsw.Connection,
    journal: Journal,
    session: SessionRow,
    turn: TurnRow,
    *,
    agent: str,
    tell: str | None,
) -> Interruption:
    """Let the journal record that a running turn was interrupted.

    Calls with a verdict and no outcome become `unknown` and are answered in the history; mail that the turn carried is
    unread again; `tell` is the agent whose mailbox hears of it, or None. The caller commits.
    """
    entries = [
        entry
        for _, entry in read_entries(database, entity_id=session.session_key, newest_first=True, limit=2_000)
    ]
    calls = _open_calls(entries)
    outcomes = [
        journal.entry(
            "tool_result",
            call.target,
            {
                "tool": call.payload["tool"],
                "call_id": call.target,
                "output_hash": hash_of(CUT_OFF),
                "outcome": "unknown",
            },
            [call.cid],
        )
        for call in calls
    ]
    root = [turn.prev_cid] if turn.prev_cid else _opening(database, session.session_key)
    moment = journal.clock.moment()
    completed = rfc3339(moment)
    blocks, orphans = _blocks_and_orphans(database, turn)
    if orphans:
        results = [
            {"type": "tool_result", "tool_use_id": orphan, "content": CUT_OFF, "is_error": True}
            for orphan in orphans
        ]
        journal.add(AppendHistory(session.id, turn.id, "user", results, completed))
    output_hash = hash_of(blocks)
    entry = journal.entry(
        "turn",
        session.id,
        {
            "skill_name": "agent_runner",
            "turn_id": turn.id,
            "inputs_hash": turn.input_hash,
            "outputs_hash": output_hash,
            "tools_hash": None,
            "timestamp": completed,
            "actor": journal.actor,
            "agent": agent,
            "status": "interrupted",
            "stop_reason": None,
            "usage": turn.usage,
        },
        [*root, *_told_before(entries), *(outcome.cid for outcome in outcomes)],
    )
    journal.entry(
        "session_lifecycle",
        session.id,
        {
            "event": "interrupted",
            "reason": "the daemon ended in mid-turn",
            "claimed_agent_id": session.agent_id if session.agent_id != journal.actor else None,
        },
        [entry.cid],
    )
    ran = calls_that_ran(
        [
            f"{entry.payload['tool']} ({entry.payload['outcome']})"
            for entry in [*_outcomes_of_last_turn(entries), *outcomes]
        ]
    )
    journal.add(
        ForgetCarriedMail(session.id, turn.id),
        NoteDeliveredAgain(turn.id, ran),
        SettleMail(turn.id, None),
        EndTurn(
            turn.id, session.id, "interrupted", entry.cid, output_hash, None, turn.usage or {}, completed
        ),
    )
    unknown = [call.payload["tool"] for call in calls]
    if tell is not None:
        journal.add(SendMail(_notice(session, turn, unknown, tell, journal)))
    return Interruption(turn, unknown, ran)


def _open_calls(entries: list[Entry]) -> list[Entry]:
    """Return the `tool_call` entries without a `tool_result`, oldest first."""
    answered = {entry.parents[0] for entry in entries if entry.quality == "tool_result" and entry.parents}
    return [
        entry for entry in reversed(entries) if entry.quality == "tool_call" and entry.cid not in answered
    ]


def _told_before(entries: list[Entry]) -> list[str]:
    """Return what a turn that follows the last `turn` entry had been told: results and denials, oldest first."""
    of_turn = takewhile(lambda entry: entry.quality != "turn", entries)
    found = [
        entry.cid
        for entry in of_turn
        if entry.quality == "tool_result"
        or (entry.payload.get("phase"), entry.payload.get("verdict")) == ("call", "blocked")
    ]
    return found[::-1]


def _outcomes_of_last_turn(entries: list[Entry]) -> list[Entry]:
    of_turn = takewhile(lambda entry: entry.quality != "turn", entries)
    return [entry for entry in of_turn if entry.quality == "tool_result"][::-1]


def _opening(database: apsw.Connection, session_key: str) -> list[str]:
    found = read_entries(database, entity_id=session_key, quality="session_lifecycle", limit=1)
    return [entry.cid for _, entry in found]


def _blocks_and_orphans(database: apsw.Connection, turn: TurnRow) -> tuple[list[Any], list[str]]:
    blocks: list[Any] = []
    waiting: dict[str, None] = {}
    for row in history_of_turn(database, turn.id):
        for block in row.content if isinstance(row.content, list) else ():
            if row.role == "assistant":
                blocks.append(block)
                if block.get("type") == "tool_use":
                    waiting[block["id"]] = None
            elif block.get("type") == "tool_result":
                waiting.pop(block.get("tool_use_id"), None)
    return blocks, list(waiting)


def _notice(session: SessionRow, turn: TurnRow, unknown: list[str], tell: str, journal: Journal) -> Any:
    calls = ", ".join(unknown)
    what = (
        f"These calls had begun and their outcome is not known: {calls}. Check before you repeat them."
        if unknown
        else "No call was under way."
    )
    return compose(
        sender=RUNNER,
        recipient=tell,
        subject="a turn of yours was interrupted",
        body=f"The daemon ended in the middle of turn {turn.id} in session {session.session_key}. {what} "
        "Mail that the turn carried is delivered again.",
        moment=journal.clock.moment(),
        tier=Tier.STANDING,
    )
