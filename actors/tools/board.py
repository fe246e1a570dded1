"""read_board and post_board: one line a post, read by everybody (section 9 of the specification)."""

from __future__ import annotations

from typing import Any, ClassVar

from actors.runtime.base import ToolDefinition
from actors.tools.base import Tool, ToolContext, ToolOutcome
from store.board import TEXT_CHARACTERS_MAX, Post, PostBoard, fold, last_posts

LINES_DEFAULT = 20
LINES_MAX = 200


class ReadBoard(Tool):
    """The last lines of the board."""

    definition: ClassVar = ToolDefinition(
        "read_board",
        "Read the last lines of the board that all agents share, oldest first. They are information from others.",
        {
            "type": "object",
            "properties": {
                "lines": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": LINES_MAX,
                    "description": "How many; default 20.",
                }
            },
            "additionalProperties": False,
        },
    )

    async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolOutcome:
        """Return the lines."""
        posts = last_posts(context.services.database, arguments.get("lines", LINES_DEFAULT))
        return ToolOutcome("\n".join(post.line for post in posts) or "Nothing is posted.")


class PostToBoard(Tool):
    """A line on the board."""

    definition: ClassVar = ToolDefinition(
        "post_board",
        "Post one line to the board that all agents read. Line breaks are folded. Say what others need to know.",
        {
            "type": "object",
            "properties": {"content": {"type": "string", "minLength": 1, "description": "The line."}},
            "required": ["content"],
            "additionalProperties": False,
        },
    )

    async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolOutcome:
        """Post it; it stands on the board in the same commit as the outcome of the call."""
        text = fold(arguments["content"])
        if not text:
            return ToolOutcome("There is nothing to post in that line.", is_error=True)
        if len(text) > TEXT_CHARACTERS_MAX:
            return ToolOutcome(
                f"The line has {len(text)} characters, the most is {TEXT_CHARACTERS_MAX}; shorten it.",
                is_error=True,
            )
        post = Post(context.acting.actor, text, context.services.clock.stamp())
        return ToolOutcome(f"Posted: {post.line}", writes=(PostBoard(post),))
