"""ADD of a local tar archive: is it one, and its members written into a layer.

Not a layer's tar: names like `.wh.x` have no meaning here, directories the image has keep what the archive does not name,
and a member below a link goes where the link leads inside the image, as under docker's chroot.
"""

from __future__ import annotations

import bz2
import lzma
import os
import stat
import tarfile
import zlib
from collections.abc import Callable
from typing import IO, cast

import msgspec

from sandbox.build.transfer import ROOT, LayerWriter, Manner, Owner
from sandbox.errors import BuildError, UnsafeLayer
from sandbox.image.owners import give_mode, keep_owner
from sandbox.image.tarinput import CappedInfo, members
from sandbox.image.tree import Entry

_BLOCK = 512
_CHUNK = 1 << 20
_XATTR = "SCHILY.xattr."
_KEPT_XATTRS = ("user.", "security.capability")
_DAMAGED = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError)


def _gzip(stream: IO[bytes]) -> object:
    from isal import igzip  # 15 ms, wanted only here

    return cast("Callable[..., object]", igzip.open)(stream, "rb")  # has no annotations


def _zstd(stream: IO[bytes]) -> object:
    from backports import zstd  # as above

    return zstd.ZstdFile(stream)


_COMPRESSIONS: tuple[tuple[bytes, Callable[[IO[bytes]], object]], ...] = (
    (b"\x1f\x8b", _gzip),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
    (b"\x28\xb5\x2f\xfd", _zstd),
)


def unpack(stream: IO[bytes], writer: LayerWriter, target: str, manner: Manner) -> bool:
    """Unpack a seekable file below `target` when it is a tar archive, plain or compressed; False, nothing done, otherwise."""
    content = _open(stream)
    if content is None:
        return False
    target = writer.tree.resolve(target)
    writer.make_directory(target, manner.owner or ROOT)
    unpacker = _Unpacker(writer, target, manner)
    try:
        with tarfile.open(fileobj=content, mode="r|", errorlevel=2, tarinfo=CappedInfo) as archive:
            for member in members(archive):
                unpacker.add(member, archive)
    except _DAMAGED as err:
        raise BuildError(f"damaged archive: {err}") from err
    return True


def _open(stream: IO[bytes]) -> IO[bytes] | None:
    """The tar inside, from its beginning; None when there is none."""
    magic = stream.read(8)
    stream.seek(0)
    wrap = next((wrap for start, wrap in _COMPRESSIONS if magic.startswith(start)), None)
    if wrap is None:
        found = _is_tar_header(stream.read(_BLOCK))
    else:
        try:
            found = _is_tar_header(cast("IO[bytes]", wrap(stream)).read(_BLOCK))
        except (OSError, *_DAMAGED):
            return None
    stream.seek(0)
    if not found:
        return None
    return cast("IO[bytes]", wrap(stream)) if wrap else stream


def _is_tar_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


class _Unpacker(msgspec.Struct):
    """Members into a layer, one after the other; `places` remembers where parents led."""

    writer: LayerWriter
    target: str
    manner: Manner
    places: dict[str, str] = msgspec.field(default_factory=dict)

    def add(self, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        """One member; UnsafeLayer for a name with `..` in it."""
        names = _components(member.name)
        if not names:
            if self.target != "/" and member.isdir():
                self._directory(member, self.target, self.writer.tree.lookup(self.target))
            return
        path = self._parent(names[:-1]) + "/" + names[-1]
        existing = self.writer.tree.lookup(path)
        if member.isdir():
            self._directory(member, path, existing)
            return
        self.writer.clear(path, existing)
        if existing is not None and existing.is_symlink:
            self.places.clear()  # what was below the link leads elsewhere now
        self._other(member, path, archive)

    def _parent(self, names: list[str]) -> str:
        """The directory these names lead to inside the image, made when missing; without a slash at its end."""
        key = "/".join(names)
        if key not in self.places:
            path = self.writer.tree.resolve(f"{self.target}/{key}")
            self.writer.make_directory(path, self.manner.owner or ROOT)
            self.places[key] = path
        return self.places[key].rstrip("/")

    def _directory(self, member: tarfile.TarInfo, path: str, existing: Entry | None) -> None:
        owner, mode, mtime_ns = self._owner(member), _mode(member), _mtime_ns(member)
        if existing is not None and existing.is_dir:
            self.writer.copy_up(existing)
            self.writer.restamp(path, owner, mode, mtime_ns)
        else:
            self.writer.clear(path, existing)
            if existing is not None:
                self.places.clear()
            self.writer.new_directory(path, owner, mode, mtime_ns)
        self._attributes(member, path)

    def _other(self, member: tarfile.TarInfo, path: str, archive: tarfile.TarFile) -> None:
        place = self.writer.place(path)
        if member.islnk():
            linked = self._linked(member)
            os.link(linked, place, follow_symlinks=False)
            keep_owner(linked, place)
            return
        if member.issym():
            os.symlink(member.linkname, place)
            self.writer.own(place, self._owner(member))
        elif member.isfile():
            self._file(member, place, archive)
        else:
            self._node(member, place)
        if not member.issym():
            self._attributes(member, path)
        os.utime(place, ns=(_mtime_ns(member), _mtime_ns(member)), follow_symlinks=False)

    def _file(self, member: tarfile.TarInfo, place: str, archive: tarfile.TarFile) -> None:
        content = archive.extractfile(member)
        assert content is not None  # isfile
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb", buffering=0) as out:
            while data := content.read(_CHUNK):
                out.write(data)
            self.writer.own(fd, self._owner(member))
            give_mode(fd, _mode(member))

    def _node(self, member: tarfile.TarInfo, place: str) -> None:
        kinds = {tarfile.FIFOTYPE: stat.S_IFIFO, tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK}
        kind = kinds.get(member.type)
        if kind is None:
            raise BuildError(f"{member.name}: a member of type {member.type!r} in the archive, not supported")
        device = os.makedev(member.devmajor, member.devminor) if kind != stat.S_IFIFO else 0
        if kind == stat.S_IFCHR and device == 0:
            raise UnsafeLayer(f"{member.name}: a 0:0 device in the archive, overlayfs' mark of a removed file", path=member.name)
        os.mknod(place, kind | 0o600, device)
        self.writer.own(place, self._owner(member))
        os.chmod(place, _mode(member))

    def _linked(self, member: tarfile.TarInfo) -> str:
        """The file of this layer a hard link means; links to what the archive did not bring would reach outside it."""
        names = _components(member.linkname)
        path = self._parent(names[:-1]) + "/" + names[-1] if names else "/"
        entry = self.writer.tree.lookup(path)
        if entry is None or entry.is_dir or entry.source != self.writer.place(path):
            message = f"{member.name}: a hard link to {member.linkname}, which the archive does not hold before it"
            raise UnsafeLayer(message, path=member.name)
        return entry.source

    def _owner(self, member: tarfile.TarInfo) -> Owner:
        return self.manner.owner or (member.uid, member.gid)

    def _attributes(self, member: tarfile.TarInfo, path: str) -> None:
        for key, text in member.pax_headers.items():
            name = key.removeprefix(_XATTR)
            if key.startswith(_XATTR) and name.startswith(_KEPT_XATTRS) and not name.startswith("user.overlay."):
                os.setxattr(self.writer.place(path), name, text.encode("utf-8", "surrogateescape"))


def _components(name: str) -> list[str]:
    names = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in names or "\0" in name:
        raise UnsafeLayer(f"{name}: leads out of the archive", path=name)
    return names


def _mode(member: tarfile.TarInfo) -> int:
    return member.mode & 0o7777


def _mtime_ns(member: tarfile.TarInfo) -> int:
    return int(member.mtime) * 10**9
