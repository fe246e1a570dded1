"""Globs in their two readings, held against matchers that are too simple to be wrong."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.patterns import (
    covers_path,
    covers_text,
    normalised_path,
    normalised_pattern,
    path_matcher,
    text_matcher,
)
from tests.support.naive_globs import matches_names, matches_text

LETTERS = st.text(alphabet="ab/", max_size=7)
GLOBS = st.text(alphabet="ab/*?", max_size=7)
PATHS = st.lists(st.sampled_from(["a", "b", "ab", "ba", "aab"]), max_size=4).map("/".join)
PATH_GLOBS = st.lists(st.sampled_from(["a", "b", "*", "?", "a*", "*b", "**"]), min_size=1, max_size=4).map(
    "/".join
)


@given(pattern=GLOBS, text=LETTERS)
@settings(max_examples=300)
def test_text_matches_as_the_definition_says(pattern, text):
    assert text_matcher(pattern)(text) == matches_text(pattern, text)


@given(pattern=PATH_GLOBS, path=PATHS)
@settings(max_examples=300)
def test_a_path_matches_as_the_definition_says(pattern, path):
    assert path_matcher(pattern)(path) == matches_names(pattern.split("/"), path.split("/"))


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("secrets/**", "secrets", True),
        ("secrets/**", "secrets/a/b", True),
        ("secrets/**", "secretsx", False),
        ("secrets/**", "a/secrets/b", False),
        ("**/secrets/**", "a/b/secrets/c", True),
        ("**/secrets/**", "secrets", True),
        ("*.md", "a.md", True),
        ("*.md", "a/b.md", False),
        ("a/*/c", "a/b/c", True),
        ("a/*/c", "a/b/b/c", False),
        ("a/**/c", "a/c", True),
        ("a/?.md", "a/b.md", True),
        ("[ab]", "a", False),
        ("[ab]", "[ab]", True),
        ("Secrets/**", "secrets/a", False),
    ],
)
def test_a_star_stays_in_one_name_and_two_go_deeper(pattern, path, expected):
    assert path_matcher(pattern)(path) is expected


@pytest.mark.parametrize("text", ["rm -rf /", "rm a\nb", "rm "])
def test_a_star_in_text_takes_slashes_and_line_breaks(text):
    assert text_matcher("rm *")(text)


@given(general=GLOBS, special=GLOBS, text=LETTERS)
@settings(max_examples=300)
def test_what_covers_in_text_matches_all_that_the_other_matches(general, special, text):
    if covers_text(general, special) and matches_text(special, text):
        assert matches_text(general, text)


@given(general=PATH_GLOBS, special=PATH_GLOBS, path=PATHS)
@settings(max_examples=300)
def test_what_covers_in_paths_matches_all_that_the_other_matches(general, special, path):
    if covers_path(general, special) and matches_names(special.split("/"), path.split("/")):
        assert matches_names(general.split("/"), path.split("/"))


@pytest.mark.parametrize(
    ("general", "special"),
    [
        ("*", "bash"),
        ("mcp__*", "mcp__git__*"),
        ("a?c", "abc"),
        ("*?", "?*"),
        ("a*", "a*b*"),
        ("**", "*"),
        ("x", "x"),
    ],
)
def test_evident_covers_in_text_are_seen(general, special):
    assert covers_text(general, special)


@pytest.mark.parametrize(
    ("general", "special"),
    [
        ("**", "a/b"),
        ("a/**", "a"),
        ("a/**", "a/*/c"),
        ("**/*.md", "a/b/x.md"),
        ("a/**", "a/**/b"),
        ("*/b", "a/b"),
    ],
)
def test_evident_covers_in_paths_are_seen(general, special):
    assert covers_path(general, special)


@pytest.mark.parametrize(
    ("general", "special"), [("*", "a/b"), ("a/*", "a/**"), ("a/**", "b/**"), ("*", "**")]
)
def test_no_more_is_covered_in_paths_than_is_matched(general, special):
    assert not covers_path(general, special)


@pytest.mark.parametrize(
    ("general", "special"),
    [("?", "*"), ("?", ""), ("?*", "*"), ("a", "?"), ("a*b", "a*"), ("a?", "a*"), ("A", "a")],
)
def test_no_more_is_covered_in_text_than_is_matched(general, special):
    assert not covers_text(general, special)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b", "a/b"),
        ("a//b", "a/b"),
        ("./a/./b/", "a/b"),
        ("a/../b", "b"),
        ("../b", "../b"),
        ("a/../../b", "../b"),
        ("/srv/root/a", "a"),
        ("//srv/root//a", "a"),
        ("/srv/root/../root/a", "a"),
        ("/srv/root", "."),
        ("/srv/root/", "."),
        ("/srv/rooted/a", "/srv/rooted/a"),
        ("/etc/passwd", "/etc/passwd"),
        ("", ""),
        ("a/.b/..c", "a/.b/..c"),
    ],
)
def test_a_path_has_one_form(path, expected):
    assert normalised_path(path, "/srv/root/") == expected


@given(st.text(alphabet="a./", max_size=12))
def test_the_one_form_is_that_of_normpath(path):
    wanted = posixpath.normpath(path) if path else ""
    assert normalised_path(path) == (wanted[1:] if wanted.startswith("//") else wanted)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("secrets/", "secrets/**"), ("./a/*", "a/*"), ("/srv/root/a/**", "a/**"), ("a//b", "a/b"), ("**", "**")],
)
def test_a_pattern_takes_the_form_of_the_paths(pattern, expected):
    assert normalised_pattern(pattern, "/srv/root/") == expected


def test_no_text_of_a_model_makes_a_match_stall():
    # With a matcher that tries again this takes longer than the age of the universe, not a moment longer than now.
    assert not text_matcher("*a" * 40 + "b")("a" * 5000)
    assert not path_matcher("**/a/" * 20 + "b")("a/" * 2000 + "a")
