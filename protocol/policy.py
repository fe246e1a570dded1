"""The gate: whether a tool is offered, and whether a call of it may run.

The rules are read in the order of their declaration, the first that matches decides, and no match is blocked. When a
tool is offered its arguments are not known: a rule about arguments that would block is passed over, one that would
allow offers the tool. So the offer is never stricter than every call. At the call the rules are read in full, and then
each path argument is held to the mounts, which no rule can widen.

Everything is compared as it is written, letter case included: `Secrets/` and `secrets/` are two folders on the file
systems that agents work on, and two tools whose names differ in case are two tools. A path is normalised first, by
its letters alone: what links make of it is for `store.workspace` to hold. The gate is the first wall, not the boundary.

A gate is compiled once for a session (tier and mounts are bound) and judges in well under a microsecond: what depends
on the tool's name alone is settled when the name is first seen.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocol.constitution import WORKSPACE_RULE, Constitution, Rule
from protocol.mounts import Mount
from protocol.patterns import normalised_path, normalised_pattern, path_matcher, text_matcher
from protocol.tiers import Tier

PLANS_MAX: Final = 1024
"""How many tool names a gate remembers; further names are worked out at each call."""

_SHOWN_MAX: Final = 120


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the court says: `rule` is the name of what decided (None where nothing matched), `reason` is for people."""

    allowed: bool
    rule: str | None
    reason: str


NO_MATCH: Final = Verdict(allowed=False, rule=None, reason="no matching policy rule")
"""The verdict on what no rule speaks of."""

_Tests = tuple[tuple[str, Callable[[str], bool]], ...]


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule of the gate's tier: its verdict, what tells its tools (None: every tool), what it asks of arguments."""

    verdict: Verdict
    names: tuple[Callable[[str], bool], ...] | None
    arguments: Mapping[str, str]

    def is_for(self, tool: str) -> bool:
        return self.names is None or any(matches(tool) for matches in self.names)


_Paths = tuple[tuple[str, bool], ...]
_Steps = tuple[tuple[Verdict, _Tests], ...]
_Plan = tuple[Verdict, _Paths, _Steps, Verdict]
"""For one tool: the verdict where no rule about arguments decides; the path arguments, and whether each is written
(empty where nothing would be allowed anyway); the rules about arguments that stand above; the verdict of the offer."""


class _Plans(dict[str, _Plan]):
    """The plans by the tool's name, worked out when a name is first seen and kept up to PLANS_MAX."""

    __slots__ = ("_path_arguments", "_root_prefix", "_rules")

    def __init__(
        self,
        rules: Sequence[_Rule],
        path_arguments: Mapping[str, Mapping[str, str]],
        root_prefix: str | None,
    ) -> None:
        super().__init__()
        self._rules = rules
        self._path_arguments = {tool: dict(arguments) for tool, arguments in path_arguments.items()}
        self._root_prefix = root_prefix

    def __missing__(self, tool: str) -> _Plan:
        plan = self._plan(tool)
        if len(self) < PLANS_MAX:
            self[tool] = plan
        return plan

    def _plan(self, tool: str) -> _Plan:
        path_arguments = self._path_arguments.get(tool, {})
        offer: Verdict | None = None
        final = NO_MATCH
        steps: list[tuple[Verdict, _Tests]] = []
        for rule in self._rules:
            if not rule.is_for(tool):
                continue
            if not rule.arguments:
                final = rule.verdict
                break
            if offer is None and rule.verdict.allowed:
                offer = rule.verdict
            steps.append((rule.verdict, self._tests(rule.arguments, path_arguments)))
        paths: _Paths = ()
        if final.allowed or any(verdict.allowed for verdict, _ in steps):
            paths = tuple((name, access != "read") for name, access in path_arguments.items())
        return final, paths, tuple(steps), offer or final

    def _tests(self, arguments: Mapping[str, str], path_arguments: Mapping[str, str]) -> _Tests:
        return tuple(
            (
                name,
                path_matcher(normalised_pattern(pattern, self._root_prefix))
                if name in path_arguments
                else text_matcher(pattern),
            )
            for name, pattern in arguments.items()
        )


class Gate:
    """The compiled rules of one constitution for one tier and its mounts; see `compile_gate`.

    Pure: the same question has the same answer, whatever was asked before.
    """

    __slots__ = ("_mounts", "_plans", "_root_prefix", "_strip")

    def __init__(self, plans: _Plans, mounts: Sequence[Mount], root_prefix: str | None) -> None:
        self._plans = plans
        self._root_prefix = root_prefix
        ordered = sorted(mounts, key=lambda mount: (-len(mount.path), mount.write))
        self._mounts = tuple(
            (mount.path + "/", len(mount.path) + 1, mount.path, mount.write) for mount in ordered
        )

    def offer(self, tool: str) -> Verdict:
        """Return whether the model may see the tool."""
        return self._plans[tool][3]

    def judge(self, tool: str, arguments: Mapping[str, Any]) -> Verdict:
        """Return whether a call with these arguments may run.

        A path argument that is absent or None is the tool's own default and passes; one that is not text, leaves the
        root, holds a NUL or lies in no mount (to write: in no mount that lets write) is blocked by WORKSPACE_RULE.
        """
        verdict, paths, steps, _ = self._plans[tool]
        if steps:
            verdict = self._decide(verdict, paths, steps, arguments)
        if not paths or not verdict.allowed:
            return verdict
        for name, write in paths:
            path = arguments.get(name)
            if path is None:
                continue
            if not isinstance(path, str):
                return Verdict(
                    allowed=False, rule=WORKSPACE_RULE, reason=f"the argument {name!r} must be a path as text"
                )
            if path[:1] == "/" or "/." in path or "//" in path or path[:1] == "." or path[-1:] == "/":
                path = normalised_path(path, self._root_prefix)
            for prefix, size, bare, writable in self._mounts:
                if path[:size] == prefix or path == bare:
                    if (write and not writable) or "\0" in path:
                        return self._outside(path, write=write)
                    break
            else:
                return self._outside(path, write=write)
        return verdict

    def _decide(self, final: Verdict, paths: _Paths, steps: _Steps, arguments: Mapping[str, Any]) -> Verdict:
        """Return the verdict of the first rule about arguments whose tests all hold, else `final`."""
        known = dict(arguments)
        for name, _ in paths:
            path = known.get(name)
            if isinstance(path, str):
                known[name] = normalised_path(path, self._root_prefix)
        for verdict, tests in steps:
            for name, matches in tests:
                value = known.get(name)
                if not isinstance(value, str) or not matches(value):
                    break
            else:
                return verdict
        return final

    def _outside(self, path: str, *, write: bool) -> Verdict:
        shown = repr(path if len(path) <= _SHOWN_MAX else path[:_SHOWN_MAX] + "…")
        folders = ", ".join(
            f"{bare} ({'read and write' if writable else 'read'})"
            for _, _, bare, writable in sorted(self._mounts, key=operator.itemgetter(2))
        )
        act = "written" if write else "read"
        return Verdict(
            allowed=False,
            rule=WORKSPACE_RULE,
            reason=f"{shown} cannot be {act} here; the folders of this session are: {folders or 'none'}",
        )


def compile_gate(
    constitution: Constitution,
    tier: Tier,
    mounts: Sequence[Mount],
    path_arguments: Mapping[str, Mapping[str, str]],
    *,
    root: str | None = None,
) -> Gate:
    """Return the gate of one session.

    `path_arguments`: tool to argument to "read" or "write"; those arguments are matched as paths and held to `mounts`,
    all others are matched as text. `root`: the absolute root; a path argument below it is taken as relative to it,
    and without one every absolute path is outside. Raises ValueError for a root that is not absolute.
    """
    root_prefix = None
    if root is not None:
        if not root.startswith("/"):
            raise ValueError(f"the root {root!r} is not absolute")
        root_prefix = normalised_path(root).rstrip("/") + "/"
    rules = tuple(
        _compile_rule(rule) for rule in constitution.tool_rules if rule.condition.agent_trust in (None, tier)
    )
    return Gate(_Plans(rules, path_arguments, root_prefix), mounts, root_prefix)


def _compile_rule(rule: Rule) -> _Rule:
    names = rule.condition.tool_name_matches
    return _Rule(
        verdict=Verdict(allowed=rule.verdict == "allowed", rule=rule.name, reason=rule.reason),
        names=None if names is None else tuple(text_matcher(name) for name in names),
        arguments=rule.condition.argument_matches or {},
    )
