"""What a tool is: a definition for the model, and a function from input to outcome.

A tool never raises through the turn: what goes wrong is an outcome with `is_error`. A tool that changes the store
does not write: it returns `writes`, which are committed in one transaction with its `tool_result` entry.
"""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import apsw

from actors.runtime.base import Block, ToolDefinition
from protocol.constitution import Limits
from protocol.tiers import Acting, Tier

if TYPE_CHECKING:
    from protocol.roster import Roster
    from store.clock import StrictClock
    from store.mailbox import Mail, Reader
    from store.unit_of_work import Write
    from store.workspace import Workspace


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """What a call gives: text for the model, whether it is an error, and what is to be committed with it.

    `content` is text, or blocks of the Messages API (text, image) where a client executed the call.
    `carried`: mail that the turn carries from now on. `sent`: mail whose recipients are to be told once committed.
    `timed_out` is an error of its own kind in the ledger.
    """

    content: str | list[Block]
    is_error: bool = False
    timed_out: bool = False
    writes: Sequence[Write] = ()
    carried: Sequence[Mail] = ()
    sent: Sequence[Mail] = ()

    @property
    def word(self) -> str:
        """The ledger's word for the outcome: completed, error or timeout."""
        if self.timed_out:
            return "timeout"
        return "error" if self.is_error else "completed"


@dataclass(frozen=True, slots=True)
class ToolServices:
    """What tools read beside the workspace: the store, the clock, and what the constitution of the moment says."""

    database: apsw.Connection
    clock: StrictClock
    roster: Callable[[], Roster]
    limits: Callable[[], Limits]


@dataclass(slots=True)
class ToolContext:
    """Where a call runs: for whom, with which trust and reach, and the doors that it may use.

    `tier` and `workspace` are those in force at this moment of the turn. `hops` is the longest thread of mail that the
    turn carries (0 if none), `thread` that thread. `reader`: under whose addresses mail arrives here, or None. The
    `services` are the store and the roster; `run_child` runs a prompt in a child session of the same or lower reach.
    """

    call_id: str
    session_id: str
    session_key: str
    turn_id: str
    acting: Acting
    reader: Reader | None
    tier: Tier
    workspace: Workspace
    hops: int
    thread: str | None
    services: ToolServices
    run_child: Callable[[str, str | None], Awaitable[ToolOutcome]]
    output: Callable[[str], None] = field(default=lambda _text: None)


class Tool(abc.ABC):
    """One tool of the standard set.

    `path_arguments` maps the name of an argument that is a path to "read" or "write": the gate holds it to the mounts
    before the tool runs. `changes_trust` is true for a tool whose outcome may lower the turn's trust.
    """

    definition: ClassVar[ToolDefinition]
    path_arguments: ClassVar[dict[str, str]] = {}
    changes_trust: ClassVar[bool] = False

    @abc.abstractmethod
    async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolOutcome:
        """Run the call; `arguments` have the shape of the schema (checked by the registry)."""


def check_arguments(definition: ToolDefinition, arguments: dict[str, Any]) -> str | None:
    """Return what is wrong with the arguments of a call, as a sentence for the model, or None.

    Checks what the standard tools' schemas use: required, unknown and wrongly typed arguments, minimum and maximum.
    """
    properties: dict[str, Any] = definition.input_schema.get("properties", {})
    for name in definition.input_schema.get("required", []):
        if name not in arguments:
            return f"{definition.name} needs the argument {name!r}; give it and call again."
    for name, value in arguments.items():
        schema = properties.get(name)
        if schema is None:
            known = ", ".join(properties) or "none"
            return f"{definition.name} has no argument {name!r}; it takes: {known}."
        problem = _type_problem(schema, value)
        if problem is not None:
            return f"the argument {name!r} of {definition.name} {problem}."
    return None


_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}


def _type_problem(schema: dict[str, Any], value: Any) -> str | None:
    wanted = schema.get("type", "string")
    if not isinstance(value, _TYPES[wanted]) or (isinstance(value, bool) and wanted != "boolean"):
        return f"must be of type {wanted}, not {type(value).__name__}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = schema.get("minimum"), schema.get("maximum")
        if (low is not None and value < low) or (high is not None and value > high):
            return f"must be from {low} to {high}, not {value}"
    if isinstance(value, str) and len(value) < schema.get("minLength", 0):
        return "must not be empty"
    return None
