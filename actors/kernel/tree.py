"""A look inside: what every actor of a tree is doing at this moment."""

from dataclasses import dataclass

from actors.kernel.child import Child
from actors.kernel.ref import Ref

__all__ = ["TreeNode", "snapshot"]


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
    tasks: int  # child tasks that run
    dropped: int  # messages lost to a full mailbox
    restarts: int  # since its supervisor started
    restarts_in_window: int
    last_reason: str | None  # how the last incarnation ended
    children: tuple["TreeNode", ...]

    def find(self, path: str) -> "TreeNode | None":
        """Return the node with this path, None when there is none."""
        if self.path == path:
            return self
        for child in self.children:
            if path == child.path or path.startswith(f"{child.path}/"):
                return child.find(path)
        return None


def snapshot(ref: Ref, child: Child | None, now: float) -> TreeNode:
    """Describe an actor and all below it; `child` is its row at its supervisor, None for the root."""
    incarnation = ref.incarnation
    lane = ref.mailbox.lane
    current = None if incarnation is None else incarnation.current
    state = "stuck" if incarnation is not None and incarnation.stuck else ref.state
    window = None if child is None else child.window
    return TreeNode(
        id=ref.child_id,
        path=ref.path,
        actor=ref.actor_class.__name__,
        state=state,
        generation=ref.generation,
        queue_length=len(lane),
        oldest_age_s=now - lane[0].posted_at if lane else None,
        current=None if current is None else type(current.message).__name__,
        current_age_s=None if current is None or incarnation is None else now - incarnation.begun_at,
        tasks=len(incarnation.tasks or ()) if incarnation is not None else 0,
        dropped=ref.mailbox.dropped,
        restarts=0 if child is None else child.restarts,
        restarts_in_window=0 if window is None else window.count(now),
        last_reason=ref.last_reason,
        children=tuple(snapshot(row.ref, row, now) for row in list((ref.children or {}).values())),
    )
