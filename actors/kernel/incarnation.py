"""One life of an actor: from `on_start`, through its messages, to the report of how it ended."""

import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import Task, checkpoint, current_task, wait_task_rescheduled

from actors.kernel.errors import ChildStartError
from actors.kernel.mailbox import Envelope, Future, Refusal, dead_error
from actors.kernel.ref import STOP, Ref, handling
from actors.kernel.signals import ChildExited, ExitKind, ExitReason

if TYPE_CHECKING:
    from actors.kernel.actor import Actor

__all__ = ["Incarnation"]

logger = logging.getLogger("actors.kernel")

# Messages served before the others on the loop get a turn.
BATCH_SIZE = 64


class Incarnation:
    """The task, cancel scope, child tasks and open answers of one actor object.

    Tasks run in the one nursery of the system rather than in one of their own: a nursery in each actor would cost
    2 KiB and give the same guarantee that `_reap_tasks` gives.
    """

    __slots__ = (
        "actor",
        "batch",
        "begun_at",
        "boot_scope",
        "current",
        "ended",
        "fault",
        "generation",
        "killed",
        "killed_at",
        "leaving",
        "pending",
        "phase",
        "quiet",
        "ref",
        "scope",
        "started",
        "started_at",
        "stuck",
        "task",
        "tasks",
    )

    def __init__(self, ref: Ref, actor: "Actor", started: Future | None) -> None:
        self.ref = ref
        self.actor = actor
        self.generation = ref.generation
        self.started = started  # answered with the ref once on_start returned
        self.started_at: float | None = None
        self.scope = trio.CancelScope()
        self.boot_scope: trio.CancelScope | None = None  # what a request to stop interrupts
        self.task: Task | None = None
        self.tasks: set[trio.CancelScope] | None = None
        self.current: Envelope | None = None
        self.begun_at = ref.system.now()  # when the start, the current message or the end began
        self.batch: list[Future | None] | None = None  # who waits for the messages that are handled together
        self.pending: set[Future] | None = None
        self.fault: BaseException | None = None
        self.killed = False
        self.killed_at = 0.0  # when it was first cancelled
        self.leaving = False  # it goes in order: to leave memory, or because it was asked to stop
        self.stuck = False  # it ignored its cancellation
        self.phase = "starting"
        self.ended: trio.Event | None = None
        self.quiet: trio.Event | None = None

    # -- the task ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Live and report; the body of the actor's task."""
        reason = ExitReason(ExitKind.KILLED)  # what stands if the kernel's own nursery is torn down
        handling.set(self.ref)
        self.task = current_task()
        try:
            try:
                with self.scope:
                    if self.started_at is None:
                        await self.actor.on_start()
                        await self.actor._begin()  # noqa: SLF001  # the kernel's half of the hook
                        self.report_start()
                    await self._serve()
            except (trio.Cancelled, GeneratorExit):
                raise
            except BaseException as exception:  # noqa: BLE001  # every way to raise is a crash of this one actor
                self._note_fault(exception)
            reason = await self._end()
        finally:
            self._finish(reason)

    async def _serve(self) -> None:  # noqa: C901, PLR0912  # the hot loop: each call in it costs every message
        ref = self.ref
        mailbox = ref.mailbox
        lane = mailbox.lane
        now = ref.system.now
        receive = self.actor.on_receive
        patience_s = self.actor.passivate_after_s
        batch = 0
        while True:
            if mailbox.control:
                if await self._serve_control():
                    return
                batch += 1
                if batch % BATCH_SIZE == 0:
                    await checkpoint()
            elif lane:
                envelope = lane.popleft()
                if mailbox.waiting:
                    mailbox.admit()
                future = envelope.reply_to
                if future is not None and future.done:
                    continue  # the asker gave up: nobody wants the work
                self.current = envelope
                self.phase = "busy"
                self.begun_at = now()
                answer = await receive(envelope.message)
                self.current = None
                self.phase = "idle"
                # reply_later() takes the future out of the envelope
                if envelope.reply_to is not None and future is not None:
                    if type(answer) is Refusal:
                        future.set_exception(answer.exception)
                    else:
                        future.set(answer)
                batch += 1
                if batch >= BATCH_SIZE:
                    batch = 0
                    await checkpoint()
            elif patience_s is not None and not self.tasks and not self.pending:
                if not await self._wait_patiently(patience_s):
                    self.actor.on_idle()
            else:
                mailbox.reader = self.task
                batch = 0
                await wait_task_rescheduled(mailbox.abort_read)

    async def _wait_patiently(self, patience_s: float) -> bool:
        """Wait for a message as long as an idle actor stays in memory; whether one came."""
        mailbox = self.ref.mailbox
        mailbox.reader = self.task
        with trio.move_on_after(patience_s):
            await wait_task_rescheduled(mailbox.abort_read)
        return bool(mailbox.lane or mailbox.control)

    async def _serve_control(self) -> bool:
        """Handle one signal; whether it ends the incarnation."""
        control = self.ref.mailbox.control
        if control is None:
            return False
        signal = control.popleft()
        if self.killed or self.fault is not None or self.leaving or self.ref.stop_kind is not None:
            if signal is not STOP:
                control.appendleft(signal)
            return True
        if signal is not STOP:
            await self.actor._receive_control(signal)  # noqa: SLF001  # the kernel's half of the mailbox
        return False

    def report_start(self) -> None:
        """Let those who wait for the start go on."""
        self.phase = "idle"
        self.started_at = self.ref.system.now()
        if self.started is not None:
            self.started.set(self.ref)
            self.started = None

    # -- the end -------------------------------------------------------------------------------------------------

    async def _end(self) -> ExitReason:
        """End children, tasks and hooks, in this order, and return the reason."""
        self.phase = "stopping"
        self.begun_at = self.ref.system.now()
        self.leaving = self.fault is None and not self.killed
        actor = self.actor
        self._orphan_current()
        if actor.drains:
            with trio.CancelScope() as self.scope:
                if self.killed:
                    self.scope.cancel()
                await self._run_hook(self._end_orderly, self.fault is None and not self.killed)
        if self.tasks:
            await self._reap_tasks()
        if actor.cleans_up and not self.killed:
            with trio.CancelScope() as self.scope:
                fault = self.fault
                if fault is not None:
                    await self._run_hook(actor.on_failure, type(fault), fault, fault.__traceback__)
                else:
                    await self._run_hook(actor.on_stop)
        if self.fault is not None:
            return ExitReason(ExitKind.CRASHED, self.fault)
        if self.killed:
            return ExitReason(ExitKind.KILLED)
        if self.ref.stop_kind is not None:
            return ExitReason(self.ref.stop_kind)
        return ExitReason(ExitKind.PASSIVE)

    async def _end_orderly(self, orderly: bool) -> None:  # noqa: FBT001
        await self.actor._end(brutal=self.killed)  # noqa: SLF001  # the kernel's half of the hooks
        if orderly:
            await self.actor.on_drain()

    async def _run_hook(self, hook: Callable[..., Awaitable[Any]], *args: Any) -> None:
        try:
            await hook(*args)
        except (trio.Cancelled, GeneratorExit):
            raise
        except BaseException as exception:  # as in run()
            if isinstance(exception, BaseExceptionGroup) and exception.split(trio.Cancelled)[1] is None:
                raise  # a nursery in the hook was cancelled as a whole
            self._note_fault(exception)

    async def _reap_tasks(self) -> None:
        """Cancel the child tasks and wait for all of them: the next incarnation must not meet them."""
        for scope in list(self.tasks or ()):
            scope.cancel()
        with trio.CancelScope(shield=True):
            while self.tasks:
                self.quiet = trio.Event()
                await self.quiet.wait()

    def _note_fault(self, exception: BaseException) -> None:
        """Remember why this incarnation dies; a second exception on the way down is logged only."""
        ref = self.ref
        triple = (type(exception), exception, exception.__traceback__)
        if self.fault is None:
            self.fault = exception
            logger.error("%s crashed", ref.path, exc_info=triple)
        elif exception is not self.fault:
            logger.error("%s raised again while it ended", ref.path, exc_info=triple)
        if isinstance(exception, (KeyboardInterrupt, SystemExit)):
            ref.system.end_with(exception)

    def _finish(self, reason: ExitReason) -> None:
        """Answer, report and announce, without a checkpoint: nobody sees a half-ended incarnation."""
        ref = self.ref
        self._orphan_current()
        for future in list(self.pending or ()):
            future.orphan(dead_error(ref.path, self.fault))
        self.actor._finish()  # noqa: SLF001  # the kernel's half of the hooks
        if self.fault is not None:
            # What the crashed code held is let go now, not when the collector finds the ring of frame and exception.
            traceback.clear_frames(self.fault.__traceback__)
        self.phase = "ended"
        ref.incarnation = None
        if ref.condition != "dead":  # buried while it would not end
            ref.condition = "waiting"
        ref.asking = ()
        ref.last_reason = str(reason)
        # A stop that somebody asked for outlives a crash that came first; one by the supervisor is its own affair.
        if self.leaving or ref.stop_kind is ExitKind.SHUTDOWN:
            ref.stop_kind = None
        ref.announce_end(self.generation, reason)
        ref.system.report_exit(
            ChildExited(ref.child_id, ref, self.generation, reason, self.started_at is not None)
        )
        if self.started is not None:
            error = ChildStartError(ref.child_id)
            error.__cause__ = self.fault
            self.started.orphan(error)
        if self.ended is not None:
            self.ended.set()

    def _orphan_current(self) -> None:
        """Answer for what was in work when the incarnation ended."""
        if self.current is not None and self.current.reply_to is not None:
            self.current.reply_to.orphan(dead_error(self.ref.path, self.fault))
        for future in self.batch or ():
            if future is not None:
                future.orphan(dead_error(self.ref.path, self.fault))
        self.batch = None

    async def wait_ended(self) -> None:
        """Wait until nothing of this incarnation runs."""
        if self.ref.incarnation is self:
            if self.ended is None:
                self.ended = trio.Event()
            await self.ended.wait()

    # -- from outside --------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Cancel whatever runs, hooks included."""
        if not self.killed:
            self.killed, self.killed_at = True, self.ref.system.now()
        self.ref.mailbox.put_control(STOP, first=True)
        self.scope.cancel()

    def fail(self, exception: BaseException) -> None:
        """Crash with `exception`, also in the middle of a handler."""
        self._note_fault(exception)
        if self.phase != "stopping":
            self.ref.mailbox.put_control(STOP, first=True)
            self.scope.cancel()

    def give_up(self) -> None:
        """Let go of a thread that does not return, because the system ends."""
        self.actor._give_up()  # noqa: SLF001  # the kernel's half of a kill

    def interrupt(self) -> None:
        """Break off a supervisor's wait for a child to start, because it was asked to stop."""
        if self.boot_scope is not None:
            self.boot_scope.cancel()

    def passivate(self) -> None:
        """Leave memory after the current message."""
        self.leaving = True
        self.ref.mailbox.put_control(STOP, first=True)

    def waits_for(self, task: Task) -> bool:
        """Whether the actor's own task runs `task` or waits for it to end."""
        own = self.task
        if task is own:
            return True
        nursery = task.parent_nursery
        while nursery is not None:
            if nursery.parent_task is own:
                return True
            nursery = nursery.parent_task.parent_nursery
        return False

    # -- child tasks and answers ---------------------------------------------------------------------------------

    def start_task(
        self, async_fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...], name: str | None
    ) -> trio.CancelScope:
        """See Actor.start_task; RuntimeError once the incarnation has ended."""
        if self.ref.incarnation is not self:
            raise RuntimeError("this incarnation has ended; start tasks from the one that lives")
        scope = trio.CancelScope()
        if self.tasks is None:
            self.tasks = set()
        self.tasks.add(scope)
        self.ref.system.nursery.start_soon(self._run_task, scope, async_fn, args, name=name or async_fn)
        return scope

    async def _run_task(
        self, scope: trio.CancelScope, async_fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...]
    ) -> None:
        handling.set(None)  # the mailbox answers while this runs, so nobody waits in a ring through it
        try:
            with scope:
                await async_fn(*args)
        except (trio.Cancelled, GeneratorExit):
            raise
        except BaseException as exception:  # noqa: BLE001  # as in run()
            self.fail(exception)
        finally:
            tasks = self.tasks
            if tasks is not None:
                tasks.discard(scope)
                if not tasks and self.quiet is not None:
                    self.quiet.set()
                elif not tasks and self.actor.passivate_after_s is not None:
                    self.ref.mailbox.wake()

    def reply_later(self) -> Future:
        """See Actor.reply_later; RuntimeError outside a handler."""
        envelope = self.current
        if envelope is None:
            raise RuntimeError("reply_later() belongs inside on_receive")
        future: Future | None = envelope.reply_to
        if future is None:
            return Future(self.ref.system)
        envelope.reply_to = None
        if self.pending is None:
            self.pending = set()
        self.pending.add(future)
        future._on_settled = self._settled  # noqa: SLF001  # the two classes are one mechanism
        return future

    def take_batch(self, size_max: int) -> list[Any]:
        """Return the current message, if there is one, and those that wait behind it, `size_max` in all.

        `answer_batch` answers them; if the incarnation ends first their askers get ActorDeadError.
        """
        messages: list[Any] = []
        self.batch = []
        mailbox = self.ref.mailbox
        lane = mailbox.lane
        envelope = self.current
        while True:
            if envelope is not None:
                future = envelope.reply_to
                if future is None or not future.done:
                    if self.current is None:
                        self.current = envelope
                        self.begun_at = self.ref.system.now()
                    envelope.reply_to = None
                    messages.append(envelope.message)
                    self.batch.append(future)
            if not lane or len(messages) >= size_max:
                break
            envelope = lane.popleft()
        if mailbox.waiting:
            mailbox.admit()
        return messages

    def answer_batch(self, answers: list[Any]) -> None:
        """Answer the messages of `take_batch`, in order; a Refusal is raised at its asker."""
        batch, self.batch = self.batch or [], None
        self.current = None
        for future, answer in zip(batch, answers, strict=True):
            if future is None:
                continue
            if type(answer) is Refusal:
                future.set_exception(answer.exception)
            else:
                future.set(answer)

    def _settled(self, future: Future) -> None:
        if self.pending is not None:
            self.pending.discard(future)
        if self.actor.passivate_after_s is not None and not self.pending:
            self.ref.mailbox.wake()
