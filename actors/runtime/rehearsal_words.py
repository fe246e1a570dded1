"""The words that rehearsal follows: text in, commands out. No I/O.

Instructions stand one a line, or are joined with ` then ` (one after the other) or ` and also ` (in one model
message). A line that begins with no known word belongs to the text of the instruction above it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

HELP: Final = (
    "read FILE · list [DIR] · search WORDS [in DIR] · write FILE: text · edit FILE: old -> new · bash: command · "
    "mail NAME: text · mail NAME about SUBJECT: text · check mail · read board · post: text · spawn: prompt · "
    "think about X · say X · who are you · what tools · tool NAME {JSON} · loop TOOL · slow N · fail · refuse; "
    "join with “then” or “and also”"
)
"""What can be typed, in one line for people."""


@dataclass(frozen=True, slots=True)
class Say:
    """Write text."""

    text: str


@dataclass(frozen=True, slots=True)
class Think:
    """Write a thinking block."""

    text: str


@dataclass(frozen=True, slots=True)
class CallTool:
    """Call a tool with `written` as its input, JSON or not.

    `name` empty stands for any tool that is offered. `is_forced` calls it even if it is not offered; `is_endless`
    calls it again after every result.
    """

    name: str
    written: str
    is_forced: bool = False
    is_endless: bool = False


@dataclass(frozen=True, slots=True)
class Slow:
    """Write `words` words with `delay_s` seconds before each."""

    words: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class Fail:
    """Break the answer off: with an error event of this type, or (`cut`) with the end of the stream."""

    error_type: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End the answer with this stop reason of the server."""

    stop_reason: str


@dataclass(frozen=True, slots=True)
class Introduce:
    """Quote the beginning of the mandate that the system prompt holds."""


@dataclass(frozen=True, slots=True)
class ListTools:
    """Name the tools that were offered."""


Command = Say | Think | CallTool | Slow | Fail | Stop | Introduce | ListTools
Step = list[Command]
"""What is done in one go; steps follow one another."""


def call(name: str, arguments: Mapping[str, Any]) -> CallTool:
    """Return a call with `arguments` written as JSON."""
    return CallTool(name, json.dumps(dict(arguments)))


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`" else text


def _mail(match: re.Match[str]) -> Command:
    subject = match["subject"] or "note"
    return call("send_message", {"to": match["to"], "subject": subject, "body": match["body"]})


def _list(match: re.Match[str]) -> Command:
    return call("list_files", {"path": _unquoted(match["path"])} if match["path"] else {})


def _search(match: re.Match[str]) -> Command:
    arguments = {"query": _unquoted(match["query"])}
    if match["path"]:
        arguments["path"] = _unquoted(match["path"])
    return call("search", arguments)


def _slow(match: re.Match[str]) -> Command:
    return Slow(min(int(match["words"]), 10_000), int(match["milliseconds"] or 50) / 1000)


_FAILURES: Final = {
    None: "api_error",
    "overloaded": "overloaded_error",
    "rate": "rate_limit_error",
    "cut": "cut",
}

_FILE: Final = r"(?P<path>\"[^\"]+\"|'[^']+'|`[^`]+`|[^\s:]+)"

_WORDS: Final[list[tuple[str, Callable[[re.Match[str]], Command]]]] = [
    (r"check (?:your |my |the )?mail(?:box)?", lambda _: call("read_mailbox", {})),
    (r"read (?:your |my |the )?mail(?:box)?", lambda _: call("read_mailbox", {})),
    (
        r"read (?:the )?board(?: (?P<lines>\d{1,4}))?",
        lambda m: call("read_board", {"lines": int(m["lines"])} if m["lines"] else {}),
    ),
    (rf"read {_FILE}", lambda m: call("read_file", {"path": _unquoted(m["path"])})),
    (rf"list(?: files)?(?: in)?(?: {_FILE})?", _list),
    (rf"search(?: for)? (?P<query>.+?)(?: in {_FILE})?", _search),
    (
        rf"write {_FILE}: ?(?P<content>.*)",
        lambda m: call("write_file", {"path": _unquoted(m["path"]), "content": m["content"]}),
    ),
    (
        rf"edit {_FILE}: ?(?P<old>.+?) -> ?(?P<new>.*)",
        lambda m: call("edit_file", {"path": _unquoted(m["path"]), "old": m["old"], "new": m["new"]}),
    ),
    (r"mail (?P<to>[^\s:]+(?::[^\s:]+)?)(?: about (?P<subject>[^:\n]+))?: ?(?P<body>.+)", _mail),
    (
        r"post(?: (?:on |to )?(?:the )?board)?: ?(?P<text>.+)",
        lambda m: call("post_board", {"content": m["text"]}),
    ),
    (
        r"(?:ask a subagent|spawn(?: a subagent)?): ?(?P<text>.+)",
        lambda m: call("spawn_subagent", {"prompt": m["text"]}),
    ),
    (r"(?:bash|run): ?(?P<text>.+)", lambda m: call("bash", {"command": m["text"]})),
    (r"think about (?P<text>.+)", lambda m: Think(m["text"])),
    (r"say (?P<text>.+)", lambda m: Say(m["text"])),
    (r"tool (?P<name>\S+)(?: (?P<input>.+))?", lambda m: CallTool(m["name"], m["input"] or "")),
    (
        r"force (?P<name>\S+)(?: (?P<input>.+))?",
        lambda m: CallTool(m["name"], m["input"] or "", is_forced=True),
    ),
    (
        r"loop(?: (?P<name>\S+)(?: (?P<input>\{.*\}))?)?",
        lambda m: CallTool(m["name"] or "", m["input"] or "", is_endless=True),
    ),
    (r"bad json(?: (?P<name>\S+))?", lambda m: CallTool(m["name"] or "", '{"path": "README.md", oh')),
    (r"surrogate(?: (?P<name>\S+))?", lambda m: CallTool(m["name"] or "", r'{"path": "\ud800"}')),
    (r"slow (?P<words>\d{1,5})(?: (?:every )?(?P<milliseconds>\d{1,5}) ?(?:ms)?)?", _slow),
    (r"fail(?: (?P<how>overloaded|rate|cut))?", lambda m: Fail(_FAILURES[m["how"]])),
    (r"refuse", lambda _: Stop("refusal")),
    (r"run out of tokens", lambda _: Stop("max_tokens")),
    (r"who are you\??", lambda _: Introduce()),
    (r"what tools(?: do you have)?\??", lambda _: ListTools()),
]

_PATTERNS: Final = [(re.compile(pattern, re.IGNORECASE | re.DOTALL), build) for pattern, build in _WORDS]
_SEPARATOR: Final = re.compile(r"(\s*\n\s*(?:then\s+)?|,?\s+then\s+|,?\s+and also\s+)", re.IGNORECASE)
_MAIL: Final = re.compile(
    r"\[mailbox from (?P<sender>[^\]\s]+)[^\]\n]*\] ?(?P<subject>[^\n]*)(?:\n(?P<body>.*))?", re.DOTALL
)
_AGAIN: Final = re.compile(r"\n\n\[delivered again: [^\n]*\]\Z")
"""What the runner adds to mail that an interrupted turn carried before; it is no word of the sender."""

_REPLY: Final = re.compile(r"reply to this: ?(?P<text>.+)", re.IGNORECASE | re.DOTALL)
_WAKE: Final = re.compile(r"You have \d+ unread mailbox message")


def interpret(text: str) -> Command | None:
    """Return the command that the whole of `text` is, or None."""
    stripped = text.strip()
    for pattern, build in _PATTERNS:
        match = pattern.fullmatch(stripped)
        if match is not None:
            return build(match)
    return None


def parse(text: str) -> list[Step]:
    """Return the steps that `text` asks for; none if it holds no known instruction.

    What stands before the first known instruction is passed over.
    """
    pieces = _SEPARATOR.split(text.strip())
    instructions: list[tuple[str, bool]] = []  # the text, and whether it joins the one before
    for number in range(0, len(pieces), 2):
        separator = pieces[number - 1] if number else ""
        if interpret(pieces[number]) is not None:
            instructions.append((pieces[number], "and also" in separator.lower()))
        elif instructions:
            before, joins = instructions[-1]
            instructions[-1] = (before + separator + pieces[number], joins)
    steps: list[Step] = []
    for instruction, joins in instructions:
        command = interpret(instruction)
        if command is None:  # lines that joined it made it something else
            command = Say(f"I do not understand: {instruction}")
        if joins and steps:
            steps[-1].append(command)
        else:
            steps.append([command])
    return steps


def plan(texts: list[str]) -> list[Step]:
    """Return the steps for the texts of one turn: the mail that it carries, then the prompt.

    Mail is acted upon only if its body begins with a known instruction; any other is acknowledged here and never
    answered, so that two rehearsing agents do not keep each other awake.
    """
    steps: list[Step] = []
    prompt = ""
    carries_mail = False
    for text in texts:
        match = _MAIL.match(text)
        if match is None:
            prompt = text
            continue
        carries_mail = True
        body = _AGAIN.sub("", match["body"] or "").strip()
        steps += _mail_steps(match["sender"], match["subject"].strip(), body)
    asked = parse(prompt)
    if not asked and not carries_mail and _WAKE.match(prompt):
        asked = [[call("read_mailbox", {})]]
    return steps + asked


def _mail_steps(sender: str, subject: str, body: str) -> list[Step]:
    reply = _REPLY.fullmatch(body)
    if reply is not None:
        answer = subject if subject.startswith("Re: ") else f"Re: {subject}"
        return [[call("send_message", {"to": sender, "subject": answer, "body": body})]]
    first = _SEPARATOR.split(body, maxsplit=1)[0]
    if body and interpret(first) is not None:
        return parse(body)
    return [[Say(f"I have read the mail from {sender}: “{subject or body[:80]}”.")]]
