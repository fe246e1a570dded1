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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocol.constitution import WORKSPACE_RULE, Constitution, Rule
from protocol.mounts import Mount
from protocol.patterns import normalised_path, normalised_pattern, path_matcher, text_matcher
from protocol.tiers import Tier

REMEMBERED_MAX: Final = 1024
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
_Steps = tuple[tuple[Verdict, _Tests], ...]


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule of the gate's tier: its verdict, what tells its tools (None: every tool), what it asks of arguments."""

    verdict: Verdict
    names: tuple[Callable[[str], bool], ...] | None
    arguments: Mapping[str, str]

    def is_for(self, tool: str) -> bool:
        return self.names is None or any(matches(tool) for matches in self.names)


_Folder = tuple[str, int, bool, tuple[str, ...], str]
"""What of a mount is settled by slicing: its path with a slash behind it, the length of that, whether it lets, the
beginnings of those paths in it that are not settled so, and every letter that can follow the slash in one of those."""


class _Access:
    """The folders of a session for one act, reading or writing; all of what can be known of a path by its letters."""

    __slots__ = ("_barred", "_root_prefix", "_word", "_write", "absolute", "lets", "relative", "sure")

    def __init__(
        self,
        mounts: Sequence[Mount],
        barred: Sequence[str],
        root_prefix: str | None,
        *,
        write: bool,
    ) -> None:
        # Of two mounts with one path the one that lets less holds, so the others are written over.
        ordered = sorted(mounts, key=lambda mount: (mount.path, not mount.write))
        self.lets = {mount.path: mount.write or not write for mount in ordered}
        self._barred = tuple(barred)
        self._root_prefix = root_prefix
        self._word = "written" if write else "read"
        self._write = write
        longest_first = sorted(self.lets, key=len, reverse=True)
        self.relative = tuple(self._folder("", path) for path in longest_first)
        self.absolute = (
            () if root_prefix is None else tuple(self._folder(root_prefix, path) for path in longest_first)
        )
        # The beginnings behind which nothing else stands: most paths are settled by one look at these.
        self.sure = tuple(
            prefix for prefix, _, lets, doubts, _ in (*self.relative, *self.absolute) if lets and not doubts
        )

    def _folder(self, root_prefix: str, path: str) -> _Folder:
        prefix = f"{root_prefix}{path}/"
        inside = [root_prefix + other for other in (*self.lets, *self._barred)]
        doubts = tuple(other for other in inside if other.startswith(prefix))
        lets = self.lets[path] and not any(_is_within(path, other) for other in self._barred)
        letters = {doubt[len(prefix)] for doubt in doubts} | {".", "/"}
        return prefix, len(prefix), lets, doubts, "".join(sorted(letters))

    def problem(self, path: str) -> str | None:
        """Return why the path may not be acted on, or None."""
        normal = normalised_path(path, self._root_prefix)
        if normal in ("", ".") and not self._write:
            # The root itself holds nothing but the mounts: to read it is to ask which they are.
            return None
        holding = [mount for mount in self.lets if _is_within(normal, mount)]
        if (
            holding
            and self.lets[max(holding, key=len)]
            and not any(_is_within(normal, other) for other in self._barred)
        ):
            return None
        shown = repr(path if len(path) <= _SHOWN_MAX else path[:_SHOWN_MAX] + "…")
        return f"{shown} cannot be {self._word} here"


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


_Paths = tuple[tuple[str, tuple[str, ...], tuple[_Folder, ...], tuple[_Folder, ...], _Access], ...]
_Plan = tuple[Verdict, tuple[_Paths, _Steps] | None]
"""For one tool: the verdict where no rule about arguments decides, then the path arguments with the folders that they
are held to and the rules about arguments that stand above it; None where the arguments can change nothing."""


class Gate:
    """The compiled rules of one constitution for one tier and its mounts; see `compile_gate`.

    Pure: the same question has the same answer, whatever was asked before.
    """

    __slots__ = (
        "_folders",
        "_offers",
        "_path_arguments",
        "_plans",
        "_reading",
        "_root_prefix",
        "_rules",
        "_writing",
    )

    def __init__(
        self,
        rules: Sequence[_Rule],
        path_arguments: Mapping[str, Mapping[str, str]],
        reading: _Access,
        writing: _Access,
        *,
        root_prefix: str | None,
        folders: str,
    ) -> None:
        self._rules = tuple(rules)
        self._path_arguments = {tool: dict(arguments) for tool, arguments in path_arguments.items()}
        self._reading = reading
        self._writing = writing
        self._root_prefix = root_prefix
        self._folders = folders
        self._plans: dict[str, _Plan] = {}
        self._offers: dict[str, Verdict] = {}
        for tool in self._path_arguments:
            self._plan(tool)

    def offer(self, tool: str) -> Verdict:
        """Return whether the model may see the tool."""
        found = self._offers.get(tool)
        return self._offer(tool) if found is None else found

    def judge(self, tool: str, arguments: Mapping[str, Any]) -> Verdict:  # noqa: C901, PLR0912 - calls cost as much as checks
        """Return whether a call with these arguments may run.

        A path argument that is absent or None is the tool's own default and passes, and so does the root where it is
        read: the tools list the mounts there. One that is not text, leaves the
        root, lies in no mount (to write: in none that lets write) or is barred is blocked by WORKSPACE_RULE.
        """
        try:
            verdict, checks = self._plans[tool]
        except KeyError:
            verdict, checks = self._plan(tool)
        if checks is None:
            return verdict
        paths, steps = checks
        if steps:
            verdict = self._decide(verdict, paths, steps, arguments)
            if not verdict.allowed:
                return verdict
        for name, sure, relative, absolute, access in paths:
            path = arguments.get(name)
            if path is None:
                continue
            if not isinstance(path, str):
                return _blocked(f"the argument {name!r} must be a path as text")
            # What is evident is let here; whatever is in doubt is looked at in full. Without a climbing ".." what
            # begins with a mount's path lies in it; single dots and doubled slashes matter where more stands inside,
            # and even there not behind a name that begins with another letter than all that stands inside.
            evident = False
            if "/.." not in path:
                if path.startswith(sure):
                    continue
                for prefix, size, lets, doubts, letters in absolute if path[:1] == "/" else relative:
                    if path[:size] == prefix:
                        evident = lets and not (
                            doubts
                            and path[size : size + 1] in letters
                            and ("/." in path or "//" in path or path.startswith(doubts))
                        )
                        break
            if evident:
                continue
            problem = access.problem(path)
            if problem is not None:
                return _blocked(f"{problem}; the folders of this session are: {self._folders}")
        return verdict

    def _decide(self, final: Verdict, paths: _Paths, steps: _Steps, arguments: Mapping[str, Any]) -> Verdict:
        """Return the verdict of the first rule about arguments whose tests all hold, else `final`."""
        known = dict(arguments)
        for name, *_ in paths:
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

    def _offer(self, tool: str) -> Verdict:
        verdict = NO_MATCH
        for rule in self._rules:
            if rule.is_for(tool) and (rule.verdict.allowed or not rule.arguments):
                verdict = rule.verdict
                break
        if len(self._offers) < REMEMBERED_MAX:
            self._offers[tool] = verdict
        return verdict

    def _plan(self, tool: str) -> _Plan:
        path_arguments = self._path_arguments.get(tool, {})
        final = NO_MATCH
        steps: list[tuple[Verdict, _Tests]] = []
        for rule in self._rules:
            if not rule.is_for(tool):
                continue
            if not rule.arguments:
                final = rule.verdict
                break
            steps.append((rule.verdict, self._tests(rule.arguments, path_arguments)))
        plan: _Plan = (final, None)
        if steps or (final.allowed and path_arguments):
            paths = tuple(
                (name, access.sure, access.relative, access.absolute, access)
                for name, word in path_arguments.items()
                for access in [self._reading if word == "read" else self._writing]
            )
            plan = (final, (paths, tuple(steps)))
        if len(self._plans) < REMEMBERED_MAX:
            self._plans[tool] = plan
        return plan

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


def compile_gate(
    constitution: Constitution,
    tier: Tier,
    mounts: Sequence[Mount],
    path_arguments: Mapping[str, Mapping[str, str]],
    *,
    root: str | None = None,
    unreadable: Sequence[str] = (),
    unwritable: Sequence[str] = (),
) -> Gate:
    """Return the gate of one session.

    `path_arguments`: tool to argument to "read" or "write"; those arguments are matched as paths and held to `mounts`,
    all others are matched as text. `root`: the absolute root; a path argument below it is taken as relative to it,
    and without one every absolute path is outside. `unreadable` and `unwritable`: paths relative to the root that are
    barred with all that lies below them, whatever the mounts let; what cannot be read cannot be written either.
    Raises ValueError for a root that is not absolute.
    """
    root_prefix = None
    if root is not None:
        if not root.startswith("/"):
            raise ValueError(f"the root {root!r} is not absolute")
        root_prefix = normalised_path(root).rstrip("/") + "/"
    writing = _Access(mounts, (*unreadable, *unwritable), root_prefix, write=True)
    folders = ", ".join(
        f"{path} ({'read and write' if lets else 'read'})" for path, lets in writing.lets.items()
    )
    return Gate(
        [
            _compile_rule(rule)
            for rule in constitution.tool_rules
            if rule.condition.agent_trust in (None, tier)
        ],
        path_arguments,
        _Access(mounts, unreadable, root_prefix, write=False),
        writing,
        root_prefix=root_prefix,
        folders=folders or "none",
    )


def _compile_rule(rule: Rule) -> _Rule:
    names = rule.condition.tool_name_matches
    return _Rule(
        verdict=Verdict(allowed=rule.verdict == "allowed", rule=rule.name, reason=rule.reason),
        names=None if names is None else tuple(text_matcher(name) for name in names),
        arguments=rule.condition.argument_matches or {},
    )


def _blocked(reason: str) -> Verdict:
    return Verdict(allowed=False, rule=WORKSPACE_RULE, reason=reason)
