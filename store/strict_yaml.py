"""Strict YAML: text to a tree of nodes that know their lines, where nothing is read in two ways.

What is accepted is JSON written as YAML: mappings with text keys, lists, text, true and false, null, and plain
decimal numbers. What YAML 1.1 and 1.2 read differently (`on`, `no`, `012`, `12:30`, dates), what only some readers
know (`0x1F`, `1_000`), and what makes a file mean more than it shows (anchors, aliases, merge keys, tags, several
documents) is reported with the line and the fix; quotes make text of anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from protocol.errors import ConfigurationError

DEPTH_MAX: Final = 32
"""Mappings and lists nested deeper than this are refused."""

_PARSER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml where PyYAML was built with it: fifteen times as fast."""


@dataclass(frozen=True, slots=True)
class Node:
    """A value and the line (from 1) on which it begins.

    `value` is text, a number, a boolean, None, a list of nodes, or a mapping from key to `(line of the key, node)`.
    `written` is how a scalar without quotes stands in the file (empty where nothing stands), else None. `is_refused`
    says that the node itself was reported, so that its type is not reported too.
    """

    line: int
    value: Any
    written: str | None = None
    is_refused: bool = False

    @property
    def is_absent(self) -> bool:
        """Whether this is the nothing after a key: `key:` and the end of the line."""
        return self.value is None and self.written == ""


@dataclass(slots=True)
class Problems:
    """What is wrong with one file, in the order in which it was found."""

    path: str
    errors: list[ConfigurationError] = field(default_factory=list)

    def add(self, line: int | None, problem: str, fix: str) -> None:
        """Note one problem; `problem` is a clause without a full stop, `fix` a sentence."""
        self.errors.append(ConfigurationError(self.path, line, problem, fix))


def parse_yaml(text: str, problems: Problems) -> Node | None:
    """Return the tree of the one document in `text`, or None where it cannot be read to its end.

    What is wrong goes to `problems`. A tree may come with problems: the rest of it can then still be looked at.
    """
    root: Node | None = None
    try:
        root = _read_document(yaml.parse(text, Loader=_PARSER), problems)
    except _TooDeepError:
        return None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problems.add(
            line, "a character stands here that YAML does not allow", "Take the control character out."
        )
        return None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else int(mark.line) + 1
        what = " ".join(part for part in (error.context, error.problem) if part)
        problems.add(line, f"this is not YAML: {what}", _syntax_fix(what, text, line))
        return None
    if root is None:
        problems.add(None, "the file holds nothing", "Put back what it should hold, or copy the shipped one.")
    return root


def _read_document(events: Iterator[yaml.Event], problems: Problems) -> Node | None:
    root: Node | None = None
    documents = 0
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if event.version or event.tags:
                problems.add(_line(event), "a % directive stands here", "Take the line out.")
            if documents > 1:
                fix = "Keep one document; take the `---` out."
                problems.add(_line(event), "a second document begins here", fix)
                return root
        elif isinstance(event, yaml.NodeEvent):
            root = _Builder(events, problems).node(event, 0)
    return root


def _line(event: yaml.Event) -> int:
    return 1 if event.start_mark is None else int(event.start_mark.line) + 1


_SYNTAX_FIXES: Final = (
    (
        "mapping values are not allowed",
        "Put text that holds a colon and a blank in quotes, or mend the indentation.",
    ),
    ("cannot start any token", "Put text that begins with this character in quotes."),
    ("could not find expected ':'", "Write `key: value`, with a blank after the colon."),
    ("found unexpected end of stream", "Close the quotes or the bracket that was opened."),
    ("expected ',' or", "Close the bracket, and put commas between what stands in it."),
    ("undefined alias", "Put text that begins with * in quotes."),
    ("expected <block end>", "Indent what belongs together by the same number of blanks."),
    ("unknown escape", "Use single quotes, or write two backslashes."),
)


def _syntax_fix(what: str, text: str, line: int) -> str:
    lines = text.split("\n")
    if line <= len(lines) and "\t" in lines[line - 1]:
        return "Indent with blanks: a tab stands in this line."
    return next((fix for words, fix in _SYNTAX_FIXES if words in what), "Mend this line or the one above it.")


class _TooDeepError(Exception):
    """Reading stops here: what is nested so deep costs more than it can mean."""


class _Builder:
    """Builds nodes out of events; each method takes the event that begins its node and reads up to its end."""

    def __init__(self, events: Iterator[yaml.Event], problems: Problems) -> None:
        self._events = events
        self._problems = problems

    def node(self, event: Any, depth: int) -> Node:
        """Return the node that begins with `event`."""
        line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            self._problems.add(
                line, f"*{event.anchor} repeats what stands elsewhere", "Write it out, or put it in quotes."
            )
            return Node(line, None, is_refused=True)
        if event.anchor is not None:
            self._problems.add(
                line, f"&{event.anchor} is an anchor", "Take it out, or put the text in quotes."
            )
        if event.tag is not None:
            self._problems.add(
                line, f"{event.tag} is a tag", "Take it out: the type of a value follows from its place."
            )
        if depth > DEPTH_MAX:
            self._problems.add(line, f"this is nested deeper than {DEPTH_MAX} levels", "Flatten it.")
            raise _TooDeepError
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._list(line, depth)
        return self._mapping(line, depth)

    def _scalar(self, event: yaml.ScalarEvent) -> Node:
        if event.style:
            return Node(_line(event), event.value)
        line, text = _line(event), event.value
        for pattern, problem, fix in _SURPRISES:
            if pattern.fullmatch(text):
                self._problems.add(line, problem.format(text), fix.format(text))
                return Node(line, text, text, is_refused=True)
        for pattern, read in _READINGS:
            if pattern.fullmatch(text):
                return Node(line, read(text), text)
        return Node(line, text, text)

    def _list(self, line: int, depth: int) -> Node:
        items = []
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self.node(event, depth + 1))
        return Node(line, items)

    def _mapping(self, line: int, depth: int) -> Node:
        entries: dict[str, tuple[int, Node]] = {}
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self.node(event, depth + 1)
            following = next(self._events, None)
            if following is None:
                break
            value = self.node(following, depth + 1)
            if not isinstance(key.value, str):
                shown = "this" if key.written is None else f"`{key.written}`"
                self._problems.add(
                    key.line, f"{shown} is not text, and a key must be", "Put the key in quotes."
                )
            elif key.value in entries:
                first = entries[key.value][0]
                self._problems.add(
                    key.line,
                    f"the key `{key.value}` stands here a second time (first on line {first})",
                    "Keep one of the two.",
                )
            else:
                entries[key.value] = (key.line, value)
        return Node(line, entries)


_QUOTE: Final = 'put it in quotes: "{0}".'

_SURPRISES: Final = tuple(
    (re.compile(pattern), problem, fix)
    for pattern, problem, fix in (
        (
            r"(?i:y|yes|n|no|on|off)",
            "`{0}` is a boolean to some readers of YAML and text to others",
            "Write true or false, or " + _QUOTE,
        ),
        (
            r"[-+]?0[0-9_]+",
            "`{0}` is an octal number to some readers of YAML and a decimal one to others",
            "Take the zero in front away, or " + _QUOTE,
        ),
        (
            r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?",
            "`{0}` is a number to base 60 to some readers of YAML and text to others",
            "To write text, " + _QUOTE,
        ),
        (
            r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:(?:[Tt]|[ \t]+)[0-9].*)?",
            "`{0}` is a date to some readers of YAML and text to others",
            "To write text, " + _QUOTE,
        ),
        (r"<<", "`<<` merges another mapping into this one", "Write the keys out."),
        (r"=", "`=` has a meaning of its own in YAML 1.1", "To write text, " + _QUOTE),
        (
            r"[-+]?(?:0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|\.(?i:inf)|[0-9_]*\.?[0-9_]+[eE][-+]?[0-9_]+)|\.(?i:nan)",
            "`{0}` is a number to some readers of YAML and text to others",
            "Write a plain decimal number, or " + _QUOTE,
        ),
        (
            r"\+[0-9.][0-9_.]*|-?\.[0-9_]+|-?[0-9][0-9_]*\.|-?[0-9][0-9.]*_[0-9_.]*|-?[0-9]{19,}",
            "`{0}` is not a plain decimal number",
            "Write only digits (at most 18, with one point between them where needed), or " + _QUOTE,
        ),
    )
)
"""What has two readings: the pattern, the problem and the fix."""

_READINGS: Final[tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...]] = (
    (re.compile(r"|~|null|Null|NULL"), lambda _text: None),
    (re.compile(r"true|True|TRUE"), lambda _text: True),
    (re.compile(r"false|False|FALSE"), lambda _text: False),
    (re.compile(r"-?(?:0|[1-9][0-9]*)"), int),
    (re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+"), float),
)
"""What a scalar without quotes is, where both versions of YAML agree; anything else is text."""
