"""What of a source a COPY takes: --exclude leaves out, --parents takes whole paths. Both are views: a `Source` that shows less.

The rules are BuildKit's (fsutil/copy): patterns as in .dockerignore, matched against paths relative to the directory that is
copied; a pattern that matches a directory matches all below it; a directory that matches nothing itself is there for what is
taken below it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from e2b_dockerfile_utils import PatternMatcher
from msgspec.structs import replace

from sandbox.build.context import Match, Source, find
from sandbox.build.globs import BadPattern, is_wild, matcher
from sandbox.image.tree import Entry


class Piece(msgspec.Struct, frozen=True):
    """One thing to copy: the source it is read from, and where it lies in it. `unpack`: it is unpacked if it is an archive."""

    source: Source
    match: Match
    unpack: bool = False


class View(msgspec.Struct):
    """A source below `root` without what `is_taken` refuses. `is_taken` gets a path relative to `root`; `leads` whether
    something below a directory that is not taken could be."""

    source: Source
    root: str
    is_taken: Callable[[str], bool]
    leads: Callable[[str], bool]
    _seen: dict[str, list[Entry]] = msgspec.field(default_factory=dict)

    @property
    def is_image(self) -> bool:
        """As Source."""
        return self.source.is_image

    def owner(self, entry: Entry) -> tuple[int, int]:
        """As Source."""
        return self.source.owner(entry)

    def mode(self, entry: Entry) -> int:
        """As Source."""
        return self.source.mode(entry)

    def lookup(self, path: str, *, follow: bool = False) -> Entry | None:
        """As Source; without regard to the view."""
        return self.source.lookup(path, follow=follow)

    def scandir(self, path: str) -> list[Entry]:
        """As Source; only what is in the view."""
        if path not in self._seen:
            self._seen[path] = [entry for entry in self.source.scandir(path) if self._is_visible(entry)]
        return self._seen[path]

    def open(self, entry: Entry) -> int:
        """As Source."""
        return self.source.open(entry)

    def readlink(self, entry: Entry) -> str:
        """As Source."""
        return self.source.readlink(entry)

    def xattrs(self, entry: Entry) -> dict[str, bytes]:
        """As Source."""
        return self.source.xattrs(entry)

    def _is_visible(self, entry: Entry) -> bool:
        relative = entry.path[len(self.root.rstrip("/")) + 1 :]
        if self.is_taken(relative):
            return True
        return entry.is_dir and self.leads(relative) and bool(self.scandir(entry.path))


def patterns(texts: tuple[str, ...]) -> PatternMatcher | None:
    """The patterns of --exclude; raises BadPattern."""
    try:
        # a # at the start is a comment in a file, not here
        return PatternMatcher(["\\" + text if text.startswith("#") else text for text in texts]) if texts else None
    except ValueError as err:
        raise BadPattern(f"--exclude: {str(err)[:1].lower()}{str(err)[1:]}") from None


def select(source: Source, pattern: str, excluded: PatternMatcher | None) -> list[Piece]:
    """The files and directories a COPY source names, less what is excluded. Raises BadPattern."""
    return [piece for match in find(source, pattern) for piece in narrowed(Piece(source, match), excluded)]


def narrowed(piece: Piece, excluded: PatternMatcher | None) -> list[Piece]:
    """The piece less what is excluded."""
    match = piece.match
    if excluded is None:
        return [piece]
    if match.entry.is_dir:
        return [replace(piece, source=_without(piece.source, match.entry.path, excluded))]
    return [] if excluded.matches(match.name) or excluded.matches(match.entry.path[1:]) else [piece]


def select_parents(source: Source, pattern: str, excluded: PatternMatcher | None) -> list[Piece]:
    """As `select` for --parents: paths are kept from the root on, or from a `/./` in the pattern. Raises BadPattern."""
    pivot, found, rest = pattern.partition("/./")
    if not found:
        pivot, rest = "/", pattern
    names = tuple(name for name in rest.split("/") if name not in ("", "."))
    wanted = _included("/".join(_without_dots(names)))
    pieces = []
    for match in find(source, pivot or "/"):
        if match.entry.is_dir:
            view = _only(source, match.entry.path, wanted, _without_dots(names), excluded)
            if view.scandir(match.entry.path):
                pieces.append(Piece(view, Match("", match.entry)))
    return pieces


def has_wildcards(pattern: str) -> bool:
    """Whether it may match nothing without being wrong."""
    return any(map(is_wild, pattern.split("/")))


def _without_dots(names: tuple[str, ...]) -> tuple[str, ...]:
    """`..` taken away with what comes before it; it does not lead out."""
    kept: list[str] = []
    for name in names:
        if name == "..":
            del kept[-1:]
        else:
            kept.append(name)
    return tuple(kept)


def _included(pattern: str) -> Callable[[str], bool]:
    if not pattern:
        return lambda _: True
    # An exclamation mark at the start is part of the name here, not a pattern's reversal.
    text = f"[{pattern[0]}]{pattern[1:]}" if pattern[0] in "!#" else pattern
    try:
        return PatternMatcher([text]).matches
    except ValueError:
        raise BadPattern(f"pattern {pattern}: not one") from None


def _without(source: Source, root: str, excluded: PatternMatcher) -> View:
    return View(source, root, lambda path: not excluded.matches(path), excluded.may_match_under)


def _only(source: Source, root: str, wanted: Callable[[str], bool], names: tuple[str, ...], excluded: PatternMatcher | None) -> View:
    tests = [None if "**" in name else matcher(name) for name in names]

    def leads(path: str) -> bool:
        if excluded is not None and excluded.matches(path) and not excluded.may_match_under(path):
            return False
        for test, name in zip(tests, path.split("/"), strict=False):
            if test is None:
                return True
            if not test(name):
                return False
        return True

    def is_taken(path: str) -> bool:
        return wanted(path) and not (excluded is not None and excluded.matches(path))

    return View(source, root, is_taken, leads)
