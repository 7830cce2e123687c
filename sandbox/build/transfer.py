"""COPY and ADD without a container: files written straight into a layer's upper directory, as the overlay diff they are.

The rules are BuildKit's (solver/llbsolver/file and tonistiigi/fsutil/copy): links in the destination resolve inside the
image, missing directories are made 0755, a directory's contents are copied and not it itself, files replace files but
never directories, links in the sources are copied as links, hard links within one source stay hard links.

Every path written has real directories of ours all the way: what the image has as a link is resolved before, in the
merged view of the layers below and of what this layer holds so far.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec

from sandbox.build.context import Match, Source, TreeSource, kind_of
from sandbox.build.modes import SetMode
from sandbox.errors import BuildError
from sandbox.image.owners import give, give_mode
from sandbox.image.tree import Entry, Tree

Owner = tuple[int, int]
ROOT: Owner = (0, 0)
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CANNOT_COPY_IN_KERNEL = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.ETXTBSY)
_CHUNK = 1 << 20


class Manner(msgspec.Struct, frozen=True):
    """How files arrive: owned by `owner` (None: as in the source, 0:0 from a context), with `mode` applied when given."""

    owner: Owner | None = None
    mode: SetMode | None = None


class LayerWriter:
    """Writes into `upper`, seen above `lowers`. Call `finish` at the end: it sets the directories' times.

    `now_ns` is the time of directories nobody asked for; `warn` hears of what cannot be copied and is left out (sockets).
    """

    def __init__(self, lowers: tuple[str, ...], upper: Path, now_ns: int, warn: Callable[[str], None] = lambda _: None) -> None:
        self.tree = Tree((*lowers, str(upper)))
        self._upper = str(upper)
        self._now_ns = now_ns
        self._warn = warn
        self._times: dict[str, int] = {}

    def copy(self, source: Source, match: Match, destination: str, *, into: bool, manner: Manner = Manner()) -> None:
        """Copy one match to an absolute path; `into`: it was written as a directory (ends with a slash)."""
        work = _Copy(self, source, manner)
        if match.entry.is_dir:
            final = self.tree.resolve(destination)
            self.make_directory(final, manner.owner or ROOT)
            work.put_children(match.entry, final)
        else:
            work.put(match.entry, *self._prepare(destination, match.name, manner, into=into))

    def write_file(self, destination: str, name: str, data: bytes, *, into: bool, manner: Manner = Manner()) -> None:
        """A file with this content (a heredoc's), under `name` when the destination is a directory."""
        final, existing = self._prepare(destination, name, manner, into=into)
        self.clear(final, existing)
        fd = os.open(self.place(final), _NEW_FILE, 0o600)
        with os.fdopen(fd, "wb") as stream:
            stream.write(data)
            stream.flush()
            self.own(fd, manner.owner or ROOT)
            give_mode(fd, manner.mode(0o644, False) if manner.mode else 0o644)
            os.utime(fd, ns=(self._now_ns, self._now_ns))

    def _prepare(self, destination: str, name: str, manner: Manner, *, into: bool) -> tuple[str, Entry | None]:
        """Where a file goes and what is there now: at the destination, or below it under `name` when it is a directory."""
        final = self.tree.resolve(destination)
        existing = self.tree.lookup(final)
        if not into and (existing is None or not existing.is_dir):
            self.make_directory(_parent(final), manner.owner or ROOT)
            return final, existing
        self.make_directory(final, manner.owner or ROOT)
        final = _join(final, name)
        return final, self.tree.lookup(final)

    def make_directory(self, path: str, owner: Owner = ROOT) -> None:
        """Afterwards the directory is there, and every one above it: as the layers below have it, else new, 0755, `owner`'s.
        The path must be resolved. BuildError when a file is in the way."""
        reached = ""
        for name in path.split("/"):
            if not name:
                continue
            reached = f"{reached}/{name}"
            existing = self.tree.lookup(reached)
            if existing is None:
                self.new_directory(reached, owner, 0o755, self._now_ns)
            elif existing.is_dir:
                self.copy_up(existing)
            else:
                raise BuildError(f"{reached}: not a directory in the image")

    def new_directory(self, path: str, owner: Owner, mode: int, mtime_ns: int) -> None:
        """A directory that is nowhere yet."""
        place = self.place(path)
        os.mkdir(place, 0o700)
        self.own(place, owner)
        give_mode(place, mode)
        self._times[place] = mtime_ns

    def copy_up(self, entry: Entry) -> None:
        """Have a directory of a lower layer in this one too, with its metadata."""
        place = self.place(entry.path)
        if entry.source == place:
            return
        status, below = entry.stat, TreeSource(self.tree)
        self.new_directory(entry.path, below.owner(entry), below.mode(entry), status.st_mtime_ns)
        for name, value in below.xattrs(entry).items():
            os.setxattr(place, name, value)

    def restamp(self, path: str, owner: Owner, mode: int, mtime_ns: int) -> None:
        """Give a directory of this layer other metadata."""
        place = self.place(path)
        self.own(place, owner)
        give_mode(place, mode)
        self._times[place] = mtime_ns

    def clear(self, path: str, existing: Entry | None) -> None:
        """Make way for a file: nothing of this layer is at the path afterwards. BuildError for a directory."""
        if existing is None:
            return
        if existing.is_dir:
            raise BuildError(f"{path}: a directory in the image, cannot be replaced by a file")
        place = self.place(path)
        if existing.source == place:
            os.unlink(place)

    def place(self, path: str) -> str:
        """Where a path of the image is on disk."""
        return self._upper + path

    def own(self, target: str | int, owner: Owner) -> None:
        """Set the owner, links not followed; without privileges it is noted (`image.owners`)."""
        give(target, *owner)

    def skip(self, entry: Entry) -> None:
        """Say that something was left out."""
        self._warn(f"{entry.path.lstrip('/')}: a socket, not copied")

    def finish(self) -> None:
        """Set the directories' times: writing into them has changed those."""
        for place, mtime_ns in reversed(self._times.items()):
            os.utime(place, ns=(mtime_ns, mtime_ns))


class _Copy:
    """The copy of one match: hard links are kept within it."""

    def __init__(self, writer: LayerWriter, source: Source, manner: Manner) -> None:
        self._writer = writer
        self._source = source
        self._manner = manner
        self._links: dict[tuple[int, int], str] = {}
        self._kinds: dict[str, Callable[[Entry, str], None]] = {
            "-": self._file,
            "l": self._symlink,
            "p": self._node,
            "c": self._node,
            "b": self._node,
        }

    def put_children(self, directory: Entry, path: str, *, fresh: bool = False) -> None:
        """Everything in a directory, into one of this layer; `fresh`: it was empty a moment ago."""
        existing = {} if fresh else {entry.name: entry for entry in self._writer.tree.scandir(path)}
        for child in self._source.scandir(directory.path):
            name = child.name
            self.put(child, _join(path, name), existing.get(name))

    def put(self, entry: Entry, path: str, existing: Entry | None) -> None:
        """One entry at exactly this path, where `existing` is."""
        if entry.is_dir:
            self._directory(entry, path, existing)
            return
        make = self._kinds.get(kind_of(entry))
        if make is None:
            self._writer.skip(entry)
            return
        self._writer.clear(path, existing)
        make(entry, self._writer.place(path))

    def _directory(self, entry: Entry, path: str, existing: Entry | None) -> None:
        owner, mode, mtime_ns = self._owner(entry), self._mode(entry), entry.stat.st_mtime_ns
        if existing is None:
            self._writer.new_directory(path, owner, mode, mtime_ns)
        elif existing.is_dir:
            self._writer.copy_up(existing)
            self._writer.restamp(path, owner, mode, mtime_ns)
        else:
            raise BuildError(f"{path}: not a directory in the image, cannot be replaced by one")
        self._attributes(entry, self._writer.place(path))
        self.put_children(entry, path, fresh=existing is None)

    def _file(self, entry: Entry, place: str) -> None:
        status = entry.stat
        inode = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and (linked := self._links.get(inode)) is not None:
            os.link(linked, place)
            return
        src = self._source.open(entry)
        try:
            _check_same(entry, os.fstat(src))
            dst = os.open(place, _NEW_FILE, 0o600)
            try:
                _copy_content(src, dst, entry)
                self._writer.own(dst, self._owner(entry))
                give_mode(dst, self._mode(entry))
                self._attributes(entry, dst)
                os.utime(dst, ns=(status.st_mtime_ns, status.st_mtime_ns))
            finally:
                os.close(dst)
        finally:
            os.close(src)
        if status.st_nlink > 1:
            self._links[inode] = place

    def _symlink(self, entry: Entry, place: str) -> None:
        os.symlink(self._source.readlink(entry), place)
        self._writer.own(place, self._owner(entry))
        os.utime(place, ns=(entry.stat.st_mtime_ns, entry.stat.st_mtime_ns), follow_symlinks=False)

    def _node(self, entry: Entry, place: str) -> None:
        if not self._source.is_image and not stat.S_ISFIFO(entry.stat.st_mode):
            raise BuildError(f"{entry.path.lstrip('/')}: a device, not copied from a build context")
        os.mknod(place, stat.S_IFMT(entry.stat.st_mode) | 0o600, entry.stat.st_rdev)
        self._writer.own(place, self._owner(entry))
        os.chmod(place, self._mode(entry))
        os.utime(place, ns=(entry.stat.st_mtime_ns, entry.stat.st_mtime_ns))

    def _attributes(self, entry: Entry, target: str | int) -> None:
        for name, value in self._source.xattrs(entry).items():
            os.setxattr(target, name, value)

    def _owner(self, entry: Entry) -> Owner:
        return self._source.owner(entry) if self._manner.owner is None else self._manner.owner

    def _mode(self, entry: Entry) -> int:
        mode = self._source.mode(entry)
        return self._manner.mode(mode, entry.is_dir) if self._manner.mode else mode


def clone_layer(layer: Path, upper: Path) -> None:
    """The same layer again, in an empty directory. Files are shared as hard links: nobody writes into a layer once it is kept."""
    pending, made = [(str(layer), str(upper))], list[tuple[str, os.stat_result]]()
    while pending:
        src, dst = pending.pop()
        with os.scandir(src) as entries:
            for entry in entries:
                place = f"{dst}/{entry.name}"
                if not entry.is_dir(follow_symlinks=False):
                    os.link(entry.path, place, follow_symlinks=False)
                    continue
                os.mkdir(place, 0o700)
                for name in os.listxattr(entry.path):
                    os.setxattr(place, name, os.getxattr(entry.path, name))
                made.append((place, entry.stat(follow_symlinks=False)))
                pending.append((entry.path, place))
    for place, status in reversed(made):
        if os.geteuid() == 0:
            os.chown(place, status.st_uid, status.st_gid)
        os.chmod(place, stat.S_IMODE(status.st_mode))
        os.utime(place, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _check_same(entry: Entry, opened: os.stat_result) -> None:
    if (opened.st_ino, opened.st_size, opened.st_mtime_ns) != (entry.stat.st_ino, entry.stat.st_size, entry.stat.st_mtime_ns):
        raise _changed(entry)


def _changed(entry: Entry) -> BuildError:
    return BuildError(f"{entry.path.lstrip('/')}: changed while it was copied", hint="build again")


def _copy_content(src: int, dst: int, entry: Entry) -> None:
    """In the kernel where it can (a reflink where the file system has them), else through a buffer."""
    left = entry.stat.st_size
    try:
        while left > 0 and (count := os.copy_file_range(src, dst, left)):
            left -= count
    except OSError as err:
        if err.errno not in _CANNOT_COPY_IN_KERNEL or os.fstat(dst).st_size:
            raise OSError(err.errno, err.strerror, entry.path) from err
        left -= _copy_through_buffer(src, dst)
    if left != 0:
        raise _changed(entry)


def _copy_through_buffer(src: int, dst: int) -> int:
    total = 0
    while data := os.read(src, _CHUNK):
        view = memoryview(data)
        total += len(view)
        while view:
            view = view[os.write(dst, view) :]
    return total


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _join(directory: str, name: str) -> str:
    return f"/{name}" if directory == "/" else f"{directory}/{name}"
