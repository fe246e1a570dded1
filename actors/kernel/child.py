"""What a supervisor knows of a child: its spec, its restarts, its back-off."""

import enum
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actors.kernel.actor import Actor
    from actors.kernel.ref import Ref

__all__ = ["AutoShutdown", "Backoff", "Child", "ChildSpec", "ChildState", "Intensity", "Restart", "Strategy"]

# Seconds that a cancelled actor gets before it counts as stuck.
KILL_GRACE_S = 5.0


class Restart(enum.Enum):
    """Which ends of a child bring it back."""

    PERMANENT = "permanent"  # every one
    TRANSIENT = "transient"  # a crash or kill
    TEMPORARY = "temporary"  # none


class Strategy(enum.Enum):
    """Who is restarted with a child."""

    ONE_FOR_ONE = "one for one"
    ONE_FOR_ALL = "one for all"
    REST_FOR_ONE = "rest for one"  # those started after it


class AutoShutdown(enum.Enum):
    """Whether the supervisor ends with its significant children."""

    NEVER = "never"
    ANY_SIGNIFICANT = "any significant"
    ALL_SIGNIFICANT = "all significant"


@dataclass(frozen=True, slots=True)
class Intensity:
    """More than `max_restarts` restarts in `within_s` seconds (an age of exactly `within_s` counts) are too many."""

    max_restarts: int = 3
    within_s: float = 5.0

    def __post_init__(self) -> None:
        if self.max_restarts < 0 or self.within_s <= 0:
            raise ValueError("max_restarts is at least 0 and within_s more than 0 seconds")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delay before a restart: none for the first in a row, then `first_s` growing by `factor` up to `max_s`.

    `jitter` is the share, 0 to 1, by which each delay varies either way. A row ends when a child stayed up for longer
    than its restart window.
    """

    first_s: float = 0.1
    factor: float = 2.0
    max_s: float = 30.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if self.first_s < 0 or self.max_s < 0 or self.factor < 1 or not 0 <= self.jitter <= 1:
            raise ValueError(
                "delays are at least 0 seconds, the factor at least 1 and the jitter between 0 and 1"
            )

    def delay_s(self, attempt: int, rng: random.Random) -> float:
        """Return the seconds to wait before restart number `attempt` in a row, counted from 1."""
        if attempt <= 1:
            return 0.0
        # The exponent is bounded: a float overflows at about 1,000 doublings.
        delay = min(self.max_s, self.first_s * self.factor ** min(attempt - 2, 60))
        return delay * (1 + self.jitter * (2 * rng.random() - 1))


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How a supervisor starts, restarts and stops one child.

    `factory` returns a fresh actor for each incarnation; what must survive a crash lives outside the actor.
    `shutdown_s` is the time for an orderly stop before cancellation: 0 cancels at once, None is 5 s for an actor
    and no limit for a supervisor. `intensity` counts this child's restarts in a window of its own instead of the
    supervisor's; `park` leaves the child down and visible when that window overflows (the supervisor's numbers
    where there is no own intensity) instead of escalating.
    """

    id: str
    factory: "Callable[[], Actor]"
    restart: Restart = Restart.PERMANENT
    shutdown_s: float | None = None
    significant: bool = False
    intensity: Intensity | None = None
    park: bool = False

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("a child needs an id")
        if self.shutdown_s is not None and not self.shutdown_s >= 0:
            raise ValueError(f"shutdown_s of {self.id!r} must be at least 0 seconds")
        if self.significant and self.restart is Restart.PERMANENT:
            raise ValueError(f"significant child {self.id!r} cannot be permanent: it would never end")


class ChildState(enum.Enum):
    """Where a child is from its supervisor's point of view."""

    RUNNING = "running"  # an incarnation lives or is starting
    WAITING = "waiting"  # a restart is due
    PASSIVE = "passive"
    PARKED = "parked"
    ENDED = "ended"  # no incarnation, and none to come unless asked for


class RestartWindow:
    """The restarts of the last `within_s` seconds."""

    __slots__ = ("intensity", "times")

    def __init__(self, intensity: Intensity) -> None:
        self.intensity = intensity
        self.times: deque[float] = deque()

    def count(self, now: float) -> int:
        """Return how many restarts lie in the window that ends now."""
        while self.times and now - self.times[0] > self.intensity.within_s:
            self.times.popleft()
        return len(self.times)

    def overflows(self, now: float) -> bool:
        """Record a restart; whether it is one too many."""
        self.times.append(now)
        return self.count(now) > self.intensity.max_restarts

    def clear(self) -> None:
        """Forget all restarts."""
        self.times.clear()


class Child:
    """One row in a supervisor's table."""

    __slots__ = (
        "attempts",
        "attended",
        "generation",
        "ref",
        "restarts",
        "spec",
        "started_at",
        "state",
        "ticket",
        "window",
    )

    def __init__(self, spec: ChildSpec, ref: "Ref") -> None:
        self.spec = spec
        self.ref = ref
        self.state = ChildState.ENDED
        self.generation = 0  # of the incarnation whose exit counts; reports of older ones are ignored
        self.ticket = 0  # of the restart that is due; timers with an older one are ignored
        self.attended = False  # somebody awaits this start, so that a failure is theirs and not restarted
        self.attempts = 0  # restarts in a row
        self.restarts = 0  # since the supervisor started
        self.started_at = 0.0
        self.window: RestartWindow | None = None  # made at the first crash

    def next_ticket(self) -> tuple[str, int]:
        """Invalidate timers that are under way and return the new ticket."""
        self.ticket += 1
        return self.spec.id, self.ticket
