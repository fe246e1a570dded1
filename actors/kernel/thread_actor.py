"""Actors for what must block: their code runs in a thread, their mailbox and supervision are those of every actor."""

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, ClassVar

import outcome
from trio.lowlevel import (
    Abort,
    RaiseCancelT,
    Task,
    checkpoint_if_cancelled,
    current_task,
    reschedule,
    wait_task_rescheduled,
)

from actors.kernel.actor import Actor
from actors.kernel.child import KILL_GRACE_S
from actors.kernel.errors import ThreadStuckError
from actors.kernel.worker import Worker

__all__ = ["ThreadActor"]


class ThreadActor(Actor):
    """An actor whose hooks and handler are plain functions that may block: they run in a thread of its own.

    Told and asked, supervised, restarted, monitored and stopped as any other. A cancellation cannot reach into a
    thread: a kill takes effect when the function that runs returns. One that does not return within the grace of a
    shutdown is reported as stuck, and the system ends without it.
    """

    # How many waiting messages are handed to the thread together, as one list.
    batch_max: int = 1
    cleans_up: ClassVar[bool] = True
    _worker: Worker | None = None
    _task: Task | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.cleans_up = True

    # -- hooks; those called thread_… run in the thread ------------------------------------------------------------

    def thread_start(self) -> None:
        """Prepare the incarnation, as `on_start` does."""

    def thread_receive(self, message: Any) -> Any:
        """Handle one message, as `on_receive` does: what is returned answers, a Refusal is raised at the asker."""
        raise NotImplementedError(f"{type(self).__name__} receives a {type(message).__name__}")

    def thread_receive_batch(self, messages: list[Any]) -> list[Any]:
        """Handle the messages that waited, at most `batch_max`; return an answer for each, in order.

        Raising ends the incarnation and leaves every asker of the batch with ActorDeadError.
        """
        return [self.thread_receive(message) for message in messages]

    def batch_job(self, messages: list[Any]) -> Callable[[], list[Any]]:
        """Return what the thread is to run for a batch; called on the loop.

        Override it to do there what needs no waiting: a thread that computes fights with the loop for Python's lock.
        """
        return partial(self.thread_receive_batch, messages)

    def thread_stop(self) -> None:
        """Clean up after an orderly stop or a crash, of `thread_start` too; not called after a kill."""

    # -- on the loop -----------------------------------------------------------------------------------------------

    async def on_start(self) -> None:
        """Start the thread and have it prepare the incarnation."""
        incarnation = self._require_incarnation()
        self._worker = incarnation.ref.system.make_worker(incarnation.ref.path)
        await self._in_thread(self.thread_start)

    async def on_receive(self, _message: Any) -> None:
        """Hand the message, and those that wait behind it, to the thread."""
        await self._hand_over()

    async def handle_waiting(self) -> None:
        """Handle what waits in the mailbox; for an `on_drain` that leaves no message behind."""
        while self.ref.mailbox.lane:
            await self._hand_over()

    async def _hand_over(self) -> None:
        """Hand over what waits, and go on as long as more waits and no signal does.

        The next batch goes to the thread when the one before is answered, without a turn of the loop between: the
        thread then works on it while those who were answered get their turn.
        """
        incarnation = self._require_incarnation()
        mailbox = incarnation.ref.mailbox

        def next_job() -> Callable[[], list[Any]] | None:
            messages = incarnation.take_batch(self.batch_max)
            return self.batch_job(messages) if messages else None

        def answer(answers: list[Any]) -> Callable[[], list[Any]] | None:
            incarnation.answer_batch(answers)
            return next_job() if mailbox.lane and not mailbox.control else None

        first = next_job()
        if first is not None:
            await self._in_thread(first, answer)

    async def on_stop(self) -> None:
        """Have the thread clean up."""
        await self._in_thread(self.thread_stop)

    async def on_failure(
        self,
        _exception_type: type[BaseException] | None,
        _exception_value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Have the thread clean up."""
        await self._in_thread(self.thread_stop)

    def _finish(self) -> None:
        if self._worker is not None:
            self._worker.close()

    def _give_up(self) -> None:
        """Stop waiting for the thread, because the system ends."""
        task, self._task = self._task, None
        if task is not None:
            reschedule(task, outcome.Error(ThreadStuckError(self.ref.path, KILL_GRACE_S)))

    async def _in_thread(
        self,
        job: Callable[[], Any],
        go_on: Callable[[Any], Callable[[], Any] | None] = lambda _result: None,
    ) -> None:
        """Run `job` in the thread, then what `go_on` makes of its result, and wait until that is nothing."""
        worker = self._worker
        if worker is None:
            return  # the thread was never started: there is nothing to clean up
        await checkpoint_if_cancelled()
        task = self._task = current_task()

        def done(result: outcome.Outcome[Any]) -> None:
            if self._task is not task:
                return  # given up
            try:
                following = go_on(result.value) if isinstance(result, outcome.Value) else None
            except BaseException as exception:  # noqa: BLE001  # it is raised in the actor, whose fault it is
                following, result = None, outcome.Error(exception)
            if following is not None:
                worker.submit(following, done)
                return
            self._task = None
            reschedule(task, result)

        def abort(_raise_cancel: RaiseCancelT) -> Abort:
            return Abort.FAILED

        worker.submit(job, done)
        await wait_task_rescheduled(abort)
