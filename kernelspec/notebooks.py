"""The image of a notebook that brings its own environment: its first `%%dockerfile` cell makes it, its outputs remember it.

A kernel cannot write a notebook's metadata. So the digest is in the metadata of what the build cell shows, and in `language_info`, which
front ends copy into the notebook's metadata; a restarted kernel finds it beside its connection file, since the notebook may not be saved.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any  # a notebook

import msgspec

from magics.display import METADATA

log = logging.getLogger(__name__)

_LONGEST_NOTEBOOK = 256 << 20


class Built(msgspec.Struct, frozen=True):
    """An image that a build cell made: its name as people know it, its id, the key of its cell."""

    name: str
    digest: str
    cell: str = ""

    def metadata(self) -> dict[str, Any]:
        """What is saved with the cell's output."""
        return {METADATA: {"environment": {"image": self.name, "digest": self.digest}}}


class NotebookImage:
    """Which of a notebook's builds is its environment. `memory`: a file that lives as long as the kernel, through restarts."""

    def __init__(self, notebook: Path | None, memory: Path) -> None:
        self._notebook, self._memory = notebook, memory
        self._chain: set[str] = set()
        known = self._remembered()
        if known is not None:
            self._chain.add(known.cell)

    def known(self) -> Built | None:
        """The environment before any cell has run: this kernel's before its restart, else what the notebook says that it was."""
        return self._remembered() or self._saved()

    def is_environment(self, cell: str, parent: str | None, name: str) -> bool:
        """Whether the build of this cell, which goes on from that of `parent`, is the notebook's environment: the first build cell is,
        and what goes on from it. Where cells have no ids (a console, nbclient), so is another build of the same `name`."""
        again = cell.startswith("text:") and (known := self._remembered()) is not None and known.name == name
        begins = parent is None and (cell in self._chain or again or (not self._chain and self._may_be_first(cell)))
        if mine := begins or parent in self._chain:
            self._chain.add(cell)
        return mine

    def remember(self, built: Built) -> None:
        """For the time after a restart."""
        self._memory.write_bytes(msgspec.json.encode(built))

    def forget(self) -> None:
        """The kernel is shut down for good."""
        self._memory.unlink(missing_ok=True)

    def _remembered(self) -> Built | None:
        try:
            return _BUILT.decode(self._memory.read_bytes())
        except (OSError, msgspec.MsgspecError):
            return None

    def _may_be_first(self, cell: str) -> bool:
        """False when the saved notebook has this cell, and another build cell above it."""
        names = [each.id for each in self._document().build_cells()]
        return cell not in names or names[0] == cell

    def _saved(self) -> Built | None:
        """What the first build cell shows; without outputs, what a front end copied from `language_info`."""
        document = self._document()
        first = next(iter(document.build_cells()), None)
        if first is None:
            return None
        said = document.metadata.get("language_info")
        return first.built() or _built(said.get("sandbox") if isinstance(said, dict) else None, first.id)

    def _document(self) -> _Document:
        """The saved notebook; an empty one when it is not saved yet, or none."""
        try:
            if self._notebook is not None and self._notebook.stat().st_size <= _LONGEST_NOTEBOOK:
                return _DOCUMENT.decode(self._notebook.read_bytes())
        except (OSError, msgspec.MsgspecError) as err:
            log.debug("%s: %s", self._notebook, err)
        return _Document()


class _Cell(msgspec.Struct):
    """A cell of a notebook, nbformat 4."""

    cell_type: str = ""
    id: str = ""
    source: str | list[str] = ""
    outputs: list[dict[str, Any]] = []

    @property
    def is_build(self) -> bool:
        """Whether it builds an image."""
        text = self.source if isinstance(self.source, str) else "".join(self.source)
        return self.cell_type == "code" and text.lstrip().startswith("%%dockerfile")

    def built(self) -> Built | None:
        """The environment its outputs tell of."""
        facts = (each.get("metadata") for each in self.outputs)
        ours = (each.get(METADATA) for each in facts if isinstance(each, dict))
        said = (_built(each.get("environment"), self.id) for each in ours if isinstance(each, dict))
        return next((each for each in said if each is not None), None)


class _Document(msgspec.Struct):
    cells: list[_Cell] = []
    metadata: dict[str, Any] = {}

    def build_cells(self) -> list[_Cell]:
        """In their order."""
        return [each for each in self.cells if each.is_build]


def _built(said: Any, cell: str) -> Built | None:  # Any: somebody's JSON
    if not isinstance(said, dict) or not isinstance(said.get("digest"), str):
        return None
    return Built(str(said.get("image", "")), said["digest"], cell)


_DOCUMENT = msgspec.json.Decoder(_Document)
_BUILT = msgspec.json.Decoder(Built)
