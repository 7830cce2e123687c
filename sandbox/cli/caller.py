"""Who called, and for which engine: what every verb may ask, however its words were read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandbox.cli.formatting import Told
    from sandbox.cli.transferring import TransferFace


class Caller:
    """Who calls `sandbox.cli.program.run` in this process, a notebook say: `take` gets what would else be printed, `transfers` makes what
    shows a pull or push (None: lines on stderr)."""

    def __init__(self, take: Callable[[Told], None], transfers: Callable[[], TransferFace] | None = None) -> None:
        self.take, self.transfers = take, transfers


class Invocation:
    """One command line: its global options, and its caller when that is in this process."""

    def __init__(self, root: Path | None = None, debug: bool = False, caller: Caller | None = None) -> None:
        self.root, self.debug, self.caller = root, debug, caller


_NOBODY = Invocation()
_CURRENT: ContextVar[Invocation] = ContextVar("invocation")


@contextmanager
def invoked(**facts: Any) -> Iterator[None]:  # Any: values of Invocation's fields
    """Within the block the command line is the one around it, with these facts."""
    token = _CURRENT.set(Invocation(**{**vars(_CURRENT.get(_NOBODY)), **facts}))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def invocation() -> Invocation:
    """The command line that is at work."""
    return _CURRENT.get(_NOBODY)


def caller_here() -> Caller | None:
    """Who called in this process and takes what there is to tell; None for a command line."""
    return _CURRENT.get(_NOBODY).caller


def is_taken() -> bool:
    """Whether the caller is in this process and takes what is told as objects."""
    return caller_here() is not None
