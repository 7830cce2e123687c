"""The early end of a build: how one failing stage, or an interrupt, ends what the others are doing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

_POLL = 0.02
"""Seconds between two tries of what cannot be waited for."""


class Stopped(Exception):
    """This stage cannot go on: another one failed, or the build was interrupted."""


class Signalled(Protocol):
    """A started program: `sandbox.runtime.container.Running`."""

    def signal(self, number: int) -> None:
        """Send it a signal; nothing happens when it has ended."""


class Stop:
    """Whether the build is over early, and the programs that are then ended. Thread-safe."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._running: list[Signalled] = []

    @property
    def is_over(self) -> bool:
        """Whether the build ends early."""
        return self._over.is_set()

    def check(self) -> None:
        """Raise Stopped when the build ends early."""
        if self.is_over:
            raise Stopped

    def poll(self, attempt: Callable[[], bool]) -> None:
        """Try until it succeeds (a lock of another process: Linux cannot wait for it and for us). Stopped."""
        while not attempt():
            if self._over.wait(_POLL):
                raise Stopped

    @contextmanager
    def watching(self, program: Signalled) -> Iterator[None]:
        """Within the block the program is ended when the build is."""
        with self._lock:
            self._running.append(program)
            if self.is_over:
                program.signal(signal.SIGTERM)
        try:
            yield
        finally:
            with self._lock:  # nobody may signal it once it is closed
                self._running.remove(program)

    def now(self, number: int = signal.SIGTERM) -> None:
        """End the build: its programs get this signal, its stages Stopped at their next step."""
        with self._lock:
            self._over.set()
            for program in self._running:
                program.signal(number)
