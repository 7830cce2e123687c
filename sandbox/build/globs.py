"""Go's filepath.Match, component by component: the patterns of COPY and ADD."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

_WILD = re.compile(r"[*?\[]|\\.", re.DOTALL)


class BadPattern(ValueError):
    """A pattern that Go's filepath.Match refuses."""


def is_wild(component: str) -> bool:
    """Whether it holds an unescaped wildcard."""
    return any(not found.startswith("\\") for found in _WILD.findall(component))


def literal(component: str) -> str:
    """The name a component without wildcards stands for: its escapes removed."""
    return re.sub(r"\\(.)", r"\1", component, flags=re.DOTALL)


def matcher(component: str) -> Callable[[str], bool]:
    """A predicate for names: `*` any run, `?` one character, `[a-z]` and `[^a-z]` classes, a backslash escapes."""
    compiled = re.compile("".join(_translate(component)) + r"\Z", re.DOTALL)
    return lambda name: compiled.match(name) is not None


def _translate(pattern: str) -> Iterator[str]:
    position = 0
    while position < len(pattern):
        char = pattern[position]
        if char == "[":
            expression, position = _class(pattern, position + 1)
            yield expression
            continue
        if char == "\\":
            position += 1
            if position == len(pattern):
                raise BadPattern(f"pattern {pattern}: ends in a backslash")
        yield {"*": ".*", "?": "."}.get(char) or re.escape(pattern[position])
        position += 1


def _class(pattern: str, position: int) -> tuple[str, int]:
    """A bracket expression after its `[`: the regular expression for it and where it ends."""
    negated = pattern.startswith("^", position)
    position += negated
    ranges: list[str] = []
    while not (ranges and pattern.startswith("]", position)):
        low, position = _class_char(pattern, position)
        high = low
        if pattern.startswith("-", position):
            high, position = _class_char(pattern, position + 1)
        # Go lets a range run backwards: it matches nothing.
        ranges.append(f"{re.escape(low)}-{re.escape(high)}" if low <= high else "")
    body = "".join(ranges)
    if not body:
        return ("." if negated else r"(?!)"), position + 1
    return f"[{'^' if negated else ''}{body}]", position + 1


def _class_char(pattern: str, position: int) -> tuple[str, int]:
    if position >= len(pattern) or pattern[position] in "-]":
        raise BadPattern(f"pattern {pattern}: a [ without its range or its ]")
    if pattern[position] == "\\":
        position += 1
    if position + 1 >= len(pattern):
        raise BadPattern(f"pattern {pattern}: a [ without its ]")
    return pattern[position], position + 1


class Named(Protocol):
    """What a glob walks over."""

    @property
    def path(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def is_dir(self) -> bool: ...


_E = TypeVar("_E", bound=Named)


def expand_glob(components: Sequence[str], lookup: Callable[[str], _E | None], scandir: Callable[[str], list[_E]]) -> list[_E]:
    """Every entry the pattern names, sorted by path; the one a pattern without wildcards names comes as `lookup` gives it
    (which follows links). Below a wildcard only real directories are entered, as BuildKit does. Raises BadPattern."""
    tests = [matcher(component) if is_wild(component) else None for component in components]
    first = next((n for n, test in enumerate(tests) if test), len(components))
    start = lookup("/" + "/".join(literal(component) for component in components[:first]))
    if first == len(components) or start is None or not start.is_dir:
        return [start] if start is not None and first == len(components) else []
    found, matched = [start.path], list[_E]()
    for number in range(first, len(components)):
        matched = [child for path in found for child in scandir(path) if _matches(tests[number], components[number], child.name)]
        found = [child.path for child in matched if child.is_dir]
    return sorted(matched, key=lambda entry: entry.path)


def _matches(test: Callable[[str], bool] | None, component: str, name: str) -> bool:
    return test(name) if test else literal(component) == name
