"""What can be wrong with a constitution whose types are right: names, rules that never match, folders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from protocol.constitution import (
    SCOPES,
    SEGMENT,
    WORKSPACE_RULE,
    Condition,
    Constitution,
    MountTemplate,
    Rule,
    Scope,
)
from protocol.coverage import covering_rules


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that types cannot tell: where it stands (keys and positions from the top), what and the fix."""

    where: tuple[str | int, ...]
    problem: str
    fix: str


def constitution_faults(constitution: Constitution) -> Iterator[Fault]:
    """Yield what is wrong with a constitution whose types are right, from top to bottom."""
    yield from _rule_faults(constitution.tool_rules)
    for scope in SCOPES:
        yield from _scope_faults(scope, getattr(constitution.workspaces, scope))
    if not constitution.default_mandate.strip():
        yield Fault(
            ("default_mandate",),
            "there is no text in default_mandate",
            "Write what an agent without a mandate of its own is told.",
        )


def _rule_faults(rules: list[Rule]) -> Iterator[Fault]:
    seen: dict[str, int] = {}
    for index, rule in enumerate(rules):
        where = ("tool_rules", index)
        if rule.name in seen:
            yield Fault(
                (*where, "name"), f"two rules are named {rule.name!r}", "Give each rule a name of its own."
            )
        seen.setdefault(rule.name, index)
        if rule.name == WORKSPACE_RULE:
            yield Fault(
                (*where, "name"),
                f"the name {rule.name!r} is taken: the ledger uses it for calls that the mounts block",
                "Choose another name.",
            )
        if not rule.name.isprintable() or rule.name != rule.name.strip():
            yield Fault(
                (*where, "name"),
                f"the name {rule.name!r} holds characters that do not print, or a blank at an end",
                "Use letters, digits and hyphens.",
            )
        if not rule.reason.strip():
            yield Fault(
                (*where, "reason"),
                "the reason is empty",
                "Say in words for people why, and what to do instead.",
            )
        faults = list(_condition_faults(where, rule.condition))
        yield from faults
        if not faults:
            yield from _coverage_faults(where, rules, index)


def _coverage_faults(where: tuple[str | int, ...], rules: list[Rule], index: int) -> Iterator[Fault]:
    covering = covering_rules([rule.condition for rule in rules[:index]], rules[index].condition)
    if covering:
        names = ", ".join(repr(rules[position].name) for position in covering)
        yield Fault(
            where,
            f"the rule {rules[index].name!r} can never match: all that it says is decided before it by {names}",
            "Move it above, narrow what stands above, or take it out.",
        )


def _condition_faults(where: tuple[str | int, ...], condition: Condition) -> Iterator[Fault]:
    names = condition.tool_name_matches
    where = (*where, "condition")
    if names is not None and not names:
        yield Fault(
            (*where, "tool_name_matches"),
            "a rule for no tool can never match: tool_name_matches is empty",
            "Name the tools, or leave tool_name_matches out to mean every tool.",
        )
    for position, pattern in enumerate(names or ()):
        if not pattern.strip():
            yield Fault(
                (*where, "tool_name_matches", position),
                "no tool has an empty name",
                'Name a tool, or write "*" for all.',
            )
        elif set(pattern) & set("[]{}"):
            yield Fault(
                (*where, "tool_name_matches", position),
                f"brackets and braces are not part of a pattern, and {pattern!r} holds one",
                "List the names one by one, or use * and ?.",
            )
    arguments = condition.argument_matches
    if arguments is not None and not arguments:
        yield Fault(
            (*where, "argument_matches"),
            "argument_matches is empty, so it is not clear whether the rule waits for the call",
            "Name an argument, or leave argument_matches out.",
        )
    for argument, pattern in (arguments or {}).items():
        if any("**" in segment and segment != "**" for segment in pattern.split("/")):
            yield Fault(
                (*where, "argument_matches", argument),
                f"`**` must stand alone between slashes, and in {pattern!r} it does not",
                "Write * for a run of characters, and **/ or /** for any depth of folders.",
            )


def _scope_faults(scope: Scope, templates: list[MountTemplate]) -> Iterator[Fault]:
    seen: set[str] = set()
    for index, template in enumerate(templates):
        problem, fix = _template_problem(template.path)
        if template.path in seen:
            problem, fix = f"{template.path!r} stands here twice", "Leave one of the two."
        seen.add(template.path)
        if problem:
            yield Fault(("workspaces", scope, index, "path"), problem, fix)


def _template_problem(path: str) -> tuple[str, str]:
    """Return the problem with a mount's path and the fix, or two empty strings."""
    segments = path.split("/")
    plain = [segment.replace("{name}", "name").replace("{session}", "session") for segment in segments]
    if segments[0] not in {"platform", "workspaces"}:
        return (
            f"{path!r} lies outside platform/ and workspaces/, and nothing else under the root can be given",
            "Begin the path with platform or workspaces, without a slash before it.",
        )
    if plain[:2] == ["workspaces", ".state"]:
        return f"{path!r} holds the keys and the database, which no agent reaches", "Give another folder."
    if any(SEGMENT.fullmatch(segment) is None for segment in plain):
        return (
            f"{path!r} is not a plain folder",
            "Use letters, digits and ._:@- in each name, single slashes between; {name} and {session} are filled in.",
        )
    return "", ""
