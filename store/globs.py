"""Globs over paths, as ripgrep and git read them, in time that a hostile pattern cannot blow up."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Sequence
from typing import Final

PATTERN_MAX: Final = 512
"""Characters of a pattern."""

ALTERNATIVES_MAX: Final = 64
"""Patterns that the braces of one pattern may stand for."""


class Glob:
    """Which paths a pattern matches, case by case letter.

    `*` and `?` stand for letters of one name, `[...]` for one of some letters, `**` for any number of folders and
    `{a,b}` for either. A pattern without a slash is held against the last name alone, so `*.md` finds files at every
    depth; one with a slash against the whole path. Raises ValueError for a pattern that is empty or too long.
    """

    def __init__(self, pattern: str) -> None:
        if not pattern or len(pattern) > PATTERN_MAX:
            raise ValueError(f"a pattern has 1 to {PATTERN_MAX} characters, this one has {len(pattern)}")
        self._patterns = [_parts_of(alternative) for alternative in _alternatives(pattern)]

    def matches(self, parts: Sequence[str]) -> bool:
        """Return whether a path, given as its names, is matched."""
        return any(
            _match(pattern, parts if anchored else parts[-1:])
            for anchored, pattern in self._patterns
            if parts
        )


_ANY: Final = None
"""What stands for `**` among the compiled names."""

_Compiled = tuple[re.Pattern[str] | None, ...]


def _parts_of(pattern: str) -> tuple[bool, _Compiled]:
    names = [name for name in pattern.split("/") if name not in {"", "."}]
    return "/" in pattern or "**" in names, tuple(_ANY if name == "**" else _compiled(name) for name in names)


@functools.lru_cache(maxsize=256)
def _compiled(name: str) -> re.Pattern[str]:
    # fnmatch writes atomic groups: a star never tries again what it gave up, so matching stays polynomial.
    return re.compile(fnmatch.translate(name))


def _match(pattern: _Compiled, parts: Sequence[str]) -> bool:
    """Match by a table instead of by trying: at most as many steps as names times pattern names."""
    reached = {0}
    for element in pattern:
        if element is _ANY:
            reached = set(range(min(reached), len(parts) + 1))
        else:
            reached = {at + 1 for at in reached if at < len(parts) and element.match(parts[at])}
        if not reached:
            return False
    return len(parts) in reached


_BRACES: Final = re.compile(r"\{([^{}]*,[^{}]*)\}")


def _alternatives(pattern: str) -> list[str]:
    """Write out `{a,b}`; a brace without its partner stands for itself."""
    done: list[str] = []
    waiting = [pattern]
    while waiting:
        text = waiting.pop()
        braces = _BRACES.search(text)
        if braces is None:
            done.append(text)
            continue
        before, after = text[: braces.start()], text[braces.end() :]
        waiting.extend(before + choice + after for choice in braces[1].split(","))
        if len(done) + len(waiting) > ALTERNATIVES_MAX:
            raise ValueError(
                f"the braces of this pattern stand for more than {ALTERNATIVES_MAX} patterns; use fewer"
            )
    return done
