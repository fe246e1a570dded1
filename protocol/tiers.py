"""Trust: who acts, and how far that reaches (section 5 of the specification)."""

from __future__ import annotations

import enum

import msgspec


class Tier(enum.StrEnum):
    """How far somebody is trusted, least first; compare with `rank`."""

    UNKNOWN = "unknown"
    REGISTERED = "registered"
    STANDING = "standing"

    @property
    def rank(self) -> int:
        """0 for unknown, 1 for registered, 2 for standing."""
        return _RANKS[self]


_RANKS = {Tier.UNKNOWN: 0, Tier.REGISTERED: 1, Tier.STANDING: 2}


def lower(one: Tier, other: Tier) -> Tier:
    """Return the less trusted of two tiers."""
    return one if one.rank <= other.rank else other


class Acting(msgspec.Struct, frozen=True):
    """Who acts in a session, settled by proof when it was opened.

    `principal` is whose trust, scope and budget the session runs on: a roster id, `operator`, or `guest:<16 hex>`.
    `agent_id` is what was asked for. `agent` is the roster id whose mandate is spoken with, or None for the default
    mandate. `mail_of` is the identity whose mail turns carry, or None. `actor` is the ledger's word for it.
    `tier` is the trust before anything is read; `name` is what `{name}` of a mount becomes.
    """

    principal: str
    agent_id: str
    agent: str | None
    mail_of: str | None
    actor: str
    tier: Tier
    name: str

    @property
    def account(self) -> str:
        """On whose account tokens are spent: the actor, and one account for all guests together."""
        return "guest" if self.actor.startswith("guest:") else self.actor
