"""Apply a layer's tar to a directory, in overlayfs' own form, without ever writing outside of it.

Every path is walked component by component below a directory descriptor, no link of this layer followed: a parent that is
a link, `..`, a hard link or a whiteout that leads elsewhere is UnsafeLayer. A parent that is a link of a *lower* layer (an
entry `lib/x` where the base has `lib -> usr/lib`) is resolved inside the root, so that the entry lands where the container
sees it, and a directory the layer does not name gets what the lower one has. A leading `/` or `./` is dropped, as docker
and GNU tar do. Devices are made as docker makes them, but for 0:0, which is overlayfs' mark of a removed name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import IO, cast

from sandbox.errors import InvalidImage, UnsafeLayer, Unsupported
from sandbox.image.layers import content_size
from sandbox.image.owners import CAPABILITY_NOTE, NOTE, give, give_mode, give_xattr, keep_owner, mode_of, owner_of
from sandbox.image.plain import decompressed
from sandbox.image.tarinput import STREAM_ERRORS, CappedInfo, Forward, members
from sandbox.image.tree import OPAQUE, Entry, Tree, is_opaque, is_whiteout

_CHUNK = 1 << 20
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WHITEOUT, _OPAQUE, _RESERVED = ".wh.", ".wh..wh..opq", ".wh..wh."
_XATTR = "SCHILY.xattr."
_FOREIGN_XATTRS = ("user.overlay.", "trusted.", NOTE, CAPABILITY_NOTE)
_MAX_LINKS = 40


Lowers = Sequence[str] | Callable[[], Sequence[str]]
"""The layers below one, lowest first; or what gives them, asked when the first entry depends on them (most layers name every
directory they write into, and depend on nothing), so that it may wait until they are there."""


def apply_tar(stream: IO[bytes], into: str | os.PathLike[str], lowers: Lowers = ()) -> None:
    """Unpack a layer's tar (plain, gzip, zstd, bzip2 or xz, told by its first bytes) into an empty upper directory above
    these layers.

    Raises UnsafeLayer for an entry that leads outside, InvalidImage for what is no tar, Unsupported when this user may
    not give files to the owners the layer names.
    """
    with decompressed(stream) as plain:
        apply_plain(plain.read, into, lowers)


def apply_plain(read: Callable[[int], bytes], into: str | os.PathLike[str], lowers: Lowers = ()) -> int:
    """As `apply_tar`, of what `read` gives (at most so many bytes, none at the end), which is not compressed; how many bytes the
    regular files have, hard links once."""
    root = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with (
            tarfile.open(fileobj=cast("IO[bytes]", Forward(read)), mode="r:", errors="surrogateescape", tarinfo=CappedInfo) as tar,
            contextlib.closing(_Applier(root, lowers)) as applier,
        ):
            for member in members(tar):
                applier.add(member, tar)
            applier.finish()
            return content_size(into) if applier.has_cleared else applier.size
    except STREAM_ERRORS as err:
        raise InvalidImage(f"layer: not a whole tar: {err}") from err
    except PermissionError as err:
        raise Unsupported(f"layer: {err}", feature="device nodes", hint="an ordinary user cannot make device nodes") from err
    finally:
        os.close(root)


class _Applier:
    """Writes entries below `root`; directories get their times at the end."""

    def __init__(self, root: int, lowers: Lowers) -> None:
        self.size, self.has_cleared = 0, False
        self._root = root
        self._lowers = lowers
        self._entered, self._linked = _Descent(root, self._imitate), _Descent(root, self._imitate)
        self._places: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._times: dict[tuple[str, ...], float] = {}

    @cached_property
    def _below(self) -> Tree:
        return Tree(self._lowers() if callable(self._lowers) else self._lowers)

    def add(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        parts = _parts(member.name)
        if not parts:
            self._finish(self._root, member)
            return
        parts = self._resolve(parts, member.name)
        parent = self._entered.enter(parts[:-1], member.name)
        if parts[-1].startswith(_WHITEOUT):
            self._whiteout(parent, parts, member.name)
        elif member.isdir():
            self._make_directory(parent, parts, member)
        else:
            self._make(parent, parts, member, tar)

    def close(self) -> None:
        """Give the directories back."""
        self._entered.leave(0)
        self._linked.leave(0)

    def _clear(self, parent: int, parts: tuple[str, ...]) -> None:
        """What an earlier entry of the same layer made under this name goes."""
        self.has_cleared = True
        self._linked.forget(parts)  # what is `_entered` now is the parent
        _remove(parent, parts[-1])

    def _resolve(self, parts: tuple[str, ...], name: str) -> tuple[str, ...]:
        """The same entry with the links of lower layers on its way followed, inside the root."""
        parents = parts[:-1]
        if parents and self._lowers and parents not in self._places:
            self._places[parents] = self._follow(parents, name)
        return (*self._places.get(parents, parents), parts[-1])

    def _follow(self, parents: tuple[str, ...], name: str) -> tuple[str, ...]:
        place: list[str] = []
        pending = list(reversed(parents))
        links = 0
        while pending:
            part = pending.pop()
            if part == "..":  # of a link: the names of a layer have none
                del place[-1:]
                continue
            place.append(part)
            lower = None if os.path.lexists(self._path(place)) else self._shown(place)
            if lower is None or not lower.is_symlink:
                continue
            if (links := links + 1) > _MAX_LINKS:
                raise UnsafeLayer(f"layer entry {name!r}: too many links on its way", path=name)
            target = os.readlink(lower.source)
            place = [] if target.startswith("/") else place[:-1]
            pending += [part for part in reversed(target.split("/")) if part not in ("", ".")]
        return tuple(place)

    def _shown(self, place: Sequence[str]) -> Entry | None:
        """What the layers below show here, through this one."""
        for depth in range(1, len(place)):
            here = self._path(place[:depth])
            if not os.path.lexists(here):
                break
            lower = self._below.lookup("/" + "/".join(place[:depth]))
            if lower is None or not lower.is_dir or not stat.S_ISDIR(os.lstat(here).st_mode) or is_opaque(here):
                return None
        return self._below.lookup("/" + "/".join(place))

    def _path(self, place: Sequence[str]) -> str:
        """This place in the layer; none of its parents is a link (`_follow` stops there, `_step` refuses)."""
        return f"/proc/self/fd/{self._root}/" + "/".join(place)

    def finish(self) -> None:
        """The times of directories, which every entry made in them has changed. Deepest first."""
        for parts in sorted(self._times, key=len, reverse=True):
            directory = self._entered.enter(parts, "/".join(parts))
            os.utime(f"/proc/self/fd/{directory}", (self._times[parts], self._times[parts]))

    def _imitate(self, fd: int, place: tuple[str, ...]) -> None:
        """A directory that this layer needs and does not name: as the layers below have it, for it will stand before theirs."""
        lower = self._below.lookup("/" + "/".join(place)) if self._lowers and not is_opaque(f"/proc/self/fd/{fd}") else None
        if lower is None or not lower.is_dir:
            return
        here = f"/proc/self/fd/{fd}"
        with _opened(here) as directory:  # `fd` is but a path
            give(directory, *owner_of(os.fsencode(lower.source), lower.stat))
            give_mode(directory, mode_of(os.fsencode(lower.source), lower.stat))
        for key in os.listxattr(lower.source, follow_symlinks=False):
            if key.startswith("user.") and not key.startswith(_FOREIGN_XATTRS):
                os.setxattr(here, key, os.getxattr(lower.source, key, follow_symlinks=False))
        self._times[place] = lower.stat.st_mtime

    def _whiteout(self, parent: int, parts: tuple[str, ...], name: str) -> None:
        base = parts[-1]
        if base == _OPAQUE:
            os.setxattr(f"/proc/self/fd/{parent}", OPAQUE[0], b"y")
            return
        if base.startswith(_RESERVED):
            return  # aufs' own notes
        hidden = base.removeprefix(_WHITEOUT)
        if hidden in ("", ".", ".."):
            raise UnsafeLayer(f"layer entry {name!r}: a whiteout that names {hidden or 'nothing'!r}", path=name)
        self._clear(parent, (*parts[:-1], hidden))
        os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)

    def _make(self, parent: int, parts: tuple[str, ...], member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        make = _MAKERS.get(member.type, _Applier._make_special)
        try:
            make(self, parent, parts[-1], member, tar)
        except FileExistsError:
            self._clear(parent, parts)
            make(self, parent, parts[-1], member, tar)

    def _make_directory(self, parent: int, parts: tuple[str, ...], member: tarfile.TarInfo) -> None:
        try:
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        except FileExistsError:
            self.has_cleared = True
            _replace_by_directory(parent, parts[-1])
        fd = os.open(parts[-1], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            self._finish(fd, member)
        finally:
            os.close(fd)
        self._times[parts] = member.mtime

    def _make_file(self, parent: int, name: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
        try:
            if member.issparse():
                _write_sparse(fd, member, tar)
            else:
                _write_plain(fd, member, tar)
            self.size += member.size
            self._finish(fd, member)
        finally:
            os.close(fd)

    def _make_symlink(self, parent: int, name: str, member: tarfile.TarInfo, _: tarfile.TarFile) -> None:
        os.symlink(member.linkname, name, dir_fd=parent)
        give(f"/proc/self/fd/{parent}/{name}", member.uid, member.gid)
        os.utime(name, (member.mtime, member.mtime), dir_fd=parent, follow_symlinks=False)

    def _make_special(self, parent: int, name: str, member: tarfile.TarInfo, _: tarfile.TarFile) -> None:
        device = (member.devmajor, member.devminor)
        if member.isfifo():
            os.mkfifo(name, 0o600, dir_fd=parent)
        elif member.isdev() and not (member.ischr() and device == (0, 0)):
            os.mknod(name, (stat.S_IFCHR if member.ischr() else stat.S_IFBLK) | 0o600, os.makedev(*device), dir_fd=parent)
        elif member.isdev():
            raise UnsafeLayer(f"layer entry {member.name!r}: a 0:0 device, which would read as a removed name", path=member.name)
        else:
            raise UnsafeLayer(f"layer entry {member.name!r}: of the unknown kind {member.type!r}", path=member.name)
        give(f"/proc/self/fd/{parent}/{name}", member.uid, member.gid)
        os.chmod(name, member.mode & 0o7777, dir_fd=parent)
        os.utime(name, (member.mtime, member.mtime), dir_fd=parent, follow_symlinks=False)

    def _make_link(self, parent: int, name: str, member: tarfile.TarInfo, _: tarfile.TarFile) -> None:
        target = _parts(member.linkname)
        if not target:
            raise UnsafeLayer(f"layer entry {member.name!r}: a hard link to the root", path=member.name)
        other = self._linked.enter(target[:-1], member.name)
        try:
            os.link(target[-1], name, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError as err:
            message = f"layer entry {member.name!r}: a hard link to {member.linkname!r}, which is not in this layer"
            raise UnsafeLayer(message, path=member.name) from err
        keep_owner(f"/proc/self/fd/{other}/{target[-1]}", f"/proc/self/fd/{parent}/{name}")

    def _finish(self, fd: int, member: tarfile.TarInfo) -> None:
        """Owner before mode: chown clears the setuid bit."""
        give(fd, member.uid, member.gid)
        give_mode(fd, member.mode & 0o7777)
        for key, value in member.pax_headers.items():
            name = key.removeprefix(_XATTR)
            if name != key and not name.startswith(_FOREIGN_XATTRS):
                give_xattr(fd, name, value.encode("utf-8", "surrogateescape"))
        os.utime(fd, (member.mtime, member.mtime))


_Maker = Callable[[_Applier, int, str, tarfile.TarInfo, tarfile.TarFile], None]
_MAKERS: dict[bytes, _Maker] = {
    **dict.fromkeys(tarfile.REGULAR_TYPES, _Applier._make_file),
    tarfile.SYMTYPE: _Applier._make_symlink,
    tarfile.LNKTYPE: _Applier._make_link,
}
"""All of them raise FileExistsError, and have done nothing, where an earlier entry of the layer stands; the rest is special."""


class _Descent:
    """The directories on the way to the last entry, kept open: the next entry mostly lies beside it. Missing ones are made, and
    `on_new` is told."""

    def __init__(self, root: int, on_new: Callable[[int, tuple[str, ...]], None]) -> None:
        self._on_new = on_new
        self._parts: list[str] = []
        self._fds = [root]

    def enter(self, parts: tuple[str, ...], name: str) -> int:
        """The directory of these parts. UnsafeLayer when something on the way is none."""
        common = 0
        for mine, wanted in zip(self._parts, parts, strict=False):
            if mine != wanted:
                break
            common += 1
        self.leave(common)
        for part in parts[common:]:
            fd, is_new = _step(self._fds[-1], part, name)
            self._parts.append(part)
            self._fds.append(fd)
            if is_new:
                self._on_new(fd, parts[: len(self._parts)])
        return self._fds[-1]

    def leave(self, depth: int) -> None:
        """Keep no more than so many."""
        while len(self._parts) > depth:
            self._parts.pop()
            os.close(self._fds.pop())

    def forget(self, parts: tuple[str, ...]) -> None:
        """What stands at this place will be another."""
        if tuple(self._parts[: len(parts)]) == parts:
            self.leave(len(parts) - 1)


@contextlib.contextmanager
def _opened(directory: str) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _write_plain(fd: int, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    """The content right behind the header, past tarfile's own reader, which takes 40 µs a file."""
    left = member.size
    for piece in cast("Forward", tar.fileobj).pieces(left):
        _write(fd, piece)
        left -= len(piece)
    if left:
        raise tarfile.ReadError("unexpected end of data")


def _write_sparse(fd: int, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    """A sparse file keeps its holes, or a few bytes of tar would become terabytes of disk."""
    content = tar.extractfile(member)
    while content is not None and (data := content.read(_CHUNK)):
        if data.strip(b"\0"):
            _write(fd, data)
        else:
            os.lseek(fd, len(data), os.SEEK_CUR)
    os.ftruncate(fd, member.size)


def _write(fd: int, data: bytes | memoryview) -> None:
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])


def _parts(name: str) -> tuple[str, ...]:
    parts = tuple(name.split("/"))
    if "" in parts or "." in parts:
        parts = tuple(part for part in parts if part not in ("", "."))
    if ".." in parts:
        raise UnsafeLayer(f"layer entry {name!r}: leads outside the layer", path=name)
    return parts


def _step(fd: int, part: str, name: str) -> tuple[int, bool]:
    """One directory down, made when missing or removed before; whether it was."""
    is_new = False
    try:
        status = os.stat(part, dir_fd=fd, follow_symlinks=False)
        if is_whiteout(status):
            _replace_by_directory(fd, part)
            is_new = True
    except FileNotFoundError:
        os.mkdir(part, 0o755, dir_fd=fd)
        is_new = True
    try:
        return os.open(part, _DIRECTORY, dir_fd=fd), is_new
    except OSError as err:
        if err.errno in (errno.ELOOP, errno.ENOTDIR):
            raise UnsafeLayer(f"layer entry {name!r}: {part!r} on its way is not a directory", path=name) from err
        raise


def _replace_by_directory(parent: int, name: str) -> None:
    """A directory where something else of this layer may be; after a whiteout it hides what lies below."""
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        return
    _remove(parent, name)
    os.mkdir(name, 0o755, dir_fd=parent)
    if is_whiteout(status):
        os.setxattr(f"/proc/self/fd/{parent}/{name}", OPAQUE[0], b"y")


def _remove(parent: int, name: str) -> None:
    """What an earlier entry of the same layer made under this name goes."""
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=parent)
        return
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        for entry in os.listdir(fd):
            _remove(fd, entry)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)
