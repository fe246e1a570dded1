"""A running tree: the one nursery of all actors, its clock, its dead letters and its orderly end."""

import logging
import random
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from actors.kernel.actor import Actor
from actors.kernel.child import KILL_GRACE_S, ChildSpec
from actors.kernel.commands import SupervisorRef
from actors.kernel.errors import ActorDeadError, ChildStartError, ChildStuckError, RootFailedError
from actors.kernel.incarnation import Incarnation
from actors.kernel.mailbox import Future
from actors.kernel.overdue import Overdue
from actors.kernel.ref import Ref
from actors.kernel.signals import ChildExited, ExitKind, ExitReason
from actors.kernel.tree import EVERYBODY, Place, TreeNode, View, snapshot
from actors.kernel.worker import ThreadWorker, Worker

__all__ = ["DeadLetter", "DeadLetters", "System", "open_system", "run"]

logger = logging.getLogger("actors.kernel")

RECENT_MAX = 64

# Seconds between the end of the root and the report of tasks that still run.
STUCK_GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that nobody handled: for whom, its type's name (never its content), and why."""

    path: str
    message_type: str
    why: str


class DeadLetters:
    """Counts of what was undeliverable or dropped, with the most recent few."""

    def __init__(self) -> None:
        self.undelivered_count = 0
        self.dropped_count = 0
        self.recent: deque[DeadLetter] = deque(maxlen=RECENT_MAX)

    @property
    def total(self) -> int:
        """Messages lost in all."""
        return self.undelivered_count + self.dropped_count

    def undelivered(self, ref: Ref, why: str, message: Any = None) -> None:
        """Count a message for an actor that is dead."""
        self.undelivered_count += 1
        self.recent.append(DeadLetter(ref.path, type(message).__name__, why))

    def dropped(self, ref: Ref, why: str, message: Any = None) -> None:
        """Count a message that found a full mailbox."""
        self.dropped_count += 1
        self.recent.append(DeadLetter(ref.path, type(message).__name__, why))


class System:
    """What `open_system` yields: the root's address and what concerns the whole tree."""

    root: Ref

    def __init__(
        self,
        rng: random.Random,
        make_worker: Callable[[str], Worker],
        on_stuck: Callable[[list[str]], None],
    ) -> None:
        self.rng = rng
        self.make_worker = make_worker
        self._on_stuck = on_stuck
        self.dead_letters = DeadLetters()
        self.thread_id = threading.get_ident()
        self.nursery: trio.Nursery
        # The clock's own method: callable from any thread, and a third of the cost of trio.current_time().
        self.now: Callable[[], float] = trio.lowlevel.current_clock().current_time
        self._token = trio.lowlevel.current_trio_token()
        self._root_spec: ChildSpec
        self._root_reason: ExitReason | None = None
        self.start_error: ChildStartError | None = None
        self._stopping = False
        self._held = False  # the nursery is open and the root launched
        self._ended = trio.Event()
        self.ready = trio.Event()  # the root started, or did not
        self.fatal: BaseException | None = None
        self._stuck: list[Incarnation] = []  # those that would not end
        self.overdue: dict[
            Ref, Overdue
        ] = {}  # what a Watchdog found; kept here so that its crash loses nothing

    @property
    def supervisor(self) -> SupervisorRef:
        """The root's address, where the root is a supervisor; TypeError where it is not."""
        if not isinstance(self.root, SupervisorRef):
            raise TypeError("the root of this system is not a supervisor; use root")
        return self.root

    @property
    def stuck(self) -> list[str]:
        """Paths of the actors that were told to end, cancelled, and still run."""
        return [incarnation.ref.path for incarnation in self._stuck if incarnation.phase != "ended"]

    def tree(self, place: Place | None = None, view: View = EVERYBODY) -> TreeNode:
        """Return a snapshot of every actor, root first; from a `place` (see `find`) on, as far as `view` shows."""
        ref, child = (self.root, None) if place is None else place
        return snapshot(ref, child, self.now(), view)

    async def stop(self) -> None:
        """Stop the whole tree in reverse start order and wait until it has ended."""
        self.begin_stop()
        await self.wait_stopped()

    async def wait_stopped(self) -> None:
        """Wait until the whole tree has ended, for whatever reason."""
        await self._ended.wait()

    # -- for the kernel ------------------------------------------------------------------------------------------

    def run_soon(self, function: Callable[..., object], *args: Any) -> None:
        """Run something in the loop, from another thread; ActorDeadError when the loop has ended."""
        try:
            self._token.run_sync_soon(function, *args)
        except trio.RunFinishedError as error:
            raise ActorDeadError("the loop of this actor system has ended") from error

    def run_soon_once(self, function: Callable[..., object], *args: Any) -> None:
        """Do as `run_soon` does, at most once for calls that are still to be run."""
        try:
            self._token.run_sync_soon(function, *args, idempotent=True)
        except trio.RunFinishedError as error:
            raise ActorDeadError("the loop of this actor system has ended") from error

    def run_here(self, function: Callable[..., object], *args: Any) -> None:
        """Run something in the loop: now if this is its thread, else soon."""
        if threading.get_ident() == self.thread_id:
            function(*args)
        else:
            self.run_soon(function, *args)

    def launch(self, ref: Ref, actor: Actor, started: Future | None) -> None:
        """Start an incarnation behind an address; `started` gets the ref, or ChildStartError.

        Raises ChildStuckError while the one before still runs: incarnations of one address never overlap.
        """
        if ref.incarnation is not None:
            raise ChildStuckError(ref.path, KILL_GRACE_S)
        ref.revive()
        ref.generation += 1
        incarnation = Incarnation(ref, actor, started)
        ref.incarnation = incarnation
        actor._incarnation = incarnation  # noqa: SLF001  # the kernel's own field
        self.nursery.start_soon(incarnation.run, name=ref.child_id)
        if not actor.prepares:
            incarnation.report_start()  # there is nothing to wait for: it takes messages when its task runs

    def shutdown_s(self, ref: Ref, shutdown_s: float | None) -> float:
        """Return the deadline that holds for a child, in seconds."""
        deadline_s: float = ref.actor_class.shutdown_default_s if shutdown_s is None else shutdown_s
        return deadline_s

    async def shut_down(self, ref: Ref, shutdown_s: float | None) -> None:
        """End an incarnation: ask, cancel after the deadline, and raise ChildStuckError if that does not help."""
        incarnation = ref.incarnation
        if incarnation is None:
            return
        if incarnation.stuck:
            raise ChildStuckError(ref.path, KILL_GRACE_S)
        deadline_s = self.shutdown_s(ref, shutdown_s)
        if deadline_s > 0:
            ref.request_stop(ExitKind.SHUTDOWN)
            with trio.CancelScope(deadline=self.now() + deadline_s):
                await incarnation.wait_ended()
        if ref.incarnation is incarnation:
            incarnation.kill()
            # Counted from its own cancellation, so that several share the time and do not wait for each other's.
            with trio.CancelScope(deadline=incarnation.killed_at + KILL_GRACE_S):
                await incarnation.wait_ended()
        if ref.incarnation is incarnation:
            incarnation.stuck = True
            self._stuck.append(incarnation)
            raise ChildStuckError(ref.path, KILL_GRACE_S)

    def report_exit(self, exited: ChildExited) -> None:
        """Tell the supervisor of an ended incarnation; the root has none, so that its end is the system's."""
        parent = exited.ref.parent
        if parent is not None:
            if parent.incarnation is not None and parent.incarnation.boot_scope is not None:
                # The supervisor sees to it when another child has started, and that one may be who asks.
                exited.refuse_questions()
            parent.mailbox.put_control(exited)
            return
        self._root_reason = exited.reason
        exited.ref.bury(exited.reason.exception)
        self._ended.set()

    def end_with(self, exception: BaseException) -> None:
        """Stop the tree in order because of a KeyboardInterrupt or SystemExit, which open_system then raises."""
        if self.fatal is None:
            self.fatal = exception
        self.begin_stop()

    def begin_stop(self) -> None:
        """Have the tree stopped; at most one stop is under way."""
        if not self._stopping and not self._ended.is_set():
            self._stopping = True
            if self._held:
                self.nursery.start_soon(self._stop_root)

    async def _stop_root(self) -> None:
        try:
            await self.shut_down(self.root, self._root_spec.shutdown_s)
        except ChildStuckError:
            # Whoever runs the process reads `stuck` and decides; there is no way to end such a task from within.
            self._root_reason = self._root_reason or ExitReason(ExitKind.KILLED)
            self.root.bury()
            self._ended.set()

    async def hold(
        self, spec: ChildSpec, guard: trio.CancelScope, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Run the tree, out of reach of any cancellation from outside, until its root has ended."""
        task_status.started()
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as self.nursery:
                self._root_spec = spec
                try:
                    await self._start_root(spec)
                except ChildStartError as error:
                    self.start_error = error
                    self._ended.set()
                self.ready.set()
                await self._ended.wait()
                if self._stuck:
                    self.nursery.start_soon(self._let_go_of_stuck)
        guard.cancel()

    async def _let_go_of_stuck(self) -> None:
        """Leave threads that do not return behind; say so where a task remains, which nothing can end."""
        for incarnation in self._stuck:
            incarnation.give_up()
        with trio.move_on_after(STUCK_GRACE_S):
            for incarnation in self._stuck:
                await incarnation.wait_ended()
        if self.stuck:
            self._on_stuck(self.stuck)

    async def _start_root(self, spec: ChildSpec) -> None:
        try:
            actor = spec.factory()
        except Exception as error:
            raise ChildStartError(spec.id) from error
        self.root = actor.ref_class(self, spec.id, None, type(actor))
        started = Future(self)
        self.launch(self.root, actor, started)
        self._held = True
        if self._stopping:
            self.nursery.start_soon(self._stop_root)
        await started.wait()

    def failure(self) -> RootFailedError | None:
        """Return what went wrong with the root, None when it ended in order."""
        reason = self._root_reason
        if reason is None or reason.is_normal or (reason.kind is ExitKind.KILLED and self._stopping):
            return None
        error = RootFailedError(f"the root of the tree ended: {reason}; see the chained cause and the log")
        error.__cause__ = reason.exception
        return error

    async def watch(self) -> None:
        """Turn a cancellation from outside, or the end of the guard, into an orderly stop."""
        try:
            await trio.sleep_forever()
        finally:
            self.begin_stop()


def _log_stuck(paths: list[str]) -> None:
    logger.critical("the system cannot end: these ignore their cancellation: %s", ", ".join(paths))


@asynccontextmanager
async def open_system(
    root: ChildSpec,
    *,
    rng: random.Random | None = None,
    workers: Callable[[str], Worker] = ThreadWorker,
    on_stuck: Callable[[list[str]], None] | None = None,
) -> AsyncIterator[System]:
    """Run a tree of actors for the length of an `async with`.

    The block begins once the root has started, and with a supervisor its children. Leaving it, raising in it, or
    cancelling it from outside stops the tree in reverse start order, each child within its own deadline. If the root
    ends by itself the block is cancelled. Raises ChildStartError when the root does not start, RootFailedError when it
    crashed, and a KeyboardInterrupt or SystemExit of any actor.

    `rng` gives the jitter of restarts, `workers` makes the thread of an actor by its name; pass others where runs
    must repeat. When the root has ended and actors that ignore their cancellation still run, the block cannot be left:
    `on_stuck` gets their paths and may end the process.
    """
    system = System(rng or random.Random(), workers, on_stuck or _log_stuck)
    body_error: BaseException | None = None
    async with trio.open_nursery() as guard:
        try:
            await guard.start(system.hold, root, guard.cancel_scope)
            guard.start_soon(system.watch)
            await system.ready.wait()
            if system.start_error is None:
                yield system
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001  # raised again below, unwrapped
            body_error = error
        finally:
            system.begin_stop()
            with trio.CancelScope(shield=True):
                await system.wait_stopped()
            guard.cancel_scope.cancel()
    if system.fatal is not None:
        raise system.fatal
    if system.start_error is not None:
        raise system.start_error
    failure = system.failure()
    if failure is not None:
        if body_error is not None:
            failure.add_note(f"the block raised as well: {body_error!r}")
        raise failure
    if body_error is not None:
        raise body_error


async def run(
    root: ChildSpec,
    *,
    rng: random.Random | None = None,
    task_status: trio.TaskStatus[System] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a tree until its root has ended or the caller is cancelled; `nursery.start(run, spec)` returns the System."""
    async with open_system(root, rng=rng) as system:
        task_status.started(system)
        await system.wait_stopped()
