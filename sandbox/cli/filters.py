"""`-f KEY=VALUE` of ps, images and prune: a table of tests per list; the same key twice means either, labels all."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

import msgspec

from sandbox.errors import InvalidOption

Item = TypeVar("Item")
Test = Callable[[Item, str], bool]


class Filters(msgspec.Struct, Generic[Item], frozen=True):
    """Parsed filters. `wanted`: values by key, in order."""

    tests: Mapping[str, Test[Item]]
    wanted: Mapping[str, tuple[str, ...]]

    def __call__(self, item: Item) -> bool:
        """Whether the item passes."""
        return all(self._passes(item, key, values) for key, values in self.wanted.items())

    def _passes(self, item: Item, key: str, values: Sequence[str]) -> bool:
        decide = all if key == "label" else any
        return decide(self.tests[key](item, value) for value in values)


def parse_filters(texts: Sequence[str], tests: Mapping[str, Test[Item]]) -> Filters[Item]:
    """The filters these `-f` texts mean; InvalidOption for a key that is not in `tests`."""
    wanted: dict[str, tuple[str, ...]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise InvalidOption(f"filter {text!r}: not of the form KEY=VALUE", hint=f"keys: {', '.join(tests)}")
        if key not in tests:
            near = get_close_matches(key, list(tests), n=1)
            hint = f"did you mean {near[0]}?" if near else f"keys: {', '.join(tests)}"
            raise InvalidOption(f"filter {key!r}: not supported here", hint=hint)
        wanted[key] = (*wanted.get(key, ()), value)
    return Filters(tests, wanted)


def has_label(labels: Mapping[str, str], wanted: str) -> bool:
    """`key` or `key=value`."""
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def is_true(text: str) -> bool:
    """A filter's yes or no."""
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in words:
        raise InvalidOption(f"filter value {text!r}: not true or false")
    return words[text.lower()]


def name_matches(name: str, pattern: str) -> bool:
    """docker's `name=`: a regular expression found anywhere."""
    try:
        return re.search(pattern, name) is not None
    except re.error as err:
        raise InvalidOption(f"filter name={pattern!r}: not a regular expression ({err})") from err


def reference_matches(repository: str, tag: str | None, pattern: str) -> bool:
    """docker's `reference=`: Go's path.Match on the name with and without its tag, so `*` stops at a slash."""
    names = [repository, *([f"{repository}:{tag}"] if tag else [])]
    return any(_path_match(name, pattern) for name in names)


def _path_match(name: str, pattern: str) -> bool:
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
