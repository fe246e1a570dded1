"""Nodes of strict YAML to typed objects: each unknown key and each wrong type is reported with its line and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, Final, TypeVar

import msgspec
from msgspec import inspect

from store.strict_yaml import Node, Problems

Typed = TypeVar("Typed")

_KINDS: Final = {
    str: "text",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a mapping",
}


def to_typed(node: Node, wanted: type[Typed], problems: Problems) -> Typed | None:
    """Return the node as an object of the msgspec struct `wanted`, or None where the file has problems.

    A key with nothing after it is never taken for null: who forgot the value of a condition would widen a rule.
    """
    value = _Reader(problems).read(node, inspect.type_info(wanted), "the file")
    if problems.errors:
        return None
    try:
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError as error:
        problems.add(node.line, str(error), "Compare it with the shipped file.")
        return None


def line_of(node: Node, where: Sequence[str | int]) -> int:
    """Return the line of what stands at `where` (keys and positions from the top), or of the last part that exists."""
    line = node.line
    for step in where:
        if isinstance(step, str) and isinstance(node.value, dict) and step in node.value:
            line, node = node.value[step]
        elif isinstance(step, int) and isinstance(node.value, list) and step < len(node.value):
            node = node.value[step]
            line = node.line
        else:
            break
    return line


class _Reader:
    """Turns nodes into plain values of a type; what does not fit is reported and read as None."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems

    def read(self, node: Node, wanted: inspect.Type, label: str) -> Any:
        """Return the plain value of the node; `label` is what a report calls it."""
        if node.is_refused:
            return None
        if node.is_absent:
            self._problems.add(node.line, f"{label} has no value", "Write one, or take the key out.")
            return None
        if isinstance(wanted, inspect.UnionType):
            if node.value is None:
                return None
            wanted = next(choice for choice in wanted.types if not isinstance(choice, inspect.NoneType))
        readings: dict[type[inspect.Type], Callable[[Node, Any, str], Any]] = {
            inspect.StructType: self._struct,
            inspect.ListType: self._list,
            inspect.DictType: self._mapping,
            inspect.IntType: self._whole,
            inspect.EnumType: self._choice,
            inspect.LiteralType: self._choice,
            inspect.StrType: self._text,
        }
        return readings[type(wanted)](node, wanted, label)

    def _struct(self, node: Node, wanted: inspect.StructType, label: str) -> Any:
        if not isinstance(node.value, dict):
            return self._mismatch(
                node, label, "a mapping", f"Write `key: value` lines; the keys are {_keys(wanted)}."
            )
        fields = {each.encode_name: each for each in wanted.fields}
        for key, (line, _) in node.value.items():
            if key not in fields:
                fix = f"{_nearest(key, fields)}The keys here are {_keys(wanted)}."
                self._problems.add(line, f"{label} has no key `{key}`", fix)
        for name, each in fields.items():
            if each.required and name not in node.value:
                self._problems.add(
                    node.line, f"{label} lacks the key `{name}`", f"Add a line `{name}:` with its value."
                )
        return {
            key: self.read(value, fields[key].type, f"`{key}`")
            for key, (_, value) in node.value.items()
            if key in fields
        }

    def _list(self, node: Node, wanted: inspect.ListType, label: str) -> Any:
        if not isinstance(node.value, list):
            shown = node.value if isinstance(node.value, str) else "…"
            return self._mismatch(node, label, "a list", f"Write it as a list: [{shown}].")
        return [
            self.read(item, wanted.item_type, f"item {position} of {label}")
            for position, item in enumerate(node.value, 1)
        ]

    def _mapping(self, node: Node, wanted: inspect.DictType, label: str) -> Any:
        if not isinstance(node.value, dict):
            return self._mismatch(node, label, "a mapping", "Write it as a mapping: {path: value}.")
        return {
            key: self.read(value, wanted.value_type, f"`{key}` of {label}")
            for key, (_, value) in node.value.items()
        }

    def _whole(self, node: Node, wanted: inspect.IntType, label: str) -> Any:
        bounds = f"from {wanted.ge} to {wanted.le}"
        if not isinstance(node.value, int) or isinstance(node.value, bool):
            return self._mismatch(
                node, label, "a whole number", f"Write a whole number {bounds}, without quotes."
            )
        if (wanted.ge is not None and node.value < wanted.ge) or (
            wanted.le is not None and node.value > wanted.le
        ):
            self._problems.add(
                node.line, f"{label} cannot be {node.value}", f"Write a whole number {bounds}."
            )
        return node.value

    def _choice(self, node: Node, wanted: inspect.EnumType | inspect.LiteralType, label: str) -> Any:
        choices = list(wanted.cls) if isinstance(wanted, inspect.EnumType) else wanted.values
        known = [str(choice.value if isinstance(choice, Enum) else choice) for choice in choices]
        if node.value in known:
            return node.value
        shown = f"`{node.value if node.written is None else node.written}`"
        if isinstance(node.value, list | dict):
            shown = _KINDS[type(node.value)]
        near = _nearest(node.value, known) if isinstance(node.value, str) else ""
        self._problems.add(node.line, f"{label} cannot be {shown}", f"{near}Use one of {', '.join(known)}.")
        return None

    def _text(self, node: Node, wanted: inspect.StrType, label: str) -> Any:
        if not isinstance(node.value, str):
            fix = f'Put it in quotes: "{node.written}".' if node.written else "Write one text."
            return self._mismatch(node, label, "text", fix)
        if not node.value and wanted.min_length:
            self._problems.add(node.line, f"{label} is empty", "Write a text.")
        if wanted.max_length is not None and len(node.value) > wanted.max_length:
            limit = wanted.max_length
            self._problems.add(node.line, f"{label} is longer than {limit} characters", "Shorten it.")
        return node.value

    def _mismatch(self, node: Node, label: str, wanted: str, fix: str) -> None:
        if node.value is None:
            found = "null"
        elif node.written is not None:
            found = f"`{node.written}`, which is {_KINDS[type(node.value)]}"
        else:
            found = _KINDS[type(node.value)]
        self._problems.add(node.line, f"{label} must be {wanted}, not {found}", fix)


def _keys(wanted: inspect.StructType) -> str:
    return ", ".join(each.encode_name for each in wanted.fields)


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {near[0]}? " if near else ""
