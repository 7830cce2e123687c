"""Watches how much a container has written to its root, and ends when that is too much: --storage-opt size=.

A process of its own, since a walk through many files must not hold up the container's output. Quotas would need a file
system mounted for them, and a file system of a fixed size (a loop device) would hide the upper directory from `diff`, `cp`
and `commit` of a stopped container; this works everywhere, also without privileges. The price: between two walks more
can be written than allowed, at most what the disk takes in a tenth of a second or in ten walks.
"""

from __future__ import annotations

import os
import signal
import stat
import time

from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_LEAST_PAUSE = 0.05
_SHARE = 10
"""A walk is followed by a pause ten times as long: a tenth of one CPU at most."""


def start(upper: str, groups: Sequence[str], init: int, limit: int, idmap: Mapping[str, Any] | None) -> tuple[int, int]:
    """Fork the watcher; its pid and pidfd, which can be read once more than `limit` bytes are there."""
    pid = os.fork()
    if pid == 0:
        try:
            s.prctl(s.PR_SET_PDEATHSIG, signal.SIGKILL)
            os.closerange(3, 4096)
            _watch(upper, groups, init, limit, idmap)
        finally:
            os._exit(0)
    return pid, os.pidfd_open(pid)


def stop(pid: int, pidfd: int) -> None:
    """End the watcher."""
    os.close(pidfd)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _watch(upper: str, groups: Sequence[str], init: int, limit: int, idmap: Mapping[str, Any] | None) -> None:
    device = _root_device(init)
    while True:
        before = time.monotonic()
        if _bytes_of(upper, idmap) + _deleted_bytes(groups, device) > limit:
            return
        time.sleep(max(_LEAST_PAUSE, _SHARE * (time.monotonic() - before)))


def _root_device(init: int) -> int:
    """The device of a container's root. /proc/PID/root would tell, but for an ordinary user: init is not dumpable."""
    with open(f"/proc/{init}/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        rows = [line.split(" ", 5) for line in mounts]
    major, minor = next(row[2] for row in reversed(rows) if row[4] == "/").split(":")
    return os.makedev(int(major), int(minor))


def _bytes_of(upper: str, idmap: Mapping[str, Any] | None) -> int:
    """As `bytes_below`, also where an ordinary user may not look: inside a user namespace."""
    try:
        return bytes_below(upper)
    except PermissionError:
        from sandbox.runtime.init import owned  # rarely needed

        result, told = os.pipe()
        try:
            if not owned.perform("measure", upper, str(told), idmap=idmap):
                raise
            return int(os.read(result, 32))
        finally:
            os.close(result)
            os.close(told)


def bytes_below(directory: str) -> int:
    """What the files below it take on the disk; one with several names counts once, what vanishes meanwhile not at all."""
    total = 0
    linked: set[int] = set()
    pending = [directory]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    found = entry.stat(follow_symlinks=False)
                    if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                        if found.st_ino in linked:
                            continue
                        linked.add(found.st_ino)
                    total += found.st_blocks * 512
                    if stat.S_ISDIR(found.st_mode):
                        pending.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return total


def _deleted_bytes(groups: Sequence[str], device: int) -> int:
    """Files without a name that a process still holds open: no walk finds them."""
    sizes: dict[int, int] = {}
    for pid in _processes(groups):
        try:
            with os.scandir(f"/proc/{pid}/fd") as entries:
                found = [os.stat(entry.path) for entry in entries if _is_deleted(entry.path)]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        sizes.update({f.st_ino: f.st_blocks * 512 for f in found if stat.S_ISREG(f.st_mode) and f.st_dev == device})
    return sum(sizes.values())


def _is_deleted(path: str) -> bool:
    return os.readlink(path).endswith(" (deleted)")


def _processes(groups: Sequence[str]) -> list[str]:
    try:
        with open(groups[0] + "/cgroup.procs", encoding="utf-8") as file:
            return file.read().split()
    except (IndexError, OSError):  # without groups only named files are counted
        return []
