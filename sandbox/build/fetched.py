"""What ADD has fetched and keeps: the directory `sources/` of an engine, its parts as rows, and their removal."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import msgspec

from sandbox.build.cachemounts import size_of


class FetchedRow(msgspec.Struct, frozen=True):
    """One thing kept: a repository (a directory) or a download; `used` in seconds since 1970: when it was last written."""

    id: str
    kind: Literal["download", "repository"]
    path: Path
    size: int
    used: float
    description: str


class Fetched:
    """What is kept below `root`/sources. Removing anything only means that it is fetched again."""

    def __init__(self, root: Path) -> None:
        self.http = root / "sources" / "http"
        self.git = root / "sources" / "git"

    def rows(self) -> list[FetchedRow]:
        """What there is, the longest unused first."""
        return sorted([*self._downloads(), *self._repositories()], key=lambda row: row.used)

    def remove(self, row: FetchedRow) -> None:
        """Take one away; to be called while nobody builds (store.exclusive)."""
        if row.kind == "repository":
            shutil.rmtree(row.path)
            row.path.with_suffix(".lock").unlink(missing_ok=True)
        else:
            row.path.unlink(missing_ok=True)

    def _downloads(self) -> list[FetchedRow]:
        """Contents, and what a broken transfer left behind; the notes beside them are small and say nothing without them."""
        if not self.http.is_dir():
            return []
        urls = dict(map(_noted, self.http.glob("*.json")))
        found = []
        for path in self.http.iterdir():
            if path.suffix == ".json":
                continue
            status = path.stat()
            found.append(FetchedRow(path.name, "download", path, status.st_size, status.st_mtime, urls.get(path.name, "not complete")))
        return found

    def _repositories(self) -> list[FetchedRow]:
        found = []
        for path in self.git.iterdir() if self.git.is_dir() else ():
            if path.is_dir():
                lock = path.with_suffix(".lock")
                used = (lock if lock.exists() else path).stat().st_mtime
                found.append(FetchedRow(path.name, "repository", path, size_of(path), used, "git repository"))
        return found


def _noted(path: Path) -> tuple[str, str]:
    """The content's name and the URL that a note tells of."""
    try:
        note = msgspec.json.decode(path.read_bytes())
        return str(note["digest"]).removeprefix("sha256:"), str(note["url"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return path.name, "not readable"
