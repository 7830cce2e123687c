"""Pack a file or directory of the container as a tar to stdout, as the container's root and from inside it.

The counterpart of `unpack`. The program of a running container may exchange directories for links at any moment
(CVE-2018-15664): seen from inside, the worst such a link leads to is another file of the container. Links are followed only on
the way to what was asked for; everything below it is opened from the directory's own descriptor and never through one, nor through
the magic links of /proc, which could lead to what this process still has of the host.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import tarfile

from sandbox.runtime.init import owned, program
from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from sandbox.runtime.init.owned import Owner

NOT_FOUND = 3
"""The exit code that says that there is no such path."""
_CHUNK = 1 << 18
_BELOW = s.RESOLVE_BENEATH | s.RESOLVE_NO_SYMLINKS | s.RESOLVE_NO_MAGICLINKS
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What was a file or directory a moment ago is not any more: as if it had been asked for a moment later."""
_KERNELS = ("/proc", "/sys", "/dev")
"""Not of the container's files: named when their parent is packed, and only entered when asked for."""
_CAPABILITY = "security.capability"
_OURS = ("user.overlay.", "user.sandbox.")
_NONE: Mapping[str, str] = {}


class Packer:
    """Takes the place of a program: `start` forks, the child packs and exits with 0, or with another code and a line on stderr.

    `wanted`: the `path`; `follow` its last link; `shallow`: its first entry only; `whole`: the root file system without anything
    mounted on it, and without the paths `skip`; `notes`: owners are what is noted beside the files (see `owned`), those of links are
    in `links`, by the path below it.
    """

    def __init__(self, wanted: Mapping[str, Any]) -> None:
        self._wanted = wanted
        self.identity = program.Identity(0, 0, [0], "/")

    def start(self, stdio: Sequence[int], terminal: int | None = None) -> int:
        """Fork and write the tar to `stdio[1]`; the child's pid."""
        pid = os.fork()
        if pid == 0:
            self._pack(stdio)
        return pid

    def _pack(self, stdio: Sequence[int]) -> None:
        """In the child: never returns."""
        code = 1
        try:
            program.reset_signals()
            with open(stdio[1], "wb", closefd=False, buffering=0) as out, _stream(out) as tar:
                _Walk(tar, self._wanted).pack()
            code = 0
        except OSError as err:
            code = NOT_FOUND if err.errno == errno.ENOENT else 1
            text = f"{self._wanted['path']}: {(err.strerror or str(err)).lower()} in the container\n"
            os.write(stdio[2], text.encode(sys.getfilesystemencoding(), "replace"))
        finally:
            os._exit(code)


def _stream(out: Any) -> tarfile.TarFile:  # Any: a raw file
    return tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape", bufsize=_CHUNK)


class _Walk:
    """One packing."""

    def __init__(self, tar: tarfile.TarFile, wanted: Mapping[str, Any]) -> None:
        self._tar, self._wanted = tar, wanted
        self._skip = frozenset(wanted["skip"])
        self._linked: dict[tuple[int, int], str] = {}
        self._owner_of_link = {path: (uid, gid) for path, uid, gid in wanted["links"]}
        self._kernels = frozenset() if wanted["whole"] else _kernel_devices()

    def pack(self) -> None:
        """The path and all below it; OSError when it is not there."""
        # One mount without what is mounted on it: volumes and /proc do not belong to an export.
        root = s.open_tree("/") if self._wanted["whole"] else os.open("/", os.O_PATH | os.O_DIRECTORY)
        path = self._wanted["path"].lstrip("/") or "."
        last = 0 if self._wanted["follow"] else os.O_NOFOLLOW
        top = s.openat2(root, path, os.O_PATH | last)
        found = os.fstat(top)
        name = os.path.basename(os.path.normpath("/" + path)) or "."
        if stat.S_ISREG(found.st_mode):
            self._add_file(s.openat2(root, path, os.O_RDONLY | os.O_NONBLOCK | last), name)
        elif stat.S_ISLNK(found.st_mode):
            self._add(name, found, os.readlink("", dir_fd=top), owner=self._owner_of_link.get(""))
        elif stat.S_ISDIR(found.st_mode):
            self._add_directory(name, found, root, path, last)
            if not self._wanted["shallow"]:
                self._add_below(top, "" if name == "." else name, found.st_dev)
        else:
            raise OSError(errno.EINVAL, "neither a file nor a directory")

    def _add_below(self, top: int, name: str, device: int) -> None:
        pending = [("", device)]
        while pending:
            place, device = pending.pop()
            try:
                fd = s.openat2(top, place or ".", os.O_RDONLY | os.O_DIRECTORY, resolve=_BELOW)
            except OSError as err:
                if err.errno in _GONE:
                    continue
                raise
            try:
                inner = [self._add_entry(fd, f"{place}{entry}", name, entry) for entry in sorted(os.listdir(fd))]
            finally:
                os.close(fd)
            pending += [
                (f"{path}/", found.st_dev)
                for path, found in reversed([pair for pair in inner if pair])
                if found.st_dev == device or found.st_dev not in self._kernels
            ]

    def _add_entry(self, directory: int, place: str, top: str, entry: str) -> tuple[str, os.stat_result] | None:
        """One entry of a directory; its place and status when it is a directory itself."""
        if "/" + place in self._skip:
            return None
        name = f"{top}/{place}" if top else place
        try:
            found = os.stat(entry, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISREG(found.st_mode):
                self._add_file(os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory), name)
            elif stat.S_ISDIR(found.st_mode):
                self._add_directory(name, found, directory, entry, os.O_NOFOLLOW)
            else:
                target = os.readlink(entry, dir_fd=directory) if stat.S_ISLNK(found.st_mode) else ""
                self._add(name, found, target, owner=self._owner_of_link.get(place))
        except OSError as err:
            if err.errno in _GONE:
                return None
            raise OSError(err.errno, f"{name}: {err.strerror}") from err
        return (place, found) if stat.S_ISDIR(found.st_mode) else None

    def _add_directory(self, name: str, found: os.stat_result, parent: int, path: str, last: int) -> None:
        fd = s.openat2(parent, path, os.O_RDONLY | os.O_DIRECTORY | last)
        try:
            self._add(name, found, attributes=self._attributes(fd), owner=self._owner(fd), mode=self._mode(fd, found))
        finally:
            os.close(fd)

    def _owner(self, fd: int) -> Owner | None:
        return owned.noted_owner(fd) if self._wanted["notes"] else None

    def _mode(self, fd: int, found: os.stat_result) -> int | None:
        return owned.meant_mode(fd, found) if self._wanted["notes"] else None

    def _attributes(self, fd: int) -> dict[str, str]:
        found = attributes(fd)
        capability = owned.noted_capability(fd) if self._wanted["notes"] else None
        return {**found, _record(_CAPABILITY): _text(capability)} if capability else found

    def _add(
        self,
        name: str,
        found: os.stat_result,
        target: str = "",
        attributes: Mapping[str, str] = _NONE,
        owner: Owner | None = None,
        mode: int | None = None,
    ) -> None:
        """An entry without content. Sockets and devices do not travel."""
        kind = _KINDS.get(stat.S_IFMT(found.st_mode))
        if kind is not None:
            self._tar.addfile(_member(name, found, kind, target, attributes, owner, mode))

    def _add_file(self, fd: int, name: str) -> None:
        """A regular file, which is closed; what it was exchanged for meanwhile is left out."""
        with open(fd, "rb", buffering=0) as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return
            first = self._linked.setdefault((found.st_dev, found.st_ino), name) if found.st_nlink > 1 else name
            if first != name:
                self._tar.addfile(_member(name, found, tarfile.LNKTYPE, first, owner=self._owner(fd)))
                return
            mode = self._mode(fd, found)
            member = _member(name, found, tarfile.REGTYPE, attributes=self._attributes(fd), owner=self._owner(fd), mode=mode)
            member.size = found.st_size
            self._tar.addfile(member, None if self._wanted["shallow"] else _Exactly(file))  # type: ignore[arg-type]


class _Exactly:
    """A file that never ends: zeros follow when it shrank after its size was written down, as GNU tar does it."""

    def __init__(self, file: Any) -> None:  # Any: a raw file
        self._file = file

    def read(self, size: int) -> bytes:
        """So many bytes."""
        data = self._file.read(size) or b""
        while len(data) < size:
            more = self._file.read(size - len(data))
            data += more or bytes(size - len(data))
        return bytes(data)


_KINDS = {stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE, stat.S_IFIFO: tarfile.FIFOTYPE}


def attributes(file: int | str) -> dict[str, str]:
    """What a layer keeps (sandbox/image/layers) of an open file or of one by path (links not followed), as pax records; a file system
    that knows of none has none."""
    follow = isinstance(file, int)
    try:
        names = os.listxattr(file, follow_symlinks=follow)
        kept = [name for name in names if name == _CAPABILITY or (name.startswith("user.") and not name.startswith(_OURS))]
        return {_record(name): _text(os.getxattr(file, name, follow_symlinks=follow)) for name in kept}
    except OSError as err:
        if err.errno in (errno.EOPNOTSUPP, errno.ENODATA):
            return {}
        raise


def _record(attribute: str) -> str:
    return f"SCHILY.xattr.{attribute}"


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _member(
    name: str,
    found: os.stat_result,
    kind: bytes,
    target: str = "",
    attributes: Mapping[str, str] = _NONE,
    owner: Owner | None = None,
    mode: int | None = None,
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.pax_headers = dict(attributes)
    info.type, info.linkname = kind, target
    info.mode, info.mtime = stat.S_IMODE(found.st_mode) if mode is None else mode, int(found.st_mtime)
    info.uid, info.gid = owner or (found.st_uid, found.st_gid)
    return info


def _kernel_devices() -> frozenset[int]:
    devices = set()
    for path in _KERNELS:
        try:
            devices.add(os.stat(path, follow_symlinks=False).st_dev)
        except FileNotFoundError:
            continue
    return frozenset(devices - {os.stat("/").st_dev})
