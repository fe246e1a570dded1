"""The base class of every actor: pykka's hooks, as coroutines on a trio task."""

import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import pykka
import trio

from actors.kernel.incarnation import Incarnation
from actors.kernel.mailbox import Future, Mailbox, Overflow
from actors.kernel.ref import Ref

__all__ = ["Actor"]

logger = logging.getLogger("actors.kernel")

if TYPE_CHECKING:
    # A type checker would hold every subclass to the signatures of pykka's hooks, which are not coroutines.
    PykkaActor = object
else:
    PykkaActor = pykka.Actor


class Actor(PykkaActor):
    """State behind a mailbox, served one message at a time by a trio task of its own; supervisors start it.

    Of pykka's Actor this keeps the type, the hooks and their names. Its constructor is bypassed, since it makes a
    random URN and a threading.Event for each object (an address here outlives many objects, and 10,000 idle ones
    must be cheap), and so is its loop, which blocks a thread, keeps an actor alive or kills it depending on whether
    it was told or asked, and stops every actor of the process on a BaseException, which a cancellation is.
    """

    mailbox_size_max: ClassVar[int | None] = 1024  # messages; None is without bound
    mailbox_overflow: ClassVar[Overflow] = Overflow.WAIT
    ref_class: ClassVar[type[Ref]] = Ref
    shutdown_default_s: ClassVar[float] = 5.0  # where the child spec says nothing
    # Seconds without a message or a task after which `on_idle` is called and the actor leaves memory; None is never.
    passivate_after_s: float | None = None
    # Seconds in one message, or in its start or end, after which a Watchdog calls it stuck; None is what that one says.
    stuck_after_s: ClassVar[float | None] = None
    # True: the end of a linked actor arrives as an Exit message instead of ending this one.
    trap_exit: bool = False
    # Which hooks a class has: worked out once, so that starting and stopping thousands of actors stays cheap.
    prepares: ClassVar[bool] = False
    drains: ClassVar[bool] = False
    cleans_up: ClassVar[bool] = False
    _incarnation: Incarnation | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.prepares = cls.on_start is not Actor.on_start or cls._begin is not Actor._begin
        cls.drains = cls.on_drain is not Actor.on_drain or cls._end is not Actor._end
        cls.cleans_up = cls.on_stop is not Actor.on_stop or cls.on_failure is not Actor.on_failure

    def __init__(self) -> None:
        """Keep this light: it runs inside the supervisor; what can fail or wait belongs in `on_start`."""

    @property
    def has_started(self) -> bool:
        """Whether this object has been put to work; it is so once at most."""
        return self._incarnation is not None

    @property
    def ref(self) -> Ref:
        """The address of this actor; there is none before `on_start`."""
        return self._require_incarnation().ref

    @property
    def actor_ref(self) -> Ref:
        """The same as `ref`, by pykka's name."""
        return self.ref

    @property
    def actor_urn(self) -> str:
        """The URN of the address."""
        return self.ref.actor_urn

    @property
    def actor_inbox(self) -> Mailbox:
        """The mailbox of the address."""
        return self.ref.mailbox

    def _require_incarnation(self) -> Incarnation:
        if self._incarnation is None:
            raise RuntimeError(
                "this actor has not been started; start it with a ChildSpec under a supervisor"
            )
        return self._incarnation

    # -- hooks ---------------------------------------------------------------------------------------------------

    async def on_start(self) -> None:
        """Prepare the incarnation; messages come only after it returned. Raising fails the start."""

    async def on_drain(self) -> None:
        """Wait here, on an orderly stop, for child tasks that should finish: they are cancelled when it returns."""

    async def on_stop(self) -> None:
        """Clean up after an orderly stop, when no child task runs any more; not called after a crash or kill."""

    async def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Clean up after a crash, when no child task runs any more; what `exc_info` says is passed."""

    def on_idle(self) -> None:
        """Leave memory, after `passivate_after_s`; override it to `stop` for good instead, or to stay.

        Akka's ReceiveTimeout and `Passivate` in one. After it `on_drain` and `on_stop` run as on any orderly stop.
        """
        self.passivate()

    async def on_receive(self, message: Any) -> Any:
        """Handle one message; what is returned answers an ask, a Refusal is raised at the asker.

        Raising ends this incarnation, whether the message was told or asked.
        """
        logger.warning("%s received a %s that it does not handle", self.ref.path, type(message).__name__)

    # -- what an actor does with itself --------------------------------------------------------------------------

    def start_task(
        self, async_fn: Callable[..., Awaitable[Any]], *args: Any, name: str | None = None
    ) -> trio.CancelScope:
        """Run a child task of this incarnation and return the scope that cancels it.

        It is cancelled and awaited before the incarnation ends; an exception in it crashes the incarnation.
        """
        return self._require_incarnation().start_task(async_fn, args, name)

    def reply_later(self) -> Future:
        """Return the future that answers the current message, to be set later, from any task or thread.

        For a told message it is one that nobody awaits. If the incarnation ends first, the asker gets
        ActorDeadError. Its `abandoned` turns true when the asker gives up.
        """
        return self._require_incarnation().reply_later()

    def stop(self) -> None:
        """End this incarnation normally after the current message."""
        self.ref.stop()

    def passivate(self) -> None:
        """Leave memory after the current message; the next one, or one that waits, has a fresh object built."""
        self._require_incarnation().passivate()

    # -- pykka's extension points --------------------------------------------------------------------------------

    @classmethod
    def start(cls, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse: an actor nobody supervises would be lost on its first crash."""
        raise TypeError(
            "start an actor with a ChildSpec: open_system(spec), or start_child(spec) at a supervisor"
        )

    @staticmethod
    def _create_actor_inbox() -> Mailbox:
        return Mailbox(Actor.mailbox_size_max, Actor.mailbox_overflow)

    @staticmethod
    def _create_future() -> Future:
        return Future()

    def _start_actor_loop(self) -> None:
        raise TypeError("the loop of a trio actor is started by its supervisor")

    def __str__(self) -> str:
        return (
            str(self._incarnation.ref)
            if self._incarnation is not None
            else f"{type(self).__name__} (not started)"
        )

    # -- what supervisors override -------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Finish the start, after `on_start`."""

    async def _receive_control(self, signal: Any) -> None:
        """Handle a signal that overtook the messages."""

    async def _end(self, *, brutal: bool) -> None:
        """End what this incarnation started, before its hooks run."""

    def _finish(self) -> None:
        """Let go of what outlives the task, when everything else has ended; without a checkpoint."""

    def _give_up(self) -> None:
        """Stop waiting for what cannot be ended from within the loop."""
