"""Every exception that the kernel raises.

Exception
├── pykka.ActorDeadError            nobody will answer: the actor ended, or died over this message
│   └── ActorParkedError            it crashed too often and waits for `retry`
├── pykka.Timeout
│   └── AskTimeoutError             no answer in time; the question is withdrawn
└── KernelError
    ├── MailboxFullError            the bounded mailbox had no room, and the call does not wait
    ├── AskCycleError               the question would wait for its own asker
    ├── AlreadyAnsweredError        a future was set twice
    ├── LinkedExitError             crash reason of an actor whose linked partner ended
    └── SupervisionError
        ├── ChildStartError         `on_start` (or the factory) raised
        ├── ChildExistsError        the id is taken; carries the ref that has it
        ├── UnknownChildError       no child has this id
        ├── TooManyChildrenError    the supervisor is at `max_children`
        ├── RestartIntensityError   more restarts than allowed: the supervisor gives up
        ├── ChildStuckError         a child ended neither on request nor on cancellation
        │   └── ThreadStuckError    its thread did not return; the system ends without it
        └── RootFailedError         the root of the tree failed; the system has stopped
"""

from collections.abc import Sequence

from pykka import ActorDeadError, Timeout

__all__ = [
    "ActorDeadError",
    "ActorParkedError",
    "AlreadyAnsweredError",
    "AskCycleError",
    "AskTimeoutError",
    "ChildExistsError",
    "ChildStartError",
    "ChildStuckError",
    "KernelError",
    "LinkedExitError",
    "MailboxFullError",
    "RestartIntensityError",
    "RootFailedError",
    "SupervisionError",
    "ThreadStuckError",
    "TooManyChildrenError",
    "UnknownChildError",
]


class ActorParkedError(ActorDeadError):
    """The actor crashed too often and is parked; its supervisor's `retry` brings it back."""


class AskTimeoutError(Timeout):
    """No answer came within `timeout_s` seconds; the actor skips the question if it has not begun it."""

    def __init__(self, address: str, timeout_s: float) -> None:
        super().__init__(f"{address} did not answer within {timeout_s} s; ask again or allow more time")
        self.address = address
        self.timeout_s = timeout_s


class KernelError(Exception):
    """Base of what the kernel itself raises."""


class MailboxFullError(KernelError):
    """The mailbox of `address` holds `size_max` messages, and neither its policy nor the call waits for room."""

    def __init__(self, address: str, size_max: int) -> None:
        super().__init__(
            f"the mailbox of {address} is full ({size_max} messages); send later, or await send()"
        )
        self.address = address
        self.size_max = size_max


class AskCycleError(KernelError):
    """The question would wait for its own asker; `path` names the actors in a ring, the asker first and last."""

    def __init__(self, path: Sequence[str]) -> None:
        super().__init__(f"ask cycle {' -> '.join(path)}; tell instead, or ask from start_task()")
        self.path = tuple(path)


class AlreadyAnsweredError(KernelError):
    """A future was set a second time; answer each message once."""


class LinkedExitError(KernelError):
    """A linked actor ended abnormally and this one does not trap exits; `address` is the first that failed."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"linked actor {address} ended: {reason}; set trap_exit to receive Exit instead")
        self.address = address
        self.reason = reason


class SupervisionError(KernelError):
    """Base of what supervisors raise."""


class ChildStartError(SupervisionError):
    """The child's factory or `on_start` raised; the cause is chained."""

    def __init__(self, child_id: str) -> None:
        super().__init__(f"child {child_id!r} did not start; see the chained cause")
        self.child_id = child_id


class ChildExistsError(SupervisionError):
    """The supervisor already has a child of this id; `ref` is its address."""

    def __init__(self, child_id: str, ref: object) -> None:
        super().__init__(f"child {child_id!r} exists already; use its ref, or terminate it first")
        self.child_id = child_id
        self.ref = ref


class UnknownChildError(SupervisionError):
    """The supervisor has no child of this id."""

    def __init__(self, child_id: str) -> None:
        super().__init__(f"there is no child {child_id!r}; list the children with tree()")
        self.child_id = child_id


class TooManyChildrenError(SupervisionError):
    """The supervisor already has `max_children` children."""

    def __init__(self, max_children: int) -> None:
        super().__init__(f"the supervisor is at its limit of {max_children} children; end one first")
        self.max_children = max_children


class RestartIntensityError(SupervisionError):
    """Child `child_id` needed more than `max_restarts` restarts in `within_s` seconds."""

    def __init__(self, child_id: str, max_restarts: int, within_s: float) -> None:
        super().__init__(
            f"child {child_id!r} went over {max_restarts} restarts in {within_s} s; the supervisor gives up"
        )
        self.child_id = child_id
        self.max_restarts = max_restarts
        self.within_s = within_s


class ChildStuckError(SupervisionError):
    """An actor ignored both the request to stop and its cancellation for `waited_s` seconds."""

    def __init__(self, address: str, waited_s: float) -> None:
        super().__init__(
            f"{address} still runs {waited_s} s after it was cancelled; look for a shielded wait in it"
        )
        self.address = address
        self.waited_s = waited_s


class ThreadStuckError(ChildStuckError):
    """The function that runs in the thread of an actor does not return: the system ends without it."""


class RootFailedError(SupervisionError):
    """The root of the tree failed and nobody is above it; the cause is chained."""
