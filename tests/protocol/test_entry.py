"""What a payload of the ledger may hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.entry import make_entry, refuse_floats
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
