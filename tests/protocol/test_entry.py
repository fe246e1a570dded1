"""What a payload of the ledger may hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.canonical import canonical_json, hash_of
from protocol.entry import compose_entry, make_entry, refuse_floats
from protocol.errors import CanonicalError
from protocol.tiers import Tier

LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats() | st.sampled_from(Tier)
KEYS = st.sampled_from(["a", "b", "c", "ä"])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


def fault_of(value, path):
    """Return the path of the first thing that the ledger holds none of, found without a shortcut."""
    if isinstance(value, float):
        return path
    if isinstance(value, dict):
        for key, item in value.items():
            found = fault_of(item, f"{path}.{key}") if key.isascii() else path
            if found:
                return found
    if isinstance(value, list):
        for index, item in enumerate(value):
            found = fault_of(item, f"{path}[{index}]")
            if found:
                return found
    return None


@given(VALUES)
def test_float_or_foreign_key_is_refused_wherever_it_stands_and_nothing_else_is(value):
    path = fault_of(value, "payload")
    if path is None:
        refuse_floats(value)
    else:
        with pytest.raises(CanonicalError) as caught:
            refuse_floats(value)
        assert path in str(caught.value)


def test_entry_with_a_float_is_never_made():
    with pytest.raises(CanonicalError, match=r"payload\.usage\[1\]"):
        make_entry(
            entity_id="e",
            target="t",
            quality="turn",
            timestamp="2026-11-22T00:00:00.000000Z",
            source="e",
            actor="a",
            parents=[],
            payload={"usage": [1, 2.0]},
        )


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    st.dictionaries(KEYS, LEAVES | st.lists(st.integers(), max_size=2)), st.lists(TEXTS, max_size=2), TEXTS
)
def test_an_entry_is_identified_by_the_canonical_form_of_its_fields(payload, parents, text):
    fields = {
        "entity_id": text,
        "target": text,
        "quality": "turn",
        "timestamp": "2026-11-22T00:00:00.000000Z",
        "source": text,
        "actor": text,
        "parents": parents,
        "payload": payload,
    }
    try:
        refuse_floats(payload)
        expected = hash_of({**fields, "tags": [], "proof": None, "envelope": None})
    except CanonicalError:
        with pytest.raises(CanonicalError):
            compose_entry(**fields)
        return
    entry, kept = compose_entry(**fields)
    assert entry.cid == expected
    assert kept == canonical_json(payload).decode()
    entry.verify()
