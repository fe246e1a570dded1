"""The constitutional runtime: it wraps any other runtime and lets nothing through that was not judged.

It gates the tools before the model sees them, assembles the prompt, carries the mail, and judges every call with its
input before it runs. Verdicts are durable before an effect: the order of a turn is that of section 4 of the
specification, and the functions stand in that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import apsw

from actors.context import canonical_messages
from actors.court import Enacted
from actors.runtime.base import (
    AgentRuntime,
    Ceiling,
    Message,
    SessionIdentity,
    ToolDefinition,
    ToolUse,
    TurnRequest,
)
from actors.runtime.judgement import JudgedTurn, Reach, verdict_payload
from actors.runtime.prompt import PromptParts, assemble, mail_text
from actors.tools.base import ToolContext, ToolOutcome, ToolServices
from actors.tools.registry import Registry
from actors.turn import Turn
from protocol.canonical import blake3_hex, canonical_json, hash_of
from protocol.constitution import mounts_for
from protocol.entry import Entry
from protocol.events import MailboxInjected, PolicyGate
from protocol.mounts import Mount
from protocol.policy import Verdict, compile_gate
from protocol.tiers import Tier, lower
from store.board import last_posts
from store.ledger import read_entries
from store.mailbox import ClaimMail, Mail, Reader, reader_of, unread
from store.protection import UNREADABLE, UNWRITABLE
from store.unit_of_work import ConflictError
from store.workspace import Protected, Workspace

BOARD_LINES = 20
"""How many lines of the board a prompt quotes."""

CLAIM_ATTEMPTS = 5
"""How often a turn looks for its mail again when another one was quicker."""


@dataclass(slots=True)
class Governed:
    """What the court knows of a session: the verdicts in force on its tools, and its open workspaces."""

    in_force: dict[str, Entry]
    reaches: dict[tuple[str, str, tuple[Mount, ...]], Reach] = field(default_factory=dict)
    workspaces: dict[tuple[Mount, ...], Workspace] = field(default_factory=dict)


class ConstitutionalRuntime(AgentRuntime):
    """Runs turns of another runtime under the enacted constitution."""

    def __init__(
        self,
        inner: AgentRuntime,
        *,
        enacted: Enacted,
        registry: Registry,
        database: apsw.Connection,
        root: Path,
        protected: Protected,
        services: ToolServices,
    ) -> None:
        self.name = inner.name
        self._inner = inner
        self._enacted = enacted
        self._registry = registry
        self._database = database
        self._root = root
        self._protected = protected
        self._services = services
        self._sessions: dict[str, Governed] = {}

    async def ensure_session(self, session: SessionIdentity) -> None:
        """Learn from the ledger which verdicts are in force in the session."""
        if session.session_id not in self._sessions:
            in_force: dict[str, Entry] = {}
            for _, entry in read_entries(
                self._database,
                entity_id=session.session_key,
                quality="policy_verdict",
                limit=4_096,
                newest_first=True,
            ):
                if entry.payload["phase"] == "offer":
                    in_force.setdefault(entry.payload["tool"], entry)
            self._sessions[session.session_id] = Governed(in_force)
        await self._inner.ensure_session(session)

    async def run_turn(self, session: SessionIdentity, request: TurnRequest, host: Any) -> str:
        """Gate, assemble, carry the mail, commit, and then let the inner runtime run the model."""
        turn: Turn = host
        governed = self._sessions[session.session_id]
        for attempt in range(CLAIM_ATTEMPTS):
            is_last = attempt == CLAIM_ATTEMPTS - 1
            carried = self._unread(session, turn, give_up=is_last)
            reach = self.reach(governed, session, carried)
            verdicts = {tool.name: reach.gate.offer(tool.name) for tool in request.tools}
            gates = [
                self._offer_entry(governed, turn, reach, tool, verdicts[tool.name]) for tool in request.tools
            ]
            governed_request, mail = self._govern_request(session, request, reach, verdicts, carried)
            turn.input_hash = _input_hash(governed_request)
            turn.tools_hash = hash_of(sorted(tool.name for tool in governed_request.tools))
            injected = [self._inject_entry(turn, message) for message in carried]
            if carried:
                turn.journal.add(ClaimMail([message.id for message in carried], _reader_id(session), turn.id))
            try:
                await turn.begin(mail, carried)
            except ConflictError:
                if is_last:
                    raise  # nothing runs in a turn that is not recorded
                continue
            break
        governed.in_force.update({entry.payload["tool"]: entry for entry in gates})
        for entry in gates:
            turn.emit(PolicyGate(entry))
        for entry in injected:
            turn.emit(MailboxInjected(entry))
        judged = JudgedTurn(
            turn=turn,
            reach=reach,
            narrow=lambda: self.reach(governed, session, turn.carried),
            execute=lambda use, within: self.execute(governed, turn, within, use),
            changes_trust=self._registry.changes_trust,
        )
        return await self._inner.run_turn(session, governed_request, judged)

    # --- 1. gate the tools

    def reach(self, governed: Governed, session: SessionIdentity, carried: Sequence[Mail]) -> Reach:
        """Return what the session may do when it carries this mail; compiled once for each trust and constitution."""
        content = self._enacted.content
        tier, scope = session.acting.tier, str(session.acting.tier)
        tainted = tier is Tier.STANDING and any(message.tier is not Tier.STANDING for message in carried)
        if tainted:
            tier, scope = Tier.REGISTERED, "tainted"
        mounts = mounts_for(
            content.constitution,
            scope,  # type: ignore[arg-type]
            name=session.acting.name,
            session_id=session.session_id,
        )
        if session.ceiling is not None:
            tier, mounts = lower(tier, session.ceiling.tier), session.ceiling.mounts
        key = (content.rules_hash + content.constitution_hash, str(tier), mounts)
        found = governed.reaches.get(key)
        if found is None:
            gate = compile_gate(
                content.constitution,
                tier,
                mounts,
                self._registry.path_arguments,
                root=str(self._root),
                unreadable=UNREADABLE,
                unwritable=UNWRITABLE,
            )
            found = Reach(tier, tainted, mounts, gate, content)
            governed.reaches = {key: found, **dict(list(governed.reaches.items())[:3])}
        return found

    def _offer_entry(
        self, governed: Governed, turn: Turn, reach: Reach, tool: ToolDefinition, verdict: Verdict
    ) -> Entry:
        payload = verdict_payload(reach, tool.name, verdict)
        standing = governed.in_force.get(tool.name)
        if standing is not None and standing.payload == payload:
            return standing
        return turn.journal.entry("policy_verdict", tool.name, payload, [turn.root_cid])

    # --- 2. and 3. the prompt and the mail

    def _unread(self, session: SessionIdentity, turn: Turn, *, give_up: bool) -> list[Mail]:
        reader = self.reader(session)
        if reader is None or give_up:
            return []
        return unread(self._database, reader, turn.journal.clock.stamp())

    def reader(self, session: SessionIdentity) -> Reader | None:
        """Return under which addresses mail reaches the session, or None if it carries nobody's."""
        if session.acting.mail_of is None or session.ceiling is not None:
            return None
        identity = self._enacted.content.roster.get(session.acting.mail_of)
        return None if identity is None else reader_of(identity)

    def _govern_request(
        self,
        session: SessionIdentity,
        request: TurnRequest,
        reach: Reach,
        verdicts: dict[str, Verdict],
        carried: Sequence[Mail],
    ) -> tuple[TurnRequest, Message | None]:
        offered = [tool for tool in request.tools if verdicts[tool.name].allowed]
        content = reach.content
        agent = session.acting.agent
        mandate = content.mandates.get(agent) if agent is not None else None
        system, stable = assemble(
            PromptParts(
                tier=reach.tier,
                tainted=reach.tainted,
                mandate=content.constitution.default_mandate if mandate is None else mandate,
                mounts=reach.mounts,
                tools=[tool.name for tool in offered],
                blocked=[(name, verdict.reason) for name, verdict in verdicts.items() if not verdict.allowed],
                board=[post.line for post in last_posts(self._database, BOARD_LINES)],
                constitution_hash=content.constitution_hash,
                client="\n\n".join(request.system) or None,
            )
        )
        mail: Message | None = None
        messages = list(request.messages)
        if carried:
            blocks = [{"type": "text", "text": mail_text(message)} for message in carried]
            mail = {"role": "user", "content": blocks}
            messages.insert(request.own_from, mail)
        return replace(request, system=system, system_stable=stable, messages=messages, tools=offered), mail

    def _inject_entry(self, turn: Turn, message: Mail) -> Entry:
        return turn.journal.entry(
            "mailbox_inject",
            turn.identity.session_id,
            {
                "message_id": message.id,
                "sender": message.sender,
                "content_hash": hash_of({"subject": message.subject, "body": message.body}),
            },
            [turn.root_cid],
        )

    # --- 5. the call

    def workspace(self, governed: Governed, mounts: tuple[Mount, ...]) -> Workspace:
        """Return the confined files of these mounts, opened once a session."""
        found = governed.workspaces.get(mounts)
        if found is None:
            found = governed.workspaces[mounts] = Workspace(self._root, mounts, self._protected)
        return found

    async def execute(self, governed: Governed, turn: Turn, reach: Reach, use: ToolUse) -> ToolOutcome:
        """Run a call that was let through, with the reach that it was judged under."""
        hops, thread = _thread_of(turn)
        context = ToolContext(
            call_id=use.id,
            session_id=turn.identity.session_id,
            session_key=turn.identity.session_key,
            turn_id=turn.id,
            acting=turn.identity.acting,
            reader=self.reader(turn.identity),
            tier=reach.tier,
            workspace=self.workspace(governed, reach.mounts),
            hops=hops,
            thread=thread,
            services=self._services,
            run_child=lambda prompt, folder: turn.run_child(turn, self._ceiling(turn, reach), prompt, folder),
        )
        return await self._registry.run(use, context)

    def _ceiling(self, turn: Turn, reach: Reach) -> Ceiling:
        above = turn.identity.ceiling
        hops, thread = _thread_of(turn)
        return Ceiling(reach.tier, reach.mounts, 1 if above is None else above.depth + 1, hops, thread)

    # --- the rest of the interface

    async def cancel(self, session_id: str) -> None:
        """Cancel what the inner runtime runs outside the task."""
        await self._inner.cancel(session_id)

    async def close(self, session_id: str) -> None:
        """Forget the session and close its workspaces."""
        governed = self._sessions.pop(session_id, None)
        if governed is not None:
            for workspace in governed.workspaces.values():
                workspace.close()
        await self._inner.close(session_id)

    def status(self) -> dict[str, Any]:
        """Return the inner runtime's status."""
        return self._inner.status()

    def retry_in_s(self) -> float:
        """Return what the inner runtime says."""
        return self._inner.retry_in_s()

    async def aclose(self) -> None:
        """Close the inner runtime."""
        await self._inner.aclose()


def _thread_of(turn: Turn) -> tuple[int, str | None]:
    """Return how many hops mail sent now has, and its thread: one more than the longest that the turn carries."""
    above = turn.identity.ceiling
    longest = max(turn.carried, key=lambda message: message.hops, default=None)
    if longest is not None:
        return longest.hops + 1, longest.thread
    return (0, None) if above is None else (above.hops, above.thread)


def _reader_id(session: SessionIdentity) -> str:
    return session.acting.mail_of or session.acting.principal


def _input_hash(request: TurnRequest) -> str:
    """Hash what the model is first asked: system prompt, messages and tool names."""
    system = canonical_json(list(request.system))
    tools = canonical_json([tool.name for tool in request.tools])
    # The canonical form of {"messages": …, "system": …, "tools": …}, put together from parts: the history has its own.
    return blake3_hex(
        b'{"messages":'
        + canonical_messages(request.messages)
        + b',"system":'
        + system
        + b',"tools":'
        + tools
        + b"}"
    )
