"""Single flight: what two builds need at once is made by one of them, in whatever processes they are.

A flight is a file below ROOT/flights, locked by its maker. The lock goes with the process that holds it, however that
ends; whoever waited then looks again, and makes what is still not there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


class Flights:
    """The flights below one engine's root. `wait` tries until it succeeds or raises (see graph.Stop.poll)."""

    def __init__(self, root: Path, wait: Callable[[Callable[[], bool]], None]) -> None:
        self._directory = root / "flights"
        self._wait = wait

    @contextlib.contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Within the block nobody else holds this key."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        path = self._directory / key
        fd = locked_file(path, self._wait)
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):  # somebody tidied up; the lock is what counts
                path.unlink()
            os.close(fd)


def locked_file(path: Path, wait: Callable[[Callable[[], bool]], None]) -> int:
    """The locked file that stands at the path: one that its holder removed meanwhile is nobody's any more."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            wait(lambda fd=fd: _try_lock(fd))  # type: ignore[misc]  # mypy cannot infer a lambda's default
            if _is_same(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
