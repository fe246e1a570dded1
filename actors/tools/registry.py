"""The registry: every standard tool by its name, and the one way to run one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import structlog

from actors.runtime.base import ToolDefinition, ToolUse
from actors.tools.base import Tool, ToolContext, ToolOutcome, check_arguments
from actors.tools.board import PostToBoard, ReadBoard
from actors.tools.files import EditFile, ListFiles, ReadFile, Search, WriteFile
from actors.tools.mail import ReadMailbox, SendMessage
from actors.tools.subagent import SpawnSubagent
from protocol.errors import AgentRunnerError

OUTPUT_CHARACTERS_MAX = 66_000
"""A tool's text is cut at this length before it reaches the model; what read_mailbox returns is never as long."""

_log = structlog.get_logger("tools")


def standard_tools() -> list[Tool]:
    """Return the standard set (section 7 of the specification), in the order in which it is offered."""
    return [
        ReadFile(),
        ListFiles(),
        Search(),
        WriteFile(),
        EditFile(),
        SendMessage(),
        ReadMailbox(),
        ReadBoard(),
        PostToBoard(),
        SpawnSubagent(),
    ]


class Registry:
    """The standard set, in the order in which it is offered."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools = {tool.definition.name: tool for tool in tools}
        self.path_arguments: Mapping[str, Mapping[str, str]] = {
            name: tool.path_arguments for name, tool in self._tools.items() if tool.path_arguments
        }

    @property
    def definitions(self) -> list[ToolDefinition]:
        """The definitions of the standard set."""
        return [tool.definition for tool in self._tools.values()]

    def __contains__(self, name: str) -> bool:
        return name in self._tools

    def with_own(self, tools: Iterable[ToolDefinition]) -> list[ToolDefinition]:
        """Return tools that a client brings, with the registry's definition of each that the registry runs."""
        return [self._tools[tool.name].definition if tool.name in self._tools else tool for tool in tools]

    def changes_trust(self, name: str) -> bool:
        """Return whether the outcome of a tool may lower the trust of the turn that called it."""
        tool = self._tools.get(name)
        return tool is not None and tool.changes_trust

    async def run(self, use: ToolUse, context: ToolContext) -> ToolOutcome:
        """Run a call that was let through; whatever goes wrong is an outcome with `is_error`."""
        tool = self._tools.get(use.name)
        if tool is None:
            return ToolOutcome(
                f"{use.name} is not executed by the runner: a client that brings tools of its own executes them. "
                f"Use one of: {', '.join(self._tools)}.",
                is_error=True,
            )
        problem = check_arguments(tool.definition, use.input)
        if problem is not None:
            return ToolOutcome(problem, is_error=True)
        try:
            outcome = await tool.run(use.input, context)
        except (AgentRunnerError, OSError) as error:
            _log.warning("tool failed", tool=use.name, session=context.session_key, error=str(error))
            return ToolOutcome(f"{use.name} failed: {error}", is_error=True)
        if isinstance(outcome.content, str):
            outcome = replace(outcome, content=_fit(outcome.content))
        return outcome


def _fit(text: str) -> str:
    """Return text that can be recorded and sent: no lone surrogates (a file's name may hold some), not too long."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= OUTPUT_CHARACTERS_MAX:
        return text
    left_out = len(text) - OUTPUT_CHARACTERS_MAX
    return f"{text[:OUTPUT_CHARACTERS_MAX]}\n[{left_out} more characters are left out]"
