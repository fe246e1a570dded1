"""The address of an actor: what everyone else holds of it."""

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pykka
import trio
from trio.lowlevel import (
    cancel_shielded_checkpoint,
    checkpoint_if_cancelled,
    current_task,
    wait_task_rescheduled,
)

from actors.kernel.errors import (
    ActorDeadError,
    ActorParkedError,
    AskCycleError,
    AskTimeoutError,
    LinkedExitError,
    MailboxFullError,
)
from actors.kernel.mailbox import Envelope, Future, Mailbox, Overflow, dead_error
from actors.kernel.signals import ChildActivated, Down, Exit, ExitKind, ExitReason, StopSignal

if TYPE_CHECKING:
    from actors.kernel.child import Child
    from actors.kernel.incarnation import Incarnation
    from actors.kernel.system import System

__all__ = ["Ref", "handling"]

get_ident = threading.get_ident

# The actor whose code runs in this context, None elsewhere: how an ask knows who would wait for the answer.
handling: ContextVar["Ref | None"] = ContextVar("handling", default=None)

STOP = StopSignal()


class Ref(pykka.ActorRef[Any]):
    """The address of an actor; it stays the same over every restart, with its mailbox, monitors and links.

    pykka's constructor is bypassed: it holds one actor object for ever and makes a threading.Event for it, whereas
    this address outlives the objects that serve it.
    """

    __slots__ = (
        "asking",
        "child_id",
        "children",
        "condition",
        "dead_calls",
        "generation",
        "incarnation",
        "last_origin",
        "last_reason",
        "links",
        "mailbox",
        "monitors",
        "parent",
        "stop_kind",
        "system",
    )

    def __init__(self, system: "System", child_id: str, parent: "Ref | None", actor_class: Any) -> None:
        self.system = system
        self.child_id = child_id
        self.parent = parent
        self.actor_class = actor_class
        self.mailbox = Mailbox(actor_class.mailbox_size_max, actor_class.mailbox_overflow)
        self.incarnation: Incarnation | None = None
        self.generation = 0
        # Without an incarnation: waiting (to be restarted), parked, passive or dead.
        self.condition = "waiting"
        self.stop_kind: ExitKind | None = None
        self.asking: tuple[Ref, ...] = ()
        self.children: dict[str, Child] | None = None
        self.monitors: set[Ref] | None = None
        self.links: set[Ref] | None = None
        self.last_origin: tuple[Any, int] | None = None
        self.last_reason: str | None = None
        self.dead_calls: list[Callable[[], object]] | None = None

    # -- who and how ---------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """Ids from the root to this actor, joined by slashes."""
        names = [self.child_id]
        parent = self.parent
        while parent is not None:
            names.append(parent.child_id)
            parent = parent.parent
        return "/".join(reversed(names))

    @property
    def actor_urn(self) -> str:  # type: ignore[override]  # pykka stores a random one; ours says where the actor is
        """`urn:actor:` and the path: the same after every restart."""
        return f"urn:actor:{self.path}"

    @property
    def actor_inbox(self) -> Mailbox:  # type: ignore[override]  # pykka's type is a protocol that Mailbox meets
        """The mailbox."""
        return self.mailbox

    @property
    def mailbox_length(self) -> int:
        """How many messages wait."""
        return len(self.mailbox.lane)

    @property
    def state(self) -> str:
        """One of starting, idle, busy, stopping; waiting, parked, passive, dead."""
        if self.incarnation is None:
            return self.condition
        return self.incarnation.phase

    def is_alive(self) -> bool:
        """Whether a message can still reach this address, now or after a restart; false for good when buried."""
        return self.condition != "dead"

    def __str__(self) -> str:
        return f"{self.actor_class.__name__} ({self.actor_urn})"

    def __repr__(self) -> str:
        return f"<Ref {self.path} {self.state}>"

    # -- messages ------------------------------------------------------------------------------------------------

    def tell(self, message: Any) -> None:
        """Post a message without waiting, from any task or thread.

        Raises ActorDeadError when the actor is dead for good, MailboxFullError when the mailbox is full and its
        policy is WAIT or REFUSE. Threads that race for the last place may exceed the bound by their number.
        """
        system = self.system
        if get_ident() != system.thread_id:
            self._tell_from_thread(message)
            return
        mailbox = self.mailbox
        lane = mailbox.lane
        if len(lane) < mailbox.room:
            lane.append(Envelope(message, None, system.now()))
            if mailbox.reader is not None:
                mailbox.wake()
        elif self._has_room(None, message):
            mailbox.put(Envelope(message, None, system.now()))

    async def send(self, message: Any) -> None:
        """Post a message; where the policy is WAIT, wait until the mailbox has room for it.

        Raises as `tell` does otherwise, and AskCycleError where the wait would be for oneself.
        """
        await checkpoint_if_cancelled()
        mailbox = self.mailbox
        if mailbox.overflow is Overflow.WAIT and mailbox.is_full and self.is_alive():
            if self.condition == "parked":
                raise self._parked_error()
            asker = self._asker()
            try:
                await mailbox.wait_room(Envelope(message, None, self.system.now()))
            finally:
                self._asked(asker)
        else:
            self.tell(message)
            await cancel_shielded_checkpoint()

    async def ask(self, message: Any, timeout_s: float | None = None) -> Any:  # type: ignore[override]  # pykka's blocks
        """Post a message and return what the handler returns for it.

        Raises what the handler's Refusal carries; ActorDeadError when the actor ended, died over the message (its
        exception is the cause) or is down with a group that restarts; AskTimeoutError after `timeout_s` seconds;
        AskCycleError when the answer would have to come from an actor that waits for the caller; MailboxFullError as
        the policy says.
        A cancelled or timed out question that has not been begun is skipped.
        """
        if timeout_s is not None:
            with trio.move_on_after(timeout_s):
                return await self.ask(message)
            raise AskTimeoutError(self.path, timeout_s)
        system = self.system
        mailbox = self.mailbox
        asker = self._asker() if handling.get() is not None else None
        try:
            future = Future(system)
            envelope = Envelope(message, future, system.now())
            if len(mailbox.lane) < mailbox.room or self._has_room(future, message):
                mailbox.put(envelope)
            else:
                try:
                    await mailbox.wait_room(envelope)
                except BaseException:
                    future.abandon()
                    raise
            # Future.wait() in place: this is the hot path.
            if not future.done:
                future._waiter = current_task()  # noqa: SLF001  # the two classes are one mechanism
                await wait_task_rescheduled(future._abort)  # noqa: SLF001
            return future.result()
        finally:
            if asker is not None:
                self._asked(asker)

    def _has_room(self, future: Future | None, message: Any) -> bool:
        """Decide over a message that did not find the plain case; false if the caller has to wait or it is gone."""
        mailbox = self.mailbox
        if self.condition == "dead":
            if future is None:
                self.system.dead_letters.undelivered(self, "told to a dead actor", message)
            raise dead_error(self.path)
        if future is not None and self.incarnation is None:
            self._refuse_question()
        if self.condition == "passive":
            self._activate()
        if not mailbox.is_full:
            return True
        if mailbox.overflow is Overflow.DROP_OLD:
            self._drop_oldest()
            return True
        if mailbox.overflow is Overflow.WAIT and future is not None:
            return False
        mailbox.dropped += 1
        if mailbox.overflow is Overflow.DROP_NEW and future is None:
            self.system.dead_letters.dropped(self, "mailbox full", message)
            return False
        raise MailboxFullError(self.path, mailbox.size_max)

    def _refuse_question(self) -> None:
        """Raise where nobody will answer soon: parked, or down while the group restarts."""
        if self.condition == "parked":
            raise self._parked_error()
        if self.condition == "waiting" and self.mailbox.room < 0:
            raise dead_error(self.path)

    def _drop_oldest(self) -> None:
        mailbox = self.mailbox
        oldest = mailbox.drop_oldest() if mailbox.is_full else None
        if oldest is not None:
            mailbox.dropped += 1
            self.system.dead_letters.dropped(self, "mailbox full", oldest.message)
            if oldest.reply_to is not None:
                oldest.reply_to.orphan(MailboxFullError(self.path, mailbox.size_max))

    def _tell_from_thread(self, message: Any) -> None:
        """Append first, wake second, and look again: the actor may be buried between."""
        mailbox = self.mailbox
        system = self.system
        if self.condition == "dead":
            system.run_soon(system.dead_letters.undelivered, self, "told to a dead actor", message)
            raise dead_error(self.path)
        if mailbox.is_full:
            if mailbox.overflow is Overflow.DROP_NEW:
                mailbox.dropped += 1
                system.run_soon(system.dead_letters.dropped, self, "mailbox full", message)
                return
            if mailbox.overflow is not Overflow.DROP_OLD:
                raise MailboxFullError(self.path, mailbox.size_max)
            system.run_soon(self._drop_oldest)  # only the loop takes from the lane
        mailbox.lane.append(Envelope(message, None, system.now()))
        system.run_soon_once(self._thread_told)

    def _thread_told(self) -> None:
        if self.condition == "dead":
            self._return_letters(None)
        elif self.condition == "passive":
            self._activate()
        else:
            self.mailbox.wake()

    def _parked_error(self) -> ActorParkedError:
        return ActorParkedError(f"{self.path} is parked after repeated crashes; retry it at its supervisor")

    # -- ask cycles ----------------------------------------------------------------------------------------------

    def _asker(self) -> "Ref | None":
        """Note that the running handler waits for this actor, unless that closes a ring; return who waits.

        The ring is looked for among who waits for whom at this moment, which also finds the rings that no single
        chain of messages shows (A asks B while B, over another message, asks A) and never accuses a task that
        merely inherited a chain.
        """
        asker = handling.get()
        if asker is None or asker.incarnation is None or not asker.incarnation.waits_for(current_task()):
            return None
        if asker is self or self.asking:
            trail: list[tuple[Ref, tuple[Ref, ...]]] = [(self, (asker, self))]
            seen = {self}
            while trail:
                node, path = trail.pop()
                if node is asker:
                    raise AskCycleError([ref.path for ref in path])
                for target in node.asking:
                    if target is asker or target not in seen:
                        seen.add(target)
                        trail.append((target, (*path, target)))
        asker.asking += (self,)
        return asker

    def _asked(self, asker: "Ref | None") -> None:
        """Forget what `_asker` noted."""
        if asker is not None:
            asking = list(asker.asking)
            asking.remove(self)
            asker.asking = tuple(asking)

    # -- ending --------------------------------------------------------------------------------------------------

    def stop(self) -> None:  # type: ignore[override]  # pykka's waits for the end; await wait_stopped() for that
        """Ask for a normal exit after the current message, ahead of the backlog; from any task or thread.

        A permanent child is started again by its supervisor; ask the supervisor to terminate it for good.
        """
        self.system.run_here(self.request_stop, ExitKind.NORMAL)

    def kill(self) -> None:
        """Cancel the incarnation at once, without on_stop; an abnormal exit, from any task or thread."""
        self.system.run_here(self._kill)

    def _kill(self) -> None:
        if self.incarnation is not None:
            self.incarnation.kill()

    def request_stop(self, kind: ExitKind) -> None:
        """Set the stop flag and wake the loop; a supervisor's shutdown outranks a normal stop."""
        if self.condition == "dead":
            return
        if self.stop_kind is not ExitKind.SHUTDOWN:
            self.stop_kind = kind
        if self.incarnation is None and self.condition == "passive":
            self._activate()
        self.mailbox.put_control(STOP, first=True)
        if self.incarnation is not None:
            self.incarnation.interrupt()

    async def wait_stopped(self) -> None:
        """Wait until the actor is dead for good (not merely between two incarnations)."""
        if self.condition == "dead":
            await trio.lowlevel.checkpoint()
        while self.condition != "dead":
            event = trio.Event()
            self.when_dead(event.set)
            await event.wait()

    def when_dead(self, call: Callable[[], object]) -> None:
        """Have something called, on the loop, when the actor is dead for good; at once where it is.

        For what an actor has promised to others and its incarnations hand on: after a kill no hook runs, and where
        the address ends with it there is no next incarnation to keep the promise. It must not raise.
        """
        if self.condition == "dead":
            call()
            return
        if self.dead_calls is None:
            self.dead_calls = []
        self.dead_calls.append(call)

    def _activate(self) -> None:
        """Have the supervisor bring a passive actor back; what is posted meanwhile waits."""
        self.condition = "waiting"
        self.mailbox.room = self.mailbox.size_max
        if self.parent is not None:
            self.parent.mailbox.put_control(ChildActivated(self.child_id, self))

    def passivate(self) -> None:
        """Mark that the actor left memory: the next message has its supervisor bring it back."""
        self.condition = "passive"
        self.mailbox.room = -1
        # A stop signal that is left over from the incarnation that went is no reason to come back.
        signals = any(signal is not STOP for signal in self.mailbox.control or ())
        if self.mailbox.lane or signals or self.stop_kind is not None:
            self._activate()
        else:
            self.mailbox.control = None  # an empty deque has room for 64

    def park(self) -> None:
        """Keep what was told until a retry, and answer those who ask, now and later."""
        self.condition = "parked"
        self.mailbox.room = -1
        for envelope in self.mailbox.take_asks():
            if envelope.reply_to is not None:
                envelope.reply_to.orphan(self._parked_error())
        self.mailbox.refuse_waiting(self._parked_error)

    def refuse_questions(self) -> None:
        """Answer those who ask, now and until the next incarnation; what was told is kept.

        For a member of a group that restarts: it comes back when the others have ended, and whoever asks it may be
        one of those, or be waited for by one.
        """
        self.mailbox.room = -1
        for envelope in self.mailbox.take_asks():
            if envelope.reply_to is not None:
                envelope.reply_to.orphan(dead_error(self.path))

    def revive(self) -> None:
        """Open the address again before a new incarnation."""
        self.condition = "waiting"
        self.mailbox.room = self.mailbox.size_max

    def bury(self, cause: BaseException | None = None) -> None:
        """End the address: every asker is answered, every told message is a dead letter, so for all below it."""
        if self.condition == "dead":
            return
        self.condition = "dead"
        self.mailbox.room = -1
        self.mailbox.control = None
        self.stop_kind = None
        self._return_letters(cause)
        self.mailbox.refuse_waiting(lambda: dead_error(self.path, cause))
        for child in list((self.children or {}).values()):
            child.ref.bury(cause)
        self.children = None
        self.monitors = None
        for partner in self.links or ():
            if partner.links is not None:
                partner.links.discard(self)
        self.links = None
        calls, self.dead_calls = self.dead_calls, None
        for call in calls or ():
            call()

    def _return_letters(self, cause: BaseException | None) -> None:
        lane = self.mailbox.lane
        while lane:
            envelope = lane.popleft()
            if envelope.reply_to is not None:
                envelope.reply_to.orphan(dead_error(self.path, cause))
            elif not envelope.is_signal:
                self.system.dead_letters.undelivered(self, "the actor ended first", envelope.message)

    # -- monitors and links --------------------------------------------------------------------------------------

    def monitor(self, watcher: "Ref") -> Callable[[], None]:
        """Have `watcher` receive Down for each incarnation of this actor that ends; call the result to leave off.

        For an actor that is dead already Down comes at once, with ExitKind.NOT_ALIVE.
        """
        if self.condition == "dead":
            watcher.post_signal(Down(self, self.generation, ExitReason(ExitKind.NOT_ALIVE)))
            return lambda: None
        if self.monitors is None:
            self.monitors = set()
        self.monitors.add(watcher)
        return lambda: self.monitors.discard(watcher) if self.monitors is not None else None

    def link(self, partner: "Ref") -> None:
        """Tie two actors: when an incarnation of one ends abnormally, that of the other does.

        One that traps exits receives Exit instead, for every end.
        """
        if self.condition == "dead":
            partner.receive_exit(
                Exit(self, self.generation, ExitReason(ExitKind.NOT_ALIVE), (self, self.generation))
            )
            return
        if partner.condition == "dead":
            partner.link(self)
            return
        for one, other in ((self, partner), (partner, self)):
            if one.links is None:
                one.links = set()
            one.links.add(other)

    def unlink(self, partner: "Ref") -> None:
        """Undo `link`."""
        for one, other in ((self, partner), (partner, self)):
            if one.links is not None:
                one.links.discard(other)

    def post_signal(self, signal: Any) -> None:
        """Put a signal in line with the messages, beyond the bound; one for a dead actor is nobody's."""
        if self.condition == "dead":
            return
        if self.condition == "passive":
            self._activate()
        self.mailbox.put(Envelope(signal, None, self.system.now(), is_signal=True))

    def receive_exit(self, signal: Exit) -> None:
        """Take the end of a linked partner: as a message if this actor traps exits, else as its own."""
        incarnation = self.incarnation
        if self.last_origin == signal.origin:
            return
        if incarnation is not None and incarnation.actor.trap_exit:
            self.post_signal(signal)
        elif incarnation is not None and not signal.reason.is_normal and incarnation.phase != "stopping":
            self.last_origin = signal.origin
            origin: Ref = signal.origin[0]
            incarnation.fail(LinkedExitError(origin.path, str(signal.reason)))

    def announce_end(self, generation: int, reason: ExitReason) -> None:
        """Tell monitors and links that an incarnation ended."""
        if self.monitors:
            down = Down(self, generation, reason)
            for watcher in sorted(self.monitors, key=lambda ref: ref.path):
                watcher.post_signal(down)
        if self.links:
            linked = isinstance(reason.exception, LinkedExitError) and self.last_origin is not None
            origin = self.last_origin if linked and self.last_origin is not None else (self, generation)
            self.last_origin = origin
            signal = Exit(self, generation, reason, origin)
            for partner in sorted(self.links, key=lambda ref: ref.path):
                partner.receive_exit(signal)

    def proxy(self) -> Any:
        """Refuse: a pykka proxy blocks the calling thread, which here is the loop."""
        raise NotImplementedError("trio actors have no proxies; await ask() with a message instead")


assert ActorDeadError is pykka.ActorDeadError  # noqa: S101  # callers may catch either name
