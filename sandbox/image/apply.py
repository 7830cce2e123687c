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
import hashlib
import io
import os
import stat
import sys
import tarfile
from collections.abc import Iterator, Sequence
from typing import IO

from sandbox.errors import InvalidImage, UnsafeLayer, Unsupported
from sandbox.image.owners import NOTE, give, owner_of
from sandbox.image.tarinput import STREAM_ERRORS, CappedInfo
from sandbox.image.tree import OPAQUE, Entry, Tree, is_opaque, is_whiteout

_CHUNK = 1 << 20
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WHITEOUT, _OPAQUE, _RESERVED = ".wh.", ".wh..wh..opq", ".wh..wh."
_XATTR = "SCHILY.xattr."
_FOREIGN_XATTRS = ("user.overlay.", "trusted.", NOTE)
_MAX_LINKS = 40
_BOMB_FLOOR, _BOMB_RATIO = 1 << 30, 200


def apply_tar(stream: IO[bytes], into: str | os.PathLike[str], lowers: Sequence[str] = ()) -> None:
    """Unpack a layer's tar (plain, gzip, zstd, bzip2 or xz, told by its first bytes) into an empty upper directory above
    these layers (lowest first).

    Raises UnsafeLayer for an entry that leads outside, InvalidImage for what is no tar, Unsupported when this user may
    not give files to the owners the layer names.
    """
    root = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with (
            decompressed(stream) as plain,
            tarfile.open(fileobj=plain, mode="r|", errors="surrogateescape", tarinfo=CappedInfo) as tar,
        ):
            applier = _Applier(root, Tree(lowers))
            for member in tar:
                applier.add(member, tar)
            applier.finish()
    except STREAM_ERRORS as err:
        raise InvalidImage(f"layer: not a whole tar: {err}") from err
    except PermissionError as err:
        raise Unsupported(f"layer: {err}", feature="device nodes", hint="an ordinary user cannot make device nodes") from err
    finally:
        os.close(root)


def bomb_limit(size: int) -> int:
    """The most bytes that a layer of `size` compressed ones may have: what real layers need, and no decompression bomb."""
    return _BOMB_FLOOR + _BOMB_RATIO * size


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
    except _damage() as err:
        raise InvalidImage(f"damaged compressed stream: {err}") from err
    finally:
        if not buffered.closed:
            buffered.detach()  # the stream is its owner's to close


class _Plain(io.RawIOBase):
    """A decompressed stream that owns the one below it."""

    def __init__(self, below: IO[bytes]) -> None:
        self._opened = contextlib.ExitStack()
        self._opened.callback(below.close)
        self._plain = self._opened.enter_context(decompressed(below))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer is private
        data = self._plain.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._opened.close()
        super().close()


def opened_plain(stream: IO[bytes]) -> IO[bytes]:
    """As `decompressed`, to be closed by whoever reads it; closes `stream` too."""
    return io.BufferedReader(_Plain(stream), _CHUNK)


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


def _damage() -> tuple[type[BaseException], ...]:
    """What the decompressors in use raise for bytes they cannot read."""
    kinds = [getattr(sys.modules[module], name) for module, name in _DAMAGE if module in sys.modules]
    return (EOFError, *kinds)


_DAMAGE = (
    ("isal.isal_zlib", "error"),
    ("isal.igzip", "BadGzipFile"),
    ("backports.zstd", "ZstdError"),
    ("compression.zstd", "ZstdError"),
    ("lzma", "LZMAError"),
)


class HashingReader(io.RawIOBase):
    """Passes a stream on and knows the digest and size of what went by. InvalidImage when it is more than `limit`."""

    def __init__(self, stream: IO[bytes], limit: int | None = None, what: str = "layer") -> None:
        self._stream = stream
        self._limit, self._what = limit, what
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
        if self._limit is not None and self.size > self._limit:
            raise InvalidImage(f"{self._what}: more than {self._limit >> 20} MiB unpacked, which so few compressed bytes cannot mean")
        buffer[: len(data)] = data
        return len(data)

    @property
    def digest(self) -> str:
        """Of everything read so far."""
        return f"sha256:{self._sha256.hexdigest()}"


class _Applier:
    """Writes entries below `root`; directories get their times at the end."""

    def __init__(self, root: int, below: Tree) -> None:
        self._root = root
        self._below = below
        self._places: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._times: dict[tuple[str, ...], float] = {}

    def add(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        parts = _parts(member.name)
        if not parts:
            self._finish(self._root, member)
            return
        parts = self._resolve(parts, member.name)
        with self._parent(parts, member.name) as parent:
            if parts[-1].startswith(_WHITEOUT):
                self._whiteout(parent, parts[-1], member.name)
                return
            self._make(parent, parts, member, tar)

    def _resolve(self, parts: tuple[str, ...], name: str) -> tuple[str, ...]:
        """The same entry with the links of lower layers on its way followed, inside the root."""
        parents = parts[:-1]
        if parents and self._below.lowers and parents not in self._places:
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
            with self._parent((*parts, "."), "/".join(parts)) as directory:
                os.utime(f"/proc/self/fd/{directory}", (self._times[parts], self._times[parts]))

    @contextlib.contextmanager
    def _parent(self, parts: tuple[str, ...], name: str) -> Iterator[int]:
        """The directory that holds the last part; missing ones are made."""
        with contextlib.ExitStack() as opened:
            fd = self._root
            for depth, part in enumerate(parts[:-1]):
                fd, is_new = _step(fd, part, name)
                opened.callback(os.close, fd)
                if is_new:
                    self._imitate(fd, parts[: depth + 1])
            yield fd

    def _imitate(self, fd: int, place: tuple[str, ...]) -> None:
        """A directory that this layer needs and does not name: as the layers below have it, for it will stand before theirs."""
        lower = self._below.lookup("/" + "/".join(place)) if self._below.lowers and not is_opaque(f"/proc/self/fd/{fd}") else None
        if lower is None or not lower.is_dir:
            return
        here = f"/proc/self/fd/{fd}"
        with _opened(here) as directory:  # `fd` is but a path
            give(directory, *owner_of(os.fsencode(lower.source), lower.stat))
        os.chmod(here, stat.S_IMODE(lower.stat.st_mode))
        for key in os.listxattr(lower.source, follow_symlinks=False):
            if key.startswith("user.") and not key.startswith(_FOREIGN_XATTRS):
                os.setxattr(here, key, os.getxattr(lower.source, key, follow_symlinks=False))
        self._times[place] = lower.stat.st_mtime

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
            give(f"/proc/self/fd/{parent}/{name}", member.uid, member.gid)
            os.utime(name, (member.mtime, member.mtime), dir_fd=parent, follow_symlinks=False)
        elif member.isreg():
            self._make_file(parent, name, member, tar)
        else:
            self._make_special(parent, name, member)

    def _make_directory(self, parent: int, parts: tuple[str, ...], member: tarfile.TarInfo) -> None:
        try:
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        except FileExistsError:
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
            content = tar.extractfile(member)
            while content is not None and (data := content.read(_CHUNK)):
                _write(fd, data, holes=member.issparse())
            os.ftruncate(fd, member.size)
            self._finish(fd, member)
        finally:
            os.close(fd)

    def _make_special(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
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
        give(fd, member.uid, member.gid)
        os.fchmod(fd, member.mode & 0o7777)
        for key, value in member.pax_headers.items():
            name = key.removeprefix(_XATTR)
            if name != key and not name.startswith(_FOREIGN_XATTRS):
                os.setxattr(fd, name, value.encode("utf-8", "surrogateescape"))
        os.utime(fd, (member.mtime, member.mtime))


@contextlib.contextmanager
def _opened(directory: str) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _write(fd: int, data: bytes, *, holes: bool) -> None:
    """Write all of it; a sparse file keeps its holes, or a few bytes of tar would become terabytes of disk."""
    if holes and not data.strip(b"\0"):
        os.lseek(fd, len(data), os.SEEK_CUR)
        return
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _parts(name: str) -> tuple[str, ...]:
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
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
