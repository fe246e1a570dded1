"""A thread that notices when the loop stands still, and says who holds it."""

import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Final

from trio.lowlevel import Task

from actors.kernel.errors import ActorDeadError
from actors.kernel.incarnation import Incarnation
from actors.kernel.overdue import activity

if TYPE_CHECKING:
    from actors.kernel.system import System

__all__ = ["LoopWatch"]

logger = logging.getLogger("actors.kernel")

LINES_MAX: Final = 25
"""So many calls of the loop's stack are logged, the innermost."""

_BODIES: Final[frozenset[CodeType]] = frozenset(
    {Incarnation.run.__code__, Incarnation._run_task.__code__}  # noqa: SLF001  # the tasks of an actor
)


class LoopWatch:
    """Has the loop answer every `interval_s` seconds, and logs once when it has not for `stall_after_s` seconds.

    A handler that blocks stops every actor, the one that could say so among them: only a thread can. It costs a
    wake-up of the loop per interval. A machine that was suspended looks like one long stall, and is logged as one.
    """

    def __init__(self, system: "System", *, stall_after_s: float = 5.0, interval_s: float = 1.0) -> None:
        self._system = system
        self._stall_after_s = stall_after_s
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._turned = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop watch", daemon=True)

    def start(self) -> None:
        """Begin to watch; call it on the loop."""
        self._thread.start()

    def end(self) -> None:
        """End the thread, which takes no longer than the line that it may be logging."""
        self._ended.set()
        self._turned.set()
        self._thread.join(timeout=1.0)

    # -- in the thread -------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._turned.clear()
            if self._ended.is_set():
                return  # `end` came before the line above, which has undone its wake-up
            asked_at = time.monotonic()
            try:
                self._system.run_soon(self._turned.set)
            except ActorDeadError:
                return  # the loop has ended
            if not self._turned.wait(self._stall_after_s):
                frame = sys._current_frames().get(self._system.thread_id)  # noqa: SLF001  # the interpreter's offer
                if frame is None:
                    return  # the thread of the loop has gone, and nobody will answer
                self._report(frame, time.monotonic() - asked_at)
                del frame  # it would keep alive whatever the handler had in hand
                self._turned.wait()
                if not self._ended.is_set():
                    logger.warning("the loop turns again, after %.1f s", time.monotonic() - asked_at)

    def _report(self, frame: FrameType, stalled_s: float) -> None:
        stack = "".join(traceback.format_stack(frame, limit=LINES_MAX))
        record = logger.makeRecord(
            logger.name,
            logging.ERROR,
            __file__,
            0,
            "the loop has not turned for %.1f s: %s holds it",
            (stalled_s, holder(frame)),
            None,
            sinfo=stack,
        )
        logger.handle(record)


def holder(frame: FrameType) -> str:
    """Return whose code runs in the thread of the loop, given its innermost frame: an actor's path and activity."""
    innermost: FrameType | None = frame
    task: Task | None = None
    while innermost is not None:
        if innermost.f_code in _BODIES:
            return _described(innermost)
        found = innermost.f_locals.get("task")
        if isinstance(found, Task):
            task = found  # the outermost is what trio's own loop has in hand
        innermost = innermost.f_back
    for body in _ancestors(task):
        if body.f_code in _BODIES:
            return _described(body)
    return "no actor" if task is None else f"no actor but the task {task.name}"


def _ancestors(task: Task | None) -> Iterator[FrameType]:
    """Yield the outermost frame of a task, of the one whose nursery it runs in, and so on."""
    while task is not None:
        body = getattr(task.coro, "cr_frame", None)
        if body is not None:
            yield body
        task = None if task.parent_nursery is None else task.parent_nursery.parent_task


def _described(body: FrameType) -> str:
    incarnation = body.f_locals["self"]
    assert isinstance(incarnation, Incarnation)  # noqa: S101  # both bodies are its methods
    what = activity(incarnation)
    if body.f_code is not Incarnation.run.__code__:
        what = f"its task {getattr(body.f_locals['async_fn'], '__qualname__', 'of no name')}"
    return f"{incarnation.ref.path}, in {what},"
