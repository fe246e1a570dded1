"""Messages on their way: the envelope, the future that its answer fills, and the bounded queue between.

Everything here is used by one trio run. Other threads may append a message or set a future: both publish first
and then wake through the run's token, and the reader looks again after it registered, so no lock is needed.
"""

import enum
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import outcome
import pykka
import trio
from pykka._envelope import Envelope as PykkaEnvelope
from trio.lowlevel import Abort, RaiseCancelT, Task, current_task, reschedule, wait_task_rescheduled

from actors.kernel.errors import ActorDeadError, AlreadyAnsweredError

if TYPE_CHECKING:
    from actors.kernel.system import System

__all__ = ["Envelope", "Future", "Mailbox", "Overflow", "Refusal"]

get_ident = threading.get_ident


class Overflow(enum.Enum):
    """What happens to a message that finds a full mailbox."""

    WAIT = "wait"  # send() and ask() wait for room; tell() raises MailboxFullError
    REFUSE = "refuse"  # every call raises MailboxFullError
    DROP_NEW = "drop new"  # the message is counted and gone; ask() raises MailboxFullError
    DROP_OLD = "drop old"  # the oldest waiting message is counted and gone; its asker gets MailboxFullError


class Refusal:
    """Return it from `on_receive` to answer an ask with an exception without dying: the asker gets it raised."""

    __slots__ = ("exception",)

    def __init__(self, exception: Exception) -> None:
        self.exception = exception

    def __repr__(self) -> str:
        return f"Refusal({self.exception!r})"


class _State(enum.Enum):
    PENDING = 0
    ANSWERED = 1
    ABANDONED = 2  # the asker was cancelled or timed out
    ORPHANED = 3  # the kernel answered, because the actor ended first


class Future(pykka.Future[Any]):
    """The answer to come of one ask; set it from any task or thread, once.

    pykka's constructor and get hooks are bypassed: a hook runs inside `get()`, which blocks the whole loop when a
    trio task calls it. What derives one future from another is written as async code instead.
    """

    __slots__ = ("_exception", "_on_settled", "_state", "_system", "_value", "_waiter")

    def __init__(self, system: "System | None" = None) -> None:
        self._system = system
        self._state = _State.PENDING
        self._value: Any = None
        self._exception: BaseException | None = None
        self._waiter: Task | None = None
        self._on_settled: Callable[[Future], None] | None = None

    @property
    def abandoned(self) -> bool:
        """Whether the asker gave up (cancelled or timed out), so that work on the answer may stop."""
        return self._state is _State.ABANDONED

    @property
    def done(self) -> bool:
        """Whether nothing that is set now would reach an asker."""
        return self._state is not _State.PENDING

    def set(self, value: Any = None) -> None:
        """Answer with `value`; without effect if the asker is gone, AlreadyAnsweredError if it was answered."""
        if self._state is _State.PENDING:
            self._value = value
            self._settle(_State.ANSWERED)
        elif self._state is _State.ANSWERED:
            raise AlreadyAnsweredError("this future is answered already; answer each message once")

    def set_exception(self, exc_info: Any = None) -> None:
        """Answer with an exception, raised at the asker: an instance, an exc_info triple, or the one in flight."""
        exception = exc_info if exc_info is not None else sys.exc_info()
        if isinstance(exception, tuple):
            exception = exception[1]
        if not isinstance(exception, BaseException):
            raise TypeError("set_exception() needs an exception; pass one, or call it in an except block")
        if self._state is _State.PENDING:
            self._exception = exception
            self._settle(_State.ANSWERED)
        elif self._state is _State.ANSWERED:
            raise AlreadyAnsweredError("this future is answered already; answer each message once")

    def orphan(self, exception: BaseException) -> None:
        """Answer for an actor that can no longer do so itself; a later set() is without effect."""
        if self._state is _State.PENDING:
            self._exception = exception
            self._settle(_State.ORPHANED)

    def abandon(self) -> None:
        """Withdraw the question: nobody waits for the answer any more."""
        if self._state is _State.PENDING:
            self._settle(_State.ABANDONED)

    def _settle(self, state: _State) -> None:
        self._state = state  # published before the waiter is looked for
        system = self._system
        if system is not None and get_ident() != system.thread_id:
            system.run_soon(self._wake)
        else:
            self._wake()

    def _wake(self) -> None:
        if self._on_settled is not None:
            self._on_settled(self)
            self._on_settled = None
        task = self._waiter
        if task is not None:
            self._waiter = None
            reschedule(task)

    def _abort(self, _raise_cancel: RaiseCancelT) -> Abort:
        self._waiter = None
        self.abandon()
        return Abort.SUCCEEDED

    async def wait(self) -> Any:
        """Wait for the answer and return it, or raise it; a cancelled wait abandons the question."""
        if self._state is _State.PENDING:
            if self._waiter is not None:
                raise RuntimeError("a future has one waiter; ask twice to wait twice")
            self._waiter = current_task()
            await wait_task_rescheduled(self._abort)
        else:
            await trio.lowlevel.checkpoint()
        return self.result()

    def result(self) -> Any:
        """Return the answer or raise it; RuntimeError while there is none."""
        if self._exception is not None:
            # A fresh traceback: the same exception may be raised at several askers.
            raise self._exception.with_traceback(None)
        if self._state is not _State.ANSWERED:
            raise RuntimeError("there is no answer; await the future first")
        return self._value

    def __await__(self) -> Generator[Any, None, Any]:
        return self.wait().__await__()

    __iter__ = __await__

    def get(self, *, timeout: float | None = None) -> Any:  # noqa: ARG002  # pykka's signature
        """Return an answer that is there; blocking for one would stop the loop, so await the future instead."""
        if self._state is _State.PENDING:
            raise RuntimeError("await this future; get() never blocks a trio task")
        return self.result()

    def set_get_hook(self, func: Any) -> None:
        """Refuse: see the class's docstring."""
        raise NotImplementedError("futures of trio actors have no get hooks; await and compute instead")

    def __repr__(self) -> str:
        return f"<Future {self._state.name.lower()}>"


class Envelope(PykkaEnvelope[Any]):
    """A message, the future to answer (None for a tell) and the clock's time when it was posted."""

    __slots__ = ("is_signal", "posted_at")

    def __init__(
        self,
        message: Any,
        reply_to: Future | None,
        posted_at: float,
        is_signal: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        self.message = message
        self.reply_to: Future | None = reply_to
        self.posted_at = posted_at
        self.is_signal = is_signal


class Mailbox:
    """A bounded queue that survives the incarnations it serves.

    `lane` holds what was told and asked, and the signals whose order against messages matters (Down, Exit);
    `control` holds what may overtake (stop, children's exits). `room` bounds the lane: -1 sends every post through
    the slow path, because the mailbox is closed or its actor has left memory.
    """

    __slots__ = ("control", "dropped", "lane", "overflow", "reader", "room", "size_max", "waiting")

    def __init__(self, size_max: int | None, overflow: Overflow) -> None:
        self.lane: deque[Envelope] = deque()
        self.control: deque[Any] | None = None
        self.size_max = sys.maxsize if size_max is None else size_max
        self.room = self.size_max
        self.overflow = overflow
        self.reader: Task | None = None
        self.waiting: OrderedDict[Task, Envelope] | None = None
        self.dropped = 0

    @property
    def is_full(self) -> bool:
        """Whether the next message finds no room."""
        return len(self.lane) >= self.size_max

    def wake(self) -> None:
        """Let the reader look again, if it waits."""
        task = self.reader
        if task is not None:
            self.reader = None
            reschedule(task)

    def put(self, envelope: Envelope) -> None:
        """Append without regard to the bound and wake the reader."""
        self.lane.append(envelope)
        self.wake()

    def put_control(self, signal: Any, *, first: bool = False) -> None:
        """Post what bypasses the bound and overtakes the messages."""
        if self.control is None:
            self.control = deque()
        if first:
            self.control.appendleft(signal)
        else:
            self.control.append(signal)
        self.wake()

    def abort_read(self, _raise_cancel: RaiseCancelT) -> Abort:
        """Take the reader out of the wait when it is cancelled."""
        self.reader = None
        return Abort.SUCCEEDED

    async def wait_room(self, envelope: Envelope) -> None:
        """Stand in line until the reader took enough; the envelope is then in the lane. Raises what `refuse` says."""
        if self.waiting is None:
            self.waiting = OrderedDict()
        waiting = self.waiting
        task = current_task()
        waiting[task] = envelope

        def abort(_raise_cancel: RaiseCancelT) -> Abort:
            del waiting[task]
            return Abort.SUCCEEDED

        error = await wait_task_rescheduled(abort)
        if error is not None:
            raise error

    def admit(self) -> None:
        """Move those who wait for room into the lane, first come first served."""
        while self.waiting and len(self.lane) < self.size_max:
            task, envelope = self.waiting.popitem(last=False)
            self.lane.append(envelope)
            reschedule(task)

    def drop_oldest(self) -> Envelope | None:
        """Remove and return the oldest message that is not a signal, None if there is none."""
        for index, envelope in enumerate(self.lane):
            if not envelope.is_signal:
                del self.lane[index]
                return envelope
        return None

    def refuse_waiting(self, error: Callable[[], Exception]) -> None:
        """Send those who wait for room away with an error."""
        while self.waiting:
            task, envelope = self.waiting.popitem(last=False)
            if envelope.reply_to is not None:
                envelope.reply_to.orphan(error())
            reschedule(task, outcome.Value(error()))

    def take_asks(self) -> list[Envelope]:
        """Remove and return the questions, leaving told messages and signals in order."""
        asks = [envelope for envelope in self.lane if envelope.reply_to is not None]
        kept = [envelope for envelope in self.lane if envelope.reply_to is None]
        self.lane.clear()
        self.lane.extend(kept)
        return asks

    # What pykka's ActorInbox protocol asks for, so that its type checks hold; the kernel does not read through it.
    def get(self) -> Envelope:
        """Take the oldest message; IndexError when there is none."""
        return self.lane.popleft()

    def empty(self) -> bool:
        """Whether no message waits."""
        return not self.lane


def dead_error(address: str, cause: BaseException | None = None) -> ActorDeadError:
    """Return the error for a caller of an actor that cannot answer, chained from what ended it."""
    error = ActorDeadError(f"{address} is dead or died over this message; look it up again at its supervisor")
    error.__cause__ = cause
    return error
