"""The notebook front end: %%dockerfile, %%container, %%sandbox and %container. `%load_ext sandbox` brings them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magics, completion and events with this shell."""
    import_module("magics.loading").load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Take everything out again that `load_ipython_extension` brought."""
    import_module("magics.loading").unload(shell)
