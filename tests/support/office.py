"""A runner without a socket: sessions, standing agents and a writer in one tree, on a real database.

The backend is a `ScriptedRuntime`: a test says in a function what each turn does. With the default writer, which
commits in the loop and not in a thread, everything is still when every task waits: `settled` is exact, and a MockClock
goes on only where the test lets it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import apsw
import trio
import trio.testing

from actors.court import Enacted
from actors.directory import Directory, SessionSupervisor, ask, new_future
from actors.kernel import (
    Actor,
    ChildSpec,
    Intensity,
    Ref,
    Refusal,
    Strategy,
    Supervisor,
    SupervisorRef,
    Timers,
    TimersRef,
    open_system,
)
from actors.ledger_writer import Commit, LedgerWriter, WriterFigures
from actors.ledger_writer import commit as commit_to
from actors.retention import Retention
from actors.runtime.base import (
    AgentRuntime,
    SessionIdentity,
    ToolDefinition,
    ToolUse,
    TurnHost,
    TurnRequest,
    Usage,
)
from actors.runtime.constitutional import ConstitutionalRuntime
from actors.schedule import Schedule
from actors.service import Caller
from actors.session_messages import Init, RunTurn
from actors.session_services import SessionServices
from actors.standing import LookForMail, StandingAgent, StandingMemory, StandingSupervisor
from actors.subagents import Subagents
from actors.timer_table import TimerTable
from actors.tools.base import Tool, ToolServices
from actors.tools.registry import Registry, standard_tools
from protocol.errors import RequestError
from protocol.events import Event
from protocol.tiers import Tier
from store.clock import StrictClock
from store.content import load_content
from store.database import open_reader, open_writer
from store.ledger import last_timestamp, verify
from store.mailbox import Mail, SendMail, compose
from store.root import Root, lay_out
from store.unit_of_work import UnitOfWork, commit_units
from store.workspace import Protected

OPERATOR = Caller("operator", "operator's connection", authenticated=True)
GUEST = Caller("guest", "guest's connection", authenticated=False)

Act = Callable[[SessionIdentity, TurnRequest, TurnHost], Awaitable[str]]


class ScriptedRuntime(AgentRuntime):
    """Does in a turn what `act` does, and remembers what it was asked."""

    name = "scripted"

    def __init__(self, act: Act | None = None) -> None:
        self.act = act or self.say_nothing
        self.requests: list[tuple[SessionIdentity, TurnRequest]] = []
        self.is_closed: list[str] = []

    async def say_nothing(self, _session: SessionIdentity, _request: TurnRequest, host: TurnHost) -> str:
        say(host, "Yes.")
        return "end_turn"

    async def ensure_session(self, session: SessionIdentity) -> None:
        return

    async def run_turn(self, session: SessionIdentity, request: TurnRequest, host: TurnHost) -> str:
        self.requests.append((session, request))
        return await self.act(session, request, host)

    async def cancel(self, session_id: str) -> None:
        return

    async def close(self, session_id: str) -> None:
        self.is_closed.append(session_id)

    def status(self) -> dict[str, Any]:
        return {"name": self.name, "model": None}

    def turns_of(self, agent: str) -> list[TurnRequest]:
        """Return what was asked in the standing session of an agent."""
        return [request for session, request in self.requests if session.session_key == f"{agent}:cli:local"]


def say(host: TurnHost, text: str) -> None:
    """Let the model have said something."""
    host.keep({"type": "text", "text": text})
    host.spend(Usage(10, 5))


_numbers = itertools.count(1)


async def call(host: TurnHost, *calls: tuple[str, dict[str, Any]] | ToolUse) -> list[tuple[bool, str]]:
    """Let the model call tools in one message; return for each whether it failed, and its text."""
    uses = [one if isinstance(one, ToolUse) else ToolUse(f"call-{next(_numbers)}", *one) for one in calls]
    for use in uses:
        host.keep({"type": "tool_use", "id": use.id, "name": use.name, "input": use.input})
    results = await host.call_tools(uses)
    assert [result["tool_use_id"] for result in results] == [use.id for use in uses]
    return [(result["is_error"], result["content"]) for result in results]


class InlineWriter(Actor):
    """Commits in the loop. `failure`, while set, is what every commit comes to."""

    def __init__(self, office: Office) -> None:
        super().__init__()
        self._office = office

    async def on_start(self) -> None:
        self._database = open_writer(self._office.root.database)

    async def on_receive(self, message: Commit) -> Any:
        if self._office.failure is not None:
            return Refusal(self._office.failure)
        [outcome] = commit_units(self._database, [message.unit])
        self._office.units.append(message.unit)
        return Refusal(outcome) if isinstance(outcome, Exception) else outcome

    async def on_stop(self) -> None:
        self._database.close()


class Trunk(Supervisor):
    """The root; the office finds its children through it."""

    def __init__(self, office: Office, children: Sequence[ChildSpec]) -> None:
        super().__init__(children, strategy=Strategy.REST_FOR_ONE, intensity=Intensity(5, 60.0))
        self._office = office

    async def on_start(self) -> None:
        ref = self.ref
        assert isinstance(ref, SupervisorRef)
        self._office.trunk = ref


@dataclass
class Office:
    """One runner of a test; `restart`-like things are done by opening another one on the same root."""

    root: Root
    runtime: ScriptedRuntime
    tools: Sequence[Tool] = ()
    tokens_limited: bool = False
    trunk: SupervisorRef = field(init=False)
    failure: Exception | None = None
    units: list[UnitOfWork] = field(default_factory=list)
    figures: WriterFigures = field(default_factory=WriterFigures)
    memories: dict[str, StandingMemory] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.enacted = Enacted(load_content(self.root.platform))
        self.directory = Directory(lambda: self.trunk.supervisor("sessions"), lambda: self.services)
        self.subagents = Subagents(lambda: self.directory)

    @cached_property
    def database(self) -> apsw.Connection:
        return open_reader(self.root.database)

    @cached_property
    def clock(self) -> StrictClock:
        return StrictClock(last_timestamp(self.database))

    @cached_property
    def began_at(self) -> str:
        return self.clock.stamp()

    @property
    def writer(self) -> Ref:
        ref = self.trunk.child("writer")
        assert ref is not None
        return ref

    @cached_property
    def services(self) -> SessionServices:
        registry = Registry([*standard_tools(), *self.tools])
        runtime = ConstitutionalRuntime(
            self.runtime,
            enacted=self.enacted,
            registry=registry,
            database=self.database,
            root=self.root.path,
            protected=Protected(self.root.path),
            services=ToolServices(
                self.database,
                self.clock,
                lambda: self.enacted.content.roster,
                lambda: self.enacted.content.constitution.limits,
            ),
        )
        return SessionServices(
            writer=self.writer,
            clock=self.clock,
            enacted=self.enacted,
            runtime=runtime,
            registry=registry,
            database=self.database,
            secret=b"secret",
            tokens_limited=self.tokens_limited,
            announce=self.announce,
            run_child=self.subagents.run,
        )

    @property
    def timers(self) -> TimersRef:
        ref = self.trunk.child("timers")
        assert isinstance(ref, TimersRef)
        return ref

    def find(self, path: str) -> Ref | None:
        return self.trunk.find(path)

    def announce(self, mails: Sequence[Mail]) -> None:
        roster = self.enacted.content.roster
        for name in {identity.id for mail in mails for identity in roster.resolve(mail.recipient)}:
            ref = self.standing(name)
            if ref is not None:
                ref.tell(LookForMail())

    def standing(self, name: str) -> Ref | None:
        """Return the actor of a standing agent, None where this office has none."""
        if self.trunk.child("standing") is None:
            return None
        return self.trunk.supervisor("standing").child(name)

    # --- what a test does

    async def open(self, key: str = "reed:test:1", caller: Caller = OPERATOR, **fields: Any) -> Ref:
        """Open a session and return its actor."""
        ref = await self.directory.open(key)
        await ask(ref, Init(caller, fields.pop("agent_id", key.partition(":")[0]), **fields))
        return ref

    async def turn(
        self,
        ref: Ref,
        message: str = "hello",
        caller: Caller = OPERATOR,
        tools: list[ToolDefinition] | None = None,
    ) -> Ended:
        """Run a turn to its end; `tools` are those that the client brings, None is the standard set."""
        return await self.run(ref, Begun(), message, caller, tools)

    async def run(
        self,
        ref: Ref,
        begun: Begun,
        message: str = "hello",
        caller: Caller = OPERATOR,
        tools: list[ToolDefinition] | None = None,
    ) -> Ended:
        """Run a turn to its end, whose events go to `begun`."""
        try:
            await ask(ref, self._run_turn(begun, message, caller, tools))
        except RequestError as error:
            return Ended(begun.events, "error", None, error)
        return await begun.end()

    async def begin(self, ref: Ref, message: str = "hello", caller: Caller = OPERATOR) -> Begun:
        """Have a turn run, or wait in line."""
        begun = Begun()
        await ask(ref, self._run_turn(begun, message, caller))
        return begun

    def _run_turn(
        self, begun: Begun, message: str, caller: Caller, tools: list[ToolDefinition] | None = None
    ) -> RunTurn:
        return RunTurn(caller, [{"role": "user", "content": message}], None, tools, begun.take, begun.done)

    async def mail(self, recipient: str, body: str = "A message.", **fields: Any) -> Mail:
        """Send mail as the daemon does for the operator."""
        values: dict[str, Any] = {
            "sender": "operator",
            "subject": "a subject",
            "tier": Tier.STANDING,
            **fields,
        }
        mail = compose(recipient=recipient, body=body, moment=self.clock.moment(), **values)
        await commit_to(self.writer, SendMail(mail))
        self.announce([mail])
        return mail

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return what a query finds."""
        return list(self.database.execute(statement, values))

    def check_ledger(self) -> None:
        """Hold the ledger to what holds for every one."""
        found = verify(self.database)
        assert found.ok, found.first_bad


@dataclass
class Begun:
    """A turn under way: its events so far."""

    events: list[Event] = field(default_factory=list)
    done: Any = field(default_factory=new_future)
    on_event: Callable[[Event], None] = lambda _event: None

    def take(self, event: Event) -> None:
        assert event.seq == len(self.events)
        self.events.append(event)
        self.on_event(event)

    async def end(self) -> Ended:
        """Wait for its end."""
        try:
            status, turn_id = await self.done.wait()
        except RequestError as error:
            return Ended(self.events, "error", None, error)
        return Ended(self.events, status, turn_id, None)


@dataclass
class Ended:
    """A turn that ended: `status` complete or cancelled with its id, or `error`."""

    events: list[Event]
    status: str
    turn_id: str | None
    error: RequestError | None


def limit(root: Root, **limits: int) -> None:
    """Change limits of a root's constitution before it is read."""
    path = root.platform / "constitution.yaml"
    text = path.read_text(encoding="utf-8")
    for name, value in limits.items():
        text, count = re.subn(rf"^  {name}: (?:\d+|null)", f"  {name}: {value}", text, flags=re.MULTILINE)
        assert count == 1
    path.write_text(text, encoding="utf-8")


@asynccontextmanager
async def open_office(
    folder: Path,
    act: Act | None = None,
    *,
    limits: Mapping[str, int] | None = None,
    standing: Sequence[str] | None = (),
    tools: Sequence[Tool] = (),
    tokens_limited: bool = False,
    threaded: bool = False,
    wall: Callable[[], float] | None = None,
    heartbeat_s: float | None = 300.0,
) -> AsyncIterator[Office]:
    """Run an office on a root. `standing` names the agents that wake by themselves, None is all of the roster.

    With `threaded` the daemon's own ledger writer commits, in a thread. With `wall`, the clock that they go by in Unix
    seconds, the daemon's timers run as well.
    """
    root = Root(folder)
    lay_out(root)
    limit(root, **(limits or {}))
    open_writer(root.database).close()
    office = Office(root, ScriptedRuntime(act), tools, tokens_limited)

    def writer() -> Actor:
        return (
            LedgerWriter(lambda: open_writer(root.database), office.figures)
            if threaded
            else InlineWriter(office)
        )

    def agent(name: str) -> StandingAgent:
        memory = office.memories.setdefault(name, StandingMemory(name))
        return StandingAgent(memory, lambda: office.services, lambda: office.directory, office.began_at)

    children = [
        ChildSpec("writer", writer),
        ChildSpec("sessions", lambda: SessionSupervisor(lambda: office.services)),
    ]
    if standing is None or standing:
        children.append(ChildSpec("standing", lambda: _Standing(office, standing, agent)))
    if wall is not None:
        children += [
            ChildSpec("retention", lambda: Retention(lambda: office.services, root.workspaces, 1_800.0)),
            ChildSpec("timers", lambda: Timers(table, office.find, now=wall)),
            ChildSpec("schedule", lambda: Schedule(lambda: office.timers, office.enacted, heartbeat_s, wall)),
        ]
        table = TimerTable(lambda: office.database, lambda: office.writer)
    async with open_system(ChildSpec("office", lambda: Trunk(office, children))):
        yield office
        office.services.hurry.set()
    office.database.close()


class _Standing(StandingSupervisor):
    def __init__(self, office: Office, names: Sequence[str] | None, make: Callable[[str], Actor]) -> None:
        super().__init__(office.enacted.content.roster, make)
        if names is not None:
            self.specs = tuple(spec for spec in self.specs if spec.id in names)


async def settled() -> None:
    """Wait until every other task waits for something; with the default writer nothing is under way then."""
    await trio.testing.wait_all_tasks_blocked()
