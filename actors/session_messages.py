"""What a session actor is told and asked, and what it keeps while its incarnations come and go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from actors.kernel import Future
from actors.runtime.base import Block, Ceiling, Message, ToolDefinition
from actors.service import Caller
from protocol.errors import RequestError
from protocol.events import Event
from store.sessions import TurnRow


@dataclass(frozen=True, slots=True)
class Init:
    """Open, reopen or come back to the session; the answer is the result of `session.init`."""

    caller: Caller
    agent_id: str
    model: str | None = None
    mode: str | None = None


@dataclass(frozen=True, slots=True)
class Follower:
    """Somebody who follows a turn: the events from now on go to `sink`, its end is answered to `done`."""

    sink: Callable[[Event], None]
    done: Future


@dataclass(frozen=True, slots=True)
class Attached:
    """How far the turn is that somebody began to follow.

    `seen`: how many events there were so far, or None for one that has ended; then `answer` is its end and `turn` what
    is stored of it.
    """

    turn_id: str
    seen: int | None
    answer: tuple[str, str] | RequestError | None = None
    turn: TurnRow | None = None


@dataclass(frozen=True, slots=True)
class FollowTurn:
    """Follow a turn of the session; the answer is `Attached`."""

    caller: Caller
    turn_id: str
    follower: Follower


@dataclass(slots=True)
class RunTurn:
    """Run a turn when those before it are done. `done` is answered with `(status, turn_id)` or a RequestError.

    The answer to the message itself is None, or `Attached` where `key` names a turn that was asked for before: then it
    is followed and not run again; `request_hash` tells whether it was the same that was asked for. `continues` is the
    turn that a crash cut off and this one goes on with. With `delegates`
    the client executes those of `tools` that are not in the standard set.
    """

    caller: Caller
    messages: list[Message]
    system: str | None
    tools: list[ToolDefinition] | None
    sink: Callable[[Event], None]
    done: Future
    delegates: bool = False
    key: str | None = None
    request_hash: str | None = None
    continues: str | None = None
    followers: list[Follower] = field(default_factory=list)

    def take(self, event: Event) -> None:
        """Pass an event on to all who follow the turn."""
        self.sink(event)
        for follower in self.followers:
            follower.sink(event)

    def answer(self, outcome: tuple[str, str] | RequestError) -> None:
        """Tell all who follow the turn how it ended."""
        for done in (self.done, *(follower.done for follower in self.followers)):
            if isinstance(outcome, RequestError):
                done.set_exception(outcome)
            else:
                done.set(outcome)


@dataclass(frozen=True, slots=True)
class AnswerCall:
    """Give a call that a client executes its result: text, or blocks of the Messages API (text, image)."""

    caller: Caller
    call_id: str
    content: str | list[Block]
    is_error: bool


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the running turn; waiting ones then run."""

    caller: Caller


@dataclass(frozen=True, slots=True)
class Close:
    """End the session; `event` is the ledger's word for it (closed, evicted)."""

    caller: Caller
    reason: str | None
    event: str = "closed"


@dataclass(frozen=True, slots=True)
class Status:
    """Ask for the state: idle, running, cancelled or closed."""

    caller: Caller


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Call `on_idle` whenever a turn has ended and none waits; one subscriber, the last one."""

    on_idle: Callable[[], None]


@dataclass(frozen=True, slots=True)
class EvictIfIdle:
    """Close the session if nobody used it since `idle_since` (RFC 3339); a running one is marked and closed later."""

    idle_since: str


@dataclass(slots=True)
class SessionMemory:
    """What outlives an incarnation of a session actor, be it ended by a crash or by having been idle for long.

    Everything else is read from the store again. `on_idle` is called when a turn has ended and none waits.
    """

    key: str
    waiting: list[RunTurn] = field(default_factory=list)  # few, and an idle session's empty list is small
    ceiling: Ceiling | None = None
    evict_after_turn: bool = False
    crashes: int = 0
    on_idle: Callable[[], None] | None = None
    is_guarded: bool = False

    def refuse_waiting(self, error: RequestError) -> None:
        """Answer the turns that wait with an error."""
        while self.waiting:
            self.waiting.pop(0).answer(error)

    def give_up(self) -> None:
        """Answer the turns that wait: nobody comes after who would."""
        self.refuse_waiting(RequestError("internal", "the session's actor was ended; send the turn again"))
