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
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from magics.untrusted import harmless
from sandbox.errors import InvalidInput

Bundle = dict[str, Any]  # Any: a MIME bundle
_LARGEST, _MOST, _DEEPEST = 16 << 20, 50, 8
_CSV_ROWS = 20


class OutFile(msgspec.Struct, frozen=True):
    """One regular file below /out: its path there, its bytes (None: larger than is shown), its size."""

    path: str
    data: bytes | None
    size: int


Seen = dict[str, tuple[int, int, int]]
"""Files already shown: path → inode, size, time."""


def out_files(directory: Path, seen: Seen | None = None) -> Iterator[OutFile]:
    """The regular files below the directory, by name, at most fifty; links, devices and pipes are not looked at. Those in `seen` that
    did not change are left out, the others noted there."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    yield from islice(_walk(fd, "", 0, {} if seen is None else seen), _MOST)


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
            elif stat.S_ISREG(facts.st_mode) and seen.get(prefix + name) != (mark := (facts.st_ino, facts.st_size, facts.st_mtime_ns)):
                seen[prefix + name] = mark
                yield OutFile(prefix + name, _read(child, facts.st_size), facts.st_size)
            else:
                os.close(child)
    finally:
        os.close(fd)


def _read(fd: int, size: int) -> bytes | None:
    with open(fd, "rb") as file:
        return file.read(_LARGEST) if size <= _LARGEST else None


def bundle_of(file: OutFile, make_safe: Callable[[Bundle], Bundle] = harmless) -> Bundle:
    """What to show of it: the picture, page, table or text it is, else its name and size."""
    name = f"/out/{file.path} ({file.size} bytes)"
    make = _SHOW.get(Path(file.path).suffix.lower())
    if file.data is None or make is None:
        return {"text/plain": name}
    return make_safe({"text/plain": name, **make(file.data)})


def _picture(mime: str) -> Callable[[bytes], Bundle]:
    return lambda data: {mime: base64.b64encode(data).decode()}


def _as_text(mime: str) -> Callable[[bytes], Bundle]:
    return lambda data: {mime: data.decode("utf-8", "replace")}


def _table(data: bytes) -> Bundle:
    rows = list(csv.reader(io.StringIO(data.decode("utf-8", "replace"))))
    shown, more = rows[: _CSV_ROWS + 1], len(rows) - _CSV_ROWS - 1
    text = "\n".join(",".join(row) for row in shown) + (f"\n… {more} more rows" if more > 0 else "")
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
    ".txt": _as_text("text/plain"),
    ".json": _as_text("text/plain"),
}


def save_files(files: Sequence[OutFile], target: str) -> list[str]:
    """Write the files into the directory `target` of the notebook's; what was written, relative to it."""
    place = Path(target).expanduser()
    written = []
    for file in files:
        if file.data is None:
            raise InvalidInput(
                f"--save-files: /out/{file.path} is larger than {_LARGEST >> 20} MiB", hint="mount a directory: -v ./DIR:/out"
            )
        path = place / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        written.append(file.path)
    return written
