"""What a power cut may take: an image is on the disk, with all its files, before its row exists.

One syncfs(2) a new image, and no fsync a file: on an idle disk it costs what one fsync costs (0.3 ms measured, for ten files
as for ten thousand that are written already), where fsync of each file costs 0.15 ms a file. It waits for everybody's
unwritten pages on the file system (120 ms measured with a busy neighbour), which is why the cached steps of a build do not
wait for it: they are named in `unsynced`, and the first user in a new boot forgets those. So after a power cut the images of
the last seconds may be gone, but none is there in part.
"""

from __future__ import annotations

import os
from pathlib import Path


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


def boot_id() -> str:
    """Which boot this is (proc(5))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
