"""The rehearsal backend: a model server played in this process, so that a runner without a key shows all of itself.

Deterministic and without a network. It follows the words of `rehearsal_words`, sees of a request exactly what a real
server would see, and answers in bytes of the Messages API, which go through the same parser and loop as the real ones.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import orjson
import trio
from blake3 import blake3

from actors.runtime.base import Block, Message, SessionIdentity, TurnRequest
from actors.runtime.messages_loop import MessagesRuntime, ModelSettings, Payload
from actors.runtime.rehearsal_words import (
    HELP,
    CallTool,
    Command,
    Fail,
    Introduce,
    ListTools,
    Say,
    Slow,
    Step,
    Stop,
    Think,
    plan,
)
from protocol.messages import excerpt

QUOTE_CHARACTERS_MAX: Final = 300
"""Characters of one tool result that the closing answer quotes."""

QUOTES_MAX: Final = 10
"""Tool results that the closing answer quotes; the others are counted."""

_PIECE: Final = re.compile(r"(?:\S+\s*){1,4}|\s+")


class RehearsalRuntime(MessagesRuntime):
    """Answers by simple rules instead of a model."""

    name = "rehearsal"

    def __init__(self) -> None:
        super().__init__(ModelSettings(model="rehearsal"))

    @asynccontextmanager
    async def open_stream(
        self, session: SessionIdentity, request: TurnRequest, payload: Payload
    ) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        """Yield the answer as a server would send it, with a checkpoint before each piece."""
        del session
        async with aclosing(_paced(Answer(payload, request.turn_id).parts())) as chunks:
            yield chunks

    def status(self) -> dict[str, Any]:
        """Return name, model and health; rehearsal is always well."""
        return {"name": self.name, "model": "rehearsal", "health": "ok", "note": "no model is asked"}


async def _paced(parts: Iterator[bytes | float]) -> AsyncGenerator[bytes, None]:
    for part in parts:
        if isinstance(part, float):
            await trio.sleep(part)
        else:
            await trio.lowlevel.checkpoint()
            yield part


class Answer:
    """One answer to one request, as bytes of an event stream and seconds to wait between them."""

    def __init__(self, payload: Payload, turn_id: str) -> None:
        self._payload = payload
        self._turn_id = turn_id
        self._offered: list[str] = [tool["name"] for tool in payload.get("tools", [])]
        self._index = 0
        self._written = 0
        texts, self._results = _turn_so_far(payload["messages"])
        self._texts = texts
        self._round, self._commands = self._this_round(plan(texts))

    def parts(self) -> Iterator[bytes | float]:
        """Yield the whole answer."""
        yield _event(
            "message_start",
            message={
                "id": f"msg_{self._identifier('message')}",
                "type": "message",
                "role": "assistant",
                "model": self._payload["model"],
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": len(orjson.dumps(self._payload)) // 4, "output_tokens": 1},
            },
        )
        stop_reason = "end_turn"
        for command in self._commands:
            if isinstance(command, Fail):
                yield from self._text("I begin, and then the stream fails. ")
                if command.error_type != "cut":
                    error = {"type": command.error_type, "message": "rehearsed failure"}
                    yield _event("error", error=error)
                return
            if isinstance(command, Stop):
                stop_reason = command.stop_reason
                break
            yield from self._perform(command)
            if isinstance(command, CallTool) and self._tool_for(command):
                stop_reason = "tool_use"
        yield _event(
            "message_delta",
            delta={"stop_reason": stop_reason, "stop_sequence": None},
            usage={"output_tokens": max(1, self._written // 4)},
        )
        yield _event("message_stop")

    def _this_round(self, steps: list[Step]) -> tuple[int, list[Command]]:
        """Return which model call of the turn this is, and what to do in it: everything up to the next tool calls."""
        rounds: list[list[Command]] = []
        pending: list[Command] = []
        for step in steps:
            pending += step
            if any(isinstance(command, CallTool) and self._tool_for(command) for command in step):
                rounds.append(pending)
                pending = []
                if any(isinstance(command, CallTool) and command.is_endless for command in step):
                    break
        number = len({round_number for round_number, _, _ in self._results})
        if number < len(rounds):
            return number, rounds[number]
        if rounds and any(isinstance(command, CallTool) and command.is_endless for command in rounds[-1]):
            return number, rounds[-1]
        closing = [*pending]
        if self._results:
            closing.insert(0, Say(self._summary()))
        elif not steps:
            closing.append(Say(self._greeting()))
        return number, closing

    def _perform(self, command: Command) -> Iterator[bytes | float]:
        if isinstance(command, Say):
            yield from self._text(command.text)
        elif isinstance(command, Think):
            yield from self._thinking(f"I think about {command.text}.")
            yield from self._text(f"I have thought about {command.text}.")
        elif isinstance(command, Slow):
            yield from self._block(
                {"type": "text", "text": ""},
                "text_delta",
                "text",
                [f"word{number} " for number in range(1, command.words + 1)],
                command.delay_s,
            )
        elif isinstance(command, Introduce):
            yield from self._text(_introduction(self._payload))
        elif isinstance(command, ListTools):
            names = ", ".join(self._offered) or "none"
            yield from self._text(f"I was offered these tools: {names}.")
        elif isinstance(command, CallTool):
            yield from self._call(command)

    def _call(self, command: CallTool) -> Iterator[bytes | float]:
        name = self._tool_for(command)
        if not name:
            yield from self._text(
                f"I have no tool {command.name} here." if command.name else "I have no tools here."
            )
            return
        written = command.written
        call_id = f"toolu_{self._identifier('call')}"
        yield from self._block(
            {"type": "tool_use", "id": call_id, "name": name, "input": {}},
            "input_json_delta",
            "partial_json",
            [written[start : start + 24] for start in range(0, len(written), 24)],
        )

    def _tool_for(self, command: CallTool) -> str:
        """Return the tool that a command calls, or nothing if it was not offered."""
        if not command.name:
            return self._offered[0] if self._offered else ""
        return command.name if command.is_forced or command.name in self._offered else ""

    def _text(self, text: str) -> Iterator[bytes | float]:
        separator = "\n" if self._index else ""
        return self._block(
            {"type": "text", "text": ""}, "text_delta", "text", _PIECE.findall(separator + text)
        )

    def _thinking(self, text: str) -> Iterator[bytes | float]:
        block: Block = {"type": "thinking", "thinking": "", "signature": ""}
        return self._block(block, "thinking_delta", "thinking", _PIECE.findall(text), signature=True)

    def _block(
        self,
        block: Block,
        delta_type: str,
        field: str,
        pieces: Sequence[str],
        delay_s: float = 0.0,
        *,
        signature: bool = False,
    ) -> Iterator[bytes | float]:
        index = self._index
        self._index += 1
        yield _event("content_block_start", index=index, content_block=block)
        for piece in pieces:
            if delay_s:
                yield delay_s
            self._written += len(piece)
            yield _event("content_block_delta", index=index, delta={"type": delta_type, field: piece})
        if signature:
            delta = {"type": "signature_delta", "signature": self._identifier("signature")}
            yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)

    def _identifier(self, kind: str) -> str:
        """Return a name that is the same every time for the same place in the same turn, and unique otherwise."""
        return blake3(f"{self._turn_id}:{self._round}:{self._index}:{kind}".encode()).hexdigest()[:24]

    def _summary(self) -> str:
        lines: list[str] = []
        for _, call, result in self._results[:QUOTES_MAX]:
            text = excerpt(_result_text(result), QUOTE_CHARACTERS_MAX)
            verb = "failed" if result.get("is_error") else "gave"
            lines.append(f"{_call_label(call)} {verb}: {text or '(nothing)'}")
        if len(self._results) > QUOTES_MAX:
            lines.append(f"… and {len(self._results) - QUOTES_MAX} more results.")
        return "\n".join(lines)

    def _greeting(self) -> str:
        said = excerpt(self._texts[-1], 80) if self._texts else ""
        heard = f"You said “{said}”. " if said else ""
        return f"{heard}This is rehearsal: no model is asked, I follow simple words. You can type: {HELP}."


def _turn_so_far(messages: Sequence[Message]) -> tuple[list[str], list[tuple[int, Block, Block]]]:
    """Return the texts that began the turn, and the results since: number of the round, call and result."""
    start = len(messages)
    while start and (messages[start - 1]["role"] == "assistant" or _results_of(messages[start - 1])):
        start -= 1
    first = start
    while first and messages[first - 1]["role"] == "user" and not _results_of(messages[first - 1]):
        first -= 1
    texts = [text for message in messages[first:start] for text in _texts_of(message)]
    calls: dict[str, Block] = {}
    results: list[tuple[int, Block, Block]] = []
    for number, message in enumerate(messages[start:]):
        if message["role"] == "assistant" and not isinstance(message["content"], str):
            calls |= {block["id"]: block for block in message["content"] if block.get("type") == "tool_use"}
        results += [(number, calls.get(result["tool_use_id"], {}), result) for result in _results_of(message)]
    return texts, results


def _results_of(message: Message) -> list[Block]:
    content = message["content"]
    if isinstance(content, str):
        return []
    return [block for block in content if block.get("type") == "tool_result"]


def _texts_of(message: Message) -> list[str]:
    content = message["content"]
    if isinstance(content, str):
        return [content]
    return [block["text"] for block in content if block.get("type") == "text"]


def _result_text(result: Block) -> str:
    content = result.get("content", "")
    if isinstance(content, str):
        return content
    return " ".join(block.get("text", "") for block in content if isinstance(block, dict))


def _call_label(call: Block) -> str:
    arguments = call.get("input") or {}
    first = next(iter(arguments.values()), "")
    name = str(call.get("name", "the tool"))
    return f"{name} {excerpt(first, 60)}" if isinstance(first, str) and first else name


def _introduction(payload: Payload) -> str:
    """Quote what the system prompt says of who speaks: the first heading of the first rank is the mandate's."""
    lines = [line.strip() for part in payload.get("system", []) for line in part["text"].splitlines()]
    headings = [line for line in lines if line.startswith("# ")]
    if headings:
        return f"My mandate begins: “{excerpt(headings[0].lstrip('# '), 120)}”."
    first = next((line for line in lines if line), "")
    return (
        f"My mandate has no heading; my instructions begin: “{excerpt(first, 120)}”."
        if first
        else "I have no mandate."
    )


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))
