"""Reading a tar that may be hostile, with tarfile; apart from `tar.py`, so that whoever only writes does not import it."""

from __future__ import annotations

import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Self

from sandbox.errors import InvalidImage
from sandbox.image.plain import PIECE

STREAM_ERRORS = (tarfile.TarError, EOFError)
"""What reading a cut or damaged tar raises."""
_MAX_EXTENSION = 1 << 20
_DAMAGE = (tarfile.TruncatedHeaderError, tarfile.InvalidHeaderError)  # type: ignore[attr-defined]  # typeshed does not list them
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


_MOST_SUM = 65521
"""adler32 counts modulo this."""


class CappedInfo(tarfile.TarInfo):
    """For tarfile's `tarinfo`: it would read an extension header of any size into memory (InvalidImage above 1 MiB), and take a header
    that is cut or damaged for the end, unless it is the first."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:  # tarfile's hook for subclasses
        if self.type in _EXTENSIONS and self.size > _MAX_EXTENSION:
            raise InvalidImage(f"tar: an extension header of {self.size} bytes")
        made: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # typeshed does not list it
        return made

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """tarfile's hook, too, which takes 25 µs a header: the usual ones in 5, without names of users; others it does. ReadError."""
        if buf[156:157] in _USUAL and len(buf) == tarfile.BLOCKSIZE:
            try:
                return cls._usual(buf, encoding, errors)
            except ValueError:  # a number that is not octal, a sum that is another
                pass
        try:
            return super().frombuf(buf, encoding, errors)
        except _DAMAGE as err:
            raise tarfile.ReadError(str(err)) from err

    @classmethod
    def _usual(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = cls()
        info.chksum, field = _octal(buf[148:156]), buf[148:156]
        if zlib.adler32(buf) & 0xFFFF != (1 + info.chksum + sum(field) - len(field) * 0x20) % _MOST_SUM:
            raise ValueError("another sum")
        info.mode, info.uid, info.gid = _octal(buf[100:108]), _octal(buf[108:116]), _octal(buf[116:124])
        info.size, info.mtime, info.type = _octal(buf[124:136]), _octal(buf[136:148]), bytes(buf[156:157])
        info.name = _text(buf[:100], encoding, errors)
        if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info.linkname = _text(buf[157:257], encoding, errors)
        elif info.type == tarfile.DIRTYPE:
            info.name = info.name.rstrip("/")
        if buf[345]:
            info.name = f"{_text(buf[345:500], encoding, errors)}/{info.name}"
        return info


_USUAL = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)


def _octal(field: bytes | bytearray) -> int:
    return int(field.partition(b"\0")[0] or b"0", 8)


def _text(field: bytes | bytearray, encoding: str, errors: str) -> str:
    return field.partition(b"\0")[0].decode(encoding, errors)


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Each entry as it comes. tarfile's own iteration keeps them all, of which a layer may have a million."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # typeshed does not list it
        yield member


class Forward:
    """A stream as tarfile's `r:` wants it, which seeks forward only. Its `r|` reads 10 KiB at a time, and copies what is left of them
    at each header. `read`: gives the next bytes, at most so many, none at the end; nothing of them is copied for `pieces`."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._rest = memoryview(b"")
        self._place = 0

    def tell(self) -> int:
        """How many bytes have gone by."""
        return self._place

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The next so many bytes; fewer only at the end."""
        while size:
            if not self._rest:
                self._rest = memoryview(self._read(PIECE))
                if not self._rest:
                    return
            piece = self._rest[:size]
            self._rest = self._rest[len(piece) :]
            self._place += len(piece)
            size -= len(piece)
            yield piece

    def read(self, size: int = -1) -> bytes:
        """As many, fewer only at the end."""
        if 0 <= size <= len(self._rest):
            data, self._rest = bytes(self._rest[:size]), self._rest[size:]
            self._place += size
            return data
        return b"".join(self.pieces(size if size >= 0 else sys.maxsize))

    def seek(self, place: int, whence: int = 0) -> int:
        """Read past what is before `place`."""
        if whence or place < self._place:
            raise tarfile.StreamError("seeking backwards is not possible")
        for _ in self.pieces(place - self._place):
            pass
        return self._place
