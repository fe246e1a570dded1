"""The roster: who is known, what they are trusted with, and who a recipient's name reaches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal

import msgspec

from protocol.faults import Fault
from protocol.tiers import Tier

RESERVED: Final = frozenset({"operator", "runner", "all", "guest"})
"""Names that mean somebody already; neither an id nor a role may be one of them."""

_WORD: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_MANDATE: Final = re.compile(r"mandates(?:/[^./\0][^/\0]*)+")

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One identity of the roster.

    `kind`: `role` lives in the daemon, `user` is a person or a person's agent. `state`: `frozen` keeps its mail and
    takes no turns, `dead` is as if unknown. `model`: None is the daemon's default. `mandate`: a file in
    mandates/, relative to platform/; None is the constitution's default mandate.
    """

    id: str
    kind: Literal["role", "user"]
    state: Literal["live", "frozen", "dead"]
    role: str | None = None
    model: Text | None = None
    mandate: Text | None = None
    pubkey: Text | None = None
    tags: list[str] = msgspec.field(default_factory=list)


class RosterFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of roster.yaml."""

    identities: list[Identity]


class Roster:
    """The identities in the order of the file; ids are unique (ValueError otherwise)."""

    __slots__ = ("_by_id", "identities")

    def __init__(self, identities: Sequence[Identity] = ()) -> None:
        self.identities = tuple(identities)
        self._by_id = {identity.id: identity for identity in self.identities}
        if len(self._by_id) != len(self.identities):
            raise ValueError("two identities of a roster have one id")

    def get(self, identity_id: str) -> Identity | None:
        """Return the identity of that id, dead ones too, or None."""
        return self._by_id.get(identity_id)

    def resolve(self, recipient: str) -> list[Identity]:
        """Return who mail to `recipient` reaches: an id, a role, `tag:x` or `all`; never a dead identity.

        An id goes before a role of the same name. Nobody is an empty list.
        """
        living = [identity for identity in self.identities if identity.state != "dead"]
        if recipient == "all":
            return living
        if recipient.startswith("tag:"):
            return [identity for identity in living if recipient[4:] in identity.tags]
        named = self._by_id.get(recipient)
        if named is not None:
            return [named] if named.state != "dead" else []
        return [identity for identity in living if identity.role == recipient]

    def standing(self) -> list[Identity]:
        """Return the standing agents: roles that are live."""
        return [identity for identity in self.identities if tier_of(identity) is Tier.STANDING]


def tier_of(identity: Identity | None) -> Tier:
    """Return the trust of an identity that has proved who it is; None (not in the roster) and `dead` are unknown."""
    if identity is None or identity.state == "dead":
        return Tier.UNKNOWN
    if identity.kind == "role" and identity.state == "live":
        return Tier.STANDING
    return Tier.REGISTERED


def roster_faults(identities: Sequence[Identity]) -> Iterator[Fault]:
    """Yield what is wrong with identities whose types are right, from top to bottom."""
    ids = {identity.id for identity in identities}
    seen: set[str] = set()
    for index, identity in enumerate(identities):
        where = ("identities", index)
        if identity.id in seen:
            yield Fault(
                (*where, "id"), f"two identities have the id {identity.id!r}", "Give each an id of its own."
            )
        seen.add(identity.id)
        yield from _word_faults((*where, "id"), identity.id, "id")
        if identity.role is not None:
            yield from _word_faults((*where, "role"), identity.role, "role")
            if identity.role in ids - {identity.id}:
                yield Fault(
                    (*where, "role"),
                    f"the role {identity.role!r} is also the id of another identity, so mail to it would go there",
                    "Choose another word for the role.",
                )
        for position, tag in enumerate(identity.tags):
            if _WORD.fullmatch(tag) is None:
                yield Fault((*where, "tags", position), f"{tag!r} is not a tag", _WORD_FIX)
        yield from _file_faults(where, identity)


_WORD_FIX: Final = "Use lower-case letters, digits and hyphens, at most 64, beginning with a letter or digit."


def _word_faults(where: tuple[str | int, ...], word: str, kind: str) -> Iterator[Fault]:
    if _WORD.fullmatch(word) is None:
        yield Fault(
            where, f"{word!r} is not an {kind}" if kind == "id" else f"{word!r} is not a {kind}", _WORD_FIX
        )
    elif word in RESERVED:
        yield Fault(
            where,
            f"{word!r} is reserved and cannot be a{'n' * (kind == 'id')} {kind}",
            "Choose another word.",
        )


def _file_faults(where: tuple[str | int, ...], identity: Identity) -> Iterator[Fault]:
    if identity.mandate is not None and _MANDATE.fullmatch(identity.mandate) is None:
        yield Fault(
            (*where, "mandate"),
            f"{identity.mandate!r} is not a file in mandates/, the folder that agents cannot write",
            f"Put it there and give its path relative to platform/, like mandates/{identity.id}.md.",
        )
    if identity.pubkey is not None and "PRIVATE" in identity.pubkey.upper():
        yield Fault(
            (*where, "pubkey"),
            "this looks like a private key",
            "Put the public half here, and replace the key: the private half has been in a shared file.",
        )
