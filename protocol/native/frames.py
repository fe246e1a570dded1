"""Native frames: JSON text in, a method and its typed parameters out, or the error that the client is sent.

`read_frame` goes through a frame in this order, and the first thing that is wrong decides::

    nested deeper than 64 levels                                invalid_request
    not JSON, or one key twice in an object                     parse_error      (`id` is null)
    a lone surrogate, a number that no JSON reader can hold     invalid_request
    not an object, unknown or missing fields, `method` no text  invalid_request
    a method that is not in METHODS                             unknown_method
    parameters that do not fit the method's struct              invalid_params   (the message names the field)

An `id` is any JSON value of at most 4,096 bytes. It is kept as the client wrote it and echoed byte for byte, so that
a number that Python would round comes back as it was sent.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, Final, Literal, NoReturn

import msgspec
from msgspec import Meta

from protocol.canonical import INTEGER_MAX
from protocol.errors import RequestError

FRAME_BYTES_MAX: Final = 4 * 1024 * 1024
"""The longest text frame, in bytes of UTF-8; a longer one closes the connection with 1009."""

DEPTH_MAX: Final = 64
"""How deep arrays and objects may be nested; the frame itself is the first level."""

ID_BYTES_MAX: Final = 4096
"""The longest request id, in bytes: it is repeated on every event."""

CONTAINERS_MAX: Final = 65_536
"""How many arrays and objects a frame may hold: what reading the worst frame costs is bounded by this."""

NULL_ID: Final = b"null"

_REQUEST_FIELDS: Final = frozenset({"id", "method", "params"})
_COMPLAINT_CHARACTERS_MAX: Final = 500

# Unicode's category Cc. `\Z` and not `$`, which lets a line break through at the end.
_NO_CONTROL: Final = r"^[^\x00-\x1f\x7f-\x9f]*\Z"

Name = Annotated[str, Meta(min_length=1, max_length=256, pattern=_NO_CONTROL)]
SessionKey = Annotated[str, Meta(min_length=1, max_length=512, pattern=_NO_CONTROL)]
Secret = Annotated[str, Meta(min_length=1, max_length=4096)]
Line = Annotated[str, Meta(max_length=1024, pattern=_NO_CONTROL)]
TurnId = Annotated[str, Meta(pattern=r"^[0-9a-f]{1,64}\Z")]
ToolName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,128}\Z")]


class _Block(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A content block of the Messages API, as far as a client may send it."""


class TextBlock(_Block, frozen=True, tag="text"):
    """`{"type": "text", "text": …}`."""

    text: Annotated[str, Meta(min_length=1)]


class Base64Source(_Block, frozen=True, tag="base64"):
    """An image in the frame itself."""

    media_type: Name
    data: Annotated[str, Meta(min_length=1)]


class UrlSource(_Block, frozen=True, tag="url"):
    """An image that the model server fetches."""

    url: Annotated[str, Meta(min_length=1, max_length=8192, pattern=_NO_CONTROL)]


class ImageBlock(_Block, frozen=True, tag="image"):
    """`{"type": "image", "source": …}`."""

    source: Base64Source | UrlSource


class ToolUseBlock(_Block, frozen=True, tag="tool_use"):
    """A call that the assistant made earlier."""

    id: Name
    name: ToolName
    input: dict[str, Any]


class ToolResultBlock(_Block, frozen=True, tag="tool_result"):
    """What a call gave earlier."""

    tool_use_id: Name
    content: str | list[TextBlock | ImageBlock] = ""
    is_error: bool = False


class ThinkingBlock(_Block, frozen=True, tag="thinking"):
    """What the assistant thought earlier, with the signature that the model server wants back."""

    thinking: str
    signature: str


class RedactedThinkingBlock(_Block, frozen=True, tag="redacted_thinking"):
    """What the assistant thought earlier, unreadable."""

    data: str


Block = (  # one union, told apart by `type`
    TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock
)


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    content: Annotated[str, Meta(min_length=1)] | Annotated[list[Block], Meta(min_length=1)]

    def plain(self) -> dict[str, Any]:
        """Return the message as the Messages API writes it: plain dicts, lists and text."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool that the client offers to the model; `input_schema` is a JSON schema."""

    name: ToolName
    input_schema: dict[str, Any]
    description: str = ""


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every method takes: `token` proves who asks, `session_token` that a session may be used."""

    token: Secret | None = None
    session_token: Secret | None = None

    def __repr__(self) -> str:
        shown = (
            f"{name}={getattr(self, name)!r}"
            for name in self.__struct_fields__
            if name not in ("token", "session_token")
        )
        return f"{type(self).__name__}({', '.join(shown)})"


class SessionInit(Params, frozen=True):
    """`session.init`: open a session, or come back to it."""

    agent_id: Annotated[str, Meta(min_length=1, max_length=128, pattern=_NO_CONTROL)]
    session_key: SessionKey | None = None
    model: Name | None = None
    mode: Literal["persistent", "domain", "oneshot"] | None = None


class TurnRun(Params, frozen=True):
    """`turn.run`: run one turn; exactly one of `message` and `messages`. `tools` None means the standard set.

    With `execute` the client runs what of its `tools` is not in the standard set: `tool_execute`, `tool.result`. The
    same `idempotency_key` again in a session is the same turn: it is followed, or its result returned, never run twice.
    """

    session_key: SessionKey
    message: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    system: str | None = None
    tools: Annotated[list[Tool], Meta(max_length=1024)] | None = None
    execute: Literal["client"] | None = None
    idempotency_key: Name | None = None

    def __post_init__(self) -> None:
        if (self.message is None) == (self.messages is None):
            raise ValueError("give either `message` or `messages`")
        if self.message is not None and not self.message.strip():
            raise ValueError("`message`: must not be blank")
        for index, message in enumerate(self.messages or ()):
            if not isinstance(message.content, str):
                for number, block in enumerate(message.content):
                    if isinstance(block, ToolUseBlock):
                        _check_integers(block.input, f"messages[{index}].content[{number}].input")
        if self.messages is not None and self.messages[-1].role != "user":
            raise ValueError(f"`messages[{len(self.messages) - 1}].role`: the last message is the user's")
        names = set()
        for index, tool in enumerate(self.tools or ()):
            if tool.name in names:
                raise ValueError(f"`tools[{index}].name`: {tool.name} stands twice")
            names.add(tool.name)
            _check_integers(tool.input_schema, f"tools[{index}].input_schema")


class TurnResume(Params, frozen=True):
    """`turn.resume`: the events of a turn from number `from_seq` on, as they were; of a running one also those to come.

    Ends as the turn did or does. The events of the last turns are kept.
    """

    session_key: SessionKey
    turn_id: TurnId
    from_seq: Annotated[int, Meta(ge=0, le=INTEGER_MAX)] = 0


class SessionCancel(Params, frozen=True):
    """`session.cancel`: stop the running turn."""

    session_key: SessionKey


class SessionClose(Params, frozen=True):
    """`session.close`: end the session."""

    session_key: SessionKey
    reason: Line | None = None


class SessionStatus(Params, frozen=True):
    """`session.status`: idle, running, cancelled or closed."""

    session_key: SessionKey


class ToolAnswer(Params, frozen=True):
    """`tool.result`: what a tool gave that the client ran; `id` is that of the `tool_execute` event."""

    session_key: SessionKey
    id: Name
    content: str | list[TextBlock | ImageBlock]
    is_error: bool = False

    def plain_content(self) -> str | list[dict[str, Any]]:
        """Return the content as the Messages API writes it: text, or blocks as plain dicts."""
        plain: str | list[dict[str, Any]] = msgspec.to_builtins(self.content)
        return plain


class RunnerStatus(Params, frozen=True):
    """`runner.status`: the daemon as its operator wants to see it."""


class RunnerTree(Params, frozen=True):
    """`runner.tree`: what every actor is doing, or those at and below `path`.

    Many like actors that are quiet are counted and not shown, unless `unfolded`; then they come in pages: `skip`
    passes over as many children of the actor at `path` as are known already.
    """

    path: Annotated[str, Meta(min_length=1, max_length=4096, pattern=_NO_CONTROL)] | None = None
    unfolded: bool = False
    skip: Annotated[int, Meta(ge=0)] = 0


class RunnerReload(Params, frozen=True):
    """`runner.reload`: read constitution, roster and mandates again."""


class AgentsList(Params, frozen=True):
    """`agents.list`: the roster with the state of each agent."""


class AgentsRetry(Params, frozen=True):
    """`agents.retry`: let a standing agent that was parked, or that waits to be tried again, try at once."""

    agent_id: Name


class MailSend(Params, frozen=True):
    """`mail.send`: post a message; `to` is an identity, a role, a `tag:` or `all`."""

    to: Name
    subject: Line
    body: str
    sender: Name | None = None
    thread: Name | None = None


class MailRead(Params, frozen=True):
    """`mail.read`: note that the operator has read messages that reach the operator."""

    ids: Annotated[list[Name], Meta(max_length=1000)]


class BoardPost(Params, frozen=True):
    """`board.post`: put a line on the board."""

    text: Annotated[str, Meta(min_length=1)]
    agent: Name | None = None


METHODS: Final[dict[str, type[Params]]] = {
    "session.init": SessionInit,
    "turn.run": TurnRun,
    "turn.resume": TurnResume,
    "session.cancel": SessionCancel,
    "session.close": SessionClose,
    "session.status": SessionStatus,
    "tool.result": ToolAnswer,
    "runner.status": RunnerStatus,
    "runner.tree": RunnerTree,
    "runner.reload": RunnerReload,
    "agents.list": AgentsList,
    "agents.retry": AgentsRetry,
    "mail.send": MailSend,
    "mail.read": MailRead,
    "board.post": BoardPost,
}
"""Every method and the struct of its parameters."""

OPERATOR_METHODS: Final = frozenset(
    {
        "runner.status",
        "runner.tree",
        "runner.reload",
        "agents.list",
        "agents.retry",
        "mail.send",
        "mail.read",
        "board.post",
    },
)
"""The operator's own methods, an extension for the command line; everybody else is `unauthorized`."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A request that was read: the client's own bytes of the `id`, the method, its parameters."""

    id: bytes
    method: str
    params: Params


class FrameError(RequestError):
    """A frame that is refused; `id` is the client's own bytes, or `null` where it could not be read."""

    def __init__(self, code: str, message: str, id_: bytes = NULL_ID) -> None:
        super().__init__(code, message)
        self.id = id_


class _Head(msgspec.Struct):
    """The part of a frame that is kept as it was written."""

    id: msgspec.Raw = msgspec.Raw(b"")


class _NotJsonError(ValueError):
    """What Python's reader lets through and JSON does not."""


class _OutOfRangeError(ValueError):
    """A number that is JSON and that nobody could work with."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _NotJsonError(f"the key {_shown(key)} stands twice in one object")
            seen.add(key)
    return read


def _constant(name: str) -> NoReturn:
    raise _NotJsonError(f"{name} is not JSON")


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _OutOfRangeError(f"the number {digits[:40]} is out of range")
    return value


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant, parse_float=_float)
_head_decoder = msgspec.json.Decoder(_Head)

# An unclosed string reaches to the end: the pattern matches at every quote, so that the scan is linear.
_STRING: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_STEP_OF: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[{]}"))
# An escape at a time: a whole surrogate pair, or half of one (the group), or any other.
_ESCAPE: Final = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def _shown(text: str) -> str:
    """Return text from the client fit for a message: quoted, plain ASCII, not long."""
    return json.dumps(text if len(text) <= 64 else text[:64] + "…")


def _check_nesting(text: str) -> str | None:
    """Return what is wrong with the brackets outside of strings, without recursion and before anything is built."""
    if text.count("[") + text.count("{") <= DEPTH_MAX:
        return None
    outside = _STRING.sub("", text).encode("utf-8", "surrogatepass")
    steps = array("b", outside.translate(_STEP_OF, _NO_BRACKETS))
    if max(accumulate(steps), default=0) > DEPTH_MAX:
        return f"the frame is nested deeper than {DEPTH_MAX} levels"
    if steps.count(1) > CONTAINERS_MAX:
        return f"the frame holds more than {CONTAINERS_MAX} arrays and objects"
    return None


def _lone_surrogate(text: str) -> str | None:
    """Return the first escape that is half of a surrogate pair, or None."""
    if "\\ud" not in text and "\\uD" not in text:
        return None
    return next((found[0] for found in _ESCAPE.finditer(text) if found[1]), None)


def _read_id(text: str) -> bytes:
    """Return the `id` as it was written, `null` where it cannot be read, empty where there is none."""
    try:
        raw = bytes(_head_decoder.decode(text).id)
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
        return NULL_ID
    return raw if len(raw) <= ID_BYTES_MAX else NULL_ID


def _read_id_between_surrogates(frame: Any, text: str) -> bytes:
    """Return the `id` of a frame with a lone surrogate somewhere, or `null` where that is in the id itself."""
    try:
        json.dumps(frame["id"], ensure_ascii=False).encode()
    except (KeyError, TypeError, IndexError, UnicodeEncodeError):
        return NULL_ID
    return _read_id(_ESCAPE.sub(lambda found: "\\ufffd" if found[1] else found[0], text))


def _check_integers(value: Any, path: str) -> None:
    """Raise ValueError where an integer is too large for canonical JSON (the ledger hashes what it is sent)."""
    if isinstance(value, int):
        if not -INTEGER_MAX <= value <= INTEGER_MAX:
            raise ValueError(f"`{path}`: integers are held exactly up to 2^53-1 only")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_integers(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_integers(item, f"{path}[{index}]")


_WHERE: Final = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?\Z", re.DOTALL)
_FIELD: Final = re.compile(
    r"^Object (?P<how>missing required|contains unknown) field `(?P<name>.*)`\Z", re.DOTALL
)
_OWN: Final = re.compile(r"^`(?P<path>[^`]*)`: (?P<what>.*)\Z", re.DOTALL)


def _explain(error: msgspec.ValidationError, root: str) -> str:
    """Return msgspec's complaint as `params.session_key: expected str, got int`."""
    found = _WHERE.match(str(error))
    assert found is not None  # noqa: S101 - the pattern matches every text
    what, path = found["what"], root + (found["path"] or "")
    if field := _FIELD.match(what):
        verdict = "is missing" if field["how"].startswith("missing") else "is not a field of it"
        name = field["name"] if len(field["name"]) <= 64 else field["name"][:64] + "…"
        return f"{path}.{name}: {verdict}"
    if own := _OWN.match(what):
        return f"{path}.{own['path']}: {own['what']}"
    if "matching regex" in what:
        what = (
            "expected 1 to 128 of A-Z a-z 0-9 _ -"
            if "{1,128}" in what
            else "must not hold control characters"
        )
    what = what.replace("`", "")
    return f"{path}: {what[:1].lower()}{what[1:]}"


def read_frame(text: str) -> Frame:
    """Return the request that a text frame holds; raises FrameError, and nothing else, for every other text."""
    if problem := _check_nesting(text):
        raise FrameError("invalid_request", problem, _read_id(text) or NULL_ID)
    try:
        frame = _decoder.decode(text)
    except (_NotJsonError, json.JSONDecodeError) as error:
        raise FrameError("parse_error", f"the frame is not JSON: {error}") from None
    except _OutOfRangeError as error:
        raise FrameError("invalid_request", str(error), _read_id(text) or NULL_ID) from None
    except ValueError:  # Python's own limit, against conversions that take quadratic time
        id_ = _read_id(text) or NULL_ID
        raise FrameError("invalid_request", "a number has more digits than can be read", id_) from None
    if lone := _lone_surrogate(text):
        id_ = _read_id_between_surrogates(frame, text)
        raise FrameError("invalid_request", f"a string holds {lone}, half of a surrogate pair", id_)
    if not isinstance(frame, dict):
        raise FrameError("invalid_request", "a frame is an object with id, method and params")
    return _read_request(frame, text)


def _read_request(frame: dict[str, Any], text: str) -> Frame:
    if "id" not in frame:
        raise FrameError("invalid_request", "id: is missing")
    id_ = _read_id(text)
    if id_ == NULL_ID and frame["id"] is not None:
        raise FrameError("invalid_request", f"id: longer than {ID_BYTES_MAX} bytes")
    for name in frame:
        if name not in _REQUEST_FIELDS:
            raise FrameError("invalid_request", f"{_shown(name)}: is not a field of a request", id_)
    if "method" not in frame:
        raise FrameError("invalid_request", "method: is missing", id_)
    method = frame["method"]
    if not isinstance(method, str):
        raise FrameError("invalid_request", "method: expected a string", id_)
    kind = METHODS.get(method)
    if kind is None:
        raise FrameError("unknown_method", f"{_shown(method)} is not a method", id_)
    try:
        params = msgspec.convert(frame.get("params", {}), kind)
    except msgspec.ValidationError as error:
        complaint = _explain(error, "params")[:_COMPLAINT_CHARACTERS_MAX]
        raise FrameError("invalid_params", complaint, id_) from None
    return Frame(id_, method, params)
