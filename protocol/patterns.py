"""Patterns of the constitution: what a glob matches, and whether one glob matches all that another does.

Two readings of one notation. In *text* (tool names, recipients, commands) `*` is any run of characters and `?` any one
character, `/` and line breaks included. In a *path* `*` and `?` stay inside one name, and `**`, standing alone between
slashes, is any number of names, none too: `secrets/**` is `secrets` and all that lies below it. Everything else stands
for itself: there are no brackets, braces or escapes.

Letters are compared as they are. The file systems that agents work on tell `Secrets` from `secrets`, so folding the
case would make one file of two: a rule that allows the one would allow the other.

The time of a match grows with the length of the text times the length of the pattern and no faster, since the text
comes from a model.
"""

from __future__ import annotations

import operator
import posixpath
import re
from collections.abc import Callable, Sequence
from functools import partial


def is_glob(pattern: str) -> bool:
    """Return whether the pattern holds a wildcard, in either reading."""
    return "*" in pattern or "?" in pattern


def normalised_path(path: str, root_prefix: str | None = None) -> str:
    """Return the path without dot components, doubled slashes and a slash at the end, relative to the root if below it.

    `root_prefix` is the absolute root with a slash at its end. Links are not followed: a path that climbs above where
    it begins keeps its `..` at the front, one outside the root stays absolute, the root itself is `.`.
    """
    if "//" in path or "/." in path or path[:1] == "." or path[-1:] == "/":
        path = posixpath.normpath(path)
        if path[:2] == "//":
            path = path[1:]
    if root_prefix is not None and path[:1] == "/":
        if path + "/" == root_prefix:
            return "."
        return path.removeprefix(root_prefix)
    return path


def normalised_pattern(pattern: str, root_prefix: str | None = None) -> str:
    """Return the pattern in the form of the paths that it is held against; `secrets/` becomes `secrets/**`."""
    if pattern[-1:] == "/" and pattern != "/":
        pattern += "**"
    return normalised_path(pattern, root_prefix)


def text_matcher(pattern: str) -> Callable[[str], bool]:
    """Return what tells whether a text matches the pattern."""
    if not is_glob(pattern):
        return partial(operator.eq, pattern)
    if not pattern.strip("*"):
        return _anything
    return partial(_matches, _expression(pattern))


def path_matcher(pattern: str) -> Callable[[str], bool]:
    """Return what tells whether a normalised path relative to the root matches the pattern."""
    segments = _path_segments(pattern)
    if segments == ["**"]:
        return _anything
    if not is_glob(pattern):
        return partial(operator.eq, pattern)
    if segments[-1] == "**" and not any(is_glob(segment) for segment in segments[:-1]):
        head = "/".join(segments[:-1])
        return partial(_is_at_or_below, head, head + "/")
    steps = [None if segment == "**" else text_matcher(segment) for segment in segments]
    return partial(_matches_segments, steps)


def covers_text(general: str, special: str) -> bool:
    """Return whether every text that matches `special` also matches `general`; False where that is not evident."""
    return _covers(list(_ordered(general)), list(_ordered(special)), "*", _covers_character)


def covers_path(general: str, special: str) -> bool:
    """Return whether every path that matches `special` also matches `general`; False where that is not evident."""
    return _covers(_path_segments(general), _path_segments(special), "**", _covers_segment)


def _anything(_text: str) -> bool:
    return True


def _matches(expression: re.Pattern[str], text: str) -> bool:
    return expression.fullmatch(text) is not None


def _is_at_or_below(head: str, prefix: str, path: str) -> bool:
    return path.startswith(prefix) or path == head


def _expression(pattern: str) -> re.Pattern[str]:
    """Atomic groups take the first place where a piece fits and never come back: no pattern can be made to stall."""
    first, *others = (
        "".join("." if character == "?" else re.escape(character) for character in piece)
        for piece in re.split(r"\*+", pattern)
    )
    if not others:
        return re.compile(first, re.DOTALL)
    middle = "".join(f"(?>.*?{piece})" for piece in others[:-1] if piece)
    return re.compile(f"{first}{middle}.*{others[-1]}", re.DOTALL)


def _matches_segments(steps: Sequence[Callable[[str], bool] | None], path: str) -> bool:
    """Match names one by one; after a failure only the last `**` takes one name more."""
    names = path.split("/")
    at = step = 0
    resume_at, resume_step = 0, -1
    while at < len(names):
        matcher = steps[step] if step < len(steps) else None
        if step < len(steps) and matcher is None:
            resume_at, resume_step = at, step
            step += 1
        elif matcher is not None and matcher(names[at]):
            at += 1
            step += 1
        elif resume_step >= 0:
            resume_at += 1
            at, step = resume_at, resume_step + 1
        else:
            return False
    return all(left is None for left in steps[step:])


def _path_segments(pattern: str) -> list[str]:
    """Split at slashes; several `**` after each other are one."""
    segments: list[str] = []
    for segment in pattern.split("/"):
        if segment != "**" or segments[-1:] != ["**"]:
            segments.append(segment)
    return segments


def _ordered(pattern: str) -> str:
    """Write each run of wildcards in one way (`*?*` as `?*`), so that equal runs compare equal."""
    return re.sub(r"[*?]*\*[*?]*", lambda run: "?" * run.group().count("?") + "*", pattern)


def _covers_character(general: str, special: str) -> bool:
    return general == special or (general == "?" and special != "*")


def _covers_segment(general: str, special: str) -> bool:
    return special != "**" and covers_text(general, special)


def _covers(
    general: Sequence[str],
    special: Sequence[str],
    any_run: str,
    covers_one: Callable[[str, str], bool],
) -> bool:
    """Match the tokens of `special` as if they were text; only `any_run` of `general` takes in its `any_run`."""
    at = step = 0
    resume_at, resume_step = 0, -1
    while at < len(special):
        if step < len(general) and general[step] == any_run:
            resume_at, resume_step = at, step
            step += 1
        elif step < len(general) and covers_one(general[step], special[at]):
            at += 1
            step += 1
        elif resume_step >= 0:
            resume_at += 1
            at, step = resume_at, resume_step + 1
        else:
            return False
    return all(token == any_run for token in general[step:])
