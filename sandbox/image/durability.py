"""What a power cut may take: an image is on the disk, with all its files, before its row exists.

One syncfs(2) a new image, and no fsync a file: on an idle disk it costs what one fsync costs (0.3 ms measured, for ten files
as for ten thousand that are written already), where fsync of each file costs 0.15 ms a file. It waits for everybody's
unwritten pages on the file system (120 ms measured with a busy neighbour), which is why the cached steps of a build do not
wait for it: they are named in `unsynced`, and the first user in a new boot forgets those. So after a power cut the images of
the last seconds may be gone, but none is there in part.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Self


def sync_file_system(path: Path) -> None:
    """Return when everything written to the file system of `path` is on the disk (syncfs(2)). OSError."""
    import ctypes  # nothing is made durable in most commands

    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if libc.syncfs(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(fd)


class Writeback:
    """Has the disk at work beside what makes files, so that whoever waits at the end waits for little. Leaving it waits for what it
    has begun, and raises what went wrong: Linux tells an error to the first syncfs(2) only. OSError."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._is_wanted = threading.Semaphore(0)
        self._is_over = False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="writeback", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        self._is_over = True
        self._is_wanted.release()
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def begin(self) -> None:
        """There is something to write. Returns at once."""
        self._is_wanted.release()

    def _run(self) -> None:
        while self._error is None and self._is_wanted.acquire() and not self._is_over:
            while self._is_wanted.acquire(blocking=False):  # one for all that came meanwhile
                if self._is_over:
                    return
            try:
                sync_file_system(self._root)
            except OSError as err:
                self._error = err


def boot_id() -> str:
    """Which boot this is (proc(5))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
