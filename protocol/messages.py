"""One streamed answer of the Messages API, read event by event: events of the wire in, events of a turn out.

Sans I/O. Every backend that speaks the Messages API goes through it, rehearsal too. A block is handed out when it is
complete and not before, so that a turn that is cancelled or fails keeps exactly what the model had finished.

What is unknown is passed over: new event types, delta types and stop reasons do not break a turn. What is broken
(not JSON, a field of the wrong type, a block that was never begun, an end without `message_stop`) is a BackendError.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

import msgspec
import orjson

from protocol.canonical import canonical_json
from protocol.errors import BackendError, CanonicalError
from protocol.events import Event, ReasoningDelta, TextDelta, ToolCall, ToolCallUpdate, UsageUpdate
from protocol.sse import ServerSentEvent

ANSWER_SIZE_MAX: Final = 32 * 1024 * 1024
"""Bytes of all events of one answer; an answer that does not end is not held in memory without limit."""

CALL_NAME_LENGTH_MAX: Final = 256
"""How long the id and the name of a tool call may be."""

STOP_REASONS: Final = {
    "end_turn": "end_turn",
    "max_tokens": "max_tokens",
    "stop_sequence": "stop_sequence",
    "refusal": "refusal",
    "tool_use": "tool_use",
    "pause_turn": "pause_turn",
    "model_context_window_exceeded": "max_tokens",
}
"""The server's stop reasons and what they mean here: `tool_use`, `pause_turn` go on; an unknown one is `end_turn`."""

ERROR_CODES: Final = {"overloaded_error": "backend_overloaded", "rate_limit_error": "rate_limited"}
"""The server's error types that have a code of their own; every other one is `backend_error`."""

REQUEST_ERRORS: Final = frozenset(
    {
        "invalid_request_error",
        "authentication_error",
        "billing_error",
        "permission_error",
        "not_found_error",
        "request_too_large",
    }
)
"""The server's error types that say nothing against the server."""

_CALL_AGAIN: Final = "Call again with a JSON object."


class Call(NamedTuple):
    """A complete tool call; `problem` says why its input could not be read, and `input` is then empty."""

    id: str
    name: str
    input: dict[str, Any]
    problem: str | None


class BlockEnded(NamedTuple):
    """A block of the answer is complete; `call` is the tool call in it, if it is one."""

    block: dict[str, Any]
    call: Call | None


class Tokens(msgspec.Struct):
    """What one answer cost, as far as the server has said."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class _OpenBlock:
    """A block while it is written: its fields, and the pieces of the field that grows."""

    __slots__ = ("fields", "pieces", "understood")

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        self.pieces: list[str] = []
        self.understood = True


class MessageStream:
    """The state of one answer. Feed it with `receive`, end it with `finish`, then read `stop_reason` and `tokens`."""

    def __init__(self) -> None:
        self.tokens = Tokens()
        self.stop_reason = "end_turn"
        self.is_complete = False
        self._open: dict[int, _OpenBlock] = {}
        self._call_ids: set[str] = set()
        self._size = 0
        self._written = 0  # characters of all deltas: an estimate where the server never said
        self._tokens_are_final = False

    def receive(self, event: ServerSentEvent) -> list[Event | BlockEnded]:
        """Take one event and return what follows from it, in order.

        Raises BackendError for an error event (with its code) and for an event that cannot be read.
        """
        if self.is_complete:
            return []  # some servers add a trailer of their own after message_stop
        self._size += len(event.data)
        if self._size > ANSWER_SIZE_MAX:
            raise _broken(f"sent an answer of more than {ANSWER_SIZE_MAX} bytes")
        fields = _decode(event)
        kind = fields.get("type", event.type)
        follows: list[
            Event | BlockEnded
        ] = []  # nothing from ping, and from what the server learns to say later
        if kind == "content_block_delta":
            follows = self._delta(fields)
        elif kind == "content_block_start":
            follows = self._start_block(fields)
        elif kind == "content_block_stop":
            follows = self._stop_block(fields)
        elif kind == "message_start":
            follows = self._count(_object(fields, "message").get("usage"))
        elif kind == "message_delta":
            follows = self._message_delta(fields)
        elif kind == "message_stop":
            self.is_complete = True
        elif kind == "error":
            raise error_of(fields)
        return follows

    def finish(self) -> None:
        """Say that the stream has ended; raises BackendError if the answer had not."""
        if not self.is_complete:
            raise _broken("ended the stream in the middle of an answer (no message_stop). Run the turn again")

    def tokens_spent(self) -> Tokens:
        """Return the tokens to count for this answer.

        An answer that broke off never said how much it wrote: then a quarter of the characters received is counted,
        so that cancelled calls are not free under a daily limit.
        """
        if self._tokens_are_final:
            return self.tokens
        estimate = max(self.tokens.output_tokens, self._written // 4)
        return msgspec.structs.replace(self.tokens, output_tokens=estimate)

    def _message_delta(self, fields: dict[str, Any]) -> list[Event | BlockEnded]:
        reason = _object(fields, "delta").get("stop_reason")
        if reason is not None:
            self.stop_reason = STOP_REASONS.get(reason, "end_turn") if isinstance(reason, str) else "end_turn"
        usage = fields.get("usage")
        self._tokens_are_final = isinstance(usage, dict) and "output_tokens" in usage
        return self._count(usage)

    def _count(self, usage: Any) -> list[Event | BlockEnded]:
        """Take over token counts: they are running totals of the answer, so the later one stands."""
        if not isinstance(usage, dict):
            return []
        for name in Tokens.__struct_fields__:
            value = usage.get(name)
            if type(value) is int and value >= 0:
                setattr(self.tokens, name, value)
        return [UsageUpdate(input_tokens=self.tokens.input_tokens, output_tokens=self.tokens.output_tokens)]

    def _start_block(self, fields: dict[str, Any]) -> list[Event | BlockEnded]:
        index = fields.get("index")
        block = _object(fields, "content_block")
        kind = block.get("type")
        if type(index) is not int or index in self._open or not isinstance(kind, str):
            raise _broken("began a content block without a usable index or type")
        self._open[index] = opened = _OpenBlock(block)
        events: list[Event | BlockEnded] = []
        if kind == "tool_use":
            self._check_call(block)
        elif kind == "text" and block.get("text"):  # usually empty: the text comes in deltas
            text = _string(block, "text")
            opened.pieces.append(text)
            events.append(TextDelta(text=text))
        elif kind == "thinking" and block.get("thinking"):
            text = _string(block, "thinking")
            opened.pieces.append(text)
            events.append(ReasoningDelta(text=text))
        return events

    def _check_call(self, block: dict[str, Any]) -> None:
        call_id, name = _string(block, "id"), _string(block, "name")
        if not call_id or not name:
            raise _broken("sent a tool call without an id or a name")
        for what, text in (("id", call_id), ("name", name)):
            # They stand in the ledger, and in every later request of the session, where a server refuses such a one.
            if len(text) > CALL_NAME_LENGTH_MAX or not text.isprintable():
                raise _broken(f"sent a tool call with an unusable {what} ({excerpt(text, 40)!r})")
        if call_id in self._call_ids:
            raise _broken(f"gave two tool calls of one answer the same id ({excerpt(call_id, 80)!r})")
        self._call_ids.add(call_id)

    def _delta(self, fields: dict[str, Any]) -> list[Event | BlockEnded]:
        index = fields.get("index")
        opened = self._open.get(index) if type(index) is int else None
        if opened is None:
            raise _broken("sent a piece of a content block that it had not begun")
        delta = _object(fields, "delta")
        kind = delta.get("type")
        event: Event | None = None
        if kind == "text_delta":
            text = _string(delta, "text")
            event = TextDelta(text=text)
        elif kind == "input_json_delta":
            text = _string(delta, "partial_json")
            if text and opened.fields.get("type") == "tool_use":
                event = ToolCallUpdate(id=opened.fields["id"], input_delta=without_lone_surrogates(text))
        elif kind == "thinking_delta":
            text = _string(delta, "thinking")
            event = ReasoningDelta(text=text)
        else:
            text = ""
            self._rare_delta(opened, kind, delta)
        if text:
            opened.pieces.append(text)
            self._written += len(text)
        return [event] if event is not None and text else []

    def _rare_delta(self, opened: _OpenBlock, kind: object, delta: dict[str, Any]) -> None:
        if kind == "signature_delta":
            opened.fields["signature"] = _string(delta, "signature")
        elif kind == "citations_delta":
            opened.fields["citations"] = [*(opened.fields.get("citations") or []), delta.get("citation")]
        else:
            opened.understood = False

    def _stop_block(self, fields: dict[str, Any]) -> list[Event | BlockEnded]:
        index = fields.get("index")
        opened = self._open.pop(index, None) if type(index) is int else None
        if opened is None:
            raise _broken("ended a content block that it had not begun")
        block, written = opened.fields, "".join(opened.pieces)
        kind = block["type"]
        if kind == "tool_use":
            return self._end_call(block, written)
        if kind == "text":
            # The server refuses empty text when the history is sent back to it.
            return [BlockEnded({**block, "text": written}, None)] if written.strip() else []
        if kind == "thinking":
            return [BlockEnded({**block, "thinking": written}, None)]
        if not opened.understood:
            return []  # half of a block of a new kind: sent back, it would be refused
        if written:  # a tool that the server runs itself writes its input as a client's tool does
            value, _problem = read_input(written)
            block["input"] = value
        return [BlockEnded(block, None)] if _is_canonical(block) else []

    def _end_call(self, block: dict[str, Any], written: str) -> list[Event | BlockEnded]:
        if not written.strip() and isinstance(block.get("input"), dict):
            written = json.dumps(block["input"])  # some servers give the whole input at the start
        value, problem = read_input(written)
        call = Call(block["id"], block["name"], value, problem)
        kept = {"type": "tool_use", "id": call.id, "name": call.name, "input": value}
        return [BlockEnded(kept, call), ToolCall(id=call.id, name=call.name, input=value)]


def read_input(written: str) -> tuple[dict[str, Any], str | None]:
    """Read the input of a tool call: the object and None, or an empty object and what is wrong, said to the model.

    No input at all is an empty object: that is how a call without arguments is written.
    """
    if not written.strip():
        return {}, None
    try:
        value = orjson.loads(written)
    except ValueError:
        try:  # orjson also refuses lone surrogates; the standard library tells them from what is not JSON
            value = json.loads(written, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            return {}, f"The input of this call is not JSON ({excerpt(str(error), 120)}). {_CALL_AGAIN}"
    if not isinstance(value, dict):
        return {}, f"The input of this call is a JSON {_json_type(value)}, not an object. {_CALL_AGAIN}"
    try:
        # It will stand some levels deep in the history and in entries, whose canonical form bounds the nesting.
        canonical_json([[[[[[[[value]]]]]]]])
    except CanonicalError as error:
        return {}, (
            f"The input of this call cannot be kept ({excerpt(error.problem, 120)}): text must be without lone"
            " surrogates, integers within 2^53, nesting moderate. Call again with an input like that."
        )
    return value, None


def error_of(fields: dict[str, Any]) -> BackendError:
    """Return the BackendError that an `error` object of the server stands for."""
    error = fields.get("error")
    error = error if isinstance(error, dict) else {}
    kind = error.get("type")
    kind = excerpt(kind, 60) if isinstance(kind, str) and kind else "error"
    message = error.get("message")
    message = excerpt(message, 300) if isinstance(message, str) and message else "it gave no reason"
    return BackendError(
        ERROR_CODES.get(kind, "backend_error"),
        f"the model server reports {kind}: {message}",
        is_request_at_fault=kind in REQUEST_ERRORS,
    )


def excerpt(text: str, characters_max: int) -> str:
    """Return the beginning of `text` on one line, without control characters, fit for a message to people."""
    # Only a bounded part is looked at: the text may be a body of many megabytes.
    window = without_lone_surrogates(text[: characters_max * 4])
    line = " ".join("".join(character if character.isprintable() else " " for character in window).split())
    is_whole = len(line) <= characters_max and len(text) <= characters_max * 4
    return line if is_whole else line[:characters_max] + "…"


def without_lone_surrogates(text: str) -> str:
    """Return `text` with surrogates that have no partner replaced by U+FFFD, so that it can be sent as UTF-8."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _decode(event: ServerSentEvent) -> dict[str, Any]:
    try:
        value = orjson.loads(event.data)
    except ValueError:
        try:  # bytes that are not UTF-8, and lone surrogates, spoil a character and not the answer
            value = json.loads(event.text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise _broken(f"sent an event that is not JSON: {excerpt(event.text, 120)!r}") from None
        value = _cleaned(value)
    if not isinstance(value, dict):
        raise _broken(f"sent an event that is not a JSON object: {excerpt(event.text, 120)!r}")
    return value


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return without_lone_surrogates(value)
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if isinstance(value, dict):
        # A tool's input is judged as it was written: what cannot be kept is the model's to correct.
        return {key: item if key == "partial_json" else _cleaned(item) for key, item in value.items()}
    return value


def _is_canonical(block: dict[str, Any]) -> bool:
    try:
        canonical_json([[[[block]]]])
    except CanonicalError:
        return False
    return True


def _object(fields: dict[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    if not isinstance(value, dict):
        raise _broken(f"sent an event {excerpt(str(fields.get('type')), 60)!r} without the object {name!r}")
    return value


def _string(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise _broken(f"sent a {excerpt(str(fields.get('type')), 60)!r} without the text {name!r}")
    return value


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, list):
        return "array"
    return "string" if isinstance(value, str) else "number"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _broken(what: str) -> BackendError:
    return BackendError("backend_error", f"the model server {what}")
