"""Canonical JSON (RFC 8785) and the content identifiers made of it.

`canonical_json` gives the bytes of RFC 8785. The fast path is orjson behind a guard that walks the input: orjson
sorts keys by code point and prints floats its own way, so it is RFC 8785 only for ASCII keys and exact integers.
Anything else goes to the rfc8785 library, which is strict. `fallbacks` counts those, so that a slow path that
became common is seen.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
import rfc8785
from blake3 import blake3

from protocol.errors import CanonicalError

INTEGER_MAX: Final = 2**53 - 1
"""The largest integer that every JSON reader holds exactly (RFC 8785, section 3.2.2.3)."""

DEPTH_MAX: Final = 128
"""Values nested deeper than this are refused before they reach a recursive encoder."""


class Fallbacks:
    """How often `canonical_json` left its fast path."""

    count = 0


fallbacks = Fallbacks()


_LEAVES: Final = frozenset({str, bool, type(None)})


def _plain(value: Any, depth: int = 0) -> bool:  # noqa: PLR0911 - one line for each kind of value
    """Tell whether orjson gives the RFC 8785 bytes of a value: no floats, ASCII keys, exact integers and types.

    The loops are written out, since this is a hot path. Raises CanonicalError for what is nested too deep.
    """
    if depth > DEPTH_MAX:
        raise CanonicalError("$", f"nested deeper than {DEPTH_MAX} levels")
    kind = type(value)
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or not key.isascii():
                return False
            if type(item) not in _LEAVES and not _plain(item, depth + 1):
                return False
        return True
    if kind is list or kind is tuple:
        for item in value:  # noqa: SIM110 - a generator costs more than the walk
            if type(item) not in _LEAVES and not _plain(item, depth + 1):
                return False
        return True
    if kind is int:
        return bool(-INTEGER_MAX <= value <= INTEGER_MAX)
    return kind in _LEAVES


_SIMPLE: Final = frozenset({str, int, bool, type(None)})


def flat_json(members: dict[str, Any]) -> bytes | None:
    """Return the RFC 8785 bytes of a flat object of plain ASCII members at a fraction of the cost, else None.

    Nothing is walked in Python: the types are looked at together, orjson refuses keys that are not texts and integers
    over 2^53-1, and what is ASCII as a whole has ASCII keys.
    """
    if not _SIMPLE.issuperset(map(type, members.values())):
        return None
    try:
        text = orjson.dumps(members, option=orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER)
    except (orjson.JSONEncodeError, TypeError):
        return None
    return text if text.isascii() else None


def canonical_object(members: dict[str, Any], embedded: str, canonical: bytes) -> bytes:
    """Return the RFC 8785 bytes of an object that has, under one more key, what is canonical already.

    For the one object that is made for every act: `members` has the keys in their order with None in the place of
    `embedded`, and texts, lists of texts or None as values, which orjson writes as RFC 8785 does.
    """
    members[embedded] = orjson.Fragment(canonical)
    try:
        return orjson.dumps(members)
    except (orjson.JSONEncodeError, TypeError) as error:
        raise CanonicalError("$", str(error)) from error


def canonical_json(value: Any) -> bytes:
    """Return the RFC 8785 bytes of a JSON value.

    Raises CanonicalError for what canonical JSON cannot hold: integers over 2^53-1, NaN and infinities, lone
    surrogates, keys that are not strings, values that are not JSON.
    """
    if _plain(value):
        try:
            return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        except (orjson.JSONEncodeError, TypeError) as error:
            raise CanonicalError("$", str(error)) from error
    fallbacks.count += 1
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise CanonicalError("$", str(error)) from error


def blake3_hex(data: bytes) -> str:
    """Return BLAKE3 of `data` as 64 lowercase hex characters."""
    return blake3(data).hexdigest()


def hash_of(value: Any) -> str:
    """Return BLAKE3 of the canonical JSON of `value`; raises CanonicalError like `canonical_json`."""
    return blake3(canonical_json(value)).hexdigest()
