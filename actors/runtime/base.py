"""`AgentRuntime`: the interface of every backend and of the constitutional runtime that wraps one.

A turn is pushed, not pulled: the runtime calls `host.emit(event)` instead of being an async generator, because a
generator that is suspended inside a nursery or a cancel scope breaks structured concurrency (PEP 789). `emit` never
waits; a client that reads too slowly is the gateway's affair, not the model's.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from protocol.events import Event
from protocol.mounts import Mount
from protocol.tiers import Acting, Tier

Block = dict[str, Any]
"""A content block of the Messages API: text, image, thinking, redacted_thinking, tool_use, tool_result."""

Message = dict[str, Any]
"""`{"role": "user"|"assistant", "content": str | list[Block]}`."""


@dataclass(frozen=True, slots=True)
class ToolDefinition:
    """A tool as the model sees it: name, description and the JSON schema of its input."""

    name: str
    description: str
    input_schema: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A call that the model made.

    `problem` says why `input` could not be read (not JSON, or not an object); `input` is then empty.
    """

    id: str
    name: str
    input: dict[str, Any]
    problem: str | None = None


@dataclass(slots=True)
class Usage:
    """Tokens of one model call, or the sum over a turn."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0

    def add(self, other: Usage) -> None:
        """Add the tokens of another call to these."""
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.cache_creation_input_tokens += other.cache_creation_input_tokens
        self.cache_read_input_tokens += other.cache_read_input_tokens

    @property
    def total(self) -> int:
        """Every token that counts against a daily limit."""
        return (
            self.input_tokens
            + self.output_tokens
            + self.cache_creation_input_tokens
            + self.cache_read_input_tokens
        )


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What a child session may never exceed: the reach of its parent at the moment of the call.

    `depth` is 1 for the child of a client's session. `hops` and `thread` are those of the mail that the parent
    carries, so that a child continues the thread and does not begin a new one.
    """

    tier: Tier
    mounts: tuple[Mount, ...]
    depth: int
    hops: int
    thread: str | None


@dataclass(frozen=True, slots=True)
class SessionIdentity:
    """The session that a turn belongs to; `ceiling` bounds a child session."""

    session_id: str
    session_key: str
    acting: Acting
    model: str | None
    ceiling: Ceiling | None = None


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What a backend needs for one turn.

    `system`: text parts in order, the stable ones first; `system_stable` says how many of them do not change from
    turn to turn (they end at a prompt-cache breakpoint). `messages` are the history and then, from `own_from` on, the
    turn's own; two of one role may follow each other, and the last is the user's.
    """

    turn_id: str
    system: tuple[str, ...]
    system_stable: int
    messages: Sequence[Message]
    tools: Sequence[ToolDefinition]
    model_calls_max: int
    own_from: int = 0


class TurnHost(Protocol):
    """What a running turn may ask of whoever runs it."""

    def emit(self, event: Event) -> None:
        """Pass an event on; never waits."""

    def keep(self, block: Block) -> None:
        """Keep a complete block of the assistant: it joins the history, however the turn ends."""

    def spend(self, usage: Usage) -> None:
        """Count the tokens of one finished or broken model call."""

    async def call_tools(self, calls: Sequence[ToolUse]) -> list[Block]:
        """Judge, record and run the calls of one model message; return their tool_result blocks in order.

        The tool_result events are emitted by the host. A denied or failed call is a result with `is_error`.
        """


class AgentRuntime(abc.ABC):
    """Runs turns. Backends implement it; `ConstitutionalRuntime` implements it by wrapping another one."""

    name: str

    @abc.abstractmethod
    async def ensure_session(self, session: SessionIdentity) -> None:
        """Make ready what the backend keeps for a session; called before each of its turns.

        Raises BackendError where none would be run now: nothing of the turn has been recorded then.
        """

    @abc.abstractmethod
    async def run_turn(self, session: SessionIdentity, request: TurnRequest, host: TurnHost) -> str:
        """Run one turn to its end and return the stop reason (one of `protocol.events.STOP_REASONS`).

        Raises BackendError when the model server fails for good. Cancellation of the calling task stops the
        stream and the running tool at once.
        """

    @abc.abstractmethod
    async def cancel(self, session_id: str) -> None:
        """Stop what a backend runs outside the calling task (a subprocess); the task itself is cancelled by trio."""

    @abc.abstractmethod
    async def close(self, session_id: str) -> None:
        """Forget the session."""

    @abc.abstractmethod
    def status(self) -> dict[str, Any]:
        """Return what an operator wants to see of the backend: name, model, health."""

    def retry_in_s(self) -> float:
        """Return the seconds until it makes sense to run a turn: above 0 while the model server is left alone."""
        return 0.0

    async def aclose(self) -> None:
        """Free connections at the end of the daemon."""
        return
