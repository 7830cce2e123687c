"""What `ps` shows of our processes: `sandbox-init`, not the host's path to Python."""

from __future__ import annotations

import ctypes

from sandbox.runtime.init import syscalls as s


class Title:
    """The memory in which Linux reads this process's command line (proc(5), /proc/pid/stat fields 48 and 49)."""

    def __init__(self) -> None:
        with open("/proc/self/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        self._start, end = int(fields[45]), int(fields[46])
        self._size = end - self._start

    def set(self, text: str) -> None:
        """Show `text` instead, cut to the space there is."""
        data = text.encode()[: self._size - 1]
        ctypes.memmove(self._start, data + b"\0" * (self._size - len(data)), self._size)
        s.prctl_name(text)
