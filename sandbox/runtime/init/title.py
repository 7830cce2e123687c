"""What `ps` shows of our processes: `sandbox-init`, not the host's path to Python."""

from __future__ import annotations

import ctypes

from sandbox.runtime.init import syscalls as s


def forget_environment() -> None:
    """Nobody reads in /proc/self/environ what we were started with (proc(5), /proc/pid/stat fields 50 and 51)."""
    with open("/proc/self/stat", encoding="utf-8") as file:
        start, end = map(int, file.read().rpartition(")")[2].split()[47:49])
    ctypes.memset(start, 0, end - start)


class Title:
    """The memory in which Linux reads this process's command line (proc(5), /proc/pid/stat fields 48 and 49)."""

    def __init__(self) -> None:
        with open("/proc/self/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
        self._start, end = int(fields[45]), int(fields[46])
        self._size = end - self._start

    def set(self, text: str) -> None:
        """Show `text` instead, cut to the space there is."""
        data = text.encode()[: self._size - 1]
        ctypes.memmove(self._start, data + b"\0" * (self._size - len(data)), self._size)
        s.prctl_name(text)
