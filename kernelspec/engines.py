"""One engine, and so one helper process, for all kernels of a server: the second kernel does not wait for another to start."""

from __future__ import annotations

import threading
from typing import Any  # jupyter_client's managers

from sandbox import Engine

_ATTRIBUTE = "_sandbox_engines"
"""Where a kernel manager keeps them: it owns them, so that no module has state."""


class Engines:
    """Engines by state directory; each is closed when the last who took it gives it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: dict[str, tuple[Engine, int]] = {}

    def take(self, root: str) -> Engine:
        """The engine of this directory (empty: the usual one); its helper process starts meanwhile."""
        with self._lock:
            engine, users = self._taken.get(root) or (Engine(root or None), 0)
            self._taken[root] = (engine, users + 1)
        if not users:
            threading.Thread(target=engine.warm, daemon=True, name="sandbox spawner").start()
        return engine

    def give_back(self, root: str) -> None:
        """One of those who took it is done."""
        with self._lock:
            engine, users = self._taken.pop(root)
            if users > 1:
                self._taken[root] = (engine, users - 1)
        if users == 1:
            engine.close()


def engines_of(manager: Any) -> Engines:
    """Those of the server that a kernel's manager belongs to; a manager by itself has its own."""
    parent = getattr(manager, "parent", None)
    owner = manager if parent is None else parent  # a server without kernels has the length 0
    found = getattr(owner, _ATTRIBUTE, None)
    if not isinstance(found, Engines):
        found = Engines()
        setattr(owner, _ATTRIBUTE, found)
    return found
