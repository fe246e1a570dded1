"""A look inside: what every actor of a tree is doing at this moment."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from actors.kernel.child import Child
from actors.kernel.ref import Ref

__all__ = ["ATTENTION", "TreeNode", "View", "find", "find_by_id", "snapshot"]

ATTENTION: Final = frozenset({"parked", "stuck", "waiting", "dead"})
"""States that somebody should look at: nothing serves the mailbox, or nothing can end the actor."""

WORKING: Final = frozenset({"starting", "busy", "stopping"})


@dataclass(frozen=True, slots=True)
class View:
    """Which children of each supervisor a snapshot shows; the others are counted by their state.

    With more than `fold_above` children the quiet ones (idle or passive, nothing waits, no task runs, no restart in
    the window) are left out; None folds nobody. At most `shown_max` are shown, and where some are folded those that
    need attention come first. `skip` passes over so many children of the node that the snapshot begins with.
    """

    fold_above: int | None = None
    shown_max: int | None = None
    skip: int = 0


EVERYBODY: Final = View()


@dataclass(frozen=True, slots=True)
class TreeNode:
    """One actor at one moment; ages are in seconds, None where there is nothing of an age."""

    id: str
    path: str
    actor: str  # name of its class
    state: str  # see Ref.state; `stuck` for one that ignored its cancellation
    generation: int  # incarnations so far
    queue_length: int
    oldest_age_s: float | None  # of the message that waits longest
    current: str | None  # type name of the message in work
    current_age_s: float | None  # since it was taken
    state_age_s: float | None  # since the start, the message or the end began in which it is
    stuck_at: (
        str | None
    )  # where it stood when a Watchdog found it to be in that for too long; None if it is not
    tasks: int  # child tasks that run
    dropped: int  # messages lost to a full mailbox
    restarts: int  # since its supervisor started
    restarts_in_window: int
    last_reason: str | None  # how the last incarnation ended
    children: tuple["TreeNode", ...]
    folded: Mapping[str, int] = field(default_factory=dict)  # children that are not shown, by their state

    @property
    def needs_attention(self) -> bool:
        """Whether somebody should look at it."""
        return self.state in ATTENTION or self.stuck_at is not None

    def find(self, path: str) -> "TreeNode | None":
        """Return the node with this path, None when there is none."""
        if self.path == path:
            return self
        for child in self.children:
            # Ids may hold slashes, so that more than one child can be the beginning of a path.
            if path == child.path or path.startswith(f"{child.path}/"):
                found = child.find(path)
                if found is not None:
                    return found
        return None


Place = tuple[Ref, Child | None]
"""An address and its row at its supervisor; the root has none."""


def find(root: Ref, path: str) -> Place | None:
    """Return who has a path (the root's own id may be left out), None when nobody has."""
    if path == root.child_id:
        return root, None
    below = path.removeprefix(f"{root.child_id}/")
    return _find_below(root, below) or _find_below(root, path)


def _find_below(ref: Ref, path: str) -> Place | None:
    children = ref.children or {}
    row = children.get(path)
    if row is not None:
        return row.ref, row
    for child_id, child in children.items():
        if child.ref.children is not None and path.startswith(f"{child_id}/"):
            found = _find_below(child.ref, path[len(child_id) + 1 :])
            if found is not None:
                return found
    return None


def find_by_id(root: Ref, child_id: str) -> list[Place]:
    """Return everybody below the root with this id."""
    children = root.children or {}
    row = children.get(child_id)
    found: list[Place] = [] if row is None else [(row.ref, row)]
    for child in children.values():
        if child.ref.children is not None:
            found += find_by_id(child.ref, child_id)
    return found


def snapshot(ref: Ref, child: Child | None, now: float, view: View = EVERYBODY) -> TreeNode:
    """Describe an actor and all below it; `child` is its row at its supervisor, None for the root."""
    incarnation = ref.incarnation
    lane = ref.mailbox.lane
    is_at_work = incarnation is not None and incarnation.phase in WORKING
    age_s = None if incarnation is None or not is_at_work else now - incarnation.begun_at
    current = None if incarnation is None else incarnation.current
    window = None if child is None else child.window
    shown, folded = _choose(ref, now, view)
    below = View(view.fold_above, view.shown_max) if view.skip else view
    return TreeNode(
        id=ref.child_id,
        path=ref.path,
        actor=ref.actor_class.__name__,
        state=_state(ref),
        generation=ref.generation,
        queue_length=len(lane),
        oldest_age_s=now - lane[0].posted_at if lane else None,
        current=None if current is None else type(current.message).__name__,
        current_age_s=age_s if current is not None and ref.state == "busy" else None,
        state_age_s=age_s,
        stuck_at=_stuck_at(ref),
        tasks=len(incarnation.tasks or ()) if incarnation is not None else 0,
        dropped=ref.mailbox.dropped,
        restarts=0 if child is None else child.restarts,
        restarts_in_window=0 if window is None else window.count(now),
        last_reason=ref.last_reason,
        children=tuple(snapshot(row.ref, row, now, below) for row in shown),
        folded=folded,
    )


def _stuck_at(ref: Ref) -> str | None:
    found = ref.system.overdue.get(ref)
    return found.place if found is not None and found.still_holds(ref.incarnation) else None


def _state(ref: Ref) -> str:
    return "stuck" if ref.incarnation is not None and ref.incarnation.stuck else ref.state


def _choose(ref: Ref, now: float, view: View) -> tuple[list[Child], Mapping[str, int]]:
    """Return which children are shown, and how many of the others are in which state."""
    rows = list((ref.children or {}).values())[view.skip :]
    left_out: list[Child] = []
    if view.fold_above is not None and len(rows) > view.fold_above:
        shown: list[Child] = []
        for row in rows:
            (left_out if _is_quiet(row, now) else shown).append(row)
        rows = sorted(shown, key=lambda row: _state(row.ref) not in ATTENTION and not _stuck_at(row.ref))
    if view.shown_max is not None:
        left_out += rows[view.shown_max :]
        rows = rows[: view.shown_max]
    return rows, Counter(_state(row.ref) for row in left_out)


def _is_quiet(row: Child, now: float) -> bool:
    ref = row.ref
    if ref.mailbox.lane or ref.children is not None or (row.window is not None and row.window.count(now)):
        return False
    incarnation = ref.incarnation
    if incarnation is None:
        return ref.condition == "passive"
    return incarnation.phase == "idle" and not incarnation.tasks
