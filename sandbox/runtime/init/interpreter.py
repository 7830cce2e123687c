"""The host's Python as our helpers run it: so that nothing inside a container can change it through /proc/self/exe (CVE-2019-5736).

A program of a container can make Linux run our interpreter once more from inside (`#!/proc/self/exe`), and hold its file. In a
user namespace of its own it may not write to it; with --userns host, or where the Python belongs to the user who is root inside,
it could. So the helpers run from a read-only mount of the file, or, without the right to mount, from a sealed copy in memory.
"""

from __future__ import annotations

import fcntl
import os

from sandbox.runtime.init import syscalls as s


def open_interpreter(path: str) -> int | None:
    """A descriptor to execute instead of `path`; None when the file cannot be written to anyway. OSError when it cannot be protected."""
    if os.geteuid() == 0:
        return _read_only_mount(path)
    return _sealed_copy(path) if os.access(path, os.W_OK) or os.stat(path).st_uid == os.geteuid() else None


def _read_only_mount(path: str) -> int | None:
    """Detached: it is in no mount namespace, and gone with the last process that runs from it."""
    try:
        tree = s.open_tree(path)
    except PermissionError:  # root of an ordinary container: nobody there could do it to us either
        return None
    s.mount_setattr(tree, attr_set=s.MOUNT_ATTR_RDONLY)
    return tree


def _sealed_copy(path: str) -> int:
    copy = os.memfd_create("python", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(path, "rb") as source:
        size = os.fstat(source.fileno()).st_size
        while os.sendfile(copy, source.fileno(), None, size):
            continue
    os.fchmod(copy, 0o555)
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return copy
