"""Where COPY reads from: the build context (a host directory, never left, .dockerignore applied) or an image's tree.

Both are a `Source`. Every path below a context is walked component by component with O_NOFOLLOW from the directory's own
fd, links resolved by us inside the root: neither a link nor somebody who swaps one in meanwhile leads out of it.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Protocol, Self

import msgspec
from e2b_dockerfile_utils import PatternMatcher

from sandbox.build.globs import expand_glob, is_wild, literal
from sandbox.errors import BuildError
from sandbox.image.owners import NOTE, mode_of, owner_of
from sandbox.image.tree import Entry, Tree

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_LINKS = 40
_IGNORE_LIMIT = 4 << 20
# overlayfs' own marks must not come in from outside: they would change what a layer means.
_PRIVATE_XATTRS = ("user.overlay.", NOTE, "trusted.", "security.selinux", "system.")


class Source(Protocol):
    """A tree that COPY reads: paths are absolute within it, links resolve within it."""

    @property
    def is_image(self) -> bool:
        """Whether it is an image's; a context's files are all root's, and it gives no devices."""

    def owner(self, entry: Entry) -> tuple[int, int]:
        """The uid and gid it arrives with."""

    def mode(self, entry: Entry) -> int:
        """The permissions it arrives with."""

    def lookup(self, path: str, *, follow: bool = False) -> Entry | None:
        """The entry at this path; links in the way are resolved, the last component only with `follow`."""

    def scandir(self, path: str) -> list[Entry]:
        """What a directory holds, sorted by name."""

    def open(self, entry: Entry) -> int:
        """A new fd that reads a regular file."""

    def readlink(self, entry: Entry) -> str:
        """Where a symbolic link points, as written."""

    def xattrs(self, entry: Entry) -> dict[str, bytes]:
        """The extended attributes that are copied."""


class Match(msgspec.Struct, frozen=True):
    """One file or directory a COPY source names: the name it was found under, and the entry links led to."""

    name: str
    entry: Entry


def find(source: Source, pattern: str) -> list[Match]:
    """What a COPY source names: cleaned, wildcards expanded, links followed; empty when there is none. Raises BadPattern."""
    components = _clean(pattern)
    entries = expand_glob(components, partial(source.lookup, follow=True), source.scandir)
    if not any(map(is_wild, components)):
        return [Match(literal(components[-1]) if components else "", entry) for entry in entries]
    return [Match(entry.name, _followed(source, entry)) for entry in entries]


def _followed(source: Source, entry: Entry) -> Entry:
    found = source.lookup(entry.path, follow=True) if entry.is_symlink else entry
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "a link to nothing here", entry.path)
    return found


def walk(source: Source, entry: Entry) -> Iterator[Entry]:
    """The entry and all below it, parents first, names sorted; links are not followed."""
    pending = [entry]
    while pending:
        entry = pending.pop()
        yield entry
        if entry.is_dir:
            pending.extend(reversed(source.scandir(entry.path)))


def _clean(path: str) -> list[str]:
    """The components of a path below a root; `..` stops at the root."""
    names: list[str] = []
    for name in path.split("/"):
        if name == "..":
            del names[-1:]
        elif name not in ("", "."):
            names.append(name)
    return names


class TreeSource:
    """The file system of an image or of a finished stage."""

    is_image = True

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def lookup(self, path: str, *, follow: bool = False) -> Entry | None:
        """As Source."""
        return self._tree.lookup(path, follow=follow)

    def owner(self, entry: Entry) -> tuple[int, int]:
        """As Source; also one that could only be noted (`image.owners`)."""
        return owner_of(os.fsencode(entry.source), entry.stat)

    def mode(self, entry: Entry) -> int:
        """As Source; also one that could only be noted."""
        return mode_of(os.fsencode(entry.source), entry.stat)

    def scandir(self, path: str) -> list[Entry]:
        """As Source."""
        return self._tree.scandir(path)

    def open(self, entry: Entry) -> int:
        """As Source."""
        return os.open(entry.source, _FILE)

    def readlink(self, entry: Entry) -> str:
        """As Source."""
        return os.readlink(entry.source)

    def xattrs(self, entry: Entry) -> dict[str, bytes]:
        """As Source."""
        try:
            names = os.listxattr(entry.source, follow_symlinks=False)
        except OSError as err:
            if err.errno == errno.ENOTSUP:
                return {}
            raise
        kept = [name for name in names if not name.startswith(_PRIVATE_XATTRS)]
        return {name: os.getxattr(entry.source, name, follow_symlinks=False) for name in kept}


class _Near(threading.local):
    """The directory a thread was in last."""

    path: str | None = None
    fd: int = -1


class Context:
    """A build context: the files of a host directory that .dockerignore leaves. A context manager: it holds the directory open.

    `ignore_file` is <Dockerfile>.dockerignore, used instead of the directory's .dockerignore when it exists; without `ignoring`
    neither is read. Threads may use it at the same time.
    """

    is_image = False

    def __init__(self, root: Path, ignore_file: Path | None = None, *, ignoring: bool = True) -> None:
        try:
            self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as err:
            raise BuildError(f"build context {root}: {(err.strerror or str(err)).lower()}") from err
        self._near = _Near()
        self._opened: set[int] = set()
        self._matcher: PatternMatcher | None = None
        try:
            self._matcher = self._read_ignore(ignore_file) if ignoring else None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the directory."""
        while self._opened:
            os.close(self._opened.pop())
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def lookup(self, path: str, *, follow: bool = False) -> Entry | None:
        """As Source; None also for what .dockerignore hides."""
        names: list[str] = []
        pending = list(reversed(_split(path)))
        links = 0
        entry: Entry | None = self._entry([])
        while pending:
            name = pending.pop()
            if name == "..":
                del names[-1:]
                entry = self._entry(names)
                continue
            entry = self._entry([*names, name])
            if entry is None:
                return None
            if entry.is_symlink and (pending or follow):
                if (links := links + 1) > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = self.readlink(entry)
                if target.startswith("/"):
                    names.clear()
                pending += reversed(_split(target))
                entry = self._entry(names)
                continue
            names.append(name)
        return entry if entry is not None and self._is_visible(entry) else None

    def owner(self, entry: Entry) -> tuple[int, int]:  # noqa: ARG002 (the protocol's)
        """As Source: root's, whoever has it here."""
        return 0, 0

    def mode(self, entry: Entry) -> int:
        """As Source: as here."""
        return stat.S_IMODE(entry.stat.st_mode)

    def scandir(self, path: str) -> list[Entry]:
        """As Source; without what .dockerignore hides. The path must not lead through links."""
        base = "" if path == "/" else path
        with os.scandir(self._directory(path)) as found:
            entries = [Entry(f"{base}/{item.name}", item.stat(follow_symlinks=False), "") for item in found]
        entries.sort(key=lambda entry: os.fsencode(entry.path))
        return entries if self._matcher is None else [entry for entry in entries if self._is_visible(entry)]

    def open(self, entry: Entry) -> int:
        """As Source."""
        return os.open(entry.name, _FILE, dir_fd=self._directory(entry.path.rpartition("/")[0]))

    def readlink(self, entry: Entry) -> str:
        """As Source."""
        return os.readlink(entry.name, dir_fd=self._directory(entry.path.rpartition("/")[0]))

    def xattrs(self, entry: Entry) -> dict[str, bytes]:  # noqa: ARG002 (Source asks for it)
        """None: attributes of the host's files say nothing about the image."""
        return {}

    def is_hidden(self, path: str) -> bool:
        """Whether it is there and .dockerignore hides it."""
        return self._matcher is not None and self._matcher.matches("/".join(_clean(path))) and self._entry(_clean(path)) is not None

    def _entry(self, names: list[str]) -> Entry | None:
        """The entry at a path without links in it; None when there is none."""
        path = "/" + "/".join(names)
        if not names:
            return Entry("/", os.fstat(self._fd), "")
        try:
            status = os.stat(names[-1], dir_fd=self._directory("/" + "/".join(names[:-1])), follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Entry(path, status, "")

    def _directory(self, path: str) -> int:
        """An fd of a directory, kept until another is asked for: a tree is read directory by directory."""
        path = path.rstrip("/")
        if self._near.path != path:
            fd = os.open(".", _DIRECTORY, dir_fd=self._fd)
            for name in _split(path):
                try:
                    below = os.open(name, _DIRECTORY, dir_fd=fd)
                finally:
                    os.close(fd)
                fd = below
            if self._near.path is not None:
                self._opened.remove(self._near.fd)
                os.close(self._near.fd)
            self._near.path, self._near.fd = path, fd
            self._opened.add(fd)
        return self._near.fd

    def _is_visible(self, entry: Entry) -> bool:
        """Whether .dockerignore leaves it; an excluded directory counts as far as a `!` pattern brings back what is in it."""
        if self._matcher is None or entry.path == "/":
            return True
        relative = entry.path[1:]
        if not self._matcher.matches(relative):
            return True
        return entry.is_dir and self._matcher.may_match_under(relative) and bool(self.scandir(entry.path))

    def _read_ignore(self, ignore_file: Path | None) -> PatternMatcher | None:
        name = ".dockerignore"
        if ignore_file is not None and ignore_file.is_file():
            name, data = ignore_file.name, ignore_file.read_bytes()
        elif (entry := self.lookup("/" + name, follow=True)) is not None and entry.is_file:
            with os.fdopen(self.open(entry), "rb") as stream:
                data = stream.read(_IGNORE_LIMIT)
        else:
            return None
        lines = data.decode("utf-8-sig", "surrogateescape").splitlines()
        try:
            return PatternMatcher(lines) if lines else None
        except ValueError as err:
            raise BuildError(f"{name}: {str(err)[:1].lower()}{str(err)[1:]}") from None


def _split(path: str) -> list[str]:
    """The components of a path, `..` among them."""
    return [name for name in path.split("/") if name not in ("", ".")]


def kind_of(entry: Entry) -> str:
    """One letter for the type of a file, as tar and ls have it."""
    return stat.filemode(entry.stat.st_mode)[0]
