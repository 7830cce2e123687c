"""Reading a tar that may be hostile, with tarfile; apart from `tar.py`, so that whoever only writes does not import it."""

from __future__ import annotations

import tarfile

from sandbox.errors import InvalidImage

STREAM_ERRORS = (tarfile.TarError, EOFError)
"""What reading a cut or damaged tar raises."""
_MAX_EXTENSION = 1 << 20
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class CappedInfo(tarfile.TarInfo):
    """For tarfile's `tarinfo`: it would read an extension header of any size into memory. InvalidImage above 1 MiB."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:  # tarfile's hook for subclasses
        if self.type in _EXTENSIONS and self.size > _MAX_EXTENSION:
            raise InvalidImage(f"tar: an extension header of {self.size} bytes")
        made: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # typeshed does not list it
        return made
