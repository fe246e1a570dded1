"""Calls and results of a conversation in pairs, as a model server asks for them.

A request in which a call has no result, or a result no call, is refused whole. What a client sends is kept as it came,
so one such message would end its session for good: the conversation is mended each time it is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from actors.runtime.base import Block, Message

NO_RESULT: Final = "This call has no result here; whether it took effect is not known."
"""What stands for the result of a call that was never given one."""


def paired(messages: Sequence[Message]) -> Iterator[Message]:
    """Yield the messages with a result right behind every call, and results without a call as text."""
    waiting: list[str] = []
    for message in messages:
        blocks: list[Block] = message["content"] if isinstance(message["content"], list) else []
        if not (waiting or blocks):
            yield message  # text, as most messages are
            continue
        if message["role"] == "assistant":
            if waiting:
                yield {"role": "user", "content": [_missing(call) for call in waiting]}
            waiting = [block["id"] for block in blocks if block.get("type") == "tool_use"]
            yield message
            continue
        results = [block.get("tool_use_id") for block in blocks[: len(waiting)]]
        is_more = len(blocks) > len(waiting) and any(
            block.get("type") == "tool_result" for block in blocks[len(waiting) :]
        )
        yield message if results == waiting and not is_more else _mended(message, waiting)
        waiting = []


def _mended(message: Message, calls: Sequence[str]) -> Message:
    content = message["content"]
    blocks: list[Block] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    given: dict[str, Block] = {}
    others: list[Block] = []
    for block in blocks:
        if block.get("type") != "tool_result":
            others.append(block)
        elif block["tool_use_id"] in calls and block["tool_use_id"] not in given:
            given[block["tool_use_id"]] = block
        else:
            others += _as_text(block)
    return {"role": "user", "content": [*(given.get(call) or _missing(call) for call in calls), *others]}


def _missing(call: str) -> Block:
    return {"type": "tool_result", "tool_use_id": call, "content": NO_RESULT, "is_error": True}


def _as_text(result: Block) -> list[Block]:
    said: Block = {
        "type": "text",
        "text": f"[the result of a call that is not here, {result['tool_use_id']}]",
    }
    content = result.get("content")
    if isinstance(content, list):
        return [said, *content]
    return [said, {"type": "text", "text": content}] if content else [said]
