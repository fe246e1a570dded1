"""Delegation: the calls of a turn that its client executes, and the answers that they wait for.

A client that sends `execute: "client"` executes the tools that it brings (section 7 of the specification). Names of the
standard set among them stay the runner's: it offers its own definition of them and runs them itself. The court judges
a delegated call as any other, and its verdict and its `tool_call` entry are durable before the client is given the
order. From then on the call waits here, in the memory of the session that runs the turn, for as long as
`delegated_tool_timeout_s` and whatever becomes of the connection: whoever may use the session may answer.

What a client answers is text from outside, as what a tool reads in a file is. It is recorded as the outcome and lowers
nobody's trust: it comes from the side whose trust the session has anyway.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import trio

from actors.runtime.base import Block, ToolUse
from actors.tools.base import ToolOutcome
from actors.tools.registry import OUTPUT_CHARACTERS_MAX
from protocol.errors import RequestError

RESULT_CHARACTERS_MAX: Final = OUTPUT_CHARACTERS_MAX
"""How long the text of an answer may be, all its blocks together: as long as that of a tool of the runner."""

RESULT_BLOCKS_MAX: Final = 100
"""How many blocks an answer may have; the size of its images is bounded by that of a frame."""


@dataclass(slots=True)
class _Order:
    """A call that the client was told to execute; `outcome` is set before `answered`."""

    deadline: float
    answered: trio.Event = field(default_factory=trio.Event)
    outcome: ToolOutcome | None = None


class Delegations:
    """The tools that the client of one turn executes, by name, and its calls that wait for an answer, by call id."""

    def __init__(self, tools: Iterable[str] = (), *, timeout_s: float = 0.0) -> None:
        self._tools = frozenset(tools)
        self._timeout_s = timeout_s
        self._orders: dict[str, _Order] = {}

    def __contains__(self, tool: str) -> bool:
        return tool in self._tools

    def order(self, use: ToolUse) -> None:
        """Let a call be answered from now on, until its time is over; `wait` for it next."""
        self._orders[use.id] = _Order(trio.current_time() + self._timeout_s)

    async def wait(self, use: ToolUse) -> ToolOutcome:
        """Return what the client answers to an ordered call; no answer in time is an outcome too."""
        order = self._orders[use.id]
        try:
            with trio.CancelScope(deadline=order.deadline):
                await order.answered.wait()
        finally:
            self._orders.pop(use.id, None)
        return order.outcome or ToolOutcome(
            f"The client that executes {use.name} gave no result within {self._timeout_s:g} s; whether the call took "
            "effect is not known.",
            is_error=True,
            timed_out=True,
        )

    def answer(self, call_id: str, content: str | list[Block], *, is_error: bool) -> None:
        """Give a waiting call its result.

        Raises RequestError: `unknown_tool_call` where no such call waits (never ordered, answered, or too late), and
        `invalid_params` for a result that cannot be taken, upon which the call goes on waiting for another one.
        """
        order = self._orders.get(call_id)
        if order is None or order.outcome is not None:
            raise unknown_call(call_id)
        if isinstance(content, list):
            content = _usable_blocks(content, is_error=is_error)
        _check_length(content)
        order.outcome = ToolOutcome(content, is_error=is_error)
        order.answered.set()


def unknown_call(call_id: str) -> RequestError:
    """Return the refusal of an answer that no call waits for."""
    return RequestError("unknown_tool_call", f"no call {call_id!r} waits for a result in this session")


def _usable_blocks(blocks: list[Block], *, is_error: bool) -> str | list[Block]:
    """Return the blocks that a model server takes in a tool result; one that it refused would spoil the history."""
    if len(blocks) > RESULT_BLOCKS_MAX:
        raise RequestError(
            "invalid_params",
            f"`params.content`: a result has at most {RESULT_BLOCKS_MAX} blocks, this has {len(blocks)}; "
            "the call still waits for one that fits",
        )
    if is_error and any(block["type"] != "text" for block in blocks):
        raise RequestError(
            "invalid_params",
            "`params.content`: a result with is_error holds text only; the call still waits for one that does",
        )
    # Model servers take no text of white space alone.
    return [block for block in blocks if block["type"] != "text" or block["text"].strip()] or ""


def _check_length(content: str | list[Block]) -> None:
    texts = [content] if isinstance(content, str) else [block.get("text", "") for block in content]
    length = sum(map(len, texts))
    if length > RESULT_CHARACTERS_MAX:
        raise RequestError(
            "invalid_params",
            f"`params.content`: the text of a result has at most {RESULT_CHARACTERS_MAX} characters, this has "
            f"{length}; the call still waits for a shorter one",
        )
