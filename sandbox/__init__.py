"""Build layered images and run code inside them, from Python: `sandbox.Engine()`. In a notebook: `%load_ext sandbox`.

The public names, each imported when first used, so that `import sandbox` costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` and `importlib` are not imported here: the spawner, whose every page is forked, begins with this file
if TYPE_CHECKING:
    from typing import Any, Protocol

    from sandbox.build.events import BuildDone as BuildDone
    from sandbox.build.events import BuildEvent as BuildEvent
    from sandbox.build.events import BuildStarted as BuildStarted
    from sandbox.build.events import BuildWarning as BuildWarning
    from sandbox.build.events import StepDone as StepDone
    from sandbox.build.events import StepError as StepError
    from sandbox.build.events import StepOutput as StepOutput
    from sandbox.build.events import StepStarted as StepStarted
    from sandbox.build.source import Span as Span
    from sandbox.engine import Container as Container
    from sandbox.engine import Engine as Engine
    from sandbox.errors import BuildError as BuildError
    from sandbox.errors import CellFailed as CellFailed
    from sandbox.errors import ContainerError as ContainerError
    from sandbox.errors import ContainerNotFound as ContainerNotFound
    from sandbox.errors import DigestMismatch as DigestMismatch
    from sandbox.errors import DockerfileError as DockerfileError
    from sandbox.errors import ImageError as ImageError
    from sandbox.errors import ImageNotFound as ImageNotFound
    from sandbox.errors import InvalidImage as InvalidImage
    from sandbox.errors import InvalidInput as InvalidInput
    from sandbox.errors import InvalidOption as InvalidOption
    from sandbox.errors import InvalidReference as InvalidReference
    from sandbox.errors import NotInRegistry as NotInRegistry
    from sandbox.errors import RateLimited as RateLimited
    from sandbox.errors import RegistryError as RegistryError
    from sandbox.errors import SandboxError as SandboxError
    from sandbox.errors import SetupFailed as SetupFailed
    from sandbox.errors import StepFailed as StepFailed
    from sandbox.errors import Unauthorized as Unauthorized
    from sandbox.errors import UnknownStage as UnknownStage
    from sandbox.errors import UnsafeLayer as UnsafeLayer
    from sandbox.errors import Unsupported as Unsupported
    from sandbox.errors import WrongState as WrongState
    from sandbox.image.store import Image as Image
    from sandbox.images import ImageSummary as ImageSummary
    from sandbox.logs import LogLine as LogLine
    from sandbox.measuring import ProcessRow as ProcessRow
    from sandbox.measuring import Stats as Stats
    from sandbox.options import BuildOptions as BuildOptions
    from sandbox.options import RunOptions as RunOptions
    from sandbox.pruning import PruneReport as PruneReport
    from sandbox.runtime.spec import Completed as Completed
    from sandbox.runtime.spec import Usage as Usage

    class _Shell(Protocol):
        """IPython's InteractiveShell, which `sandbox` itself knows nothing about."""


_HOMES = {
    "sandbox.engine": ("Container", "Engine"),
    "sandbox.images": ("ImageSummary",),
    "sandbox.logs": ("LogLine",),
    "sandbox.measuring": ("ProcessRow", "Stats"),
    "sandbox.pruning": ("PruneReport",),
    "sandbox.image.store": ("Image",),
    "sandbox.build.source": ("Span",),
    "sandbox.build.events": (
        "BuildDone",
        "BuildEvent",
        "BuildStarted",
        "BuildWarning",
        "StepDone",
        "StepError",
        "StepOutput",
        "StepStarted",
    ),
    "sandbox.options": ("BuildOptions", "RunOptions"),
    "sandbox.runtime.spec": ("Completed", "Usage"),
    "sandbox.errors": (
        "BuildError",
        "CellFailed",
        "ContainerError",
        "ContainerNotFound",
        "DigestMismatch",
        "DockerfileError",
        "ImageError",
        "ImageNotFound",
        "InvalidImage",
        "InvalidInput",
        "InvalidOption",
        "InvalidReference",
        "NotInContainer",
        "NotInRegistry",
        "RateLimited",
        "RegistryError",
        "SandboxError",
        "SetupFailed",
        "StepFailed",
        "Unauthorized",
        "UnknownStage",
        "UnsafeLayer",
        "Unsupported",
        "WrongState",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)  # noqa: PLE0605  # made from the table above


def __getattr__(name: str) -> Any:  # Any: whatever the public name is; type checkers read the block above
    if name not in _HOME:
        raise AttributeError(f"module 'sandbox' has no attribute {name!r}")
    value = getattr(_module(_HOME[name]), name)
    globals()[name] = value
    return value


def _module(name: str) -> Any:
    from importlib import import_module

    return import_module(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


def load_ipython_extension(shell: _Shell) -> None:
    """Called by IPython for `%load_ext sandbox`: brings %%dockerfile, %%container, %%sandbox and %container."""
    _module("magics").load_ipython_extension(shell)


def unload_ipython_extension(shell: _Shell) -> None:
    """Called by IPython for `%unload_ext sandbox`."""
    _module("magics").unload_ipython_extension(shell)
