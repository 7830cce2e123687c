"""Files that are part of a build context without being in its directory: a notebook's variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from sandbox.build.context import Context
from sandbox.build.request import BuildRequest
from sandbox.errors import InvalidInput
from sandbox.image.tree import Entry


def open_context(request: BuildRequest, opened: ExitStack) -> Context | None:
    """The context a build is asked for, closed with `opened`; None when there is none. InvalidInput for a bad name of a file."""
    if request.settings.files:
        import tempfile

        base = request.context or Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="sandbox-context-")))
        above = opened.enter_context(tempfile.TemporaryDirectory(prefix="sandbox-files-"))
        _write(Path(above), request.settings.files, int(request.time.timestamp()) * 10**9)
        files = opened.enter_context(Context(Path(above), ignoring=False))
        return opened.enter_context(LaidOver(base, request.ignore_file, files))
    return opened.enter_context(Context(request.context, request.ignore_file)) if request.context is not None else None


class LaidOver(Context):
    """A context with other files laid over it: they win, and .dockerignore does not hide them."""

    def __init__(self, root: Path, ignore_file: Path | None, over: Context) -> None:
        self._over = over
        super().__init__(root, ignore_file)

    def scandir(self, path: str) -> list[Entry]:
        """As Source: both directories in one."""
        over = self._over.lookup(path)
        above = {entry.path: entry for entry in self._over.scandir(path)} if over is not None and over.is_dir else {}
        found = super()._entry(path.strip("/").split("/") if path != "/" else [])
        below = super().scandir(path) if found is not None and found.is_dir else []
        both = {entry.path: entry for entry in below} | above
        return sorted(both.values(), key=lambda entry: os.fsencode(entry.path))

    def open(self, entry: Entry) -> int:
        """As Source."""
        return self._over.open(entry) if self._is_given(entry) else super().open(entry)

    def _entry(self, names: list[str]) -> Entry | None:
        return self._over.lookup("/" + "/".join(names)) if names and self._covers(names) else super()._entry(names)

    def _covers(self, names: list[str]) -> bool:
        """Whether a given file is at this path, or a directory only given files are in."""
        found = self._over.lookup("/" + "/".join(names))
        return found is not None and (found.is_file or super()._entry(names) is None)

    def _is_given(self, entry: Entry) -> bool:
        found = self._over.lookup(entry.path)
        return found is not None and found.is_file

    def _is_visible(self, entry: Entry) -> bool:
        return self._over.lookup(entry.path) is not None or super()._is_visible(entry)


def _write(directory: Path, files: Mapping[str, bytes], time: int) -> None:
    """The files, below the directory, with the build's time."""
    for name, data in files.items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or not place.parts:
            raise InvalidInput(f"file {name!r}: not a path below the context")
        path = directory / place
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as err:
            raise InvalidInput(f"file {name!r}: {(err.strerror or str(err)).lower()}") from err
        path.chmod(0o644)
        os.utime(path, ns=(time, time))
