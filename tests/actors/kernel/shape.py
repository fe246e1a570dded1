"""What a tree of the state machine is made from, and what its model knows of each address."""

from collections import deque
from dataclasses import dataclass, field, fields

from actors.kernel import AutoShutdown, Intensity, Overflow, Restart, Strategy

GRACE_S = 3.0  # the shutdown deadline of leaves that have one
PATIENCE_S = 7.25  # never a multiple of the other times, so that two timers of one instant do not race
NORMAL = ("normal", "shutdown", "passive")
UP, WAITING, PASSIVE, PARKED, ENDED = "up", "waiting", "passive", "parked", "ended"
# Of children that are started later. Those of the pool come and go in no order.
EXTRA_NAMES = {"pool": ("k", "l", "m"), "middle": ("x", "y")}


@dataclass(frozen=True, repr=False)
class Shape:
    """What a child is made from; one with `children` or `dynamic` is a supervisor."""

    name: str
    restart: Restart = Restart.PERMANENT
    shutdown_s: float = GRACE_S
    significant: bool = False
    intensity: Intensity | None = None
    park: bool = False
    size_max: int | None = None
    overflow: Overflow = Overflow.WAIT
    patient: bool = False
    slow: bool = False  # its on_stop takes several turns of the loop
    plain: bool = False  # it has no on_start
    dynamic: bool = False
    children: tuple["Shape", ...] = ()
    strategy: Strategy = Strategy.ONE_FOR_ONE
    tolerance: Intensity = Intensity()  # noqa: RUF009  # frozen
    backoff_s: float = 0.0  # the first delay; it doubles up to four times as much
    auto_shutdown: AutoShutdown = AutoShutdown.NEVER

    @property
    def supervises(self):
        return self.dynamic or bool(self.children)

    def __repr__(self):
        shown = (f"{one.name}={getattr(self, one.name)!r}" for one in fields(self)[1:])
        plain = {f"{one.name}={one.default!r}" for one in fields(self)}
        return f"Shape({', '.join([repr(self.name), *(text for text in shown if text not in plain)])})"

    def _repr_pretty_(self, printer, cycle):
        printer.text(repr(self))  # for Hypothesis


@dataclass
class Letter:
    """A message on its way; one of an asker or sender has a number in the answers."""

    kind: str
    number: int
    how: str = "tell"
    wanted: bool = True  # false once its asker has given up


@dataclass(eq=False)
class Node:
    """An address, with its row at its supervisor."""

    shape: Shape
    parent: "Node | None"
    key: int
    generation: int = 0
    alive: bool = False
    dead: bool = False
    parked: bool = False
    refuses: bool = False  # it is down with its group: who asks is answered at once
    stop_asked: str | None = None
    clumsy: bool = False  # its on_stop raises
    queue: list = field(default_factory=list)
    waiting: list = field(default_factory=list)
    held: Letter | None = None  # the message in work
    stamp: int = 0  # of its patience
    dropped: int = 0
    monitored: bool = False
    watched: bool = False  # linked to the observer, which traps exits
    partner: "Node | None" = None
    row: str = ENDED
    ticket: int = 0
    window: list = field(default_factory=list)
    attempts: int = 0
    started_at: float = 0.0
    attended: bool = False
    table: dict = field(default_factory=dict)  # of a supervisor
    control: deque = field(default_factory=deque)
    busy: bool = False
    fresh: list = field(default_factory=list)  # children launched and not run yet
    own_window: list = field(default_factory=list)

    @property
    def name(self):
        return self.shape.name

    @property
    def leaf(self):
        return not self.shape.supervises


class GiveUp(Exception):  # noqa: N818  # a signal between two methods
    """A supervisor has more restarts than it may."""
