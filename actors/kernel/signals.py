"""Why an incarnation ended, and the signals that say so."""

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actors.kernel.ref import Ref

__all__ = [
    "ChildActivated",
    "ChildExited",
    "Down",
    "Exit",
    "ExitKind",
    "ExitReason",
    "RestartDue",
    "StopSignal",
]


class ExitKind(enum.Enum):
    """How an incarnation ended."""

    NORMAL = "normal"  # it stopped itself, or `Ref.stop` asked it to
    SHUTDOWN = "shutdown"  # its supervisor stopped it
    PASSIVE = "passive"  # it left memory until the next message
    KILLED = "killed"  # cancelled by `Ref.kill` or at a shutdown deadline
    CRASHED = "crashed"  # a handler, hook or task of it raised
    NOT_ALIVE = "not alive"  # there was nothing left to end when a monitor or link was made


@dataclass(frozen=True, slots=True)
class ExitReason:
    """How an incarnation ended and, for a crash, the exception."""

    kind: ExitKind
    exception: BaseException | None = None

    @property
    def is_normal(self) -> bool:
        """Whether a transient child stays down after this."""
        return self.kind in (ExitKind.NORMAL, ExitKind.SHUTDOWN, ExitKind.PASSIVE)

    def __str__(self) -> str:
        if self.exception is None:
            return self.kind.value
        return f"{self.kind.value}: {type(self.exception).__name__}: {self.exception}"[:300]


@dataclass(frozen=True, slots=True)
class Down:
    """An incarnation of the monitored `ref` ended; received as an ordinary message, once per incarnation."""

    ref: "Ref"
    generation: int
    reason: ExitReason


@dataclass(frozen=True, slots=True)
class Exit:
    """An incarnation of the linked `ref` ended; received as a message by an actor that sets `trap_exit`."""

    ref: "Ref"
    generation: int
    reason: ExitReason
    # The first failure of a chain of links: an address is ended at most once by each, so that link cycles settle.
    origin: tuple[Any, int]


class StopSignal:
    """Wakes the loop so that it looks at its stop flags; carries nothing."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ChildExited:
    """To a supervisor: an incarnation of a child ended. `started` is false if `on_start` had not returned."""

    child_id: str
    ref: "Ref"
    generation: int
    reason: ExitReason
    started: bool

    def refuse_questions(self) -> None:
        """Answer who asks the child until it lives again, unless it only left memory."""
        if self.ref.incarnation is None and self.reason.kind is not ExitKind.PASSIVE:
            self.ref.refuse_questions()


@dataclass(frozen=True, slots=True)
class ChildActivated:
    """To a supervisor: a message arrived for a child that had left memory."""

    child_id: str
    ref: "Ref"


@dataclass(frozen=True, slots=True)
class RestartDue:
    """To a supervisor, from its own timer: the back-off of these children is over."""

    tickets: tuple[tuple[str, int], ...]
