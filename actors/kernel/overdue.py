"""Who has been at one thing for too long, and where in the code they stand."""

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Final

from actors.kernel.incarnation import Incarnation
from actors.kernel.ref import Ref
from actors.kernel.thread_actor import ThreadActor

__all__ = ["Overdue", "activity", "overdue_actors", "place_of"]

KERNEL: Final = __name__.rpartition(".")[0]
LIBRARIES: Final = frozenset({"trio", "outcome", *sys.stdlib_module_names})


@dataclass(frozen=True, slots=True)
class Overdue:
    """An actor that is in one message, in its start or in its end for longer than it should be.

    `since` is the clock's time when that began, `place` the line of the application where its task (or thread) stood
    when it was noticed.
    """

    path: str
    what: str  # type name of the message, `on_start` or `its end`
    generation: int
    since: float
    place: str

    def still_holds(self, incarnation: Incarnation | None) -> bool:
        """Whether the incarnation is the same and still at the same thing."""
        return (
            incarnation is not None
            and incarnation.phase not in ("idle", "ended")
            and (incarnation.generation, incarnation.begun_at) == (self.generation, self.since)
        )


def activity(incarnation: Incarnation) -> str:
    """Return what an incarnation does that is not idle: the type name of its message, `on_start` or `its end`."""
    if incarnation.phase == "starting":
        return "on_start"
    if incarnation.phase != "busy" or incarnation.current is None:
        return "its end"
    return type(incarnation.current.message).__name__


def overdue_actors(root: Ref, now: float, default_s: float) -> Iterator[tuple[Ref, Incarnation]]:
    """Yield those that are at one thing for longer than their class allows; without a copy of the tree."""
    trail = [root]
    while trail:
        ref = trail.pop()
        incarnation = ref.incarnation
        if incarnation is not None and incarnation.phase not in ("idle", "ended"):
            own_s = incarnation.actor.stuck_after_s
            if now - incarnation.begun_at >= (default_s if own_s is None else own_s):
                yield ref, incarnation
        if ref.children:
            trail.extend(child.ref for child in ref.children.values())


def place_of(incarnation: Incarnation) -> str:
    """Return the innermost line of the application in which an actor waits, as `module:line, function`.

    The application is the package of the actor's class but for the kernel; where nothing of that is on the stack it
    is the innermost line that belongs to no library, else the innermost one.
    """
    package = type(incarnation.actor).__module__.partition(".")[0]
    best = "nowhere yet: its task has not begun"
    rank = -1
    for frame, line in _frames(incarnation):
        module = str(frame.f_globals.get("__name__", ""))
        top = module.partition(".")[0]
        is_kernel = module == KERNEL or module.startswith(f"{KERNEL}.")
        found = 2 if top == package and not is_kernel else 1 if top not in LIBRARIES else 0
        if found >= rank:
            best, rank = f"{module}:{line}, {frame.f_code.co_qualname}", found
    return best


def _frames(incarnation: Incarnation) -> Iterator[tuple[FrameType, int]]:
    """Yield the frames of an actor's task, the innermost last; behind them those of its thread, if it has one."""
    if incarnation.task is not None:
        yield from incarnation.task.iter_await_frames()
    if isinstance(incarnation.actor, ThreadActor):
        frames = sys._current_frames()  # noqa: SLF001  # what the interpreter offers for this
        for thread in threading.enumerate():
            if thread.name == incarnation.ref.path and thread.ident in frames:
                stack = []
                frame: FrameType | None = frames[thread.ident]
                while frame is not None:
                    stack.append((frame, frame.f_lineno))
                    frame = frame.f_back
                yield from reversed(stack)
