"""The directories of `RUN --mount=type=cache`: kept below ROOT/cache-mounts between builds, shared or not.

ROOT/cache-mounts/HASH is one cache: `id` is its name in words, `data-N` and `lock-N` a copy and the flock of those who use
it. `shared` holds the lock shared, `locked` alone, `private` takes the first copy nobody uses or makes one more.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import msgspec

from sandbox.build.mounts import Sharing
from sandbox.errors import BuildError
from sandbox.image.drafts import remove_tree
from sandbox.image.owners import give
from sandbox.runtime.init import owned

Identity = tuple[str, str, str]
"""Its id, the chain id it began from, the directory there."""


class CacheRow(msgspec.Struct, frozen=True):
    """One cache directory: its id, the bytes in it, when it was last used (seconds since 1970)."""

    id: str
    path: Path
    size: int
    used: float


class CacheMounts:
    """The cache directories of one engine. `wait` tries until it succeeds or raises (see stop.Stop.poll)."""

    def __init__(self, root: Path, wait: Callable[[Callable[[], bool]], None]) -> None:
        self._directory = root / "cache-mounts"
        self._wait = wait

    @contextmanager
    def hold(
        self, identity: Identity, sharing: Sharing, owner: tuple[int, int], mode: int, begin: Callable[[Path], None] | None = None
    ) -> Iterator[Path]:
        """The directory to mount; made with this owner and mode, and filled by `begin`, when it is not there. BuildError."""
        home = self._directory / hashlib.sha256("\0".join(identity).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        (home / "id").write_text(identity[0], encoding="utf-8", errors="surrogateescape")
        fd, number = self._take(home, sharing)
        try:
            os.utime(fd)  # when it was last used
            place = home / f"data-{number}"
            if not place.is_dir():
                _make(place, owner, mode, begin)
            yield place
        finally:
            os.close(fd)

    def _take(self, home: Path, sharing: Sharing) -> tuple[int, int]:
        if sharing == "private":
            for number in count():
                fd = _open_lock(home, number)
                if _try_lock(fd, fcntl.LOCK_EX):
                    return fd, number
                os.close(fd)
        fd = _open_lock(home, 0)
        kind = fcntl.LOCK_EX if sharing == "locked" else fcntl.LOCK_SH
        try:
            self._wait(lambda: _try_lock(fd, kind))
        except BaseException:
            os.close(fd)
            raise
        return fd, 0

    def rows(self) -> list[CacheRow]:
        """What there is, the longest unused first."""
        if not self._directory.is_dir():
            return []
        found = []
        for home in self._directory.iterdir():
            name = (home / "id").read_text(encoding="utf-8", errors="surrogateescape") if (home / "id").exists() else home.name
            used = max((lock.stat().st_mtime for lock in home.glob("lock-*")), default=home.stat().st_mtime)
            found.append(CacheRow(name, home, sum(map(size_of, home.glob("data-*"))), used))
        return sorted(found, key=lambda row: row.used)

    def remove(self, row: CacheRow) -> None:
        """Remove one cache; to be called while nobody builds (store.exclusive)."""
        remove_tree(row.path)


def size_of(directory: Path) -> int:
    """The bytes of the regular files below a directory, hard links once."""
    seen: dict[tuple[int, int], int] = {}
    for base, _, names in os.walk(directory):
        for name in names:
            status = os.lstat(os.path.join(base, name))
            seen[status.st_dev, status.st_ino] = status.st_size if not os.path.islink(os.path.join(base, name)) else 0
    return sum(seen.values())


def _make(place: Path, owner: tuple[int, int], mode: int, begin: Callable[[Path], None] | None) -> None:
    """Beside its place, then renamed: another build that shares it sees all of it or nothing."""
    fresh = place.with_name(f"{place.name}.{os.urandom(6).hex()}")
    fresh.mkdir(mode=0o700)
    try:
        if begin is not None:
            begin(fresh)
        fresh.chmod(mode)
        _own(fresh, owner)
        fresh.rename(place)
    except FileExistsError:
        remove_tree(fresh)
    except (OSError, BuildError):
        remove_tree(fresh)
        if not place.is_dir():  # else the other one was first, and has put something in already
            raise


def _own(path: Path, owner: tuple[int, int]) -> None:
    """Its files are their owners', as a volume's; without subordinate ids all are root's, and another owner is an error."""
    if os.geteuid() != 0 and owner == (0, 0) and not any(path.iterdir()):
        return
    give(str(path), *owner)
    if os.geteuid() != 0 and not owned.spawn("restore", str(path)) and owner != (0, 0):
        message = f"cache mount: owner {owner[0]}:{owner[1]} cannot be given without privileges"
        raise BuildError(message, hint="build as root, have subordinate ids (`sandbox doctor`), or leave out uid and gid")


def _open_lock(home: Path, number: int) -> int:
    return os.open(home / f"lock-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
