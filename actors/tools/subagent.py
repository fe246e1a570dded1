"""spawn_subagent: a child session of the same or lower trust and scope (section 7 of the specification)."""

from __future__ import annotations

from typing import Any, ClassVar

from actors.runtime.base import ToolDefinition
from actors.tools.base import Tool, ToolContext, ToolOutcome

TIMEOUT_S = 120
"""A child that is not done by then is cancelled."""


class SpawnSubagent(Tool):
    """A piece of work given to a child session, whose last words are the result."""

    path_arguments: ClassVar[dict[str, str]] = {"working_dir": "read"}
    definition: ClassVar = ToolDefinition(
        "spawn_subagent",
        f"Give a self-contained piece of work to a subagent and wait for its answer, at most {TIMEOUT_S} seconds. "
        "It has your tools and at most your reach, and knows only what the prompt says. With working_dir it can write "
        "only there.",
        {
            "type": "object",
            "properties": {
                "prompt": {"type": "string", "minLength": 1, "description": "The whole task."},
                "working_dir": {"type": "string", "description": "The only folder in which it may write."},
            },
            "required": ["prompt"],
            "additionalProperties": False,
        },
    )

    async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolOutcome:
        """Run the child to its end."""
        return await context.run_child(arguments["prompt"], arguments.get("working_dir"))
