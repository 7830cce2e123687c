"""What a build remembers beside the store's cache of steps: when each step was first made, and what files hold.

The time goes into the image's history, so a build from the cache gives the same config and the same image id as the
build that filled it. File digests are kept by device, inode, size, mtime and ctime: an unchanged file costs a stat.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self

from sandbox.errors import BuildError
from sandbox.image.databases import create_database

_SCHEMA = """
create table if not exists times (key text primary key, created text not null) without rowid;
create table if not exists files (dev integer, ino integer, size integer, mtime integer, ctime integer, digest blob not null,
    primary key (dev, ino)) without rowid;
create table if not exists uses (chain text primary key, used integer not null) without rowid;
"""
_SETTLED_NS = 100_000_000
"""A file changed less long ago may change again within the same tick of the file system's clock (git's racy index)."""
_CHUNK = 1 << 20


class Memory:
    """The file ROOT/build.db, opened for one build; digests learned are written when it is closed. Thread-safe."""

    def __init__(self, path: Path, clock: Callable[[], int] = time.time_ns) -> None:
        with _plain_errors():
            if not path.exists():
                create_database(path, _SCHEMA)
            self._db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            self._db.execute("pragma synchronous = normal")
            self._db.executescript(_SCHEMA)  # one of an earlier version lacks a table; what is there is not touched
        self._clock = clock
        self._lock = threading.Lock()  # one connection for all stages: they ask for rows, and files are read outside it
        self._touched: set[str] = set()
        self._learned: dict[tuple[int, ...], tuple[int, int, int, int, int, bytes]] = {}

    def close(self) -> None:
        """Write what was learned."""
        try:
            self._flush()
        finally:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def created(self, key: str) -> str | None:
        """When the step of this key was made, as the history has it."""
        with _plain_errors(), self._lock:
            row = self._db.execute("select created from times where key = ?", (key,)).fetchone()
        return row[0] if row else None

    def remember_created(self, key: str, created: str) -> None:
        """Keep the time of a step just made; a later one replaces it."""
        with _plain_errors(), self._lock:
            self._db.execute("insert into times values (?, ?) on conflict do update set created = excluded.created", (key, created))

    def touch(self, chain_id: str) -> None:
        """Note that a root file system was used by this build."""
        self._touched.add(chain_id)

    def last_used(self) -> dict[str, int]:
        """When each root file system of the build cache was last used by a build, in seconds since 1970."""
        with _plain_errors(), self._lock:
            return dict(self._db.execute("select chain, used from uses"))

    def forget(self, chains: Iterable[str] | None) -> None:
        """Forget when these were used; None: everything about steps, which are then made anew."""
        with _plain_errors(), self._lock:
            if chains is None:
                self._db.execute("delete from uses")
                self._db.execute("delete from times")
                self._touched.clear()
                return
            self._db.executemany("delete from uses where chain = ?", [(chain,) for chain in chains])

    def file_digest(self, status: os.stat_result, open_file: Callable[[], int]) -> bytes:
        """The sha256 of a regular file, read only when it is not the file remembered. `open_file` gives an fd, closed here."""
        known = self._known(status)
        if known is not None:
            return known
        fd = open_file()
        with os.fdopen(fd, "rb", buffering=0) as stream:
            before = os.fstat(fd)
            digest = hashlib.file_digest(stream, "sha256").digest()
            after = os.fstat(fd)
        if _identity(before) == _identity(after) and self._clock() - after.st_ctime_ns > _SETTLED_NS:
            with self._lock:
                self._learned[_identity(after)[:2]] = (*_identity(after), digest)
        return digest

    def _known(self, status: os.stat_result) -> bytes | None:
        place = _identity(status)[:2]
        with self._lock:
            row = self._learned.get(place) or self._db.execute("select * from files where dev = ? and ino = ?", place).fetchone()
        return row[5] if row and row[:5] == _identity(status) else None

    def _flush(self) -> None:
        if not self._learned and not self._touched:
            return
        now = self._clock() // 10**9
        with _plain_errors():
            self._db.execute("begin immediate")
            try:
                self._db.executemany("insert or replace into files values (?, ?, ?, ?, ?, ?)", self._learned.values())
                self._db.executemany("insert or replace into uses values (?, ?)", [(chain, now) for chain in sorted(self._touched)])
                self._db.execute("commit")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("rollback")
                raise
            self._learned.clear()
            self._touched.clear()


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """sqlite's complaint (a full disk, a damaged file) as ours."""
    try:
        yield
    except sqlite3.Error as err:
        hint = "`sandbox prune` frees space; build.db in the engine's directory may be removed"
        raise BuildError(f"build cache: {err}", hint=hint) from err


def _identity(status: os.stat_result) -> tuple[int, int, int, int, int]:
    # sqlite's integers are signed: an inode above 2**63 would not fit
    return status.st_dev, status.st_ino & (2**63 - 1), status.st_size, status.st_mtime_ns, status.st_ctime_ns
