"""The supervisor's door: a socket in the container's directory through which any process of the engine talks to it; so has a hub one.

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


def listen(directory: str, name: str = _NAME) -> socket.socket:
    """The end of whoever serves; one left by a process that was killed is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        os.unlink(f"{directory}/{name}")
    except FileNotFoundError:
        pass  # the usual case
    _through(directory, name, listener.bind)
    listener.listen(16)
    return listener


def connect(directory: str, name: str = _NAME) -> socket.socket:
    """A connection to whoever serves; FileNotFoundError or ConnectionRefusedError when there is none."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        _through(directory, name, end.connect)
    except BaseException:
        end.close()
        raise
    return end


def _through(directory: str, name: str, action: Callable[[str], None]) -> None:
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        action(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)
