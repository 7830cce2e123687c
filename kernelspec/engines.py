"""One engine, and so one helper process, for all kernels that this process starts: only the first waits for it to come up."""

from __future__ import annotations

import atexit
import threading
from typing import Any  # traitlets' singleton is untyped

from kernelspec.orphans import remove_orphans
from sandbox import Engine
from sandbox.engine import default_root

_ATTRIBUTE = "_sandbox_engines"
"""Where jupyter_client's factory of provisioners keeps them, so that no module of ours has state."""


class Engines:
    """Engines by state directory. They stay for the next kernel, until the process ends: starting the helper anew would cost it 60 ms, and
    papermill or a server whose last notebook was closed start another soon. The helper ends with us, however we end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: dict[str, Engine] = {}

    def engine(self, root: str) -> Engine:
        """The engine of this directory (empty: the usual one); meanwhile its helper is made ready, and what others left taken away."""
        place = root or str(default_root())
        with self._lock:
            found = self._engines.get(place)
            first = found is None
            if found is None:
                found = self._engines[place] = Engine(place)
        threading.Thread(target=_make_ready, args=(found, first), daemon=True, name="sandbox spawner").start()
        return found

    def close(self) -> None:
        """End the helpers."""
        with self._lock:
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()


def _make_ready(engine: Engine, first: bool) -> None:
    engine.warm()
    if first:
        remove_orphans(engine)


def shared_engines() -> Engines:
    """Those of this process."""
    from jupyter_client.provisioning.factory import KernelProvisionerFactory

    factory: Any = KernelProvisionerFactory.instance()
    found = getattr(factory, _ATTRIBUTE, None)
    if not isinstance(found, Engines):
        found = Engines()
        setattr(factory, _ATTRIBUTE, found)
        atexit.register(found.close)  # the helpers would end by themselves, but nobody would have waited for them
    return found
