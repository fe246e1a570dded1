"""What a session actor is told and asked, and what it keeps while its incarnations come and go."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from actors.kernel import Future
from actors.runtime.base import Block, Ceiling, Message, ToolDefinition
from actors.service import Caller
from protocol.events import Event


@dataclass(frozen=True, slots=True)
class Init:
    """Open, reopen or come back to the session; the answer is the result of `session.init`."""

    caller: Caller
    agent_id: str
    model: str | None = None
    mode: str | None = None


@dataclass(slots=True)
class RunTurn:
    """Run a turn when those before it are done. `done` is answered with `(status, turn_id)` or a RequestError.

    With `delegates` the client executes those of `tools` that are not in the standard set.
    """

    caller: Caller
    messages: list[Message]
    system: str | None
    tools: list[ToolDefinition] | None
    sink: Callable[[Event], None]
    done: Future
    delegates: bool = False


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
    """What outlives an incarnation of a session actor.

    `on_idle` is called when a turn has ended and none waits.
    """

    key: str
    waiting: deque[RunTurn] = field(default_factory=deque)
    ceiling: Ceiling | None = None
    evict_after_turn: bool = False
    crashes: int = 0
    on_idle: Callable[[], None] | None = None
