"""What clients and operators do to a simulated daemon, through the methods that the gateway calls."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import trio

from actors.api import Api
from actors.court import Court, Reload
from actors.kernel import ActorDeadError, AskTimeoutError, KernelError, Ref, Supervisor
from actors.kernel.commands import RetryChild
from actors.kernel.mailbox import Envelope
from actors.ledger_writer import Commit, LedgerWriter
from actors.service import Caller
from actors.session_messages import RunTurn, Status
from actors.sessions import SessionActor
from actors.standing import LookForMail, StandingAgent
from protocol.errors import AgentRunnerError, RequestError
from protocol.native import frames
from store.unit_of_work import UnitOfWork
from tests.simulation.probes import Clerk, Deferrer, Leaver, Lingerer
from tests.simulation.records import Records
from tests.simulation.trace import Trace
from tests.simulation.watching import Life, Watcher
from tests.support.office import OPERATOR

SESSIONS = 100
PROBES = ("waiting", "refusing", "forgetting", "hasty", "leaving", "lingering", "deferring", "deferring")

QUEUED_ORDER = "turns of a session run in the order in which they were asked for"
RUN_ONCE = "a turn that is asked for twice with one key runs once"
CALLS_END = "every request of a client is answered, or the client left"


class Deaf:
    """Takes the events of a request and forgets them."""

    def __call__(self, event: object) -> None:
        """Forget it."""

    async def room(self) -> None:
        """Have room always."""
        await trio.lowlevel.checkpoint()


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who uses a session, and which."""

    caller: Caller
    agent: str
    key: str


def visitors(agents: tuple[str, ...]) -> list[Visitor]:
    """Return who uses the hundred sessions: the operator most, guests some."""
    found = []
    for number in range(SESSIONS):
        agent = agents[number % len(agents)]
        if number % 5 == 0:
            caller = Caller("guest", f"guest {number % 15}", authenticated=False)
            found.append(Visitor(caller, "cora", f"cora:sim:{number}"))
        else:
            found.append(Visitor(OPERATOR, agent, f"{agent}:sim:{number}"))
    return found


class TurnOrder(Watcher):
    """Holds the turns of each session to the order of their requests."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._asked: dict[str, list[str]] = defaultdict(list)
        self._keyed: set[str] = set()  # over all epochs: texts of turns with an idempotency key
        self._begun: set[str] = set()

    def begin_epoch(self) -> None:
        """Forget the tree before."""
        self._asked.clear()

    def posted(self, ref: Ref, envelope: Envelope) -> None:
        if isinstance(envelope.message, RunTurn):
            text = str(envelope.message.messages[-1]["content"])
            self._asked[ref.child_id].append(text)
            if envelope.message.key is not None:
                self._keyed.add(text)

    def begins(self, key: str, text: str) -> None:
        """A turn with this text begins in a session."""
        waiting = self._asked[key]
        self._trace.check(
            QUEUED_ORDER, text in waiting, lambda: f"{key}: {text!r} comes out of order, or again"
        )
        if text in self._keyed:
            self._trace.check(RUN_ONCE, text not in self._begun, lambda: f"{key}: {text!r} runs again")
            self._begun.add(text)
        if text in waiting:
            del waiting[: waiting.index(text) + 1]


class Workload:
    """Calls the daemon's methods; `pending` are the requests that wait for their answer, with when they began."""

    def __init__(self, rng: random.Random, trace: Trace, records: Records, agents: tuple[str, ...]) -> None:
        self._rng = rng
        self._trace = trace
        self._records = records
        self._agents = agents
        self._visitors = visitors(agents)
        self._numbers = iter(range(1, 1_000_000))
        self.api: Api
        self.trunk: Callable[[], Any]
        self.nursery: trio.Nursery
        self.pending: dict[int, tuple[str, float]] = {}

    # --- one request

    async def call(
        self, caller: Caller, params: frames.Params, patience_s: float | None = None
    ) -> dict[str, Any] | None:
        """Make a request and return its result, None where it was refused or given up."""
        number = next(self._numbers)
        name = type(params).__name__
        self.pending[number] = (f"{name} {getattr(params, 'session_key', '')}", trio.current_time())
        told = "gave up"
        try:
            with trio.CancelScope(deadline=trio.current_time() + (patience_s or float("inf"))):
                result = await self.api.call(caller, name, params, Deaf())
                told = "done"
                if isinstance(params, frames.TurnRun):
                    self._records.turn_told(result["turn_id"], result["status"])
                return result
        except RequestError as error:
            told = f"refused {error.code}"
        except (AgentRunnerError, KernelError, ActorDeadError) as error:
            told = f"failed {type(error).__name__}"
        finally:
            del self.pending[number]
            self._trace.note("answer", f"{number} {name} {told}")
            self._trace.events[f"request {told}"] += 1
        return None

    def _patience_s(self) -> float | None:
        return self._rng.choice((None, None, None, 0.0, 0.001, 0.02, 1.0, 5.0))

    async def _visit(self, visitor: Visitor, turns: int, patience_s: float | None) -> None:
        init = frames.SessionInit(agent_id=visitor.agent, session_key=visitor.key)
        if await self.call(visitor.caller, init) is None and self._rng.random() < 0.5:
            return
        for _ in range(turns):
            self.nursery.start_soon(self.turn, visitor, patience_s)

    async def turn(self, visitor: Visitor, patience_s: float | None = None) -> bool:
        """Run a turn; whether it was answered."""
        text = f"Do number {next(self._numbers)}."
        key = f"key of {text}" if self._rng.random() < 0.2 else None
        run = frames.TurnRun(session_key=visitor.key, message=text, idempotency_key=key)
        if key is not None:
            self.nursery.start_soon(self._ask_again, visitor, run)
        return await self.call(visitor.caller, run, patience_s) is not None

    async def _ask_again(self, visitor: Visitor, run: frames.TurnRun) -> None:
        """Ask for the same turn once more, as who lost the connection does."""
        await trio.sleep(self._rng.choice((0.0, 0.5, 6.0)))
        await self.call(visitor.caller, run)

    # --- all of them

    async def go_on(self, until: float) -> None:
        """Make requests until a moment; each runs in a task of the nursery."""
        rng = self._rng
        hot = rng.sample(self._visitors, 12)
        while trio.current_time() < until:
            visitor = rng.choice(hot if rng.random() < 0.6 else self._visitors)
            for action in self._draw(visitor):
                self.nursery.start_soon(action)
            await trio.sleep(rng.choice((0.0, 0.1, 0.5, 1.0, 3.0)))

    def _draw(self, visitor: Visitor) -> list[Callable[[], Awaitable[Any]]]:
        rng, who, key = self._rng, visitor.caller, visitor.key
        patience_s = self._patience_s()

        def request(params: frames.Params, caller: Caller = OPERATOR) -> Callable[[], Awaitable[Any]]:
            return lambda: self.call(caller, params, patience_s)

        match rng.randrange(20):
            case 0 | 1 | 2 | 3 | 4 | 5:
                turns = rng.choice((0, 1, 1, 1, 2, 4))
                found = [lambda: self._visit(visitor, turns, patience_s)]
            case 6 | 7:
                found = [request(frames.SessionStatus(session_key=key), who)] * rng.choice((1, 6))
            case 8:
                found = [request(frames.SessionCancel(session_key=key), who)]
            case 9:
                found = [request(frames.SessionClose(session_key=key), who)]
            case 10 | 11 | 12 | 13:
                to = rng.choice((*self._agents * 4, *("triage", "tag:security", "nobody") * 4, "all"))
                sender = rng.choice((None, None, "reed"))
                mail = frames.MailSend(to=to, subject="hello", body="from outside", sender=sender)
                found = [request(mail)] * rng.choice((1, 1, 2))
            case 14:
                found = [request(frames.BoardPost(text="a line from outside"))]
            case 15:
                found = [request(rng.choice((frames.RunnerStatus(), frames.AgentsList())))]
            case 16:
                found = [request(frames.RunnerReload())]
            case 17:
                agent = rng.choice(self._agents)
                found = [request(frames.AgentsRetry(agent_id=agent)), self._retry_probe]
            case _:
                name, count = rng.choice(PROBES), rng.choice((1, 3, 9))
                message = "leave" if name == "leaving" and rng.random() < 0.3 else "poke"
                found = [lambda: self._probe(name, message, patience_s)] * count
        return found

    async def _retry_probe(self) -> None:
        with suppress(ActorDeadError, KernelError):
            parking = self.trunk().supervisor("gateway").supervisor("parking")
            await parking.retry(self._rng.choice(("left", "right")))

    async def _probe(self, name: str, message: str, patience_s: float | None) -> None:
        try:
            ref = self.trunk().supervisor("gateway").child(name)
            if self._rng.random() < 0.5:
                ref.tell(message)
            else:
                await ref.ask(message, 3_600.0 if patience_s is None else patience_s)
        except (KernelError, ActorDeadError, AskTimeoutError) as error:
            self._trace.note("probe", f"{name} {type(error).__name__}")


async def poke(life: Life) -> None:
    """Give an actor a message that does no harm."""
    message: Any
    match life.actor:
        case SessionActor():
            message = Status(OPERATOR)
        case StandingAgent():
            message = LookForMail()
        case LedgerWriter():
            message = Commit(UnitOfWork(()))
        case Court():
            message = Reload()
        case Supervisor():
            message = RetryChild("nobody")
        case Clerk() | Leaver() | Lingerer() | Deferrer():
            message = "poke"
        case _:
            return
    with suppress(ActorDeadError, KernelError):
        life.ref.tell(message)
