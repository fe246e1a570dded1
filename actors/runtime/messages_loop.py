"""The tool loop of every backend that speaks the Messages API: call the model, run its calls, call it again.

A backend of this kind only opens a stream of bytes for a request; parsing, keeping, counting and looping are here, so
that rehearsal and a real model go the same way.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from typing import Any, Final, Literal

import trio

from actors.runtime.base import (
    AgentRuntime,
    Block,
    Message,
    SessionIdentity,
    ToolUse,
    TurnHost,
    TurnRequest,
    Usage,
)
from actors.runtime.pairing import paired
from protocol.errors import BackendError
from protocol.events import UsageUpdate
from protocol.messages import BlockEnded, MessageStream
from protocol.sse import EventStreamParser, ServerSentEvent

Payload = dict[str, Any]
"""The JSON body of one `POST /v1/messages`."""

ByteStream = AbstractAsyncContextManager[AsyncGenerator[bytes, None]]
"""The body of one streamed answer; leaving the context closes it at once."""

Thinking = int | Literal["adaptive", "between_tools", "disabled"] | None
"""A budget in tokens (at least 1024, for models that take one), a mode, or None: nothing is said about it.

None is the default because it is the one setting that no model refuses: the newest refuse a budget and `disabled`, the
older ones `adaptive`.
"""

DRAIN_S: Final = 0.25
"""How long the end of a body is waited for once the answer is complete, so that its connection can be used again."""

CACHE_BREAKPOINT: Final[dict[str, str]] = {"type": "ephemeral"}

_CUT_OFF: Final = {
    "max_tokens": "The answer was cut off at the token limit, so this call was not run.",
    "refusal": "The model declined to go on, so this call was not run.",
    "stop_sequence": "The answer ended at a stop sequence, so this call was not run.",
}


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What is asked of the model where the session does not say: model, longest answer in tokens, thinking."""

    model: str
    tokens_max: int = 32_000
    thinking: Thinking = None


@dataclass(slots=True)
class _Answer:
    """One complete model message."""

    content: list[Block]
    calls: list[ToolUse]
    stop_reason: str = "end_turn"


class MessagesRuntime(AgentRuntime):
    """A backend that speaks the Messages API; a subclass opens the byte streams.

    Keeps nothing per session, so `cancel` and `close` have nothing to do: a cancelled task closes its own stream.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings

    @abc.abstractmethod
    def open_stream(self, session: SessionIdentity, request: TurnRequest, payload: Payload) -> ByteStream:
        """Return the context in which the answer to `payload` is read, as bytes of `text/event-stream`.

        Entering or reading raises BackendError when the server fails.
        """

    async def ensure_session(self, session: SessionIdentity) -> None:
        """Nothing is kept per session."""

    async def cancel(self, session_id: str) -> None:
        """Nothing runs outside the calling task."""

    async def close(self, session_id: str) -> None:
        """Nothing is kept per session."""

    async def run_turn(self, session: SessionIdentity, request: TurnRequest, host: TurnHost) -> str:
        """Run one turn: at most `request.model_calls_max` model calls; returns the last one's stop reason.

        Raises BackendError. What the model had completed until then was given to `host.keep`.
        """
        messages = list(request.messages)
        spent = Usage()
        for _ in range(request.model_calls_max):
            payload = build_payload(session, request, messages, self.settings)
            answer = await self._call_model(session, request, payload, host, spent)
            _append_assistant(messages, answer.content)
            refused = _CUT_OFF.get(answer.stop_reason)
            if answer.calls:
                if refused is not None:
                    # They stand in the history and need results, but half an answer is not to be acted upon.
                    answer.calls = [ToolUse(call.id, call.name, {}, refused) for call in answer.calls]
                results = await host.call_tools(answer.calls)
                messages.append({"role": "user", "content": results})
                if refused is None:
                    continue
            if answer.stop_reason != "pause_turn":
                return "end_turn" if answer.stop_reason == "tool_use" else answer.stop_reason
        return "max_turn_requests"

    async def _call_model(
        self, session: SessionIdentity, request: TurnRequest, payload: Payload, host: TurnHost, spent: Usage
    ) -> _Answer:
        parser, stream, answer = EventStreamParser(), MessageStream(), _Answer([], [])

        def take(events: Sequence[ServerSentEvent]) -> None:
            for event in events:
                for item in stream.receive(event):
                    if isinstance(item, BlockEnded):
                        host.keep(item.block)
                        answer.content.append(item.block)
                        if item.call is not None:
                            answer.calls.append(ToolUse(*item.call))
                    elif isinstance(item, UsageUpdate):
                        item.input_tokens += spent.input_tokens
                        item.output_tokens += spent.output_tokens
                        host.emit(item)
                    else:
                        host.emit(item)

        try:
            async with self.open_stream(session, request, payload) as chunks, aclosing(chunks):
                async for chunk in chunks:
                    take(parser.feed(chunk))
                    if stream.is_complete:
                        break
                else:
                    take(parser.finish())
                if stream.is_complete:
                    await _drain(chunks)
            stream.finish()
        finally:
            tokens = stream.tokens_spent()
            usage = Usage(
                tokens.input_tokens,
                tokens.output_tokens,
                tokens.cache_creation_input_tokens,
                tokens.cache_read_input_tokens,
            )
            spent.add(usage)
            host.spend(usage)
        answer.stop_reason = stream.stop_reason
        return answer


async def _drain(chunks: AsyncGenerator[bytes, None]) -> None:
    """Read what follows a complete answer, which is usually nothing; that it breaks off no longer matters."""
    with trio.move_on_after(DRAIN_S), contextlib.suppress(BackendError):
        async for _ in chunks:
            pass


def build_payload(
    session: SessionIdentity, request: TurnRequest, messages: Sequence[Message], settings: ModelSettings
) -> Payload:
    """Return the body of a model call, with at most four prompt-cache breakpoints.

    They end the tools, the stable system parts, the last message, and the user's message before it, where the previous
    call of the same turn had its last one (a server looks back only some twenty blocks for it).
    """
    payload: Payload = {
        "model": session.model or settings.model,
        "max_tokens": settings.tokens_max,
        "stream": True,
        "messages": _outgoing_messages(messages),
    }
    system = _system_blocks(request)
    if system:
        payload["system"] = system
    if request.tools:
        tools: list[dict[str, Any]] = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}
            for tool in request.tools
        ]
        tools[-1]["cache_control"] = CACHE_BREAKPOINT
        payload["tools"] = tools
    if isinstance(settings.thinking, int):
        payload["thinking"] = {"type": "enabled", "budget_tokens": settings.thinking}
        payload["max_tokens"] = (
            settings.tokens_max + settings.thinking
        )  # the budget counts as part of the answer
    elif settings.thinking == "adaptive":
        payload["thinking"] = {"type": "adaptive", "display": "summarized"}
    elif settings.thinking is not None:
        payload["thinking"] = {"type": settings.thinking}
    return payload


def _system_blocks(request: TurnRequest) -> list[Block]:
    blocks: list[Block] = []
    last_stable: Block | None = None
    for number, part in enumerate(request.system):
        if not part.strip():
            continue  # the server refuses empty text
        block: Block = {"type": "text", "text": part}
        blocks.append(block)
        if number < request.system_stable:
            last_stable = block
    if last_stable is not None:
        last_stable["cache_control"] = CACHE_BREAKPOINT
    return blocks


def _outgoing_messages(messages: Sequence[Message]) -> list[Message]:
    messages = list(paired(messages))
    turn_start = _turn_start(messages)
    outgoing: list[Message] = []
    for number, message in enumerate(messages):
        content = message["content"]
        if not isinstance(content, str) and not all(map(_is_plain, content)):
            content = [
                _outgoing_block(block) for block in content if _is_sendable(block, number < turn_start)
            ]
        if content:
            outgoing.append({"role": message["role"], "content": content})
    users = [number for number, message in enumerate(outgoing) if message["role"] == "user"]
    for number in {len(outgoing) - 1, *users[-2:-1]}:
        if number >= 0:
            _set_breakpoint(outgoing[number])
    return outgoing


def _turn_start(messages: Sequence[Message]) -> int:
    """Return the index of the last message of the user that is not the results of tools."""
    for number in range(len(messages) - 1, -1, -1):
        message = messages[number]
        if message["role"] == "user" and not _has_results(message["content"]):
            return number
    return 0


def _has_results(content: str | list[Block]) -> bool:
    return not isinstance(content, str) and any(block.get("type") == "tool_result" for block in content)


def _is_plain(block: Block) -> bool:
    """Say whether a block goes out as it is; of a long history nearly all do."""
    return "cache_control" not in block and block.get("type") not in ("thinking", "redacted_thinking")


def _is_sendable(block: Block, is_earlier_turn: bool) -> bool:  # noqa: FBT001 - one caller, next to it
    """Say whether a kept block goes to the server.

    Thinking is bound to the model and the conversation that it was written in. Within a turn it must come back as it
    was; in a later one the model may be another and old turns may be left out, and a server refuses what does not fit,
    so the thinking of earlier turns stays at home.
    """
    if block.get("type") not in ("thinking", "redacted_thinking"):
        return True
    return not is_earlier_turn


def _outgoing_block(block: Block) -> Block:
    # A client's own breakpoints would exceed the four that a request may have.
    return {name: value for name, value in block.items() if name != "cache_control"}


def _set_breakpoint(message: Message) -> None:
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    last = content[-1]
    if last.get("type") in ("thinking", "redacted_thinking") or (
        last.get("type") == "text" and not last.get("text")
    ):
        return  # neither may carry one
    # The blocks, and the list that holds them, may be those of the history.
    message["content"] = [*content[:-1], {**last, "cache_control": CACHE_BREAKPOINT}]


def _append_assistant(messages: list[Message], content: list[Block]) -> None:
    """Add an answer; after a paused one it continues the same message."""
    if messages and messages[-1]["role"] == "assistant" and not isinstance(messages[-1]["content"], str):
        messages[-1] = {"role": "assistant", "content": [*messages[-1]["content"], *content]}
    else:
        messages.append({"role": "assistant", "content": content})
