"""What can be seen of actors: a life, and the events that a watcher hears of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from actors.kernel import Actor, Future, Ref
from actors.kernel.child import Child
from actors.kernel.mailbox import Envelope
from actors.kernel.signals import ChildExited, ExitKind

Hook = Callable[..., Awaitable[Any]]


@dataclass(eq=False, slots=True)
class Life:
    """One incarnation as it is seen: what of it runs, and what was asked of it."""

    ref: Ref
    path: str
    actor: Actor
    generation: int
    launched_at: float
    active: Counter[str] = field(default_factory=Counter)
    poisons: dict[int, trio.CancelScope] = field(default_factory=dict)
    stop_by: float | None = None  # when an orderly stop must be over
    busy_s: float = 0.0  # spent in handlers of messages
    busy_since: float | None = None
    is_killed: bool = False
    is_ended: bool = False

    @property
    def name(self) -> str:
        """Address and number of the incarnation."""
        return f"{self.path}#{self.generation}"

    @property
    def running(self) -> str:
        """What of it runs at this moment, as text; empty if nothing does."""
        return ", ".join(sorted(name for name, count in self.active.items() if count))

    def busy_until(self, now: float) -> float:
        """Return the seconds spent in handlers so far."""
        return self.busy_s + (0.0 if self.busy_since is None else now - self.busy_since)


class Interference(Protocol):
    """What may disturb an actor's own code."""

    def wrap(self, life: Life, hook: str, function: Hook, args: tuple[Any, ...]) -> Awaitable[Any]:
        """Run a hook or a task, with what disturbs it."""

    def cleans_up(self, ref: Ref) -> bool:
        """Say whether the last hooks of an actor are to run also where its class has none."""


class Watcher:
    """Base of those who check: each method hears of one kind of event."""

    def launched(self, life: Life, before: Life | None) -> None:
        """An incarnation was put to work behind an address; `before` is the last one of the same path."""

    def entered(self, life: Life, hook: str) -> None:
        """A hook begins."""

    def ended(self, life: Life, exited: ChildExited) -> None:
        """An incarnation reported its end."""

    def posted(self, ref: Ref, envelope: Envelope) -> None:
        """A message was put before an actor."""

    def withdrawn(self, envelope: Envelope) -> None:
        """The caller was refused, or gave up before the message was in the mailbox."""

    def undeliverable(self, ref: Ref, message: Any, *, was_dropped: bool) -> None:
        """A message became a dead letter: its mailbox had no room, or its actor is dead."""

    def delivered(self, life: Life, envelope: Envelope, future: Future | None) -> None:
        """A handler begins on a message."""

    def asked(self, number: int, ref: Ref, message: Any) -> None:
        """Somebody waits for an answer."""

    def answered(self, number: int, *, well: bool) -> None:
        """Somebody waits no more; `well` if the answer was no exception."""

    def stop_requested(self, ref: Ref, kind: ExitKind) -> None:
        """An address was asked to stop."""

    def exit_taken_up(self, supervisor: Life, exited: ChildExited) -> None:
        """A supervisor begins to handle the end of a child."""

    def exit_settled(self, supervisor: Life, exited: ChildExited, *, took_s: float) -> None:
        """It is done with that."""

    def terminating(self, supervisor: Life, child: Child) -> None:
        """A supervisor is about to end a child itself."""

    def retried(self, supervisor: Life, child: Child) -> None:
        """Somebody lets a child try again."""

    def parked(self, ref: Ref) -> None:
        """A child was parked."""
