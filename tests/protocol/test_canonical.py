"""Canonical JSON: the fast path and the strict library agree, and what cannot be held is refused."""

from typing import Any

import pytest
import rfc8785
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.canonical import DEPTH_MAX, INTEGER_MAX, canonical_json, fallbacks, flat_json, hash_of
from protocol.errors import CanonicalError

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-INTEGER_MAX, INTEGER_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30
)


@settings(max_examples=200)
@given(values)
def test_fast_path_gives_the_bytes_of_the_strict_library(value: Any) -> None:
    try:
        expected = rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        with pytest.raises(CanonicalError):
            canonical_json(value)
        return
    assert canonical_json(value) == expected


@settings(max_examples=200)
@given(
    st.dictionaries(st.text() | st.sampled_from("abc"), leaves | st.integers() | st.lists(leaves, max_size=1))
)
def test_flat_path_gives_the_bytes_of_the_strict_library_or_leaves_it_to_the_others(
    value: dict[str, Any],
) -> None:
    found = flat_json(value)
    if found is None:
        simple = all(type(item) in (str, bool, int, type(None)) for item in value.values())
        small = all(type(item) is not int or abs(item) <= INTEGER_MAX for item in value.values())
        ascii_only = all(text.isascii() for text in [*value, *value.values()] if isinstance(text, str))
        assert not (simple and small and ascii_only)
    else:
        assert found == rfc8785.dumps(value)
        assert not any(isinstance(item, float) for item in value.values())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # RFC 8785, section 3.2.3 and 3.2.2.3
        (
            {"b": 2, "a": 1, "1": {"f": {"f": "hi", "F": 5}, "\n": 56}},
            b'{"1":{"\\n":56,"f":{"F":5,"f":"hi"}},"a":1,"b":2}',
        ),
        ([1.0, -0.0, 1e21, 1e16, 333333333.33333329], b"[1,0,1e+21,10000000000000000,333333333.3333333]"),
        # Keys sort by UTF-16 code units: the emoji (a surrogate pair) goes before U+FB33.
        ({"\ufb33": 1, "\U0001f600": 2}, '{"\U0001f600":2,"\ufb33":1}'.encode()),
        ('\u20ac$\u000f\nA\'B"\\\\"/', b'"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'),
    ],
)
def test_vectors_of_rfc_8785(value: Any, expected: bytes) -> None:
    assert canonical_json(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        INTEGER_MAX + 1,
        -INTEGER_MAX - 1,
        float("nan"),
        float("inf"),
        "\ud800",
        {"a": ["\udc00"]},
        {"\ud800": 1},
        {1: "a"},
        object(),
        b"bytes",
    ],
)
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(CanonicalError):
        canonical_json(value)


def test_nesting_without_end_is_refused_before_it_reaches_an_encoder() -> None:
    value: list[Any] = []
    for _ in range(DEPTH_MAX * 100):
        value = [value]
    with pytest.raises(CanonicalError, match="nested deeper"):
        canonical_json(value)


def test_leaving_the_fast_path_is_counted() -> None:
    before = fallbacks.count
    canonical_json({"plain": [1, "a", None, True]})
    assert fallbacks.count == before
    canonical_json({"float": 0.5})
    assert fallbacks.count == before + 1


def test_a_hash_is_blake3_of_the_canonical_bytes() -> None:
    assert hash_of({"b": 1, "a": 2}) == blake3(b'{"a":2,"b":1}').hexdigest()
