"""Supervisors: start children in order, bring back those that crash, stop them in reverse."""

import logging
import math
import random
from collections.abc import Iterable
from typing import Any, ClassVar

import trio

from actors.kernel.actor import Actor
from actors.kernel.child import (
    AutoShutdown,
    Backoff,
    Child,
    ChildSpec,
    ChildState,
    Intensity,
    Restart,
    RestartWindow,
    Strategy,
)
from actors.kernel.commands import (
    DeleteChild,
    RestartChild,
    RetryChild,
    StartChild,
    SupervisorRef,
    TerminateChild,
)
from actors.kernel.errors import (
    ChildExistsError,
    ChildStartError,
    ChildStuckError,
    RestartIntensityError,
    SupervisionError,
    TooManyChildrenError,
    UnknownChildError,
)
from actors.kernel.mailbox import Future, Refusal
from actors.kernel.ref import Ref
from actors.kernel.signals import ChildActivated, ChildExited, ExitKind, ExitReason, RestartDue

__all__ = ["Supervisor"]

logger = logging.getLogger("actors.kernel")


class Supervisor(Actor):
    """Starts its children in order, each once the one before is up, and stops them in reverse.

    A subclass that handles messages of its own passes the others on to `super().on_receive`. The addresses of
    children whose ids come again stay the same over a restart of the supervisor itself.
    """

    ref_class: ClassVar[type[Ref]] = SupervisorRef
    shutdown_default_s: ClassVar[float] = math.inf  # its children have deadlines of their own
    forgets_ended: ClassVar[bool] = False

    def __init__(
        self,
        children: Iterable[ChildSpec] = (),
        *,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        intensity: Intensity | None = None,
        backoff: Backoff | None = None,
        auto_shutdown: AutoShutdown = AutoShutdown.NEVER,
        max_children: int | None = None,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__()
        self.specs = tuple(children)
        self.strategy = strategy
        self.intensity = intensity or Intensity()
        self.backoff = backoff or Backoff()
        self.auto_shutdown = auto_shutdown
        self.max_children = max_children
        self.rng = rng
        self._window = RestartWindow(self.intensity)
        self._children: dict[str, Child] = {}
        ids = {spec.id for spec in self.specs}
        if len(ids) != len(self.specs):
            raise ValueError("two children of one supervisor have the same id")
        for spec in self.specs:
            self._check(spec)

    def _check(self, spec: ChildSpec) -> None:
        if spec.park and self.strategy is not Strategy.ONE_FOR_ONE:
            raise ValueError(f"child {spec.id!r} can be parked only where children restart one for one")
        if spec.significant and self.auto_shutdown is AutoShutdown.NEVER:
            raise ValueError(
                f"child {spec.id!r} is significant, but its supervisor never shuts down by itself"
            )

    # -- commands, for the supervisor's own code (others ask through its ref) --------------------------------------

    def child(self, child_id: str) -> Ref | None:
        """Return the address of a child in whatever state, None when there is none of this id."""
        child = self._children.get(child_id)
        return None if child is None else child.ref

    async def start_child(self, spec: ChildSpec) -> Ref:
        """See SupervisorRef.start_child."""
        started = Future(self.ref.system)
        child = self._add(spec, started)
        await self._wait_started(child, started)
        return child.ref

    async def terminate_child(self, child_id: str) -> None:
        """See SupervisorRef.terminate_child; ChildStuckError for one that would not end."""
        child = self._find(child_id)
        try:
            await self._terminate(child)
        except ChildStuckError:
            self._end_child(child)  # its address ends now, its task when it likes
            raise
        self._end_child(child)

    async def on_receive(self, message: Any) -> Any:
        """Carry out a command; a subclass passes on what it does not know."""
        try:
            match message:
                case StartChild(spec):
                    self._add(spec, self.reply_later())
                case TerminateChild(child_id):
                    await self.terminate_child(child_id)
                case RestartChild(child_id):
                    self._start_ended(self._find(child_id))
                case DeleteChild(child_id):
                    self._delete(self._find(child_id))
                case RetryChild(child_id):
                    return self._retry(self._find(child_id))
                case _:
                    return await super().on_receive(message)
        except (SupervisionError, ValueError) as error:
            return Refusal(error)
        return None

    def _find(self, child_id: str) -> Child:
        child = self._children.get(child_id)
        if child is None:
            raise UnknownChildError(child_id)
        return child

    def _add(self, spec: ChildSpec, started: Future) -> Child:
        """Enter a child in the table and start it; `started` has the outcome."""
        try:
            existing = self._children.get(spec.id)
            if existing is not None:
                raise ChildExistsError(spec.id, existing.ref)  # all refusals leave by the future
            if self.max_children is not None and len(self._children) >= self.max_children:
                raise TooManyChildrenError(self.max_children)
            self._check(spec)
            actor = self._build(spec)
        except (SupervisionError, ValueError) as error:
            started.set_exception(error)
            raise
        ref = actor.ref_class(self.ref.system, spec.id, self.ref, type(actor))
        child = Child(spec, ref)
        child.attended = True
        self._children[spec.id] = child
        self._launch(child, actor, started)
        return child

    def _start_ended(self, child: Child) -> None:
        if child.state is not ChildState.ENDED:
            raise ChildExistsError(child.spec.id, child.ref)
        actor = self._build(child.spec)
        child.attended = True
        self._launch(child, actor, self.reply_later())

    def _delete(self, child: Child) -> None:
        if child.state is not ChildState.ENDED:
            raise ChildExistsError(child.spec.id, child.ref)
        del self._children[child.spec.id]

    def _retry(self, child: Child) -> bool:
        if child.state not in (ChildState.PARKED, ChildState.WAITING):
            return False
        if child.window is not None:
            child.window.clear()
        child.attempts = 0
        self._incarnate(child, None)
        return True

    # -- starting ------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Start the children of the spec, in order; if one fails, `_end` stops those before it."""
        ref = self.ref
        before = ref.children or {}
        # The table hangs on the address, so that lookups need no message and addresses outlive this object.
        ref.children = self._children
        fresh: dict[str, Actor] = {}
        for spec in self.specs:
            kept = before.pop(spec.id, None)
            if kept is not None:
                self._children[spec.id] = Child(spec, kept.ref)
            else:
                actor = fresh[spec.id] = self._build(spec)
                self._children[spec.id] = Child(spec, actor.ref_class(ref.system, spec.id, ref, type(actor)))
        for child in before.values():
            child.ref.bury()
        for child in list(self._children.values()):
            started = Future(ref.system)
            self._launch(
                child, fresh[child.spec.id] if child.spec.id in fresh else self._build(child.spec), started
            )
            if not await self._wait_started(child, started):
                return

    def _build(self, spec: ChildSpec) -> Actor:
        try:
            actor = spec.factory()
        except Exception as error:
            raise ChildStartError(spec.id) from error
        if not isinstance(actor, Actor) or actor.has_started:
            problem = TypeError(f"the factory of {spec.id!r} must return a fresh Actor each time")
            raise ChildStartError(spec.id) from problem
        return actor

    def _launch(self, child: Child, actor: Actor, started: Future | None) -> None:
        """Set an actor to work behind the child's address."""
        self.ref.system.launch(child.ref, actor, started)
        child.next_ticket()
        child.state = ChildState.RUNNING
        child.started_at = trio.current_time()
        child.generation = child.ref.generation

    def _incarnate(self, child: Child, started: Future | None) -> None:
        """Start a child again; a factory that raises is a crash like any other."""
        child.attended = False
        try:
            actor = self._build(child.spec)
        except ChildStartError as error:
            child.next_ticket()
            child.state = ChildState.RUNNING
            child.started_at = trio.current_time()
            child.ref.generation += 1
            child.generation = child.ref.generation
            reason = ExitReason(ExitKind.CRASHED, error.__cause__)
            child.ref.last_reason = str(reason)
            logger.error("%s was not built", child.ref.path, exc_info=error.__cause__)  # noqa: TRY400  # its cause
            self.ref.mailbox.put_control(
                ChildExited(child.spec.id, child.ref, child.generation, reason, started=False)
            )
            if started is not None:
                started.set_exception(error)
        else:
            self._launch(child, actor, started)

    async def _wait_started(self, child: Child, started: Future) -> bool:
        """Wait for a start and raise its ChildStartError; false if a request to stop broke the wait off."""
        incarnation = self._require_incarnation()
        ref = incarnation.ref
        if ref.stop_kind is not None:
            return False
        for signal in ref.mailbox.control or ():
            if isinstance(signal, ChildExited) and self._is_of_now(signal):
                signal.refuse_questions()  # as those that end while this waits: see System.report_exit
        ref.asking += (child.ref,)  # a child that asks its supervisor in on_start would wait for ever
        try:
            with trio.CancelScope() as incarnation.boot_scope:
                await started.wait()
                return True
        finally:
            incarnation.boot_scope = None
            child.ref._asked(ref)  # noqa: SLF001  # the other half of the line above
        return False

    # -- exits and restarts --------------------------------------------------------------------------------------

    async def _receive_control(self, signal: Any) -> None:
        match signal:
            case ChildExited():
                await self._child_exited(signal)
            case RestartDue(tickets):
                await self._start_waiting(tickets)
            case ChildActivated(child_id, ref):
                child = self._children.get(child_id)
                if child is not None and child.ref is ref and child.state is ChildState.PASSIVE:
                    self._incarnate(child, None)

    def _is_of_now(self, exited: ChildExited) -> bool:
        """Whether this is the end of the incarnation that counts, and not of one before it."""
        child = self._children.get(exited.child_id)
        return (
            child is not None
            and child.ref is exited.ref
            and child.generation == exited.generation
            and child.state is ChildState.RUNNING
        )

    async def _child_exited(self, exited: ChildExited) -> None:
        child = self._children.get(exited.child_id)
        if child is None or not self._is_of_now(exited):
            return
        reason = exited.reason
        if reason.kind is ExitKind.PASSIVE:
            child.state = ChildState.PASSIVE
            child.ref.passivate()
        elif child.attended and not exited.started:
            self._end_child(child, reason.exception)
            if exited.generation == 1:  # it never was; one that failed in restart_child may be tried again
                self._children.pop(child.spec.id, None)
        elif child.spec.restart is Restart.PERMANENT or (
            child.spec.restart is Restart.TRANSIENT and not reason.is_normal
        ):
            await self._restart(child, reason)
        else:
            self._end_child(child, reason.exception)
            self._shut_down_with(child)

    def _end_child(self, child: Child, cause: BaseException | None = None) -> None:
        """Bury a child that is not to come back; forget it where its kind is forgotten."""
        child.state = ChildState.ENDED
        child.next_ticket()
        child.ref.bury(cause)
        if self.forgets_ended or child.spec.restart is Restart.TEMPORARY:
            self._children.pop(child.spec.id, None)

    def _shut_down_with(self, child: Child) -> None:
        if not child.spec.significant or self.auto_shutdown is AutoShutdown.NEVER:
            return
        others = (other for other in self._children.values() if other.spec.significant and other is not child)
        if self.auto_shutdown is AutoShutdown.ANY_SIGNIFICANT or all(
            other.state is ChildState.ENDED for other in others
        ):
            self.ref.request_stop(ExitKind.SHUTDOWN)

    async def _restart(self, child: Child, reason: ExitReason) -> None:
        """Bring a child back, now or after its back-off, with those whom the strategy ties to it."""
        now = trio.current_time()
        spec = child.spec
        own = spec.intensity or self.intensity
        if child.window is None:
            child.window = RestartWindow(own)
        too_many = child.window.overflows(now)
        if spec.intensity is None and not spec.park:
            too_many = self._window.overflows(now)
        if too_many and spec.park:
            child.state = ChildState.PARKED
            child.next_ticket()
            child.ref.park()
            logger.error("%s is parked after repeated crashes: %s", child.ref.path, reason)
            return
        if too_many:
            raise RestartIntensityError(spec.id, own.max_restarts, own.within_s) from reason.exception
        child.attempts = 1 if now - child.started_at > own.within_s else child.attempts + 1
        child.restarts += 1
        child.state = ChildState.WAITING
        members = self._group(child)
        if len(members) > 1:
            child.ref.refuse_questions()
        else:
            child.ref.revive()
        for member in reversed(members):
            if member is not child:
                await self._terminate(member)
                member.ref.refuse_questions()
                if member.spec.restart is Restart.TEMPORARY:
                    self._end_child(member)
        tickets = tuple(member.next_ticket() for member in members if member.state is ChildState.WAITING)
        delay_s = self.backoff.delay_s(child.attempts, self.rng or self.ref.system.rng)
        if delay_s > 0:
            self.start_task(self._wait_backoff, delay_s, tickets, name="back-off")
        else:
            await self._start_waiting(tickets)

    def _group(self, child: Child) -> list[Child]:
        """Return, in start order, who goes down and comes back with this child."""
        if self.strategy is Strategy.ONE_FOR_ONE:
            return [child]
        children = list(self._children.values())
        if self.strategy is Strategy.REST_FOR_ONE:
            children = children[children.index(child) :]
        return [member for member in children if member.state in (ChildState.RUNNING, ChildState.WAITING)]

    async def _wait_backoff(self, delay_s: float, tickets: tuple[tuple[str, int], ...]) -> None:
        await trio.sleep(delay_s)
        self.ref.mailbox.put_control(RestartDue(tickets))

    async def _start_waiting(self, tickets: tuple[tuple[str, int], ...]) -> None:
        """Start those whose restart is still the one that was due; a group in order, each once the last is up."""
        for child_id, ticket in tickets:
            child = self._children.get(child_id)
            if child is None or child.state is not ChildState.WAITING or child.ticket != ticket:
                continue
            if self.strategy is Strategy.ONE_FOR_ONE:
                self._incarnate(child, None)  # without waiting: a slow start delays no sibling
                continue
            started = Future(self.ref.system)
            self._incarnate(child, started)
            try:
                if not await self._wait_started(child, started):
                    return
            except ChildStartError:
                return  # its exit is in the control lane and restarts the rest of the group with it

    # -- stopping ------------------------------------------------------------------------------------------------

    async def _terminate(self, child: Child) -> None:
        """End the incarnation of a child, by cancellation after its deadline; the child is then WAITING."""
        running = child.ref.incarnation is not None
        if child.state is not ChildState.ENDED:
            child.state = ChildState.WAITING
            child.next_ticket()
        if not running:
            return
        ref = self.ref
        ref.asking += (child.ref,)  # a child that asks its supervisor in on_stop would wait for ever
        try:
            await child.ref.system.shut_down(child.ref, child.spec.shutdown_s)
        finally:
            child.ref._asked(ref)  # noqa: SLF001  # the other half of the line above

    async def _end(self, *, brutal: bool) -> None:
        """Stop the children in reverse; cancel what is left if this is brutal or becomes so."""
        try:
            if not brutal:
                await self._stop_children()
        finally:
            with trio.CancelScope(shield=True):
                await self._kill_children()
            self._let_go()

    async def _stop_children(self) -> None:
        for child in reversed(list(self._children.values())):
            try:
                await self._terminate(child)
            except ChildStuckError:
                logger.exception("%s does not end", child.ref.path)

    async def _kill_children(self) -> None:
        for child in reversed(list(self._children.values())):
            incarnation = child.ref.incarnation
            if incarnation is not None and not incarnation.stuck:
                child.state = ChildState.WAITING
                try:
                    await child.ref.system.shut_down(child.ref, 0)
                except ChildStuckError:
                    logger.exception("%s does not end", child.ref.path)

    def _let_go(self) -> None:
        """Leave the children's addresses for the next incarnation of this supervisor."""
