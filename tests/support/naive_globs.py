"""Globs by their definition, too simple to be wrong and too slow to be used."""

from __future__ import annotations


def matches_text(pattern: str, text: str) -> bool:
    """Return whether `*` (any run) and `?` (any one) make the text."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return matches_text(pattern[1:], text) or (bool(text) and matches_text(pattern, text[1:]))
    return bool(text) and pattern[0] in ("?", text[0]) and matches_text(pattern[1:], text[1:])


def matches_names(patterns: list[str], names: list[str]) -> bool:
    """Return whether the patterns, of which `**` is any number of names, make the names."""
    if not patterns:
        return not names
    if patterns[0] == "**":
        return matches_names(patterns[1:], names) or (bool(names) and matches_names(patterns, names[1:]))
    return bool(names) and matches_text(patterns[0], names[0]) and matches_names(patterns[1:], names[1:])
