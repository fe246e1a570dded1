"""Durable timers: due times that survive a restart, one tick of a timer at a time, missed ticks made up by one.

The names are Erlang's (`start_timer`, `cancel_timer`) and Akka's. Due times are on the wall clock, because they are
compared with a clock of another run; waiting is on the monotonic clock, and the wall clock is looked at again at
bounded intervals. From this follows what a clock that is set does: set forward (or a machine that slept) it makes
timers due, and each ticks once; set back it makes a one-shot timer wait until its time comes again, whereas a
periodic one never waits longer than its interval, so that it is not silenced.

Delivery is at least once. A tick is asked of its target, and it is done when the target answered; only then is a
one-shot timer deleted and a periodic one advanced, in the store a moment later. What ends before that (the target,
this actor, the process) leaves the timer due, and it ticks again.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import trio

from actors.kernel.actor import Actor
from actors.kernel.child import Backoff
from actors.kernel.mailbox import Future
from actors.kernel.ref import Ref, handling
from actors.kernel.timer import (
    CancelTimer,
    KeepTimers,
    ListTimers,
    StartTimer,
    Tick,
    Timer,
    TimersRef,
    TimerState,
    TimerStore,
)

__all__ = ["Timers"]

logger = logging.getLogger("actors.kernel")

RECHECK_S = 30.0
"""The wall clock is looked at at least so often while a timer waits."""

SAVE_DELAY_S = 1.0
"""What is done is saved so long after it, together with what else is done by then."""

SAVE_AGAIN_S = 30.0
"""How long after the store refused it is tried again."""

TRY_AGAIN = Backoff(first_s=60.0, factor=2.0, max_s=3600.0)
"""When a tick that was not done comes again; a periodic timer waits no longer than its interval."""


class _Entry:
    """A timer in memory."""

    __slots__ = ("failures", "not_before", "timer")

    def __init__(self, timer: Timer) -> None:
        self.timer = timer
        self.failures = 0  # ticks in a row that were not done
        self.not_before = -math.inf  # on the monotonic clock: when the tick that was not done comes again


class Timers(Actor):
    """Keeps timers and has each ticked when it is due; meant for up to some thousands of them.

    `resolve` finds a target by name (None where there is none): addresses do not outlive a run. A target that is
    dead, parked or unknown is logged once and asked again later; it delays no other timer, and nor does one that
    takes long or a store that is slow. `now` is the wall clock in Unix seconds. A timer whose target never answers
    does not tick again until that incarnation of the target ends.
    """

    ref_class: ClassVar[type[Ref]] = TimersRef
    mailbox_size_max: ClassVar[int | None] = None  # a completion may not be lost, and each is of one timer

    def __init__(
        self, store: TimerStore, resolve: Callable[[str], Ref | None], *, now: Callable[[], float] = time.time
    ) -> None:
        super().__init__()
        self._store = store
        self._resolve = resolve
        self._now = now
        self._entries: dict[str, _Entry] = {}
        self._stored: dict[str, Timer] = {}  # what the store has
        self._commands: list[tuple[Any, Future]] = []  # to be carried out with the next save
        self._save_at = math.inf  # on the monotonic clock
        self._refused = False  # the last save was
        self._stirred = trio.Event()  # wakes the task that saves

    @property
    def _address(self) -> TimersRef:
        ref = self.ref
        if not isinstance(ref, TimersRef):
            raise TypeError("a Timers actor has a TimersRef; keep its ref_class")
        return ref

    async def on_start(self) -> None:
        """Load the timers; those that came due meanwhile tick at once."""
        for timer in await self._store.load():
            self._stored[timer.name] = timer
            self._entries[timer.name] = _Entry(timer)
        self.start_task(self._tick_for_ever, name="tick")
        self.start_task(self._save_for_ever, name="save")

    async def on_stop(self) -> None:
        """Save what was done since the last save; what cannot be saved ticks once more after the next start."""
        await self._save()

    async def on_receive(self, message: Any) -> Any:
        """Carry out a command; a subclass passes on what it does not know."""
        match message:
            case StartTimer() | CancelTimer() | KeepTimers():
                self._commands.append((message, self.reply_later()))
                self._stirred.set()
            case ListTimers():
                return tuple(
                    TimerState(entry.timer, entry.timer.name in self._address.running, entry.failures)
                    for entry in self._by_due_time()
                )
            case _:
                return await super().on_receive(message)
        return None

    def _by_due_time(self) -> list[_Entry]:
        return sorted(self._entries.values(), key=lambda entry: (entry.timer.due_at, entry.timer.name))

    # -- ticking -------------------------------------------------------------------------------------------------

    async def _tick_for_ever(self) -> None:
        address = self._address
        while True:
            address.changed = trio.Event()
            self._take_note()
            wait_s = math.inf
            for entry in self._by_due_time():
                wait_s = min(wait_s, self._tick_if_due(entry))
            if wait_s < math.inf:
                wait_s = min(wait_s, RECHECK_S)
            with trio.move_on_after(wait_s):
                await address.changed.wait()

    def _tick_if_due(self, entry: _Entry) -> float:
        """Begin the tick of a timer that is due; return in how many seconds another one is to be looked at again."""
        timer, now = entry.timer, self._now()
        if timer.name in self._address.running:
            return math.inf  # its end wakes the task
        if timer.interval_s is not None and timer.due_at > now + timer.interval_s:
            # The clock was set back, or the interval is a shorter one than when it was stored.
            timer = entry.timer = replace(timer, due_at=now + timer.interval_s)
            self._save_soon()
        wait_s = max(timer.due_at - now, entry.not_before - self.ref.system.now())
        if wait_s > 0:
            return wait_s
        self._address.running[timer.name] = timer
        tick = Tick(timer.name, timer.payload, timer.due_at, timer.missed(now))
        # In the nursery of the system: the work of a target goes on when this incarnation ends, and must be known of.
        self.ref.system.nursery.start_soon(self._carry, self._address, timer, tick, name=f"tick {timer.name}")
        return math.inf

    async def _carry(self, address: TimersRef, timer: Timer, tick: Tick) -> None:
        """Ask the target and say how it went, for whichever incarnation is there by then."""
        handling.set(None)
        error: Exception | None = None
        try:
            target = self._resolve(timer.target)
            if target is None:
                raise LookupError(f"nobody is found as {timer.target!r}")  # noqa: TRY301  # one way for what fails
            await target.ask(tick)
        except Exception as problem:  # noqa: BLE001  # a fault of the target is its own supervisor's; here it is a tick not done
            error = problem
        finally:
            address.done.append((timer, error))
            address.changed.set()

    def _take_note(self) -> None:
        """Advance, delete or put off the timers whose ticks have ended."""
        address = self._address
        while address.done:
            timer, error = address.done.pop(0)
            del address.running[timer.name]
            self._tick_done(timer, error)

    def _tick_done(self, timer: Timer, error: Exception | None) -> None:
        entry = self._entries.get(timer.name)
        if entry is None or not _is_same(entry.timer, timer):
            return  # cancelled or started anew meanwhile
        if error is None:
            entry.failures = 0
            entry.not_before = -math.inf
            if entry.timer.interval_s is None:
                del self._entries[timer.name]
            else:
                entry.timer = entry.timer.advanced(self._now())
            self._save_soon()
            return
        entry.failures += 1
        delay_s = TRY_AGAIN.delay_s(entry.failures + 1, self.ref.system.rng)
        if entry.timer.interval_s is not None:
            delay_s = min(delay_s, entry.timer.interval_s)
        entry.not_before = self.ref.system.now() + delay_s
        if entry.failures == 1:
            logger.warning(
                "the tick of timer %s was not done by %s (%s: %s); it comes again, first in %.0f s",
                timer.name, timer.target, type(error).__name__, error, delay_s,
            )  # fmt: skip

    # -- saving --------------------------------------------------------------------------------------------------

    def _save_soon(self) -> None:
        """Have what changed saved, with whatever else changes in the next moment: many beat at one instant."""
        self._save_at = min(self._save_at, self.ref.system.now() + SAVE_DELAY_S)
        self._stirred.set()

    async def _save_for_ever(self) -> None:
        while True:
            self._stirred = trio.Event()
            wait_s = 0.0 if self._commands else self._save_at - self.ref.system.now()
            if wait_s > 0:
                with trio.move_on_after(wait_s):
                    await self._stirred.wait()
            else:
                await self._save()

    async def _save(self) -> None:
        """Write all that differs from the store in one go; commands count once that is durable, or not at all."""
        commands, self._commands = self._commands, []
        self._save_at = math.inf
        before = {name: entry.timer for name, entry in self._entries.items()}
        after = dict(before)
        answers = [_carry_out(command, after) for command, _ in commands]
        changed = [timer for name, timer in after.items() if self._stored.get(name) != timer]
        removed = [name for name in self._stored if name not in after]
        try:
            if changed or removed:
                await self._store.save(changed, removed)
        except Exception as error:  # noqa: BLE001  # what a store raises is its own affair; timers go on ticking
            self._save_at = self.ref.system.now() + SAVE_AGAIN_S
            self._log_refused(error)
            for _, future in commands:
                future.set_exception(error)
            return
        self._refused = False
        self._stored = after
        for name in before.keys() | after.keys():
            if before.get(name) is after.get(name):
                continue  # no command was about it, and it may have ticked while the store was busy
            if name in after:
                self._entries[name] = _Entry(after[name])
            else:
                self._entries.pop(name, None)
        for (_, future), answer in zip(commands, answers, strict=True):
            future.set(answer)
        self._address.changed.set()

    def _log_refused(self, error: Exception) -> None:
        if not self._refused:
            self._refused = True
            logger.warning("timers are not saved (%s: %s); tried again", type(error).__name__, error)


def _is_same(timer: Timer, other: Timer) -> bool:
    """Whether a tick of one is the tick of the other: an interval that changed meanwhile makes no difference."""
    return replace(timer, interval_s=None) == replace(other, interval_s=None)


def _carry_out(command: Any, timers: dict[str, Timer]) -> Any:
    """Change the table as a command says and return its answer."""
    match command:
        case StartTimer(timer):
            timers[timer.name] = timer
        case CancelTimer(name):
            return timers.pop(name, None) is not None
        case KeepTimers(prefix, kept):
            there = {name: timers.pop(name) for name in list(timers) if name.startswith(prefix)}
            for timer in kept:
                old = there.get(timer.name)
                wanted = timer if old is None else replace(timer, due_at=old.due_at)
                timers[timer.name] = old if old is not None and old == wanted else wanted
    return None
