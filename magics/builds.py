"""Build cells that go on from one another: which text a `%%dockerfile` cell stands for, and which lines of it are its own.

A cell that does not begin with FROM or ARG means the text of the cell before plus its own, as if both were one Dockerfile:
build arguments, stage names and ONBUILD behave as there, and the cache makes the first part free. Cells are known by the
front end's cell id, so that a cell run again replaces its part. A new cell goes on from the end of the chain that ran last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from magics.cells import BuildCell
from sandbox.errors import InvalidInput


@dataclass(frozen=True)
class Written:
    """One build cell as it last succeeded; `parent` is the key of the cell it goes on from, `image` what it made."""

    parent: str | None
    body: str
    build_args: Mapping[str, str]
    target: str | None
    image: str


@dataclass(frozen=True)
class Composed:
    """The whole Dockerfile a cell stands for. The first `inherited` lines are those of earlier cells."""

    key: str
    parent: str | None
    text: str
    inherited: int
    build_args: Mapping[str, str]
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

    def compose(self, key: str, cell: BuildCell, build_args: Mapping[str, str]) -> Composed:
        """The text `cell` stands for; InvalidInput when there is nothing to go on from."""
        if cell.begins_image:
            return Composed(key, None, cell.body, 0, build_args, None)
        parent = self._parent(key)
        if parent is None:
            raise InvalidInput(
                "the cell does not begin with FROM, and no build cell ran before it",
                hint="begin with FROM IMAGE, or run the cell above first",
            )
        before, inherited_args = self._text(parent)
        return Composed(key, parent, before + cell.body, before.count("\n"), {**inherited_args, **build_args}, self._cells[parent].image)

    def remember(self, composed: Composed, cell: BuildCell, build_args: Mapping[str, str], image: str) -> None:
        """Note that it was built, so that others can go on from it."""
        self._cells[composed.key] = Written(composed.parent, cell.body, build_args, cell.options.target, image)
        self._last = composed.key

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

    def _text(self, key: str) -> tuple[str, dict[str, str]]:
        """The whole text up to and with this cell, ending in a newline, and the build arguments of all of them."""
        text, build_args = "", dict[str, str]()
        for each in reversed(self._ancestors(key)):
            cell = self._cells[each]
            text += cell.body if cell.body.endswith("\n") else cell.body + "\n"
            build_args.update(cell.build_args)
            if cell.target:
                text += f"FROM {cell.target}\n"
        return text, build_args
