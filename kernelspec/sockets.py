"""Where a kernel's sockets are: a directory that host and container share.

It is 0700 on the host, and the sockets lie in one below it that every uid of the container may use: whatever user the image names,
nobody else on the host gets near them. A lock says that its kernel is somebody's: who finds one without takes it away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator

_PREFIX = "jsk-"
_LOCK = "lock"
_SHARED = "s"
_LONGEST_SOCKET = 107
"""Bytes of a Unix socket's path, unix(7), without the final NUL."""
_SOCKET_NAME = len("/k-99")


class SocketDirectory:
    """One kernel's. `base` is what jupyter_client takes as `ip` for transport ipc: base-1, base-2 …"""

    def __init__(self) -> None:
        parent = _parent()
        _sweep(parent)
        self._private, self._lock = _make(parent)
        self.path = os.path.join(self._private, _SHARED)
        os.mkdir(self.path)
        os.chmod(self.path, 0o777)  # the one above is 0700
        self.base = os.path.join(self.path, "k")

    def clear(self) -> None:
        """Remove the sockets a killed kernel left: a new one could not bind them."""
        for name in os.listdir(self.path):
            if name.startswith("k-"):
                os.unlink(os.path.join(self.path, name))

    def write(self, name: str, text: str) -> str:
        """A file beside the sockets, readable inside; its path, which is the same on both sides."""
        path = os.path.join(self.path, name)
        with open(path, "w", encoding="utf-8", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
            file.write(text)
        os.chmod(path, 0o644)
        return path

    def remove(self) -> None:
        """Take it away; once."""
        shutil.rmtree(self._private, ignore_errors=True)
        os.close(self._lock)


def _make(parent: str) -> tuple[str, int]:
    """A new directory and its lock, held until it is closed or this process ends, however it does."""
    while True:
        private = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
        lock = os.open(os.path.join(private, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if _is_taken(lock) and os.fstat(lock).st_nlink:
            return private, lock
        os.close(lock)  # a sweeper was there between the two


def _is_taken(lock: int) -> bool:
    """Take the lock; False when another has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sweep(parent: str) -> None:
    """Remove what servers left that were killed."""
    for private in _ours(parent):
        try:
            lock = os.open(os.path.join(private, _LOCK), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # it is being made, or removed
        try:
            if _is_taken(lock):
                shutil.rmtree(private, ignore_errors=True)  # another may do the same
        finally:
            os.close(lock)


def _ours(parent: str) -> Iterator[str]:
    """Directories of this user's, which nobody else can have put there."""
    with os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX):
                with contextlib.suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                        yield entry.path


def is_abandoned(path: str) -> bool:
    """Whether the SocketDirectory whose `path` this was is there no more, or nobody's."""
    try:
        lock = os.open(os.path.join(os.path.dirname(path), _LOCK), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # another user's
    try:
        return _is_taken(lock)
    finally:
        os.close(lock)


def _parent() -> str:
    """XDG_RUNTIME_DIR, else the directory for temporary files; /tmp where sockets' paths would not fit into sockaddr_un."""
    parent = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    longest = len(os.fsencode(parent)) + len(f"/{_PREFIX}12345678/{_SHARED}") + _SOCKET_NAME
    return parent if longest <= _LONGEST_SOCKET else "/tmp"
