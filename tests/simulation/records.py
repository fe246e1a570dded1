"""Invariants of what is recorded: nothing that was acknowledged is lost, turns and mail go their way exactly once.

The checks follow the units of work as the disk takes them, and compare with the database at the end of each run.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

from actors.kernel import Ref
from actors.ledger_writer import Commit
from protocol.entry import Entry
from store.board import PostBoard
from store.ledger import AppendEntry, verify
from store.mailbox import ClaimMail, Mail, SendMail, SettleMail
from store.sessions import BeginTurn, EndTurn
from store.unit_of_work import Outcome, UnitOfWork
from tests.simulation.trace import Trace
from tests.simulation.watching import Watcher

DURABLE = "what is acknowledged is durable"
STANDS = "what was durable stands in the store"
LEDGER = "the ledger verifies"
ONE_TURN = "turns of a session run one after another"
ONE_END = "a turn ends exactly once, with a record"
NO_TURN_LEFT = "no turn stays running"
READ_ONCE = "mail is carried by one completed turn"
CLAIMED_ONCE = "one turn at a time carries a message"
AUTHORISED = "no effect without an allowed verdict before it"
TOLD_TRUTH = "who is told of a turn's end is told what is recorded"

MARK = re.compile(r"\bcall (c-[0-9a-f]+-\d+)\b")
"""How the simulated model marks every effect of its calls: in mail, on the board, in files."""


@dataclass(slots=True)
class TurnRecord:
    """A turn as the disk knows it."""

    session: str
    number: int
    status: str = "running"
    claims: set[tuple[str, str]] = field(default_factory=set)  # mail, reader


class Records(Watcher):
    """Follows what becomes durable."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._entries: dict[str, Entry] = {}
        self._allowed: set[str] = set()  # ids of calls that the court let through
        self._called: set[str] = set()  # ids of calls that are recorded as begun
        self._turns: dict[str, TurnRecord] = {}
        self._sessions: dict[str, list[str]] = defaultdict(list)
        self._mails: dict[str, Mail] = {}
        self._read: set[tuple[str, str]] = set()
        self._holders: dict[str, set[str]] = defaultdict(set)  # by message: who carries it
        self._open: dict[int, UnitOfWork] = {}
        self._durable: dict[int, UnitOfWork] = {}

    @property
    def turns(self) -> int:
        """How many turns have ended."""
        return sum(turn.status != "running" for turn in self._turns.values())

    @property
    def mails(self) -> int:
        """How many messages were sent."""
        return len(self._mails)

    # --- acknowledgements

    def asked(self, number: int, ref: Ref, message: Any) -> None:
        if isinstance(message, Commit):
            self._open[number] = message.unit

    def answered(self, number: int, *, well: bool) -> None:
        unit = self._open.pop(number, None)
        if unit is not None and well:
            self._trace.check(
                DURABLE, id(unit) in self._durable, lambda: f"{_kinds(unit)} is not on the disk"
            )

    def turn_told(self, turn: str, status: str) -> None:
        """Somebody was told how a turn ended."""
        found = self._turns.get(turn)
        self._trace.check(
            TOLD_TRUTH,
            found is not None and found.status == status,
            lambda: f"turn {turn} was told to be {status} and is {found}",
        )

    def tool_begins(self, call_id: str, tool: str) -> None:
        """A tool is about to run."""
        self._trace.check(
            AUTHORISED,
            call_id in self._allowed and call_id in self._called,
            lambda: f"{tool} runs for {call_id}, which nobody let through",
        )

    # --- the disk

    def take(self, units: Sequence[UnitOfWork], outcomes: Sequence[Outcome]) -> None:
        """Follow what the disk has just taken."""
        for unit, outcome in zip(units, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._trace.note("refused", f"{_kinds(unit)}: {outcome}")
                continue
            self._durable[id(unit)] = unit
            self._trace.note("durable", _kinds(unit))
            new = [write.entry for write in unit.writes if isinstance(write, AppendEntry)]
            for write in unit.writes:
                self._take(write, new)
            for entry in new:
                self._entries[entry.cid] = entry
                self._trace.note("entry", f"{entry.quality} {entry.cid[:12]}")
                call = entry.payload.get("call_id")
                if entry.quality == "policy_verdict" and call and entry.payload["verdict"] == "allowed":
                    self._allowed.add(call)
                elif entry.quality == "tool_call":
                    self._called.add(entry.target)

    def _take(self, write: Any, new: list[Entry]) -> None:
        match write:
            case BeginTurn():
                self._begin(write)
            case EndTurn():
                self._end(write)
            case ClaimMail():
                self._claim(write)
            case SettleMail():
                self._settle(write)
            case SendMail(mail):
                self._mails[mail.id] = mail
                self._check_effect(mail.body, new)
            case PostBoard(post):
                self._check_effect(post.text, new)

    def _begin(self, write: BeginTurn) -> None:
        before = self._sessions[write.session_id]
        running = [turn for turn in before if self._turns[turn].status == "running"]
        self._trace.check(ONE_TURN, not running, lambda: f"{write.id} begins while {running} runs")
        self._trace.check(
            ONE_TURN, write.seq == len(before), lambda: f"{write.id} is number {write.seq} of {len(before)}"
        )
        before.append(write.id)
        self._turns.setdefault(write.id, TurnRecord(write.session_id, write.seq))

    def _end(self, write: EndTurn) -> None:
        turn = self._turns.get(write.id)
        self._trace.check(
            ONE_END,
            turn is not None and turn.status == "running",
            lambda: f"{write.id} ends as {write.status} and was {turn}",
        )
        if turn is not None:
            turn.status = write.status
            self._trace.events[f"turn {write.status}"] += 1

    def _claim(self, write: ClaimMail) -> None:
        for mail_id in write.mail_ids:
            mail = self._mails.get(mail_id)
            holders = self._holders[mail_id]
            is_shared = mail is not None and mail.expires_at is not None
            self._trace.check(
                CLAIMED_ONCE,
                not holders or (is_shared and write.reader not in holders),
                lambda mail_id=mail_id: f"{mail_id} is carried twice for {write.reader}",
            )
            holders.add(write.reader)
        turn = self._turns.setdefault(write.turn_id, TurnRecord("", -1))
        turn.claims.update((mail_id, write.reader) for mail_id in write.mail_ids)

    def _settle(self, write: SettleMail) -> None:
        turn = self._turns.get(write.turn_id)
        for claim in sorted(set() if turn is None else turn.claims):
            self._holders[claim[0]].discard(claim[1])
            if write.read_at is not None:
                self._trace.check(
                    READ_ONCE, claim not in self._read, lambda claim=claim: f"{claim} is read twice"
                )
                self._read.add(claim)
        if turn is not None:
            turn.claims = set()

    def _check_effect(self, text: str, new: list[Entry]) -> None:
        for call in MARK.findall(text):
            results = [
                entry for entry in new if entry.quality == "tool_result" and entry.payload["call_id"] == call
            ]
            chain = [self._entries.get(parent) for entry in results for parent in entry.parents]
            verdicts = [self._entries.get(parent) for entry in chain if entry for parent in entry.parents]
            self._trace.check(
                AUTHORISED,
                any(entry is not None and entry.payload.get("verdict") == "allowed" for entry in verdicts),
                lambda call=call: f"an effect of {call} is recorded without its verdict",
            )

    # --- the end

    def audit(self, database: apsw.Connection, workspaces: Path, *, at_rest: bool, verified: bool) -> None:
        """Compare with the database and the files; `at_rest` after an orderly end."""
        check = self._trace.check
        cids = {str(row[0]) for row in database.execute("SELECT cid FROM ledger")}
        check(
            STANDS,
            cids >= self._entries.keys(),
            lambda: f"{len(self._entries.keys() - cids)} entries are lost",
        )
        mails = {str(row[0]) for row in database.execute("SELECT id FROM mail")}
        check(
            STANDS, mails >= self._mails.keys(), lambda: f"{len(self._mails.keys() - mails)} mails are lost"
        )
        read = {
            (str(mail), str(reader))
            for mail, reader in database.execute("SELECT mail_id, reader FROM mail_receipts")
        }
        check(STANDS, read >= self._read, lambda: f"{self._read - read} are not read any more")
        turns = {str(turn): str(status) for turn, status in database.execute("SELECT id, status FROM turns")}
        wrong = [
            turn
            for turn, record in self._turns.items()
            if record.number >= 0 and turns.get(turn) != record.status
        ]
        check(STANDS, not wrong, lambda: f"turns {wrong} are not as they were recorded")
        if verified:
            found = verify(database)
            check(LEDGER, found.ok, lambda: str(found.first_bad))
        if at_rest:
            running = [turn for turn, status in turns.items() if status == "running"]
            check(NO_TURN_LEFT, not running, lambda: f"{running} still run")
            claims = database.execute("SELECT count(*) FROM mail_claims").get
            check(NO_TURN_LEFT, claims == 0, lambda: f"{claims} messages are still carried")
            for file in sorted(workspaces.glob("*/*/**/*")):
                if file.is_file() and ".state" not in file.parts:
                    for call in MARK.findall(file.read_text(encoding="utf-8", errors="replace")):
                        check(AUTHORISED, call in self._allowed, lambda call=call: f"{call} wrote a file")


def _kinds(unit: UnitOfWork) -> str:
    return " ".join(type(write).__name__ for write in unit.writes)
