"""Detach keys: docker's words for them, and finding them in what is typed."""

from __future__ import annotations

import pytest

from sandbox.cli.terminal import parse_detach_keys
from sandbox.errors import InvalidOption
from sandbox.runtime.init.clients import DetachKeys


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("", b"\x10\x11"),
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("a,Z", b"aZ"),
        ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_,DEL", b"\0\x1b\x1c\x1d\x1e\x1f\x7f"),
    ],
)
def test_dockers_words(text: str, keys: bytes) -> None:
    assert parse_detach_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "ctrl-pp", "a,,b", "enter", "ctrl-`", "é"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="is no key"):
        parse_detach_keys(text)


@pytest.mark.parametrize(
    ("keys", "typed", "passed", "complete"),
    [
        (b"", b"\x10\x11", b"\x10\x11", False),
        (b"ab", b"xaby", b"x", True),
        (b"ab", b"aab", b"a", True),
        (b"aab", b"aaab", b"a", True),
        (b"aba", b"abcaba", b"abc", True),
        (b"ab", b"a", b"", False),
        (b"ab", b"acb", b"acb", False),
    ],
)
def test_keys_are_found_however_they_come(keys: bytes, typed: bytes, passed: bytes, complete: bool) -> None:
    whole = DetachKeys(keys)
    assert whole.take(typed) == (passed, complete)
    single, found = b"", False
    one_by_one = DetachKeys(keys)
    for number in typed:
        if not found:
            piece, found = one_by_one.take(bytes([number]))
            single += piece
    assert (single, found) == (passed, complete)
