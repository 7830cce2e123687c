"""What a kernel's container uses, as a `usage_reply` has it: ipykernel's message, which jupyter-resource-usage shows."""

from __future__ import annotations

import os
import socket
from typing import Any  # a message's content

from sandbox import Container, Stats
from sandbox.errors import WrongState


class UsageMeter:
    """Of one kernel; it remembers what it saw last, since CPU time is a difference of two looks."""

    def __init__(self) -> None:
        self._seen: tuple[str, Stats] | None = None

    def reply(self, container: Container | None) -> dict[str, Any]:
        """Bytes and per cent of one CPU of everything in the container, nothing without one; beside it what the host has.

        The kernel's own process on the host is left out: it is no part of what the limits hold.
        """
        import psutil  # ipykernel needs it too; late, since few are asked

        memory, cpu = self._measure(container) if container is not None else (0, 0.0)
        return {
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "kernel_cpu": cpu,
            "kernel_memory": memory,
            "cpu_count": psutil.cpu_count(logical=True),
            "host_cpu_percent": psutil.cpu_percent(),
            "host_virtual_memory": dict(psutil.virtual_memory()._asdict()),
        }

    def _measure(self, container: Container) -> tuple[int, float]:
        previous = self._seen[1] if self._seen is not None and self._seen[0] == container.id else None
        try:
            stats = container.stats(previous)
        except WrongState:  # it ended just now
            return 0, 0.0
        self._seen = (container.id, stats)
        return stats.memory or 0, stats.cpu_percent or 0.0
