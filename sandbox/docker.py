"""`%load_ext sandbox.docker`: `%docker`, `%%docker` and `!docker …` mean this engine in this notebook. Opt-in, since they hide docker."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load_ipython_extension(shell: Any) -> None:  # Any: IPython is imported by the magics only
    """Called by IPython."""
    import_module("magics.docker").load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """Called by IPython."""
    import_module("magics.docker").unload(shell)
