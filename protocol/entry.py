"""A ledger entry: its fields, its qualities and its content identifier (section 6 of the specification)."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from protocol.canonical import blake3_hex, canonical_json, canonical_object, flat_json, hash_of
from protocol.errors import CanonicalError, LedgerError

QUALITIES: Final = frozenset(
    {
        "turn",
        "tool_call",
        "tool_result",
        "policy_verdict",
        "mailbox_inject",
        "session_lifecycle",
        "configuration",
    },
)
"""What an entry can be about. `configuration` records an enacted or refused constitution, roster or mandate."""

FIELDS: Final = (
    "entity_id",
    "target",
    "quality",
    "timestamp",
    "source",
    "actor",
    "parents",
    "tags",
    "payload",
    "proof",
    "envelope",
)
"""Every field of the pre-image, in the order of the table; `cid` is the hash over them."""


class Entry(msgspec.Struct, frozen=True):
    """One act in the ledger.

    `cid`: 64 lowercase hex characters, BLAKE3 of the RFC 8785 form of the other eleven fields. `timestamp`:
    RFC 3339 UTC with microseconds. `parents`: CIDs. `payload`: hashes, names and verdicts, never content, no
    floats, ASCII keys. Absent values are None (JSON null), never left out.
    """

    cid: str
    entity_id: str
    target: str
    quality: str
    timestamp: str
    source: str
    actor: str
    parents: list[str]
    tags: list[str]
    payload: dict[str, Any]
    proof: dict[str, Any] | None = None
    envelope: dict[str, Any] | None = None

    def preimage(self) -> dict[str, Any]:
        """Return what the CID is the hash of: all fields except `cid`."""
        return {name: getattr(self, name) for name in FIELDS}

    def verify(self) -> None:
        """Raise LedgerError unless the content hashes to the CID."""
        try:
            found = hash_of(self.preimage())
        except CanonicalError as error:
            raise LedgerError(f"entry {self.cid} holds what canonical JSON cannot: {error}") from error
        if found != self.cid:
            raise LedgerError(f"entry {self.cid} hashes to {found}")


def refuse_floats(value: Any, path: str = "payload") -> None:
    """Raise CanonicalError naming the path where `value` holds a float or a key that is not ASCII."""
    if isinstance(value, float):
        raise CanonicalError(path, "the ledger holds no floats")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or not key.isascii():
                raise CanonicalError(path, f"the key {key!r} is not ASCII text")
            refuse_floats(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            refuse_floats(item, f"{path}[{index}]")


def compose_entry(
    *,
    entity_id: str,
    target: str,
    quality: str,
    timestamp: str,
    source: str,
    actor: str,
    parents: list[str],
    payload: dict[str, Any],
    tags: list[str] | None = None,
) -> tuple[Entry, str]:
    """Return the entry with its CID, and its payload as canonical text, which is what its row holds.

    Raises LedgerError for an unknown quality, CanonicalError for what canonical JSON or the ledger cannot hold.
    """
    if quality not in QUALITIES:
        raise LedgerError(f"{quality!r} is not a quality of the ledger")
    text = flat_json(payload)
    if text is None:
        refuse_floats(payload)
        text = canonical_json(payload)
    tags = tags or []
    preimage = canonical_object(
        {
            "actor": actor,
            "entity_id": entity_id,
            "envelope": None,
            "parents": parents,
            "payload": None,
            "proof": None,
            "quality": quality,
            "source": source,
            "tags": tags,
            "target": target,
            "timestamp": timestamp,
        },
        "payload",
        text,
    )
    cid = blake3_hex(preimage)
    entry = Entry(cid, entity_id, target, quality, timestamp, source, actor, parents, tags, payload)
    return entry, text.decode()


def make_entry(**fields: Any) -> Entry:
    """Return the entry that `compose_entry` makes of the same fields."""
    entry, _ = compose_entry(**fields)
    return entry
