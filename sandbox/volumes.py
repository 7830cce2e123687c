"""Volumes: directories that outlive containers, below ROOT/volumes/NAME: `_data`, and `volume.json` that says what it is.

A volume of a container that is removed at its end (`--rm`), and that nobody named, stays in the container's own directory and goes with
it: it is none of these.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec

from sandbox.errors import InvalidOption, VolumeNotFound, WrongState
from sandbox.patterns import Pattern
from sandbox.records import Records
from sandbox.runtime.init import files, journal

_NAME = Pattern(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """One volume; `created` in seconds since 1970. An `anonymous` one was made for a container without a name of its own."""

    name: str
    created: float
    labels: dict[str, str] = {}
    anonymous: bool = False


class Volumes:
    """The volumes of one engine."""

    def __init__(self, root: Path, records: Records, exclusive: Callable[[], AbstractContextManager[object]]) -> None:
        """`exclusive`: while nobody makes a container, whose volumes nobody can know yet."""
        self._exclusive = exclusive
        self._directory = root / "volumes"
        self._records = records

    def data(self, name: str) -> Path:
        """The directory with a volume's files."""
        if not _NAME.fullmatch(name):
            raise InvalidOption(f"volume {name!r}: letters, digits and _.- only, at least two")
        return self._directory / name / "_data"

    def all(self) -> list[Volume]:
        """By name."""
        places = self._directory.iterdir() if self._directory.is_dir() else ()
        return sorted((self._read(path) for path in places if (path / "_data").is_dir()), key=lambda each: each.name)

    def find(self, name: str) -> Volume:
        """VolumeNotFound."""
        if not self.data(name).is_dir():
            raise VolumeNotFound(f"volume {name}: there is none", hint="`sandbox volume ls` lists what there is")
        return self._read(self._directory / name)

    def create(self, name: str | None = None, *, labels: Mapping[str, str] | None = None) -> Volume:
        """A new, empty volume (without a name it gets one); one that is there stays as it is, as with docker."""
        volume = Volume(name=name or os.urandom(32).hex(), created=time.time(), labels=dict(labels or {}), anonymous=name is None)
        with self._locked():
            if not self.data(volume.name).is_dir():
                self._make(volume)
        return self.find(volume.name)

    def take(self, name: str | None, fill: Callable[[Path], None] | None) -> Path:
        """The directory of a container's volume, made when it is not there; `fill` puts the image's files into an empty one."""
        volume = Volume(name=name or os.urandom(32).hex(), created=time.time(), anonymous=name is None)
        data = self.data(volume.name)
        with self._locked():
            if not data.is_dir():
                self._make(volume)
            if fill is not None:
                _fill(data, fill)
        return data

    def users(self, name: str) -> list[str]:
        """The names of the containers that have it, running or not."""
        source = str(self.data(name))
        return [record.name for record in self._records.all() if any(mount.source == source for mount in record.spec.mounts)]

    def remove(self, name: str, *, force: bool = False) -> None:
        """Delete a volume and its files; WrongState while a container has it. `force`: none of that name is fine."""
        try:
            self.find(name)
        except VolumeNotFound:
            if force:
                return
            raise
        with self._exclusive():
            if users := self.users(name):
                raise WrongState(f"volume {name}: container {users[0]} has it", wanted="unused", actual="in use", hint="remove that first")
            self._delete(name)

    def _delete(self, name: str) -> None:
        with self._locked():
            files.remove_tree(str(self._directory / name))
        journal.note(str(self._directory.parent), "volume", "destroy", name)

    def prune(self, *, all: bool = False) -> tuple[list[str], int]:
        """Delete anonymous volumes that no container has (`all`: those with a name too); their names, and the bytes that came free."""
        from sandbox.build.cachemounts import size_of  # rarely needed

        with self._exclusive():
            unused = [each.name for each in self.all() if (all or each.anonymous) and not self.users(each.name)]
            freed = sum(size_of(self._directory / name) for name in unused)
            for name in unused:
                self._delete(name)
        return unused, freed

    def remove_anonymous(self, sources: list[str]) -> None:
        """Delete those of these directories that are anonymous volumes nobody else has."""
        for volume in self.all():
            if volume.anonymous and str(self.data(volume.name)) in sources and not self.users(volume.name):
                self._delete(volume.name)

    def _make(self, volume: Volume) -> None:
        place = self._directory / volume.name
        place.mkdir(mode=0o700, exist_ok=True)
        (place / "volume.json").write_bytes(msgspec.json.encode(volume))
        (place / "_data").mkdir(mode=0o755)
        os.chmod(place / "_data", 0o755)  # whatever the umask
        journal.note(str(self._directory.parent), "volume", "create", volume.name)

    def _read(self, place: Path) -> Volume:
        try:
            return msgspec.json.decode((place / "volume.json").read_bytes(), type=Volume)
        except FileNotFoundError:  # made before volumes had a description
            return Volume(name=place.name, created=place.stat().st_mtime)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _fill(data: Path, fill: Callable[[Path], None]) -> None:
    """Into an empty one; where somebody was killed at it, from the beginning."""
    mark = data.parent / "filling"
    if os.geteuid() != 0 and data.stat().st_uid != os.geteuid():  # it was, and is its owner's by now
        mark.unlink(missing_ok=True)
        return
    if mark.exists():
        for path in data.iterdir():
            files.remove_tree(str(path)) if path.is_dir() and not path.is_symlink() else path.unlink()
    if not any(data.iterdir()):
        mark.touch()
        fill(data)
        if os.geteuid() != 0:
            _give_to_owners(data)
        mark.unlink()


def _give_to_owners(data: Path) -> None:
    """A volume's files are their owners'; without subordinate ids all are root's."""
    from sandbox.runtime.init import owned

    if any(data.iterdir()) or owned.NOTE in os.listxattr(data):
        owned.spawn("restore", str(data))
