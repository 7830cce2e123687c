"""A layer as a tar changeset: written from an overlay upper directory (deterministic).

Writing. Entries in the order of a depth-first walk by name; whiteouts become `.wh.NAME`, an opaque directory
`.wh..wh..opq` where the layers below really have that directory (overlayfs marks every new directory opaque, which
would otherwise leak into the digest). The root directory itself has no entry, as with docker and BuildKit: its metadata
is not part of a layer. Kept: mode, owner, mtime in whole seconds, hard links inside the layer, `security.capability`
and `user.*` attributes. Left out: sockets, atime, ctime, user names, overlay's own attributes, labels and ACLs of the host.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import msgspec
from msgspec.structs import replace

from sandbox.errors import ImageError, InvalidImage
from sandbox.image import tar
from sandbox.image.owners import CAPABILITY_NOTE, NOTE, mode_of, owner_of, xattr_meant
from sandbox.image.tar import Member
from sandbox.image.tree import Tree, is_opaque, is_whiteout

WHITEOUT = b".wh."
OPAQUE_MARK = b".wh..wh..opq"
CHUNK = 1 << 20
_KINDS = {
    stat.S_IFREG: tar.FILE,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFIFO: tar.FIFO,
    stat.S_IFCHR: tar.CHAR,
    stat.S_IFBLK: tar.BLOCKDEV,
}


class _Item(msgspec.Struct, frozen=True):
    """An entry and the file its body comes from."""

    member: Member
    source: bytes | None = None


class Changeset:
    """The tar of an upper directory, made while iterated: chunks of about a megabyte, each the consumer's to keep.

    `content_size` (bytes of regular files, hard links once) and `is_empty` are known once iterated.
    """

    def __init__(self, upper: str | os.PathLike[str], lowers: Sequence[str]) -> None:
        self.content_size = 0
        self.is_empty = True
        self._upper = os.fsencode(upper)
        self._below = Tree(lowers)

    def __iter__(self) -> Iterator[memoryview]:
        packer = _Packer()
        for item in self._items():
            self.is_empty = False
            yield from packer.add(tar.encode(item.member))
            if item.source is not None:
                self.content_size += item.member.size
                yield from packer.add_file(item.source, item.member.size)
        yield from packer.add(bytes(2 * tar.BLOCK))
        yield from packer.rest()

    def _items(self) -> Iterator[_Item]:
        linked: dict[tuple[int, int], bytes] = {}
        pending = _scan(self._upper, b"")
        while pending:
            name, entry = pending.pop()
            status = entry.stat(follow_symlinks=False)
            if is_whiteout(status):
                yield _Item(_whiteout(name))
                continue
            if stat.S_ISSOCK(status.st_mode):
                continue
            _refuse_reserved(name)
            yield _describe(name, entry.path, status, linked)
            if stat.S_ISDIR(status.st_mode):
                if is_opaque(entry.path) and self._hides_something(name):
                    yield _Item(Member(name + b"/" + OPAQUE_MARK, tar.FILE, 0))
                pending += _scan(entry.path, name + b"/")

    def _hides_something(self, name: bytes) -> bool:
        entry = self._below.lookup("/" + os.fsdecode(name))
        return entry is not None and entry.is_dir


def content_size(upper: str | os.PathLike[str]) -> int:
    """Bytes of the regular files below a directory, hard links once: a Changeset's `content_size` without reading them."""
    total, seen = 0, set[int]()
    pending = [os.fspath(upper)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    if status.st_nlink == 1 or status.st_ino not in seen:
                        seen.add(status.st_ino)
                        total += status.st_size
    return total


def write_tar(upper: str | os.PathLike[str], out: IO[bytes], lowers: Sequence[str]) -> None:
    """Write the changeset of an upper directory above these layers; the same trees give the same bytes."""
    for chunk in Changeset(upper, lowers):
        out.write(chunk)


class FlatTar:
    """The tar of a whole file system, all layers merged, made while iterated like a Changeset. `owner`: (uid, gid) of every
    entry, None: as they are."""

    def __init__(self, tree: Tree, owner: tuple[int, int] | None = None) -> None:
        self._tree = tree
        self._owner = owner

    def __iter__(self) -> Iterator[memoryview]:
        packer = _Packer()
        linked: dict[tuple[int, int], bytes] = {}
        for entry in self._tree.walk("/"):
            if entry.path == "/" or stat.S_ISSOCK(entry.stat.st_mode):
                continue
            item = _describe(os.fsencode(entry.path[1:]), os.fsencode(entry.source), entry.stat, linked)
            member = item.member if self._owner is None else replace(item.member, uid=self._owner[0], gid=self._owner[1])
            yield from packer.add(tar.encode(member))
            if item.source is not None:
                yield from packer.add_file(item.source, member.size)
        yield from packer.add(bytes(2 * tar.BLOCK))
        yield from packer.rest()


class ChangesetReader(io.RawIOBase):
    """A changeset as a stream to read from."""

    def __init__(self, changes: Iterable[memoryview]) -> None:
        self._chunks = iter(changes)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer is private
        if not self._rest:
            self._rest = next(self._chunks, memoryview(b""))
        piece = self._rest[: len(buffer)]
        buffer[: len(piece)] = piece
        self._rest = self._rest[len(piece) :]
        return len(piece)


def _scan(directory: bytes, prefix: bytes) -> list[tuple[bytes, os.DirEntry[bytes]]]:
    """The directory's entries, last name first (a stack)."""
    with os.scandir(directory) as entries:
        return sorted(((prefix + entry.name, entry) for entry in entries), key=lambda pair: pair[0], reverse=True)


def _describe(name: bytes, path: bytes, status: os.stat_result, linked: dict[tuple[int, int], bytes]) -> _Item:
    kind = stat.S_IFMT(status.st_mode)
    member = Member(name, _KINDS[kind], mode_of(path, status), *owner_of(path, status), mtime=int(status.st_mtime_ns // 1_000_000_000))
    if kind == stat.S_IFREG:
        return _describe_file(member, path, status, linked)
    if kind == stat.S_IFDIR:
        return _Item(replace(member, name=name + b"/", xattrs=_xattrs(path)))
    if kind == stat.S_IFLNK:
        return _Item(replace(member, link=os.readlink(path)))
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        return _Item(replace(member, major=os.major(status.st_rdev), minor=os.minor(status.st_rdev)))
    return _Item(member)


def _describe_file(member: Member, path: bytes, status: os.stat_result, linked: dict[tuple[int, int], bytes]) -> _Item:
    if status.st_nlink > 1:
        first = linked.setdefault((status.st_dev, status.st_ino), member.name)
        if first != member.name:
            return _Item(replace(member, kind=tar.LINK, link=first))
    return _Item(replace(member, size=status.st_size, xattrs=_xattrs(path)), path)


def _whiteout(name: bytes) -> Member:
    head, slash, last = name.rpartition(b"/")
    return Member(head + slash + WHITEOUT + last, tar.FILE, 0)


def _refuse_reserved(name: bytes) -> None:
    if name.rpartition(b"/")[2].startswith(WHITEOUT):
        shown = os.fsdecode(name)
        hint = "it would read as a removal; choose another name"
        raise InvalidImage(f"{shown}: a name that begins with .wh. cannot be kept in a layer", hint=hint)


def _xattrs(path: bytes) -> dict[bytes, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    kept = [name for name in names if _is_kept(xattr_meant(name))] if names else ()
    return {os.fsencode(xattr_meant(name)): os.getxattr(path, name, follow_symlinks=False) for name in kept}


def _is_kept(name: str) -> bool:
    return name == "security.capability" or (name.startswith("user.") and not name.startswith(("user.overlay.", NOTE, CAPABILITY_NOTE)))


class _Packer:
    """Fills fresh megabyte buffers, so that a consumer may hash one while the next is read from disk."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(CHUNK))
        self._used = 0

    def add(self, data: bytes) -> Iterator[memoryview]:
        while data:
            piece = data[: CHUNK - self._used]
            self._buffer[self._used : self._used + len(piece)] = piece
            yield from self._advance(len(piece))
            data = data[len(piece) :]

    def add_file(self, path: bytes, size: int) -> Iterator[memoryview]:
        """The body of a file, padded to whole blocks."""
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            left = size
            while left:
                count = os.readv(fd, [self._buffer[self._used : self._used + min(left, CHUNK - self._used)]])
                if not count:
                    raise ImageError(f"{os.fsdecode(path)}: became shorter while it was read")
                left -= count
                yield from self._advance(count)
        finally:
            os.close(fd)
        yield from self.add(tar.padding(size))

    def _advance(self, count: int) -> Iterator[memoryview]:
        self._used += count
        if self._used == CHUNK:
            yield self._buffer
            self._buffer, self._used = memoryview(bytearray(CHUNK)), 0

    def rest(self) -> Iterator[memoryview]:
        if self._used:
            yield self._buffer[: self._used]
            self._used = 0
