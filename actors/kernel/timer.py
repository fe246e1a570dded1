"""What a durable timer is, where timers are kept, and what can be asked of who keeps them; see timers.py."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import trio

from actors.kernel.ref import Ref
from actors.kernel.system import System

__all__ = [
    "INTERVAL_MAX_S",
    "INTERVAL_MIN_S",
    "CancelTimer",
    "KeepTimers",
    "ListTimers",
    "StartTimer",
    "Tick",
    "Timer",
    "TimerState",
    "TimerStore",
    "TimersRef",
]

INTERVAL_MIN_S, INTERVAL_MAX_S = 0.001, 100 * 366 * 86_400.0
"""The shortest and the longest interval: a millisecond, and a hundred years."""

DUE_MAX = 253_402_300_800.0
"""The end of the year 9999 in Unix seconds, where calendars end."""


@dataclass(frozen=True, slots=True)
class Timer:
    """What is to happen when: at `due_at` a Tick with `payload` is asked of the actor that is found as `target`.

    `due_at` is in Unix seconds, kept to the microsecond. `interval_s` is None for a timer that ticks once; another
    one ticks at `due_at`, but first at the latest an interval from when it is started, and then whole intervals after
    it, whatever the work takes.
    """

    name: str
    target: str
    due_at: float
    interval_s: float | None = None
    payload: str = ""

    def __post_init__(self) -> None:
        if not self.name or not self.target:
            raise ValueError("a timer has a name and a target")
        if not 0 <= self.due_at < DUE_MAX:
            raise ValueError(
                f"timer {self.name!r} is due at {self.due_at}; give Unix seconds before the year 10000"
            )
        if self.interval_s is not None and not INTERVAL_MIN_S <= self.interval_s <= INTERVAL_MAX_S:
            raise ValueError(
                f"the interval of timer {self.name!r} must be {INTERVAL_MIN_S} s to {INTERVAL_MAX_S:.0f} s"
            )
        # What a store gives back must equal what it was given.
        object.__setattr__(self, "due_at", round(self.due_at, 6))

    def missed(self, now: float) -> int:
        """Return how many whole intervals went by since the timer was due; 0 for one that ticks once."""
        return 0 if self.interval_s is None else max(0, math.floor((now - self.due_at) / self.interval_s))

    def advanced(self, now: float) -> "Timer":
        """Return this periodic timer, due at the first of its beats that is still to come."""
        if self.interval_s is None:
            raise ValueError(f"timer {self.name!r} ticks once")
        due_at = self.due_at + self.interval_s * (self.missed(now) + 1)
        # An interval that is tiny beside the time that passed is lost in rounding.
        return replace(self, due_at=due_at if due_at > now else now + self.interval_s)


@dataclass(frozen=True, slots=True)
class Tick:
    """What a target is asked when its timer is due; the answer, whatever it is, says that the work is done.

    With a Refusal, or when the target dies over it, it is not: the tick comes again. `missed` is how many further
    ticks this one stands for.
    """

    name: str
    payload: str
    due_at: float
    missed: int


@dataclass(frozen=True, slots=True)
class TimerState:
    """A timer and how it is: in work or not, and how often in a row its tick was not done."""

    timer: Timer
    is_running: bool
    failures: int


class TimerStore(Protocol):
    """Where timers last. Whatever it raises on saving is logged and tried again; on loading it fails the start."""

    async def load(self) -> Sequence[Timer]:
        """Return every timer."""

    async def save(self, changed: Sequence[Timer], removed: Sequence[str]) -> None:
        """Write timers by name and delete others, all or nothing; durable when it returns."""


@dataclass(frozen=True, slots=True)
class StartTimer:
    """Command to Timers; answered once the timer is durable."""

    timer: Timer


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Command to Timers; answered with whether there was a timer of this name, once it is durably gone."""

    name: str


@dataclass(frozen=True, slots=True)
class KeepTimers:
    """Command to Timers; answered once it is durable that those whose names begin with `prefix` are these."""

    prefix: str
    timers: tuple[Timer, ...]


@dataclass(frozen=True, slots=True)
class ListTimers:
    """Question to Timers; answered with a tuple of TimerState, what is due first before the others."""


class TimersRef(Ref):
    """The address of a Timers actor, with its commands as methods for tasks outside it.

    What the store raised is raised at the caller, and nothing has changed then. The address also knows which ticks
    are in work, since a fresh incarnation must not begin another one of the same timer.
    """

    __slots__ = ("changed", "done", "running")

    def __init__(self, system: System, child_id: str, parent: Ref | None, actor_class: Any) -> None:
        super().__init__(system, child_id, parent, actor_class)
        self.running: dict[str, Timer] = {}  # until an incarnation has taken note of the end
        self.done: list[tuple[Timer, Exception | None]] = []  # of which none has taken note yet
        self.changed = trio.Event()  # wakes the task that waits for what is due

    async def start_timer(self, timer: Timer) -> None:
        """Start a timer, in place of one of the same name; it is durable when this returns."""
        await self.ask(StartTimer(timer))

    async def cancel_timer(self, name: str) -> bool:
        """Forget a timer; whether there was one. A tick that is in work goes on."""
        was_there: bool = await self.ask(CancelTimer(name))
        return was_there

    async def keep_timers(self, prefix: str, timers: Iterable[Timer]) -> None:
        """Have exactly these periodic timers among those whose names begin with `prefix`.

        One that is there already keeps the time at which it is due, so that a program can say at each start what it
        wants without moving what was due. Raises ValueError for a timer that ticks once or has another prefix.
        """
        kept = tuple(timers)
        for timer in kept:
            if timer.interval_s is None or not timer.name.startswith(prefix):
                raise ValueError(f"{timer.name!r} is not a periodic timer whose name begins with {prefix!r}")
        await self.ask(KeepTimers(prefix, kept))

    async def timers(self) -> tuple[TimerState, ...]:
        """Return every timer, what is due first before the others."""
        states: tuple[TimerState, ...] = await self.ask(ListTimers())
        return states
