"""Judging the calls of one model message: verdict, effect, outcome, in this order and all in the ledger.

A denial is a value: the verdict is recorded, the model is told why, and the turn goes on. What a turn reads can lower
its trust, so the calls behind one that may have read something are judged only when that is known. Calls that the
client executes are sent to it together and awaited side by side, while the runner executes its own in order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from actors.runtime.base import Block, ToolUse, Usage
from actors.tools.base import ToolOutcome
from actors.turn import Turn
from protocol.canonical import hash_of
from protocol.entry import Entry
from protocol.errors import CanonicalError
from protocol.events import Event, LedgerAppend, PolicyGate, ToolExecute
from protocol.mounts import Mount
from protocol.policy import Gate, Verdict
from protocol.tiers import Tier
from store.content import Content
from store.unit_of_work import ConflictError


@dataclass(frozen=True, slots=True)
class Reach:
    """What a turn may do at one moment: its trust, its mounts, and the gate compiled for them.

    `tainted` is true while a standing agent carries mail from somebody who is trusted less.
    """

    tier: Tier
    tainted: bool
    mounts: tuple[Mount, ...]
    gate: Gate
    content: Content


def verdict_payload(
    reach: Reach, tool: str, verdict: Verdict, call_id: str | None = None, input_hash: str | None = None
) -> dict[str, Any]:
    """Return the payload of a `policy_verdict` entry: at the offer without, at the call with id and input hash."""
    return {
        "tool": tool,
        "call_id": call_id,
        "phase": "offer" if call_id is None else "call",
        "verdict": "allowed" if verdict.allowed else "blocked",
        "rule": verdict.rule,
        "reason": verdict.reason,
        "trust": str(reach.tier),
        "constitution_hash": reach.content.constitution_hash,
        "rules_hash": reach.content.rules_hash,
        "input_hash": input_hash,
    }


@dataclass(slots=True)
class _Judged:
    use: ToolUse
    verdict: Verdict | None
    problem: str | None
    verdict_entry: Entry | None = None
    call_entry: Entry | None = None
    is_delegated: bool = False


@dataclass(slots=True)
class JudgedTurn:
    """The host that a backend sees: everything goes to the turn, and calls go past the court.

    `narrow` returns the reach for what the turn carries now; `execute` runs a call within a reach.
    """

    turn: Turn
    reach: Reach
    narrow: Callable[[], Reach]
    execute: Callable[[ToolUse, Reach], Awaitable[ToolOutcome]]
    changes_trust: Callable[[str], bool]
    _answering: trio.Lock = field(default_factory=trio.Lock)

    def emit(self, event: Event) -> None:
        """Pass on to the turn."""
        self.turn.emit(event)

    def keep(self, block: Block) -> None:
        """Pass on to the turn."""
        self.turn.keep(block)

    def spend(self, usage: Usage) -> None:
        """Pass on to the turn."""
        self.turn.spend(usage)

    async def call_tools(self, calls: Sequence[ToolUse]) -> list[Block]:
        """Judge, record and run the calls of one model message, in order."""
        self.turn.check_tokens()
        self.turn.close_message()
        waiting = list(calls)
        while waiting:
            ends = (index + 1 for index, use in enumerate(waiting) if self.changes_trust(use.name))
            size = next(ends, len(waiting))
            group, waiting = waiting[:size], waiting[size:]
            await self._run_group([self._judge(use) for use in group])
            self.reach = self.narrow()
        return self.turn.take_results()

    def _judge(self, use: ToolUse) -> _Judged:
        if use.problem is not None:
            return _Judged(use, None, use.problem)
        try:
            input_hash = hash_of(use.input)
        except CanonicalError as error:
            return _Judged(
                use, None, f"The input of {use.name} cannot be recorded: {error}. Call again with plain text."
            )
        verdict = self.reach.gate.judge(use.name, use.input)
        judged = _Judged(use, verdict, None)
        judged.verdict_entry = self.turn.journal.entry(
            "policy_verdict",
            use.id,
            verdict_payload(self.reach, use.name, verdict, use.id, input_hash),
            [self.turn.root_cid],
        )
        if verdict.allowed:
            judged.call_entry = self.turn.open_call(use, judged.verdict_entry)
            judged.is_delegated = use.name in self.turn.delegations
        return judged

    async def _run_group(self, group: list[_Judged]) -> None:
        # Write-ahead authorisation: every verdict and every call of the group is durable before the first one runs.
        await self.turn.journal.commit()
        for judged in group:
            if judged.verdict_entry is not None:
                self.turn.emit(PolicyGate(judged.verdict_entry))
            if judged.call_entry is not None:
                self.turn.emit(LedgerAppend(judged.call_entry))
        delegated = [judged for judged in group if judged.is_delegated]
        for judged in delegated:
            self.turn.delegations.order(judged.use)
            self.turn.emit(ToolExecute(judged.use.id, judged.use.name, judged.use.input))
        if delegated:
            own = [judged for judged in group if not judged.is_delegated]
            await self._settle_side_by_side([own, *([judged] for judged in delegated)])
        else:
            await self._settle(group)

    async def _settle_side_by_side(self, rows: Sequence[list[_Judged]]) -> None:
        faults: list[Exception] = []

        async def settle(row: list[_Judged]) -> None:
            try:
                await self._settle(row)
            except Exception as fault:  # noqa: BLE001 - raised below as it is, and not in a group
                faults.append(fault)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for row in rows:
                nursery.start_soon(settle, row)
        if faults:
            raise faults[0]

    async def _settle(self, row: list[_Judged]) -> None:
        """Bring calls to their outcome, one after the other."""
        for judged in row:
            if judged.problem is not None:
                await self._answer(judged.use, ToolOutcome(judged.problem, is_error=True))
            elif judged.verdict is not None and not judged.verdict.allowed:
                self._note_denial(judged)
                reason = judged.verdict.reason
                await self._answer(judged.use, ToolOutcome(f"Denied: {reason}", is_error=True))
            elif judged.is_delegated:
                await self._answer(judged.use, await self.turn.delegations.wait(judged.use))
            else:
                await self._answer(judged.use, await self.execute(judged.use, self.reach))

    def _note_denial(self, judged: _Judged) -> None:
        if judged.verdict_entry is not None:
            self.turn.parents.append(judged.verdict_entry.cid)

    async def _answer(self, use: ToolUse, outcome: ToolOutcome) -> None:
        # Shielded: an outcome that is known is recorded, also where the turn is stopped while others are recorded.
        with trio.CancelScope(shield=True):
            async with self._answering:
                try:
                    await self.turn.answer(use, outcome)
                except ConflictError as error:
                    again = ToolOutcome(f"{error}; call {use.name} again.", is_error=True)
                    await self.turn.answer(use, again)
