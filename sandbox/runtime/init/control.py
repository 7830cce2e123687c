"""The supervisor's door: a socket in the container's directory through which any process of the engine talks to it.

The directory is the engine's alone (0700), so whoever can connect may ask for everything. A path of a socket is at most
108 bytes long (unix(7)); both ends reach it through a descriptor of the directory instead.
"""

from __future__ import annotations

import os
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_NAME = "control"


def listen(directory: str) -> socket.socket:
    """The supervisor's end; one left by a supervisor that was killed is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        os.unlink(f"{directory}/{_NAME}")
    except FileNotFoundError:
        pass  # the usual case
    _through(directory, listener.bind)
    listener.listen(16)
    return listener


def connect(directory: str) -> socket.socket:
    """A connection to the supervisor; FileNotFoundError or ConnectionRefusedError when there is none."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        _through(directory, end.connect)
    except BaseException:
        end.close()
        raise
    return end


def _through(directory: str, action: Callable[[str], None]) -> None:
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        action(f"/proc/self/fd/{fd}/{_NAME}")
    finally:
        os.close(fd)
