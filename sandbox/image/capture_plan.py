"""The captured layer as a value: what will be at which path, and where it comes from; then the one loop that writes it.

Host files are copied, never linked: the store must not change with the host. What was one inode on the host stays one in the layer.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import shutil
import stat
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Literal

import msgspec

from sandbox.errors import ImageError

Edit = Callable[[bytes], bytes | None]
_LINKS_CAP = 40  # as Linux (path_resolution(7))


class Entry(msgspec.Struct, frozen=True):
    """One path of the layer. A file comes from `source`, through `edit` when given (None from it: leave the file out), or is `content`."""

    kind: Literal["directory", "file", "link"]
    mode: int = 0o755
    source: str = ""
    content: bytes = b""
    target: str = ""
    mtime: int | None = None
    inode: tuple[int, int] | None = None
    edit: Edit | None = None


class Written(msgspec.Struct, frozen=True):
    """What writing did: files with the host's own time, those whose bytes differ from the host's (sha256 hex, size),
    those left out, and the newest file's time."""

    copied: frozenset[str]
    edited: dict[str, tuple[str, int]]
    dropped: tuple[str, ...]
    newest: int


class Plan:
    """A file tree being put together; paths are absolute, inside the image. The first to name a path wins."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def directory(self, path: str, mode: int = 0o755) -> None:
        """An empty directory."""
        self._add(path, Entry("directory", mode))

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._add(path, Entry("link", 0o777, target=target))

    def generated(self, path: str, content: bytes | str, mode: int = 0o644) -> None:
        """A file whose content we write."""
        self._add(path, Entry("file", mode, content=content.encode() if isinstance(content, str) else content))

    def file(self, path: str, source: str, edit: Edit | None = None) -> None:
        """A copy of a host file; symbolic links in `source` are followed. Setuid and write bits for others go."""
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{source}: not a regular file")
        mode = 0o755 if status.st_mode & 0o111 else 0o644
        inode = (status.st_dev, status.st_ino) if status.st_nlink > 1 and edit is None else None
        self._add(path, Entry("file", mode, source, mtime=int(status.st_mtime), inode=inode, edit=edit))

    def host(self, path: str) -> bool:
        """Take a host file to the same path, with every symbolic link on the way; False when the host has none."""
        if not os.path.isfile(path) or not os.access(path, os.R_OK):
            return False
        self.file(self._follow(path), path)
        return True

    def host_link(self, path: str) -> bool:
        """Take a host's symbolic link with what is on the way to its target, without the target; False when it is none."""
        if not os.path.islink(path):
            return False
        real = self._follow(path)
        if os.path.isdir(real):
            self.directory(real)
        return True

    def host_tree(self, path: str, *, skip: Iterable[str] = ()) -> bool:
        """Take a host directory with its files; `skip`: names not to enter. Links that leave it are followed."""
        if not os.path.isdir(path):
            return False
        left_out = frozenset(skip)
        for directory, names, files in os.walk(path):
            names[:] = sorted(n for n in names if n not in left_out)
            for name in [*files, *(n for n in names if os.path.islink(os.path.join(directory, n)))]:
                if name not in left_out:
                    self.host(os.path.join(directory, name))
        return True

    def resolve(self, path: str) -> str:
        """Where a path leads in the image, through the links planned so far (the last component included)."""
        done, todo, links = "/", _parts(path), 0
        while todo:
            here = posixpath.normpath(posixpath.join(done, todo.pop(0)))
            entry = self.entries.get(here)
            if entry and entry.kind == "link" and (links := links + 1) <= _LINKS_CAP:
                todo = _parts(entry.target) + todo
                done = "/" if entry.target.startswith("/") else posixpath.dirname(here)
            else:
                done = here
        return done

    def _follow(self, path: str) -> str:
        """Plan the links along a host path and return the path without links."""
        done, todo = "/", _parts(path)
        for _ in range(_LINKS_CAP * 8):
            if not todo:
                return done
            here = posixpath.normpath(posixpath.join(done, todo.pop(0)))
            planned = self.entries.get(here)
            if not os.path.islink(here) or (planned and planned.kind == "directory"):
                done = here
                continue
            target = os.readlink(here)
            self.link(here, target)
            todo = _parts(target) + todo
            done = "/" if target.startswith("/") else posixpath.dirname(here)
        raise ImageError(f"{path}: too many symbolic links")

    def _add(self, path: str, entry: Entry) -> None:
        parent = self.resolve(posixpath.dirname(path))
        place = posixpath.join(parent, posixpath.basename(path))
        while parent not in self.entries:
            self.entries[parent] = Entry("directory")
            parent = posixpath.dirname(parent)
        if self.entries[parent].kind != "directory":
            raise ImageError(f"{path}: {parent} is not a directory")
        if place != "/":
            self.entries.setdefault(place, entry)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


class Writer:
    """Performs a plan below `root` (an existing empty directory)."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.copied: set[str] = set()
        self.edited: dict[str, tuple[str, int]] = {}
        self.dropped: list[str] = []
        self.newest = 0
        self._first: dict[tuple[int, int], str] = {}

    def write(self, plan: Plan) -> Written:
        """Write everything; directories, links and generated files get their time from `stamp`."""
        for path, entry in sorted(plan.entries.items()):
            if path != "/":
                _WRITE[entry.kind](self, path, entry)
        return Written(frozenset(self.copied), self.edited, tuple(self.dropped), self.newest)

    def _directory(self, path: str, entry: Entry) -> None:
        os.mkdir(self.root + path)
        os.chmod(self.root + path, entry.mode)

    def _link(self, path: str, entry: Entry) -> None:
        os.symlink(entry.target, self.root + path)

    def _file(self, path: str, entry: Entry) -> None:
        target = self.root + path
        if entry.inode and (first := self._first.setdefault(entry.inode, target)) != target:
            os.link(first, target)
        elif self._fill(path, target, entry):
            os.chmod(target, entry.mode)
        else:
            self.dropped.append(path)
            return
        if entry.mtime is not None:
            self.copied.add(path)
            self.newest = max(self.newest, entry.mtime)
            os.utime(target, (entry.mtime, entry.mtime))

    def _fill(self, path: str, target: str, entry: Entry) -> bool:
        if entry.source and entry.edit is None:
            _copy(entry.source, target)
            return True
        before = Path(entry.source).read_bytes() if entry.source else entry.content
        data = entry.edit(before) if entry.edit else before
        if data is None:
            return False
        with open(target, "xb", buffering=0) as file:
            file.write(data)
        if data != before:
            self.edited[path] = (hashlib.sha256(data).hexdigest(), len(data))
        return True


_WRITE: dict[str, Callable[[Writer, str, Entry], None]] = {"directory": Writer._directory, "file": Writer._file, "link": Writer._link}


def _copy(source: str, target: str) -> None:
    with open(source, "rb", buffering=0) as src, open(target, "xb", buffering=0) as dst:
        try:
            # Shares extents where the file system can (btrfs, xfs), never the inode.
            while os.copy_file_range(src.fileno(), dst.fileno(), 1 << 30):
                pass
        except OSError as err:
            if err.errno not in (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
                raise
            shutil.copyfileobj(src, dst)


def stamp(root: Path, moment: int, *, copied: Container[str]) -> None:
    """Give everything below `root` one time, but for the copies of host files: two captures are then the same bytes."""
    prefix = len(str(root))
    for directory, names, files in os.walk(root, topdown=False):
        for path in (os.path.join(directory, name) for name in (*names, *files)):
            if path[prefix:] not in copied:
                os.utime(path, (moment, moment), follow_symlinks=False)
    os.utime(root, (moment, moment))
