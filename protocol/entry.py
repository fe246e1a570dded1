"""A ledger entry: its fields, its qualities and its content identifier (section 6 of the specification)."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from protocol.canonical import hash_of
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


_LEAVES: Final = frozenset({str, int, bool, type(None)})


def _is_plain(value: Any) -> bool:
    """Tell at a glance that there is nothing to refuse; every entry passes here, so the loops are written out."""
    kind = type(value)
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or not key.isascii():
                return False
            if type(item) not in _LEAVES and not _is_plain(item):
                return False
        return True
    if kind is list:
        for item in value:  # noqa: SIM110 - a generator costs more than the walk
            if type(item) not in _LEAVES and not _is_plain(item):
                return False
        return True
    return kind in _LEAVES


def refuse_floats(value: Any, path: str = "payload") -> None:
    """Raise CanonicalError naming the path where `value` holds a float or a key that is not ASCII."""
    if _is_plain(value):
        return
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


def make_entry(
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
) -> Entry:
    """Return the entry with its CID; raises LedgerError for an unknown quality, CanonicalError for the rest."""
    if quality not in QUALITIES:
        raise LedgerError(f"{quality!r} is not a quality of the ledger")
    refuse_floats(payload)
    fields: dict[str, Any] = {
        "entity_id": entity_id,
        "target": target,
        "quality": quality,
        "timestamp": timestamp,
        "source": source,
        "actor": actor,
        "parents": parents,
        "tags": tags or [],
        "payload": payload,
        "proof": None,
        "envelope": None,
    }
    return Entry(cid=hash_of(fields), **fields)
