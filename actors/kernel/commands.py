"""What can be asked of a supervisor, as messages and as methods of its address."""

from dataclasses import dataclass

from actors.kernel.child import ChildSpec
from actors.kernel.errors import UnknownChildError
from actors.kernel.ref import Ref

__all__ = ["DeleteChild", "RestartChild", "RetryChild", "StartChild", "SupervisorRef", "TerminateChild"]


@dataclass(frozen=True, slots=True)
class StartChild:
    """Command to a supervisor; answered with the new child's ref once its `on_start` returned."""

    spec: ChildSpec


@dataclass(frozen=True, slots=True)
class TerminateChild:
    """Command to a supervisor; answered once the child has ended and nothing of it runs."""

    child_id: str


@dataclass(frozen=True, slots=True)
class RestartChild:
    """Command to a supervisor: start a child that has ended; answered with its ref."""

    child_id: str


@dataclass(frozen=True, slots=True)
class DeleteChild:
    """Command to a supervisor: forget the spec of a child that has ended."""

    child_id: str


@dataclass(frozen=True, slots=True)
class RetryChild:
    """Command to a supervisor: start a parked or waiting child now; answered with whether there was need."""

    child_id: str


class SupervisorRef(Ref):
    """The address of a supervisor, with its commands as methods for tasks outside it."""

    __slots__ = ()

    def child(self, child_id: str) -> Ref | None:
        """Return the address of a child in whatever state, None when there is none of this id."""
        child = (self.children or {}).get(child_id)
        return None if child is None else child.ref

    def find(self, path: str) -> Ref | None:
        """Return the address of a descendant by its ids joined by slashes, None when there is none."""
        child_id, _, rest = path.partition("/")
        ref = self.child(child_id)
        if not rest:
            return ref
        return ref.find(rest) if isinstance(ref, SupervisorRef) else None

    def supervisor(self, child_id: str) -> "SupervisorRef":
        """Return the address of a child that is a supervisor. Raises UnknownChildError, TypeError if it is none."""
        ref = self.child(child_id)
        if ref is None:
            raise UnknownChildError(child_id)
        if not isinstance(ref, SupervisorRef):
            raise TypeError(f"child {child_id!r} is not a supervisor; use child()")
        return ref

    async def start_child(self, spec: ChildSpec) -> Ref:
        """Add a child and return its ref once its `on_start` returned.

        Raises ChildStartError (the spec is forgotten), ChildExistsError, TooManyChildrenError.
        """
        ref: Ref = await self.ask(StartChild(spec))
        return ref

    async def terminate_child(self, child_id: str) -> None:
        """Stop a child for good; a Supervisor keeps its spec for `restart_child`. Raises UnknownChildError."""
        await self.ask(TerminateChild(child_id))

    async def restart_child(self, child_id: str) -> Ref:
        """Start a child that has ended, behind the same ref. Raises ChildStartError, ChildExistsError if it runs."""
        ref: Ref = await self.ask(RestartChild(child_id))
        return ref

    async def delete_child(self, child_id: str) -> None:
        """Forget a child that has ended. Raises UnknownChildError, ChildExistsError if it runs."""
        await self.ask(DeleteChild(child_id))

    async def retry(self, child_id: str) -> bool:
        """Start a parked child, or one in back-off, at once with a fresh window; whether it was in either state."""
        retried: bool = await self.ask(RetryChild(child_id))
        return retried
