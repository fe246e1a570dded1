"""One turn in progress: what it emits, keeps, spends and commits.

This is the `TurnHost` that a session gives to the runtime. It numbers the events, gathers the history of the turn,
makes the turn's ledger entry at the end, and commits everything in three kinds of steps: the beginning, each durable
step of the tool loop, and the end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from actors.journal import Journal
from actors.runtime.base import Block, Ceiling, Message, SessionIdentity, ToolUse, Usage
from actors.tools.base import ToolOutcome
from actors.tools.delegated import Delegations
from protocol.canonical import hash_of
from protocol.entry import Entry
from protocol.errors import CanonicalError, RequestError
from protocol.events import Event, LedgerAppend, ToolResult, TurnStarted
from store.clock import rfc3339
from store.mailbox import Mail, NoteDeliveredAgain, SettleMail
from store.sessions import AddUsage, AppendHistory, BeginTurn, EndTurn, ForgetCarriedMail


@dataclass(slots=True)
class OpenCall:
    """A call whose `tool_call` entry is durable and whose outcome is not recorded yet."""

    use: ToolUse
    entry: Entry


@dataclass(slots=True)
class Turn:
    """A turn from its first event to its ledger entry.

    `prev_cid`: the previous turn's entry, None for the first. `root_cid`: that, or the session's opening. `sink` takes
    the numbered events and never waits. `own`: the client's messages of this turn. `delegations`: what of it the client
    executes. `key` and `request_hash`: how a client asks for the same turn again. `continuable`: whether it can be gone
    on with after a crash; `continues`: the turn that this one goes on with. `ran`: its calls, each with its outcome.
    """

    id: str
    number: int
    identity: SessionIdentity
    journal: Journal
    prev_cid: str | None
    root_cid: str
    sink: Callable[[Event], None]
    own: list[Message]
    announce: Callable[[Sequence[Mail]], None]
    run_child: Callable[[Turn, Ceiling, str, str | None], Awaitable[ToolOutcome]]
    delegations: Delegations = field(default_factory=Delegations)
    usage: Usage = field(default_factory=Usage)
    began: bool = False
    input_hash: str | None = None
    tools_hash: str | None = None
    parents: list[str] = field(default_factory=list)
    carried: list[Mail] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    children: int = 0
    tokens_left: int | None = None
    key: str | None = None
    request_hash: str | None = None
    continuable: bool = False
    continues: str | None = None
    ran: list[str] = field(default_factory=list)
    _seq: int = 0
    _blocks: list[Block] = field(default_factory=list)
    _all_blocks: list[Block] = field(default_factory=list)
    _results: list[Block] = field(default_factory=list)
    _results_kept: bool = False
    _open: dict[str, OpenCall] = field(default_factory=dict)
    _unanswered: dict[str, None] = field(default_factory=dict)

    # --- what a runtime asks of its host

    def emit(self, event: Event) -> None:
        """Give an event its number and pass it on."""
        event.seq = self._seq
        self._seq += 1
        self.sink(event)

    def keep(self, block: Block) -> None:
        """Keep a complete block of the assistant; empty text is no block to a model server."""
        if block.get("type") == "text" and not block.get("text"):
            return
        self._blocks.append(block)
        self._all_blocks.append(block)
        if block.get("type") == "tool_use":
            self._unanswered[block["id"]] = None

    def spend(self, usage: Usage) -> None:
        """Count the tokens of one model call."""
        self.usage.add(usage)

    def check_tokens(self) -> None:
        """Raise `rate_limited` where the turn has used up what the daily limit left; asked between model calls."""
        if self.tokens_left is not None and self.usage.total >= self.tokens_left:
            raise RequestError(
                "rate_limited",
                f"the daily token limit of {self.identity.acting.account} was reached in this turn; the count starts "
                "anew at 00:00 UTC, or raise the limits in platform/constitution.yaml",
            )

    async def call_tools(self, calls: Sequence[ToolUse]) -> list[Block]:
        """Refuse: tools run under a policy court only, and the constitutional runtime brings it."""
        self.close_message()
        for use in calls:
            await self.answer(use, ToolOutcome("no policy court stands before this tool", is_error=True))
        return self.take_results()

    # --- durable steps

    async def begin(self, mail: Message | None, carried: Sequence[Mail]) -> None:
        """Commit that the turn runs: its row, its own messages (mail first), and what the journal holds.

        Raises ConflictError when somebody else carries one of the messages; nothing is recorded then.
        """
        started = self.journal.clock.stamp()
        messages = [*([mail] if mail else []), *self.own]
        self.journal.add(
            BeginTurn(
                self.id,
                self.identity.session_id,
                self.number,
                self.prev_cid,
                self.input_hash,
                started,
                self.key,
                self.request_hash,
                self.continuable and not carried,
                self.continues,
            ),
            *(
                AppendHistory(
                    self.identity.session_id,
                    self.id,
                    message["role"],
                    message["content"],
                    started,
                    mail=message is mail,
                )
                for message in messages
            ),
        )
        await self.journal.commit()
        self.began = True
        self.carried.extend(carried)
        self.messages.extend(messages)
        self.announce_start()

    def announce_start(self) -> None:
        """Emit the first event, which names the turn."""
        self.emit(TurnStarted(self.id))

    def close_message(self) -> None:
        """Let the assistant's blocks since the last call join the history as one message, at the next commit."""
        if self._blocks:
            self._append("assistant", self._blocks)
            self._blocks = []

    def open_call(self, use: ToolUse, verdict: Entry) -> Entry:
        """Make the `tool_call` entry whose parent is the verdict; the call may run once that is committed."""
        executor = "client" if use.name in self.delegations else "runner"
        entry = self.journal.entry(
            "tool_call",
            use.id,
            {"tool": use.name, "call_id": use.id, "input_hash": hash_of(use.input), "executor": executor},
            [verdict.cid],
        )
        self._open[use.id] = OpenCall(use, entry)
        return entry

    async def answer(self, use: ToolUse, outcome: ToolOutcome) -> None:
        """Give the model the outcome of a call, and record it where the call was let through.

        What the outcome wants written joins the commit; it is durable when this returns. Calls may be answered in any
        order, one at a time.
        Raises ConflictError when a write's condition no longer holds, StorageError when the disk refused: the call is
        open still, nothing is recorded.
        """
        entry = None
        opened = self._open.get(use.id)
        if opened is not None:
            entry = self._outcome_entry(opened, outcome.content, outcome.word)
            self.journal.add(*outcome.writes)
        self._unanswered.pop(use.id, None)
        self._results.append(_result_block(use.id, outcome.content, is_error=outcome.is_error))
        if not self._unanswered:
            # The last answer of a message takes all of them into the history, with its own outcome.
            self._keep_results()
        if opened is not None:
            try:
                await self.journal.commit()
            except Exception:
                self.journal.withdraw()
                self._take_answer_back(use)
                raise
            del self._open[use.id]
            self.carried.extend(outcome.carried)
            if outcome.sent:
                self.announce(outcome.sent)
        self.emit(ToolResult(use.id, outcome.content, outcome.is_error))
        if entry is not None:
            self.parents.append(entry.cid)
            self.emit(LedgerAppend(entry))

    def _take_answer_back(self, use: ToolUse) -> None:
        self._results.remove(next(block for block in self._results if block["tool_use_id"] == use.id))
        if self._results_kept:
            self._results_kept = False
            self.messages.pop()
        self._unanswered[use.id] = None

    def take_results(self) -> list[Block]:
        """Return the tool results of this model message, in order; they join the history."""
        self._keep_results()
        results, self._results, self._results_kept = self._results, [], False
        return results

    def _keep_results(self) -> None:
        if self._results and not self._results_kept:
            calls = (block["id"] for block in self._all_blocks if block.get("type") == "tool_use")
            order = {call_id: number for number, call_id in enumerate(calls)}
            self._results.sort(key=lambda block: order.get(block["tool_use_id"], len(order)))
            self._append("user", self._results)
            self._results_kept = True

    def _append(self, role: str, content: list[Block]) -> None:
        self.messages.append({"role": role, "content": content})
        self.journal.add(
            AppendHistory(self.identity.session_id, self.id, role, content, self.journal.clock.stamp())
        )

    def _outcome_entry(self, opened: OpenCall, content: str | list[Block], outcome: str) -> Entry:
        self.ran.append(f"{opened.use.name} ({outcome})")
        return self.journal.entry(
            "tool_result",
            opened.use.id,
            {
                "tool": opened.use.name,
                "call_id": opened.use.id,
                "output_hash": _hash_of_content(content),
                "outcome": outcome,
            },
            [opened.entry.cid],
        )

    async def end(self, status: str, stop_reason: str | None, *, agent: str) -> Entry | None:
        """Commit how the turn ended, with its ledger entry; return that, or None if the turn never began.

        `status`: complete, cancelled, failed or interrupted. Calls without an outcome are recorded as cancelled (or
        timed out by the turn) and answered in the history, since a model server refuses orphans. Mail becomes read
        when the status is complete or cancelled, else unread again, without its copy in the history.
        """
        if not self.began:
            return None
        self._answer_orphans("cancelled" if status == "cancelled" else "error")
        moment = self.journal.clock.moment()
        completed = rfc3339(moment)
        output_hash = hash_of(self._all_blocks)
        usage = {"input_tokens": self.usage.input_tokens, "output_tokens": self.usage.output_tokens}
        usage["cache_creation_input_tokens"] = self.usage.cache_creation_input_tokens
        usage["cache_read_input_tokens"] = self.usage.cache_read_input_tokens
        entry = self.journal.entry(
            "turn",
            self.identity.session_id,
            {
                "skill_name": "agent_runner",
                "turn_id": self.id,
                "inputs_hash": self.input_hash,
                "outputs_hash": output_hash,
                "tools_hash": self.tools_hash,
                "timestamp": completed,
                "actor": self.identity.acting.actor,
                "agent": agent,
                "status": status,
                "stop_reason": stop_reason,
                "usage": usage,
            },
            [self.root_cid, *self.parents],
        )
        settled = status in ("complete", "cancelled")
        if not settled and self.carried:
            self.journal.add(
                ForgetCarriedMail(self.identity.session_id, self.id),
                NoteDeliveredAgain(self.id, calls_that_ran(self.ran)),
            )
        self.journal.add(
            SettleMail(self.id, completed if settled else None),
            EndTurn(
                self.id,
                self.identity.session_id,
                status,
                entry.cid,
                output_hash,
                stop_reason,
                usage,
                completed,
            ),
        )
        if self.usage.total:
            self.journal.add(
                AddUsage(
                    self.identity.acting.account,
                    moment.date().isoformat(),
                    self.usage.total - self.usage.output_tokens,
                    self.usage.output_tokens,
                )
            )
        await self.journal.commit()
        return entry

    def _answer_orphans(self, outcome: str) -> None:
        self.close_message()
        for opened in self._open.values():
            entry = self._outcome_entry(opened, CUT_OFF, outcome)
            self.parents.append(entry.cid)
        self._open.clear()
        self._results.extend(_result_block(call_id, CUT_OFF, is_error=True) for call_id in self._unanswered)
        self._unanswered.clear()
        self.take_results()


CUT_OFF = "The turn ended before this call had an outcome; whether it took effect is not known."
"""What a call without a result says in the history."""


def calls_that_ran(calls: Sequence[str]) -> str:
    """Say which calls of a cut-off turn had run, to whoever goes on with it."""
    if not calls:
        return "None of its calls had run."
    return f"These calls had run: {', '.join(calls)}. Look before you repeat one."


def _result_block(call_id: str, content: str | list[Block], *, is_error: bool) -> Block:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, "is_error": is_error}


def _hash_of_content(content: str | list[Block]) -> str:
    try:
        return hash_of(content)
    except CanonicalError:
        if not isinstance(content, str):
            raise
        return hash_of(content.encode("utf-8", "replace").decode())
