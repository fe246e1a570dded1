"""Who acts: the principal and the agent of a session, from proof and roster (section 5 of the specification)."""

from __future__ import annotations

from typing import Final

from protocol.roster import Identity, Roster, tier_of
from protocol.tiers import Acting, Tier

OPERATOR: Final = "operator"
"""The identity that the operator's token proves."""

RUNNER: Final = "runner"
"""The identity of the daemon itself."""

GUEST: Final = "guest"
"""What a connection is that proves nothing; the session's owner is then `guest:<first 16 of session_id>`."""


VERIFY: Final = "verify"
"""The channel of sessions in which an agent is only looked at: they take none of its mail."""


def channel_of(session_key: str) -> str | None:
    """Return the channel of a key `<agent_id>:<channel>:<peer…>`, or None where it has none."""
    parts = session_key.split(":", 2)
    return parts[1] if len(parts) > 1 else None


def session_key_of(agent: str) -> str:
    """Return the key of an agent's persistent session, which the operator's chats share."""
    return f"{agent}:cli:local"


def guest_name(session_id: str) -> str:
    """Return the owner and actor of an unproved session."""
    return f"{GUEST}:{session_id[:16]}"


def resolve_acting(roster: Roster, *, owner: str, agent_id: str, session_id: str) -> Acting:
    """Return who acts in a session of `owner` that asked for `agent_id`.

    The operator and the daemon act as any identity of the roster; for an `agent_id` that is not there they act with
    the trust of a stranger. A guest is `unknown` whatever it claims, speaks with the default mandate and carries
    nobody's mail.
    """
    if owner.startswith(f"{GUEST}:"):
        return Acting(owner, agent_id, None, None, owner, Tier.UNKNOWN, owner.partition(":")[2])
    identity = roster.get(agent_id)
    if owner in (OPERATOR, RUNNER):
        if identity is None or identity.state == "dead":
            return Acting(owner, agent_id, None, None, owner, Tier.UNKNOWN, session_id[:16])
        return Acting(
            identity.id, agent_id, identity.id, identity.id, identity.id, tier_of(identity), identity.id
        )
    return _acting_of_user(roster.get(owner), identity, owner, agent_id)


def _acting_of_user(user: Identity | None, identity: Identity | None, owner: str, agent_id: str) -> Acting:
    tier = Tier.UNKNOWN if user is None else tier_of(user)
    # A user borrows an agent's mandate, never its reach, and never its mail.
    role = (
        identity.id if identity is not None and identity.kind == "role" and identity.state != "dead" else None
    )
    return Acting(owner, agent_id, role, None, owner, min(tier, Tier.REGISTERED, key=_rank), owner)


def _rank(tier: Tier) -> int:
    return tier.rank


def is_frozen(roster: Roster, acting: Acting) -> bool:
    """Return whether the principal, or the agent that is spoken with, takes no turns at present."""
    names = {acting.principal, acting.agent_id if acting.agent is None else acting.agent}
    return any((found := roster.get(name)) is not None and found.state == "frozen" for name in names)
