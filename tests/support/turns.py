"""What a backend needs to run a turn in a test: a session, a request, and a host that remembers what it was asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from actors.runtime.base import Block, Message, SessionIdentity, ToolDefinition, ToolUse, TurnRequest, Usage
from protocol.events import Event, ReasoningDelta, TextDelta, ToolCall, UsageUpdate
from protocol.tiers import Acting, Tier

STANDARD_TOOLS = (
    "read_file",
    "list_files",
    "search",
    "write_file",
    "edit_file",
    "bash",
    "send_message",
    "read_mailbox",
    "read_board",
    "post_board",
    "spawn_subagent",
)


class RememberingHost:
    """Answers every call with `result of NAME`, unless `answer` says otherwise, and remembers everything."""

    def __init__(self, answer: Callable[[ToolUse], str | Awaitable[str]] | None = None) -> None:
        self.events: list[Event] = []
        self.kept: list[Block] = []
        self.spent: list[Usage] = []
        self.calls: list[list[ToolUse]] = []
        self.on_event: Callable[[Event], None] = lambda _event: None
        self._answer = answer or (lambda call: f"result of {call.name}")

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self.on_event(event)

    def keep(self, block: Block) -> None:
        self.kept.append(block)

    def spend(self, usage: Usage) -> None:
        self.spent.append(usage)

    async def call_tools(self, calls: Sequence[ToolUse]) -> list[Block]:
        self.calls.append(list(calls))
        results: list[Block] = []
        for call in calls:
            answer = call.problem or self._answer(call)
            content = answer if isinstance(answer, str) else await answer
            results.append(
                {
                    "type": "tool_result",
                    "tool_use_id": call.id,
                    "content": content,
                    "is_error": call.problem is not None,
                }
            )
        return results

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    @property
    def reasoning(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, ReasoningDelta))

    @property
    def called(self) -> list[tuple[str, dict[str, Any]]]:
        """Name and input of every call that was handed over."""
        return [(call.name, call.input) for calls in self.calls for call in calls]

    @property
    def announced(self) -> list[ToolCall]:
        return [event for event in self.events if isinstance(event, ToolCall)]

    @property
    def usage(self) -> list[tuple[int, int]]:
        return [
            (event.input_tokens, event.output_tokens)
            for event in self.events
            if isinstance(event, UsageUpdate)
        ]


def session(model: str | None = None) -> SessionIdentity:
    acting = Acting("reed", "reed", "reed", "reed", "reed", Tier.STANDING, "reed")
    return SessionIdentity("session-1", "reed:cli:local", acting, model)


def tools(*names: str) -> list[ToolDefinition]:
    return [ToolDefinition(name, f"Does {name}.", {"type": "object", "properties": {}}) for name in names]


def request(
    *messages: str | Message | list[Block],
    system: tuple[str, ...] = ("You are run.", "The board."),
    system_stable: int = 1,
    offered: Sequence[str] = STANDARD_TOOLS,
    model_calls_max: int = 10,
    turn_id: str = "turn-1",
) -> TurnRequest:
    """Return a request; a text or a list of blocks stands for a message of the user."""
    return TurnRequest(
        turn_id=turn_id,
        system=system,
        system_stable=system_stable,
        messages=[one if isinstance(one, dict) else {"role": "user", "content": one} for one in messages],
        tools=tools(*offered),
        model_calls_max=model_calls_max,
    )
