"""The verb cp, by docker's path rules. What comes out of a container is hostile until proven otherwise."""

from __future__ import annotations

import io
import os
import posixpath
import stat
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import click
import msgspec

from sandbox.cli.completing import complete_places
from sandbox.cli.flags import verb
from sandbox.cli.images import refuse_terminal
from sandbox.cli.invocation import engine
from sandbox.errors import InvalidInput, NotInContainer, UnsafeLayer

if TYPE_CHECKING:
    from sandbox.engine import Container

Kind = Literal["directory", "file"]
_CHUNK = 1 << 20


class Place(msgspec.Struct, frozen=True):
    """One side of a copy: a path in `container`, or a local one (container None)."""

    container: str | None
    path: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """docker's rule: CONTAINER:PATH, unless it begins with / or . or has no colon."""
        container, colon, path = text.partition(":")
        if not colon or text.startswith(("/", ".")):
            return cls(None, text)
        if not container or not path:
            raise InvalidInput(f"{text!r}: not of the form CONTAINER:PATH")
        return cls(container, path)


@verb("cp")
@click.argument("source", metavar="[CONTAINER:]SRC|-", shell_complete=complete_places)
@click.argument("target", metavar="[CONTAINER:]DEST|-", shell_complete=complete_places)
@click.option("-a", "--archive", is_flag=True, help="Keep owners when copying into a container (those of a tar always are).")
@click.option("-L", "--follow-link", is_flag=True, help="Copy what SRC points to and not the link.")
@click.option("-q", "--quiet", is_flag=True, expose_value=False, help="As docker's; nothing is printed anyway.")
def cp(source: str, target: str, archive: bool, follow_link: bool) -> None:
    """Copy files or directories out of a container or into one.

    `-` as DEST writes a tar to stdout, `-` as SRC reads one from stdin.
    """
    src, dst = Place.parse(source), Place.parse(target)
    with engine() as opened:
        if src.container is not None and dst.container is None:
            copy_out(opened.container(src.container), src.path, dst.path, follow_link=follow_link)
        elif src.container is None and dst.container is not None:
            copy_in(src.path, opened.container(dst.container), dst.path, follow_link=follow_link, keep_owners=archive)
        elif src.container is None:
            raise InvalidInput("cp: neither side is a container", hint="name one as CONTAINER:PATH")
        else:
            raise InvalidInput("cp: both sides are containers", hint="copy to this machine first")


# out of a container ---------------------------------------------------------------------------------------------------


def copy_out(container: Container, path: str, target: str, *, follow_link: bool = False) -> None:
    """CONTAINER:`path` to `target` on this machine; UnsafeLayer when an entry would leave it."""
    if target == "-":
        refuse_terminal(None)
        container.write_tar(path, sys.stdout.buffer, follow=follow_link)
        return
    with tempfile.TemporaryFile() as data:
        container.write_tar(path, data, follow=follow_link)
        first = first_member(data)
        parent, name = host_target(target, "directory" if first.isdir() else "file", path)
        with tarfile.open(fileobj=data, mode="r|") as archive, Extraction.below(parent, first.name, name) as extraction:
            for member in archive:
                extraction.add(member, archive.extractfile(member) if member.isreg() else None)


def first_member(data: IO[bytes]) -> tarfile.TarInfo:
    """What a tar begins with: the thing that was copied. The file then stands at its start again."""
    data.seek(0)
    with tarfile.open(fileobj=data, mode="r|") as archive:
        first = archive.next()
    data.seek(0)
    if first is None:
        raise InvalidInput("tar: nothing in it")
    return first


def host_target(target: str, kind: Kind, source: str) -> tuple[Path, str]:
    """The directory to write below, and the name there ('' means its contents), by docker's rules."""
    path = Path(os.path.realpath(target)) if os.path.exists(target) else Path(target)
    if path.is_dir():
        name = posixpath.basename(source.rstrip("/"))
        contents = kind == "directory" and name in ("", ".")
        return path, "" if contents else name
    if target.endswith("/") and kind == "file":
        raise InvalidInput(f"{target}: no such directory", hint="make it first, or leave out the last /")
    if path.exists() and kind == "directory":
        raise InvalidInput(f"{target}: a directory cannot be copied onto a file")
    parent = path.parent
    if not parent.is_dir():
        raise InvalidInput(f"{parent}: no such directory")
    return parent, path.name


class Extraction:
    """Writes the members of a tar below one directory: what is called `top` in the tar becomes `name` there ('': the
    directory itself). Every path is walked from that directory's descriptor without following any
    link, so that neither a name nor a link, from the tar or found there, leads elsewhere. Raises UnsafeLayer."""

    def __init__(self, root: int, top: str, name: str, opened: ExitStack) -> None:
        self._root, self._top, self._name = root, components(top), name
        self._written: set[tuple[str, ...]] = set()
        self._modes: list[tuple[tuple[str, ...], tarfile.TarInfo]] = []
        opened.callback(self._set_directory_modes)

    @classmethod
    @contextmanager
    def below(cls, directory: Path, top: str, name: str) -> Iterator[Extraction]:
        """An extraction into `directory`; the modes of directories are set at the end."""
        with ExitStack() as opened:
            root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, root)
            yield cls(root, top, name, opened)

    def add(self, member: tarfile.TarInfo, data: IO[bytes] | None) -> None:
        """Write one member; `data` when it is a file."""
        parts = self._parts(member.name)
        if not parts:
            return
        with self._directory(parts[:-1], member.name) as parent:
            self._write(member, data, parent, parts)
        self._written.add(parts)

    def _write(self, member: tarfile.TarInfo, data: IO[bytes] | None, parent: int, parts: tuple[str, ...]) -> None:
        if member.isdir():
            self._make_directory(member, parent, parts)
            return
        clear_way(parent, parts[-1])
        if data is not None:
            write_file(member, data, parent, parts[-1])
        elif member.issym():
            os.symlink(member.linkname, parts[-1], dir_fd=parent)
        elif member.islnk():
            self._link(member, parent, parts)
        elif member.isfifo():
            os.mkfifo(parts[-1], member.mode & 0o777, dir_fd=parent)
        else:
            raise UnsafeLayer(f"{member.name}: device nodes are not copied", path=member.name)

    def _parts(self, path: str) -> tuple[str, ...]:
        """Where a member goes."""
        parts = components(path)
        if parts[: len(self._top)] != self._top:
            raise UnsafeLayer(f"{path}: not below {'/'.join(self._top)}", path=path)
        return (*([self._name] if self._name else []), *parts[len(self._top) :])

    @contextmanager
    def _directory(self, parts: Sequence[str], path: str) -> Iterator[int]:
        fd = os.dup(self._root)
        try:
            for part in parts:
                fd = step_down(fd, part, path)
            yield fd
        finally:
            os.close(fd)

    def _make_directory(self, member: tarfile.TarInfo, parent: int, parts: tuple[str, ...]) -> None:
        try:
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        except FileExistsError:
            found = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                raise UnsafeLayer(f"{member.name}: something that is no directory is in its place", path=member.name) from None
        self._modes.append((parts, member))

    def _link(self, member: tarfile.TarInfo, parent: int, parts: tuple[str, ...]) -> None:
        source = self._parts(member.linkname)
        if source not in self._written:
            raise UnsafeLayer(f"{member.name}: hard link to {member.linkname}, which is not in the copy", path=member.name)
        with self._directory(source[:-1], member.linkname) as there:
            os.link(source[-1], parts[-1], src_dir_fd=there, dst_dir_fd=parent, follow_symlinks=False)

    def _set_directory_modes(self) -> None:
        """Last, or a read-only directory could not be filled."""
        for parts, member in reversed(self._modes):
            with self._directory(parts, member.name) as fd:
                os.fchmod(fd, member.mode & 0o777)
                os.utime(fd, (member.mtime, member.mtime))


def components(path: str) -> tuple[str, ...]:
    """The names of a path in a tar; UnsafeLayer when it is absolute or has `..`."""
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise UnsafeLayer(f"{path}: would leave the target directory", path=path)
    return tuple(part for part in path.split("/") if part not in ("", "."))


def step_down(fd: int, part: str, path: str) -> int:
    """The directory `part` of the directory `fd`, made when missing; `fd` is closed. UnsafeLayer for a link."""
    try:
        try:
            os.mkdir(part, 0o755, dir_fd=fd)
        except FileExistsError:
            pass  # then it is opened as it is
        below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except OSError as err:
        raise UnsafeLayer(f"{path}: {part} is a link or no directory", path=path) from err
    os.close(fd)
    return below


def clear_way(parent: int, name: str) -> None:
    """Remove what is in the place of a file; UnsafeLayer when that is a directory."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError) as err:
        raise UnsafeLayer(f"{name}: a directory is in its place", path=name) from err


def write_file(member: tarfile.TarInfo, data: IO[bytes], parent: int, name: str) -> None:
    """A new file; set-user-id and the like are not kept."""
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
    with open(fd, "wb") as out:
        while piece := data.read(_CHUNK):
            out.write(piece)
        out.flush()
        os.fchmod(fd, member.mode & 0o777)
        os.utime(fd, (member.mtime, member.mtime))


# into a container -----------------------------------------------------------------------------------------------------


def copy_in(source: str, container: Container, path: str, *, follow_link: bool = False, keep_owners: bool = False) -> None:
    """`source` of this machine to CONTAINER:`path`."""
    if source == "-":
        container.copy_in(path, sys.stdin.buffer)
        return
    if not os.path.lexists(source):
        raise InvalidInput(f"{source}: no such file or directory")
    local = os.path.realpath(source) if follow_link else source
    kind: Kind = "directory" if os.path.isdir(local) and (follow_link or not os.path.islink(source.rstrip("/"))) else "file"
    directory, name = container_target(container, path, kind, source)
    with packed(local, name, keep_owners=keep_owners) as tar:
        container.copy_in(directory, tar)


def container_target(container: Container, path: str, kind: Kind, source: str) -> tuple[str, str]:
    """The directory of the container to unpack in, and the name there ('.' means contents), by docker's rules."""
    target = posixpath.normpath("/" + path)
    found = kind_inside(container, path)
    if found == "directory":
        name = os.path.basename(source.rstrip("/"))
        if kind == "directory" and (name in ("", ".") or source.endswith("/.")):
            return target, "."
        return target, name if name not in ("", ".", "..") else os.path.basename(os.path.realpath(source))
    if found == "file" and kind == "directory":
        raise InvalidInput(f"{path}: a directory cannot be copied onto a file")
    if found is None and path.endswith("/") and kind == "file":
        raise InvalidInput(f"{path}: no such directory in the container", hint="make it first, or leave out the last /")
    return posixpath.dirname(target), posixpath.basename(target)


def kind_inside(container: Container, path: str) -> Kind | None:
    """What a path in the container is; None when there is nothing."""
    entry = io.BytesIO()
    try:
        container.write_tar(path, entry, follow=True, shallow=True)
    except NotInContainer:
        return None
    return "directory" if first_member(entry).isdir() else "file"


@contextmanager
def packed(source: str, name: str, *, keep_owners: bool) -> Iterator[IO[bytes]]:
    """A tar of `source` under `name`, written while it is read; owned by root unless `keep_owners`. OSError for what cannot be read."""
    read_end, write_end = os.pipe()
    failed: list[OSError] = []

    def write() -> None:
        try:
            with open(write_end, "wb") as out:
                pack(source, name, out, keep_owners=keep_owners)
        except BrokenPipeError:
            return  # who was to read it says why
        except OSError as err:
            failed.append(err)

    writer = threading.Thread(target=write, name="packing")
    writer.start()
    try:
        with open(read_end, "rb") as tar:
            yield tar
    finally:
        writer.join()
        if failed:  # and not the half tar it caused
            raise failed[0]


def pack(source: str, name: str, out: IO[bytes], *, keep_owners: bool) -> None:
    """Write a tar of `source` under `name`, with the attributes that a layer would keep."""
    from sandbox.runtime.init.pack import attributes

    def owned(member: tarfile.TarInfo) -> tarfile.TarInfo:
        if member.isreg() or member.isdir():
            below = os.path.relpath(member.name, name)
            member.pax_headers = attributes(source if below == "." else os.path.join(source, below))
        if not keep_owners:
            member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        archive.add(source, arcname=name, filter=owned)
