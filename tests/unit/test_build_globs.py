"""COPY's patterns match what Go's filepath.Match matches (cases of its own test table among them)."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.build.globs import BadPattern, is_wild, literal, matcher


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("abc", "abc", True),
        ("*", "abc", True),
        ("*c", "abc", True),
        ("a*", "a", True),
        ("a*", "abc", True),
        ("a*b*c*d*e*", "axbxcxdxe", True),
        ("a*b?c*x", "abxbbxdbxebxczzx", True),
        ("a*b?c*x", "abxbbxdbxebxczzy", False),
        ("ab[c]", "abc", True),
        ("ab[b-d]", "abc", True),
        ("ab[e-g]", "abc", False),
        ("ab[^c]", "abc", False),
        ("ab[^b-d]", "abc", False),
        ("ab[^e-g]", "abc", True),
        ("a\\*b", "a*b", True),
        ("a\\*b", "ab", False),
        ("a?b", "a☺b", True),
        ("a[^a]b", "a☺b", True),
        ("a???b", "a☺b", False),
        ("[a-ζ]*", "α", True),
        ("*[a-ζ]", "A", False),
        ("[\\]a]", "]", True),
        ("[\\-]", "-", True),
        ("[x\\-]", "x", True),
        ("[x\\-]", "z", False),
        ("[\\-x]", "a", False),
        ("[z-a]", "m", False),
        ("[^z-a]", "m", True),
        ("a+(b)", "a+(b)", True),
        ("a", "a\n", False),
        ("*", ".hidden", True),
    ],
)
def test_pattern_matches_as_in_go(pattern: str, name: str, *, matches: bool) -> None:
    assert matcher(pattern)(name) is matches


@pytest.mark.parametrize("pattern", ["[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "[", "[^", "[^bc", "a[", "\\", "*\\"])
def test_pattern_go_refuses_is_refused(pattern: str) -> None:
    with pytest.raises(BadPattern):
        matcher(pattern)


@pytest.mark.parametrize(("word", "wild"), [("a", False), ("a*", True), ("a\\*", False), ("a\\\\*", True), ("[", True), ("?", True)])
def test_only_unescaped_wildcards_count(word: str, *, wild: bool) -> None:
    assert is_wild(word) is wild


def test_literal_removes_escapes() -> None:
    assert literal("a\\*b\\\\c") == "a*b\\c"


@given(st.text(alphabet="ab*?[]^-\\.", max_size=12), st.text(alphabet="ab.-\\[", max_size=8))
def test_any_pattern_compiles_or_is_bad(pattern: str, name: str) -> None:
    try:
        assert matcher(pattern)(name) in (True, False)
    except BadPattern:
        assert "[" in pattern or "\\" in pattern


@given(st.text(alphabet="ab*?", max_size=10), st.text(alphabet="ab", max_size=8))
def test_simple_patterns_agree_with_regular_expressions(pattern: str, name: str) -> None:
    expected = re.fullmatch(pattern.replace("?", ".").replace("*", ".*"), name) is not None
    assert matcher(pattern)(name) is expected
