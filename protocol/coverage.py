"""Which rules can never match, because all that they say is decided above them.

The answer is sound, not complete: a rule that is named here can never decide a call, but one that is not named may
still be useless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from protocol.constitution import Condition
from protocol.patterns import covers_path, covers_text, normalised_pattern
from protocol.tiers import Tier


def covering_rules(earlier: Sequence[Condition], condition: Condition) -> list[int]:
    """Return the positions in `earlier` of the rules that together decide all that `condition` is for, or [].

    The condition is taken apart into one piece for each tier and each name pattern; it is covered when every piece
    lies within one earlier condition. So three rules, one for each tier, cover a rule for everybody.
    """
    found: set[int] = set()
    tiers = list(Tier) if condition.agent_trust is None else [condition.agent_trust]
    for tier in tiers:
        for pattern in ["*"] if condition.tool_name_matches is None else condition.tool_name_matches:
            piece = (tier, pattern, condition.argument_matches or {})
            position = next((index for index, other in enumerate(earlier) if _covers(other, *piece)), None)
            if position is None:
                return []
            found.add(position)
    return sorted(found)


def _covers(condition: Condition, tier: Tier, pattern: str, arguments: Mapping[str, str]) -> bool:
    if condition.agent_trust not in (None, tier):
        return False
    names = condition.tool_name_matches
    if names is not None and not any(covers_text(name, pattern) for name in names):
        return False
    wanted = condition.argument_matches or {}
    return all(name in arguments and _covers_argument(glob, arguments[name]) for name, glob in wanted.items())


def _covers_argument(general: str, special: str) -> bool:
    """Whether an argument is a path is known only where the tools are, so it must hold in both readings."""
    if general in (special, "**"):
        return True
    if general.startswith("/") or special.startswith("/"):
        return False  # what is left of it once the root is taken off is not known here
    return covers_text(general, special) and covers_path(
        normalised_pattern(general), normalised_pattern(special)
    )
