"""The host's Python as our helpers run it (sandbox.runtime.init.interpreter), or an error of ours."""

from __future__ import annotations

from sandbox.errors import SetupFailed
from sandbox.runtime.init import interpreter


def open_interpreter(path: str) -> int | None:
    """A descriptor to execute instead of `path`; None when the file cannot be written to anyway. Raises SetupFailed."""
    try:
        return interpreter.open_interpreter(path)
    except OSError as err:
        raise SetupFailed(f"{path}: cannot be protected from containers ({(err.strerror or str(err)).lower()})") from err
