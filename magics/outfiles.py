"""Files a cell leaves in /out: shown by their type, and saved where `--save-files` says.

The container wrote them, so no link is followed.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from magics.untrusted import harmless
from sandbox.errors import InvalidInput

Bundle = dict[str, Any]  # Any: a MIME bundle
_LARGEST, _DEEPEST, _CHUNK = 16 << 20, 8, 1 << 24
MOST_SHOWN = 50
"""How many files of one cell are shown."""
_CSV_ROWS = 20


class OutFile:
    """One regular file below /out: its path there, its size in bytes. It can be read until the next one is asked for."""

    def __init__(self, path: str, size: int, fd: int) -> None:
        self.path = path
        self.size = size
        self._fd = fd

    def read(self) -> bytes | None:
        """Its bytes; None when they are more than is shown."""
        return os.pread(self._fd, _LARGEST, 0) if self.size <= _LARGEST else None

    def copy_to(self, path: Path) -> None:
        """Write it to `path`, whatever its size; not what is appended meanwhile."""
        with path.open("wb") as target:
            place = 0
            while count := os.sendfile(target.fileno(), self._fd, place, min(_CHUNK, self.size - place)):
                place += count


Seen = dict[str, tuple[int, int, int]]
"""Files already shown: path → inode, size, time."""


def out_files(directory: Path, seen: Seen | None = None) -> Iterator[OutFile]:
    """The regular files below the directory, by name; links, devices and pipes are not looked at. Those in `seen` that did not
    change are left out, the others noted there."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    yield from _walk(fd, "", 0, {} if seen is None else seen)


def _walk(fd: int, prefix: str, depth: int, seen: Seen) -> Iterator[OutFile]:
    """Everything below the open directory, which is closed; each step by descriptor, so that no name is looked up twice."""
    try:
        for name in sorted(os.listdir(fd)):
            try:
                child = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
            except OSError:  # a link, a socket, or gone
                continue
            facts = os.fstat(child)
            if stat.S_ISDIR(facts.st_mode) and depth < _DEEPEST:
                yield from _walk(child, f"{prefix}{name}/", depth + 1, seen)
                continue
            try:
                mark = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
                if stat.S_ISREG(facts.st_mode) and seen.get(prefix + name) != mark:
                    seen[prefix + name] = mark
                    yield OutFile(prefix + name, facts.st_size, child)
            finally:
                os.close(child)
    finally:
        os.close(fd)


def bundle_of(file: OutFile, make_safe: Callable[[Bundle], Bundle] = harmless) -> Bundle:
    """What to show of it: the picture, page, table or text it is, else its name and size."""
    name = f"/out/{file.path} ({file.size} bytes)"
    make = _SHOW.get(Path(file.path).suffix.lower())
    data = file.read() if make else None
    if data is None or make is None:
        return {"text/plain": name}
    return make_safe({"text/plain": name, **make(data)})


def _picture(mime: str) -> Callable[[bytes], Bundle]:
    return lambda data: {mime: base64.b64encode(data).decode()}


def _as_text(mime: str) -> Callable[[bytes], Bundle]:
    return lambda data: {mime: data.decode("utf-8", "replace")}


def _table(data: bytes, delimiter: str = ",") -> Bundle:
    text = data.decode("utf-8", "replace")
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error:  # a field longer than 128 KiB, or a line end in the wrong place
        return {"text/plain": text}
    shown, more = rows[: _CSV_ROWS + 1], len(rows) - _CSV_ROWS - 1
    text = "\n".join(delimiter.join(row) for row in shown) + (f"\n… {more} more rows" if more > 0 else "")
    cells = [[f"<t{kind}>{html.escape(cell)}</t{kind}>" for cell in row] for kind, row in zip("h" + "d" * len(shown), shown, strict=False)]
    table = "<table>" + "".join("<tr>" + "".join(row) + "</tr>" for row in cells) + "</table>"
    return {"text/plain": text, "text/html": table + (f"<p>… {more} more rows</p>" if more > 0 else "")}


_SHOW: dict[str, Callable[[bytes], Bundle]] = {
    ".png": _picture("image/png"),
    ".jpg": _picture("image/jpeg"),
    ".jpeg": _picture("image/jpeg"),
    ".gif": _picture("image/gif"),
    ".webp": _picture("image/webp"),
    ".svg": _as_text("image/svg+xml"),
    ".html": _as_text("text/html"),
    ".htm": _as_text("text/html"),
    ".md": _as_text("text/markdown"),
    ".csv": _table,
    ".tsv": partial(_table, delimiter="\t"),
    ".txt": _as_text("text/plain"),
    ".log": _as_text("text/plain"),
    ".json": _as_text("text/plain"),
}


def save_file(file: OutFile, target: str) -> None:
    """Write the file into the directory `target` of the notebook's; InvalidInput when that is not possible."""
    path = Path(target).expanduser() / file.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file.copy_to(path)
    except OSError as err:
        raise InvalidInput(f"--save-files: {err.filename or path}: {(err.strerror or str(err)).lower()}") from err
