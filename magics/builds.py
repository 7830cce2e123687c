"""Build cells that go on from one another: which text a `%%dockerfile` cell stands for, and which lines of it are its own.

A cell that does not begin with FROM or ARG means the text of the cell before plus its own, as if both were one Dockerfile:
build arguments, stage names and ONBUILD behave as there, and the cache makes the first part free. Cells are known by the
front end's cell id, so that a cell run again replaces its part. A new cell goes on from the end of the chain that ran last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import msgspec
from msgspec.structs import replace

from magics.build_cells import BuildCell
from sandbox.errors import InvalidInput
from sandbox.options import BuildOptions

_INHERITED = ("build_context", "secret", "ssh", "allow", "add_host", "ulimit", "label")
_INHERITED_UNLESS_GIVEN = ("network", "shm_size")


@dataclass(frozen=True)
class Given:
    """What a build gets beside its text: the values of build arguments, files made of variables, flags, the context's directory."""

    build_args: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    options: BuildOptions = BuildOptions()
    context: str | None = None

    def above(self, below: Given) -> Given:
        """These, with what the cell they go on from was given: its steps are part of this build too. InvalidInput for two contexts."""
        if self.context and below.context and self.context != below.context:
            raise InvalidInput(
                f"context {self.context}: the cell it goes on from has {below.context}",
                hint=f"name it: --build-context here={self.context}, then COPY --from=here",
            )
        usual = BuildOptions()
        merged: dict[str, Any] = {
            name: (*getattr(below.options, name), *getattr(self.options, name)) for name in _INHERITED
        }  # Any: each field has its type
        kept = [name for name in _INHERITED_UNLESS_GIVEN if getattr(self.options, name) == getattr(usual, name)]
        merged |= {name: getattr(below.options, name) for name in kept}
        return Given(
            {**below.build_args, **self.build_args},
            {**below.files, **self.files},
            replace(self.options, **merged),
            self.context or below.context,
        )


class Written(msgspec.Struct, frozen=True):
    """One build cell as it last succeeded; `parent` is the key of the cell it goes on from, `image` what it made."""

    parent: str | None
    body: str
    given: Given
    image: str


class Composed(msgspec.Struct, frozen=True):
    """The whole Dockerfile a cell stands for. The first `inherited` lines are those of earlier cells."""

    key: str
    parent: str | None
    text: str
    inherited: int
    given: Given
    continues: str | None
    """The image it goes on from, None when it begins one."""


def cell_key(cell_id: str | None, line: str, body: str) -> str:
    """What names a cell: the front end's id, else (a terminal, nbclient) its text, so that at least the same cell replaces itself."""
    return cell_id or "text:" + sha256(f"{line}\n{body}".encode()).hexdigest()


class BuildCells:
    """The build cells of one kernel."""

    def __init__(self) -> None:
        self._cells: dict[str, Written] = {}  # in the order of their first success
        self._last: str | None = None

    def compose(self, key: str, cell: BuildCell, given: Given) -> Composed:
        """The text `cell` stands for; InvalidInput when there is nothing to go on from."""
        if cell.begins_image:
            return Composed(key, None, cell.body, 0, given, None)
        parent = self._parent(key)
        if parent is None:
            raise InvalidInput(
                "the cell does not begin with FROM, and no build cell ran before it",
                hint="begin with FROM IMAGE, or run the cell above first",
            )
        before, below = self._text(parent)
        return Composed(key, parent, before + cell.body, before.count("\n"), given.above(below), self._cells[parent].image)

    def remember(self, composed: Composed, cell: BuildCell, given: Given, image: str) -> None:
        """Note that it was built, so that others can go on from it."""
        self._cells[composed.key] = Written(composed.parent, cell.body, given, image)
        self._last = composed.key

    def forget(self, key: str) -> None:
        """The cell is a build cell no more: those that went on from it go on from the one before it. A cell that begins an image
        is kept as long as others stand on it."""
        known = self._cells.get(key)
        above = [name for name, cell in self._cells.items() if cell.parent == key]
        if known is None or (known.parent is None and above):
            return
        for name in above:
            self._cells[name] = replace(self._cells[name], parent=known.parent)
        del self._cells[key]
        if self._last == key:
            self._last = known.parent

    def known(self) -> tuple[str, ...]:
        """The keys of all cells."""
        return tuple(self._cells)

    def whole(self) -> tuple[str, Given, str]:
        """The text the cells so far make together, what it was given, and the image it made last; InvalidInput when there is none."""
        if self._last is None:
            raise InvalidInput("no build cell ran yet", hint="%%dockerfile builds one")
        text, given = self._text(self._last)
        return text, given, self._cells[self._last].image

    def _parent(self, key: str) -> str | None:
        known = self._cells.get(key)
        if known and known.parent:
            return known.parent
        if self._last is None:
            return None
        root = self._ancestors(self._last)[-1]
        chain = [each for each in self._cells if self._ancestors(each)[-1] == root and key not in self._ancestors(each)]
        return chain[-1] if chain else None

    def _ancestors(self, key: str) -> list[str]:
        """The cell, the one it goes on from, and so on."""
        found = [key]
        while parent := self._cells[found[-1]].parent:
            found.append(parent)
        return found

    def _text(self, key: str) -> tuple[str, Given]:
        """The whole text up to and with this cell, ending in a newline, and what all of them were given."""
        text, given = "", Given()
        for each in reversed(self._ancestors(key)):
            cell = self._cells[each]
            text += cell.body if cell.body.endswith("\n") else cell.body + "\n"
            given = cell.given.above(given)
            if cell.given.options.target:
                text += f"FROM {cell.given.options.target}\n"
        return text, given
