"""The front end that started us: when its process ends, however it does, its kernel goes, too."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from threading import Thread


def parent_fd() -> int | None:
    """A descriptor (the caller's) that is readable once the process that started us has ended.

    None where nobody's end is to be ours: as ipykernel does, JPY_PARENT_PID is looked at, which jupyter_client sets for every kernel
    that is not to outlive it.
    """
    parent = os.getppid()
    if parent == 1 or os.environ.get("JPY_PARENT_PID", "0") in ("0", "1"):
        return None
    try:
        return os.pidfd_open(parent)
    except ProcessLookupError:
        return _ended()


def _ended() -> int:
    """Of a process that ended before it could be opened: readable from the start."""
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def parent_watch(then: Callable[[], object]) -> Thread | None:
    """A thread, to be started, that calls `then` when the parent has ended; None as above."""
    fd = parent_fd()
    return None if fd is None else Thread(target=_watch, args=(fd, then), daemon=True, name="sandbox parent")


def _watch(fd: int, then: Callable[[], object]) -> None:
    select.select([fd], [], [])
    then()
