"""Unpack a tar from stdin into a directory of the container, as the container's root and from inside it.

Our own code, already loaded when the container is entered: neither its `tar` nor a library of it is run (CVE-2019-14271),
and whatever its links point to is inside it. Links are followed on the way to an entry, as docker does, but never the magic links of
/proc, which could lead to what this process still has of the host (its stdin, say); the entry itself is always made anew.
Kept: modes, owners, times, links, pipes, extended attributes (moby/go-archive's createTarFile keeps the same).
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import sys
import tarfile

from sandbox.runtime.init import owned, program
from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import IO, Any

    from sandbox.runtime.init.owned import Owner

_CHUNK = 1 << 18
_DAMAGE = (tarfile.TruncatedHeaderError, tarfile.InvalidHeaderError)  # type: ignore[attr-defined]  # typeshed does not list them
_ATTRIBUTE = "SCHILY.xattr."
_NOT_OURS_TO_GIVE = ("user.overlay.", "user.sandbox.")
"""What overlayfs and we ourselves note: never of a tar."""
_REFUSED = (errno.EPERM, errno.EOPNOTSUPP)
_EXISTS = "a directory and something else have the same name"


class Unpacker:
    """Takes the place of a program: `start` forks, the child unpacks and exits with 0, or 1 and a line on stderr. With 0, what is on
    stderr could not be kept.

    `wanted`: the directory `path`; `notes`: owners that Linux does not let us give are noted beside the file (see `owned`).
    """

    def __init__(self, wanted: Mapping[str, Any]) -> None:
        self._wanted = wanted
        self.identity = program.Identity(0, 0, [0], "/")

    def start(self, stdio: Sequence[int], terminal: int | None = None) -> int:
        """Fork and unpack what comes from `stdio[0]`; the child's pid."""
        pid = os.fork()
        if pid == 0:
            self._unpack(stdio)
        return pid

    def _unpack(self, stdio: Sequence[int]) -> None:
        """In the child: never returns."""
        code, said = 1, ""
        try:
            program.reset_signals()
            os.umask(0)
            with (
                open(stdio[0], "rb", closefd=False) as source,
                tarfile.open(fileobj=source, mode="r|*", bufsize=_CHUNK, tarinfo=_Info) as tar,
            ):
                extraction = _Extraction(tar, self._wanted["path"], notes=self._wanted["notes"])
                extraction.extract()
            code, said = 0, extraction.refused()
        except OSError as err:
            said = f"{err.filename}: {(err.strerror or str(err)).lower()}" if err.filename else err.strerror or str(err)
        except tarfile.TarError as err:
            said = str(err)
        except Exception as err:  # noqa: BLE001  # a mistake of ours: nobody else could report it from here
            said = f"unpack: {err!r}"
        finally:
            if said:
                os.write(stdio[2], f"{said}\n".encode(sys.getfilesystemencoding(), "replace"))
            os._exit(code)


class _Info(tarfile.TarInfo):
    """For tarfile's `tarinfo`: a header in the middle that is cut or damaged would be taken for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Info:
        """tarfile's hook; tarfile.ReadError."""
        try:
            return super().frombuf(buf, encoding, errors)
        except _DAMAGE as err:
            raise tarfile.ReadError(str(err)) from err


class _Extraction:
    """One unpacking."""

    def __init__(self, tar: tarfile.TarFile, top: str, *, notes: bool) -> None:
        self._tar, self._top, self._notes = tar, posixpath.normpath("/" + top), notes
        self._root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._times: list[tuple[str, float]] = []
        self._links: dict[str, dict[bytes, Owner]] = {}
        self._refused: dict[str, str] = {}
        self._place, self._parent = "", -1

    def extract(self) -> None:
        """All of it; OSError with the name in the tar, TarError."""
        try:
            os.close(self._open(self._top, os.O_PATH | os.O_DIRECTORY))
        except OSError as err:
            raise NotADirectoryError(err.errno, "no such directory in the container", self._top) from err
        while (member := self._tar.next()) is not None:
            self._tar.members.clear()  # type: ignore[attr-defined]  # typeshed does not list it; tarfile would keep them all
            try:
                self._add(member)
            except OSError as err:
                raise OSError(err.errno, err.strerror or str(err), member.name) from err
        for name, mtime in reversed(self._times):  # at last, or what is written into them would change it
            fd = self._open(self._path(name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                os.utime(fd, (mtime, mtime))
            finally:
                os.close(fd)
        for directory, owners in self._links.items():
            self._note_links(directory, owners)

    def refused(self) -> str:
        """A line about the attributes that this file system, or Linux, did not take."""
        rows = [f"{name} (first of {path})" for name, path in self._refused.items()]
        return f"attributes that could not be given: {', '.join(rows)}" if rows else ""

    def _add(self, member: tarfile.TarInfo) -> None:
        path = self._path(member.name)
        if path == self._top:  # there already, and not of the tar
            return
        directory, name = posixpath.split(path)
        parent = self._directory(directory)
        if member.isdir():
            self._add_directory(member, parent, name)
            return
        if member.isreg():
            self._add_file(member, parent, name)
            return
        self._clear(parent, name)
        if member.islnk():
            self._link(member, parent, name)
            return
        self._make(member, parent, name)
        self._give_away(member, directory, parent, name)
        os.utime(name, (member.mtime, member.mtime), dir_fd=parent, follow_symlinks=False)

    def _path(self, name: str) -> str:
        """Where a member goes; OSError when that is not below the directory."""
        if ".." in name.split("/"):
            raise OSError(errno.EXDEV, "outside of the directory it is to go to")
        return posixpath.normpath(f"{self._top}/{name.lstrip('/')}")

    def _open(self, path: str, flags: int) -> int:
        return s.openat2(self._root, path.lstrip("/") or ".", flags)

    def _directory(self, path: str) -> int:
        """The directory of an entry, made when missing, kept until another is asked for."""
        if path != self._place or self._parent < 0:
            found = self._open_made(path)
            if self._parent >= 0:
                os.close(self._parent)
            self._place, self._parent = path, found
        return self._parent

    def _open_made(self, path: str) -> int:
        try:
            return self._open(path, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            above = self._open_made(posixpath.dirname(path))
        try:
            os.mkdir(posixpath.basename(path), 0o755, dir_fd=above)
            return s.openat2(above, posixpath.basename(path), os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        finally:
            os.close(above)

    def _clear(self, parent: int, name: str) -> None:
        """What is in the place of an entry goes, unless it is a directory."""
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except IsADirectoryError as err:
            raise OSError(errno.EISDIR, _EXISTS) from err

    def _add_directory(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise OSError(errno.ENOTDIR, _EXISTS) from None
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            self._finish(member, fd)
        finally:
            os.close(fd)
        self._times.append((member.name, member.mtime))

    def _add_file(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        with open(self._make_file(parent, name), "wb", buffering=0) as out:
            self._fill(member, out)
            self._finish(member, out.fileno())
            os.utime(out.fileno(), (member.mtime, member.mtime))

    def _make_file(self, parent: int, name: str) -> int:
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._clear(parent, name)
        except OSError as err:
            if err.errno != errno.EBUSY:
                raise
            fd = os.open(name, flags | os.O_NONBLOCK, dir_fd=parent)  # something is mounted on it (/etc/hosts): written as it is
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.ftruncate(fd, 0)
                return fd
            os.close(fd)
            raise
        return os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=parent)

    def _fill(self, member: tarfile.TarInfo, out: IO[bytes]) -> None:
        content = self._tar.extractfile(member)
        if content is None:
            raise tarfile.ReadError(f"{member.name}: no content")
        data: Any = content.raw  # type: ignore[attr-defined]  # Any: tarfile's own; the buffer around it wants a stream that can seek
        pieces: list[tuple[int, int]] = member.sparse or [(0, member.size)]  # type: ignore[assignment]  # GNU tar's holes
        for offset, size in pieces:
            data.seek(offset)
            out.seek(offset)
            while size > 0:
                piece = data.read(min(size, _CHUNK))
                if not piece:
                    raise tarfile.ReadError(f"{member.name}: the tar ends in the middle of it")
                size -= len(piece)
                _write(out, piece)
        out.truncate(member.size)

    def _finish(self, member: tarfile.TarInfo, fd: int) -> None:
        """Owner, attributes, mode: in this order, since a new owner takes capabilities and set-user-id bits away."""
        uid, gid = member.uid, member.gid
        try:
            os.fchown(fd, uid, gid)
        except OSError as err:
            self._not_given(err, uid, gid)
            os.setxattr(fd, owned.NOTE, b"%d:%d" % (uid, gid))
        for key, value in member.pax_headers.items():
            name = key[len(_ATTRIBUTE) :] if key.startswith(_ATTRIBUTE) else ""
            if name and not name.startswith(_NOT_OURS_TO_GIVE):
                self._give_attribute(fd, name, value.encode("utf-8", "surrogateescape"), member.name)
        os.fchmod(fd, stat.S_IMODE(member.mode))

    def _give_attribute(self, fd: int, name: str, value: bytes, of: str) -> None:
        is_noted = self._notes and name == owned.CAPABILITY
        try:
            os.setxattr(fd, owned.CAPABILITY_NOTE if is_noted else name, value)
        except OSError as err:
            if err.errno not in _REFUSED:
                raise
            self._refused.setdefault(name, of)

    def _not_given(self, err: OSError, uid: int, gid: int) -> None:
        """An owner of whom the container's user namespace knows nothing: an error, unless owners are noted."""
        if err.errno != errno.EINVAL:
            raise err
        if not self._notes:
            raise OSError(errno.EINVAL, f"its owner {uid}:{gid} is not among the ids of the container") from err

    def _link(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        directory, source = posixpath.split(self._path(member.linkname))
        there = self._open(directory, os.O_PATH | os.O_DIRECTORY)
        try:
            os.link(source, name, src_dir_fd=there, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(there)

    def _make(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        mode = stat.S_IMODE(member.mode)
        if member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
        elif member.isfifo():
            os.mkfifo(name, mode, dir_fd=parent)
        elif member.isdev():
            kind = stat.S_IFBLK if member.isblk() else stat.S_IFCHR
            try:
                os.mknod(name, mode | kind, os.makedev(member.devmajor, member.devminor), dir_fd=parent)
            except PermissionError as err:
                raise OSError(errno.EPERM, "a device node cannot be made in a container") from err
        else:
            raise OSError(errno.EINVAL, f"an entry of the kind {member.type!r} cannot be unpacked")

    def _give_away(self, member: tarfile.TarInfo, directory: str, parent: int, name: str) -> None:
        """The owner of what can hold no attribute: noted at its directory. By descriptor: a program of the container may have put a file
        that it would like to own in its place."""
        owner = member.uid, member.gid
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            if stat.S_IFMT(os.fstat(fd).st_mode) in (stat.S_IFREG, stat.S_IFDIR):
                raise OSError(errno.EAGAIN, "the container put something else in its place")
            s.fchown(fd, *owner)
        except OSError as err:
            self._not_given(err, *owner)
        finally:
            os.close(fd)
        if self._notes:  # also root's: the directory's note may say that it is somebody else's
            self._links.setdefault(directory, {})[os.fsencode(name)] = owner

    def _note_links(self, directory: str, owners: Mapping[bytes, Owner]) -> None:
        fd = self._open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            owned.add_link_owners(fd, owners)
        finally:
            os.close(fd)


def _write(out: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[out.write(view) :]
