"""Reading a tar that may be hostile, with tarfile; apart from `tar.py`, so that whoever only writes does not import it."""

from __future__ import annotations

import tarfile
from typing import IO

from sandbox.errors import InvalidImage

STREAM_ERRORS = (tarfile.TarError, EOFError)
"""What reading a cut or damaged tar raises."""
_MAX_EXTENSION = 1 << 20
_SKIPPED = 1 << 20
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class CappedInfo(tarfile.TarInfo):
    """For tarfile's `tarinfo`: it would read an extension header of any size into memory. InvalidImage above 1 MiB."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:  # tarfile's hook for subclasses
        if self.type in _EXTENSIONS and self.size > _MAX_EXTENSION:
            raise InvalidImage(f"tar: an extension header of {self.size} bytes")
        made: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # typeshed does not list it
        return made


class Forward:
    """A stream as tarfile's `r:` wants it, which seeks forward only. Its `r|` reads 10 KiB at a time, and copies what is left of them
    at each header."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._read = stream.read
        self._place = 0

    def tell(self) -> int:
        """How many bytes have gone by."""
        return self._place

    def read(self, size: int = -1) -> bytes:
        """As many, fewer only at the end."""
        data = self._read(size)
        self._place += len(data)
        return data

    def seek(self, place: int, whence: int = 0) -> int:
        """Read past what is before `place`."""
        if whence or place < self._place:
            raise tarfile.StreamError("seeking backwards is not possible")
        while self._place < place and self.read(min(_SKIPPED, place - self._place)):
            continue
        return self._place
