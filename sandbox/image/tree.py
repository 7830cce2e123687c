"""The merged, read-only view of a stack of layer directories, in user space: what overlayfs would show, without a mount.

COPY reads its sources here, USER its passwd, a shell form its /bin/sh. Symbolic links are resolved inside the tree, so
a link to /etc/shadow is the image's /etc/shadow and `..` stops at the root.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import IO

import msgspec

OPAQUE = ("user.overlay.opaque", "trusted.overlay.opaque")
_MAX_LINKS = 40
_READ_LIMIT = 16 << 20


def is_whiteout(status: os.stat_result) -> bool:
    """Whether this is overlayfs' mark of a removed name: a 0:0 character device."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: str | bytes | int) -> bool:
    """Whether this directory hides what lies below it."""
    try:
        names = os.listxattr(path) if isinstance(path, int) else os.listxattr(path, follow_symlinks=False)
    except OSError as err:
        if err.errno in (errno.ENOTSUP, errno.EPERM, errno.EACCES):
            return False
        raise
    return any(name in names and os.getxattr(path, name) == b"y" for name in OPAQUE)


class Entry(msgspec.Struct, frozen=True):
    """One name in the tree: `path` inside (absolute), its own `stat` (links not followed), `source` its file on disk."""

    path: str
    stat: os.stat_result
    source: str

    @property
    def name(self) -> str:
        """The last component; empty for the root."""
        return self.path.rpartition("/")[2]

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.stat.st_mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.stat.st_mode)

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.stat.st_mode)


class _Node(msgspec.Struct, frozen=True):
    """An entry and, for a directory, the directories of all layers that make it up, topmost first."""

    entry: Entry
    layers: tuple[str, ...] = ()


class Tree:
    """A layer stack, given lowest first as overlay's lower directories; nothing in it is ever written."""

    def __init__(self, lowers: Sequence[str]) -> None:
        self.lowers = tuple(lowers)

    def lookup(self, path: str, *, follow: bool = False) -> Entry | None:
        """The entry at this path or None. Links in the way are resolved; the last component only with `follow`."""
        node = self._walk_to(path, follow=follow)
        return node.entry if node else None

    def stat(self, path: str) -> Entry:
        """The entry at this path, links followed; raises FileNotFoundError."""
        entry = self.lookup(path, follow=True)
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return entry

    def open(self, path: str) -> IO[bytes]:
        """A regular file's content, links followed; FileNotFoundError, IsADirectoryError, or OSError for a device."""
        entry = self.stat(path)
        if entry.is_dir:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not entry.is_file:
            raise OSError(errno.EINVAL, "not a regular file", path)
        return open(entry.source, "rb", opener=_open_nofollow)

    def read(self, path: str, limit: int = _READ_LIMIT) -> bytes:
        """A whole small file; OSError (EFBIG) above `limit` bytes."""
        with self.open(path) as stream:
            data = stream.read(limit + 1)
        if len(data) > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes", path)
        return data

    def scandir(self, path: str = "/") -> list[Entry]:
        """A directory's entries by name, links followed to reach it; raises FileNotFoundError, NotADirectoryError."""
        node = self._walk_to(path, follow=True)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if not node.entry.is_dir:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return [child.entry for child in _children(node)]

    def walk(self, path: str = "/") -> Iterator[Entry]:
        """The entry at `path` and everything below it, parents first, names sorted; links are not followed below it."""
        node = self._walk_to(path, follow=True)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        pending = [node]
        while pending:
            node = pending.pop()
            yield node.entry
            pending.extend(reversed(_children(node)))

    def resolve(self, path: str) -> str:
        """The absolute path with every link resolved inside the tree; what does not exist is kept as written."""
        return self._follow(path)[0]

    def _walk_to(self, path: str, *, follow: bool) -> _Node | None:
        return self._follow(path, last=follow)[1]

    def _follow(self, path: str, *, last: bool = True) -> tuple[str, _Node | None]:
        """Resolve component by component. Returns the path reached and its node, None from the first missing one on."""
        trail: list[_Node | None] = [self._root]
        names: list[str] = []
        pending = _components(path)
        links = 0
        while pending:
            name = pending.pop()
            if name == "..":
                if names:
                    names.pop()
                    trail.pop()
                continue
            parent = trail[-1]
            node = _child(parent, name) if parent else None
            if node and node.entry.is_symlink and (pending or last):
                if (links := links + 1) > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = os.readlink(node.entry.source)
                if target.startswith("/"):
                    del trail[1:], names[:]
                pending += _components(target)
                continue
            names.append(name)
            trail.append(node)
        return "/" + "/".join(names), trail[-1]

    @cached_property
    def _root(self) -> _Node:
        layers: list[str] = []
        for path in reversed(self.lowers):
            layers.append(path)
            if is_opaque(path):
                break
        source = layers[0] if layers else "/"
        status = os.lstat(source) if layers else _EMPTY_ROOT
        return _Node(Entry("/", status, source), tuple(layers))


_EMPTY_ROOT = os.stat_result((stat.S_IFDIR | 0o755, 0, 0, 1, 0, 0, 0, 0, 0, 0))


def _open_nofollow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def _components(path: str) -> list[str]:
    """The names of a path, last first (a stack)."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _child(parent: _Node, name: str) -> _Node | None:
    """What overlayfs shows under this name: the topmost entry, merged with the directories below it that it lets through."""
    first: tuple[str, os.stat_result] | None = None
    layers: list[str] = []
    for directory in parent.layers:
        path = f"{directory}/{name}"
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if is_whiteout(status) or (first and not stat.S_ISDIR(status.st_mode)):
            break
        first = first or (path, status)
        if not stat.S_ISDIR(status.st_mode):
            break
        layers.append(path)
        if is_opaque(path):
            break
    if first is None:
        return None
    base = "" if parent.entry.path == "/" else parent.entry.path
    return _Node(Entry(f"{base}/{name}", first[1], first[0]), tuple(layers))


def _children(node: _Node) -> list[_Node]:
    names = sorted({name for directory in node.layers for name in os.listdir(directory)}, key=os.fsencode)
    return [child for name in names if (child := _child(node, name))]
