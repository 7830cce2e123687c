"""Apply a layer's tar to a directory, in overlayfs' own form, without ever writing outside of it.

Every path is walked component by component below a directory descriptor, no link followed: a parent that is a link,
`..`, a hard link or a whiteout that leads elsewhere is UnsafeLayer, as is a device that an image has no business with.
A leading `/` or `./` is dropped, as docker and GNU tar do.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from typing import IO

from sandbox.errors import InvalidImage, UnsafeLayer, Unsupported
from sandbox.image.tree import OPAQUE

_CHUNK = 1 << 20
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WHITEOUT, _OPAQUE, _RESERVED = ".wh.", ".wh..wh..opq", ".wh..wh."
_XATTR = "SCHILY.xattr."
_FOREIGN_XATTRS = ("user.overlay.", "trusted.")
_HARMLESS_DEVICES = {(1, minor) for minor in (3, 5, 7, 8, 9)} | {(5, minor) for minor in (0, 1, 2)}
"""null, zero, full, random, urandom, tty, console, ptmx: debootstrap makes them; containers never see them under their own /dev."""


def apply_tar(stream: IO[bytes], into: str | os.PathLike[str]) -> None:
    """Unpack a layer's tar (plain, gzip, zstd, bzip2 or xz, told by its first bytes) into an empty upper directory.

    Raises UnsafeLayer for an entry that leads outside, InvalidImage for what is no tar, Unsupported when this user may
    not give files to the owners the layer names.
    """
    root = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with decompressed(stream) as plain, tarfile.open(fileobj=plain, mode="r|", errors="surrogateescape") as tar:
            applier = _Applier(root)
            for member in tar:
                applier.add(member, tar)
            applier.finish()
    except (tarfile.TarError, EOFError) as err:
        raise InvalidImage(f"layer: not a whole tar: {err}") from err
    except PermissionError as err:
        raise Unsupported(f"layer: {err}", feature="chown", hint="run as root, or give this user subordinate ids") from err
    finally:
        os.close(root)


@contextlib.contextmanager
def decompressed(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """The plain bytes of a stream, whichever way it is compressed."""
    buffered = io.BufferedReader(stream, _CHUNK)  # type: ignore[type-var]
    try:
        magic = buffered.peek(6)[:6]
        opener = next((opener for prefix, opener in _FORMATS if magic.startswith(prefix)), None)
        if opener is None:
            yield buffered
        else:
            with opener(buffered) as plain:
                yield plain
    finally:
        if not buffered.closed:
            buffered.detach()  # the stream is its owner's to close


def _gzip(stream: IO[bytes]) -> IO[bytes]:
    from isal import igzip  # 15 ms, wanted only here

    opened: IO[bytes] = igzip.IGzipFile(fileobj=stream, mode="rb")  # type: ignore[no-untyped-call, assignment]  # isal has no types
    return opened


def _zstd(stream: IO[bytes]) -> IO[bytes]:
    try:
        from compression import zstd  # type: ignore[import-not-found]  # Python 3.14
    except ImportError:
        from backports import zstd
    opened: IO[bytes] = zstd.ZstdFile(stream, "rb")
    return opened


def _bzip2(stream: IO[bytes]) -> IO[bytes]:
    import bz2

    return bz2.BZ2File(stream, "rb")


def _xz(stream: IO[bytes]) -> IO[bytes]:
    import lzma

    return lzma.LZMAFile(stream, "rb")


_FORMATS = ((b"\x1f\x8b", _gzip), (b"\x28\xb5\x2f\xfd", _zstd), (b"BZh", _bzip2), (b"\xfd7zXZ\x00", _xz))


class HashingReader(io.RawIOBase):
    """Passes a stream on and knows the digest and size of what went by."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self.size = 0

    @property
    def stream(self) -> IO[bytes]:
        """Itself, buffered: what readers of whole pieces want."""
        return io.BufferedReader(self, _CHUNK)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer is private
        """One read of the stream."""
        data = self._stream.read(len(buffer))
        self._sha256.update(data)
        self.size += len(data)
        buffer[: len(data)] = data
        return len(data)

    @property
    def digest(self) -> str:
        """Of everything read so far."""
        return f"sha256:{self._sha256.hexdigest()}"


class _Applier:
    """Writes entries below `root`; directories get their times at the end."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._times: dict[tuple[str, ...], float] = {}

    def add(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        parts = _parts(member.name)
        if not parts:
            self._finish(self._root, member)
            return
        with self._parent(parts, member.name) as parent:
            if parts[-1].startswith(_WHITEOUT):
                self._whiteout(parent, parts[-1], member.name)
                return
            self._make(parent, parts, member, tar)

    def finish(self) -> None:
        """The times of directories, which every entry made in them has changed. Deepest first."""
        for parts in sorted(self._times, key=len, reverse=True):
            with self._parent((*parts, "."), "/".join(parts)) as directory:
                os.utime(f"/proc/self/fd/{directory}", (self._times[parts], self._times[parts]))

    @contextlib.contextmanager
    def _parent(self, parts: tuple[str, ...], name: str) -> Iterator[int]:
        """The directory that holds the last part; missing ones are made."""
        with contextlib.ExitStack() as opened:
            fd = self._root
            for part in parts[:-1]:
                fd = _step(fd, part, name)
                opened.callback(os.close, fd)
            yield fd

    def _whiteout(self, parent: int, base: str, name: str) -> None:
        if base == _OPAQUE:
            os.setxattr(f"/proc/self/fd/{parent}", OPAQUE[0], b"y")
            return
        if base.startswith(_RESERVED):
            return  # aufs' own notes
        hidden = base.removeprefix(_WHITEOUT)
        if hidden in ("", ".", ".."):
            raise UnsafeLayer(f"layer entry {name!r}: a whiteout that names {hidden or 'nothing'!r}", path=name)
        _remove(parent, hidden)
        os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)

    def _make(self, parent: int, parts: tuple[str, ...], member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        name = parts[-1]
        if member.isdir():
            self._make_directory(parent, parts, member)
            return
        _remove(parent, name)
        if member.islnk():
            self._link(parent, name, member)
        elif member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
            os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
            os.utime(name, (member.mtime, member.mtime), dir_fd=parent, follow_symlinks=False)
        elif member.isreg():
            self._make_file(parent, name, member, tar)
        else:
            self._make_special(parent, name, member)

    def _make_directory(self, parent: int, parts: tuple[str, ...], member: tarfile.TarInfo) -> None:
        try:
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(parts[-1], dir_fd=parent, follow_symlinks=False).st_mode):
                _remove(parent, parts[-1])
                os.mkdir(parts[-1], 0o700, dir_fd=parent)
        fd = os.open(parts[-1], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            self._finish(fd, member)
        finally:
            os.close(fd)
        self._times[parts] = member.mtime

    def _make_file(self, parent: int, name: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
        try:
            content = tar.extractfile(member)
            while content is not None and (data := content.read(_CHUNK)):
                os.write(fd, data)
            self._finish(fd, member)
        finally:
            os.close(fd)

    def _make_special(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        device = (member.devmajor, member.devminor)
        if member.isfifo():
            os.mkfifo(name, 0o600, dir_fd=parent)
        elif member.ischr() and device in _HARMLESS_DEVICES:
            os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(*device), dir_fd=parent)
        else:
            raise UnsafeLayer(f"layer entry {member.name!r}: a device ({device[0]}:{device[1]}) or a kind no image needs", path=member.name)
        os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        os.chmod(name, member.mode & 0o7777, dir_fd=parent)

    def _link(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        target = _parts(member.linkname)
        if not target:
            raise UnsafeLayer(f"layer entry {member.name!r}: a hard link to the root", path=member.name)
        with self._parent(target, member.name) as other:
            try:
                os.link(target[-1], name, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError as err:
                message = f"layer entry {member.name!r}: a hard link to {member.linkname!r}, which is not in this layer"
                raise UnsafeLayer(message, path=member.name) from err

    def _finish(self, fd: int, member: tarfile.TarInfo) -> None:
        """Owner before mode: chown clears the setuid bit."""
        os.fchown(fd, member.uid, member.gid)
        os.fchmod(fd, member.mode & 0o7777)
        for key, value in member.pax_headers.items():
            name = key.removeprefix(_XATTR)
            if name != key and not name.startswith(_FOREIGN_XATTRS):
                os.setxattr(fd, name, value.encode("utf-8", "surrogateescape"))
        os.utime(fd, (member.mtime, member.mtime))


def _parts(name: str) -> tuple[str, ...]:
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise UnsafeLayer(f"layer entry {name!r}: leads outside the layer", path=name)
    return parts


def _step(fd: int, part: str, name: str) -> int:
    """One directory down, made when missing."""
    try:
        try:
            return os.open(part, _DIRECTORY, dir_fd=fd)
        except FileNotFoundError:
            os.mkdir(part, 0o755, dir_fd=fd)
            return os.open(part, _DIRECTORY, dir_fd=fd)
    except OSError as err:
        if err.errno in (errno.ELOOP, errno.ENOTDIR):
            raise UnsafeLayer(f"layer entry {name!r}: {part!r} on its way is not a directory", path=name) from err
        raise


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
