"""The events of a turn, as they travel up from the backend to the wire (section 2 of the specification).

Each is a msgspec struct whose tag is the wire's `type`. `seq` starts at 0 and grows by one over the whole turn; the
session numbers an event when it leaves the turn, nobody else does.
"""

from __future__ import annotations

from typing import Any

import msgspec

from protocol.entry import Entry


class Event(msgspec.Struct, kw_only=True, tag_field="type"):
    """What every event carries: its number in the turn (-1 until the session numbers it)."""

    seq: int = -1


class TurnStarted(Event, tag="turn_started"):
    """The first event of a turn; names it, so that a client can ask for it again."""

    turn_id: str


class TextDelta(Event, tag="text_delta"):
    """A piece of the assistant's text."""

    text: str


class ReasoningDelta(Event, tag="reasoning_delta"):
    """A piece of the assistant's thinking."""

    text: str


class ToolCallUpdate(Event, tag="tool_call_update"):
    """A piece of a tool's input while the model writes it."""

    id: str
    input_delta: str


class ToolCall(Event, tag="tool_call"):
    """A complete tool call, once, before it is judged: information, not an order."""

    id: str
    name: str
    input: dict[str, Any]


class ToolExecute(Event, tag="tool_execute"):
    """The order to a client to execute a delegated call; sent when the verdict is durable."""

    id: str
    name: str
    input: dict[str, Any]


class ToolOutput(Event, tag="tool_output"):
    """A piece of the output of a running tool."""

    id: str
    delta: str


class ToolResult(Event, tag="tool_result"):
    """What the model is given as the outcome of a call: text, or blocks as a client that executed it sent them."""

    id: str
    content: str | list[dict[str, Any]]
    is_error: bool


class UsageUpdate(Event, tag="usage_update"):
    """Tokens of the turn so far."""

    input_tokens: int
    output_tokens: int


class PolicyGate(Event, tag="policy_gate"):
    """A verdict of the policy court, with the ledger entry in force."""

    entry: Entry


class MailboxInjected(Event, tag="mailbox_injected"):
    """A message that this turn carries, with its ledger entry."""

    entry: Entry


class LedgerAppend(Event, tag="ledger_append"):
    """Every other entry of the turn."""

    entry: Entry


_encoder = msgspec.json.Encoder()


def encode(value: Any) -> bytes:
    """Return an event, or other data of the wire, as JSON; lone surrogates become U+FFFD, which UTF-8 can carry."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return _encoder.encode(_well_formed(msgspec.to_builtins(value)))


def _well_formed(value: Any) -> Any:
    if isinstance(value, str):
        return "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in value)
    if isinstance(value, dict):
        return {_well_formed(key): _well_formed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_well_formed(item) for item in value]
    return value


class Done(Event, tag="done"):
    """The last event of a turn that ended well or was cancelled; see STOP_REASONS."""

    stop_reason: str


class Failed(Event, tag="error"):
    """The last event of a turn that failed."""

    code: str
    message: str


STOP_REASONS = frozenset(
    {"end_turn", "max_tokens", "stop_sequence", "refusal", "max_turn_requests", "cancelled"},
)
"""What `Done.stop_reason` can say."""
