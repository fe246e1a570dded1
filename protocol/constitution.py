"""The typed constitution: `constitution.yaml` as objects.

`store.content` reads the file, `protocol.faults` says what is wrong with it beyond the types, `protocol.policy`
compiles the rules.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec

from protocol.mounts import Mount
from protocol.tiers import Tier

Scope = Literal["unknown", "registered", "standing", "tainted"]
"""Whose folders: a tier's, or those of a standing agent whose turn carries mail from below `standing`."""

SCOPES: Final[tuple[Scope, ...]] = ("unknown", "registered", "standing", "tainted")

WORKSPACE_RULE: Final = "workspace-boundary"
"""The name under which the mounts block a call; no rule of a constitution may take it."""

SESSION_PREFIX_LENGTH: Final = 16
"""How many characters of a session's id `{session}` becomes."""

SEGMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")
"""What may stand for a word of a template: one plain folder name."""

Pattern = Annotated[str, msgspec.Meta(max_length=512)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Count = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Seconds = Annotated[int, msgspec.Meta(ge=1, le=86_400)]


class Condition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a rule applies; every part that is present must hold, and none present means always.

    `tool_name_matches`: exact names or globs, one of which must match. `argument_matches`: argument to glob, all of
    which must match; an argument that is absent or not a string does not match.
    """

    agent_trust: Tier | None = None
    tool_name_matches: list[Pattern] | None = None
    argument_matches: dict[str, Pattern] | None = None


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule of the policy court; `reason` is for the agent and for people, `name` for the ledger only."""

    name: Name
    condition: Condition
    verdict: Literal["allowed", "blocked"]
    reason: str


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of everything: whole numbers from 1; names ending in `_s` are seconds, in `_days` days.

    `tokens_per_day` is for the whole daemon. `history_days` None keeps the history for ever.
    """

    queued_turns: Count = 8
    model_calls_per_turn: Count = 50
    turn_timeout_s: Seconds = 900
    delegated_tool_timeout_s: Seconds = 120
    wakeups_per_10_min: Count = 12
    mail_hops: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 16
    history_tokens_max: Annotated[int, msgspec.Meta(ge=100, le=10_000_000)] = 120_000
    tokens_per_agent_day: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000_000)] = 2_000_000
    tokens_per_day: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000_000)] = 20_000_000
    guest_session_days: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 30
    history_days: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None


class MountTemplate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A folder that a scope gives, relative to the root.

    `{name}` in `path` becomes the identity's id, `{session}` the first 16 characters of the session's id. `write`
    means read and write.
    """

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    access: Literal["read", "write"]


def _templates(**access: Literal["read", "write"]) -> list[MountTemplate]:
    paths = {
        "platform": "platform",
        "workspaces": "workspaces",
        "guest": "workspaces/guests/{session}",
        "user": "workspaces/users/{name}",
        "agent": "workspaces/agents/{name}",
    }
    return [MountTemplate(path=paths[key], access=value) for key, value in access.items()]


class Workspaces(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The folders of each scope; the defaults are those of section 5 of the specification."""

    unknown: list[MountTemplate] = msgspec.field(
        default_factory=lambda: _templates(platform="read", guest="write"),
    )
    registered: list[MountTemplate] = msgspec.field(
        default_factory=lambda: _templates(platform="read", user="write"),
    )
    standing: list[MountTemplate] = msgspec.field(
        default_factory=lambda: _templates(platform="write", workspaces="write"),
    )
    tainted: list[MountTemplate] = msgspec.field(
        default_factory=lambda: _templates(platform="read", agent="write"),
    )


class Constitution(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rules that a machine evaluates: declaration order, first match wins, no match is blocked."""

    tool_rules: list[Rule]
    workspaces: Workspaces = msgspec.field(default_factory=Workspaces)
    limits: Limits = msgspec.field(default_factory=Limits)
    default_mandate: str = ""


def mounts_for(
    constitution: Constitution,
    scope: Scope,
    *,
    name: str,
    session_id: str,
) -> tuple[Mount, ...]:
    """Return the mounts of a scope, in the order of the constitution, each path once (the narrower access holds).

    Raises ValueError where a template needs `name` or `session_id` and that is not one plain folder name: letters,
    digits and `._:@-`, beginning with a letter or digit.
    """
    words = {"{name}": name, "{session}": session_id[:SESSION_PREFIX_LENGTH]}
    mounts: dict[str, Mount] = {}
    for template in getattr(constitution.workspaces, scope):
        path = template.path
        for word, value in words.items():
            if word in path:
                if SEGMENT.fullmatch(value) is None:
                    raise ValueError(
                        f"{value!r} cannot stand for {word} in {template.path!r}: not a plain folder name"
                    )
                path = path.replace(word, value)
        write = template.access == "write" and (path not in mounts or mounts[path].write)
        mounts[path] = Mount(path, write)
    return tuple(mounts.values())
