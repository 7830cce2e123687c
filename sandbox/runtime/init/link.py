"""Messages between spawner, supervisor and init: one JSON object a datagram, with file descriptors beside it."""

from __future__ import annotations

import array
import json
import os
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_MOST_FDS = 253  # SCM_MAX_FD
_MOST_BYTES = 65536


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends that keep message borders and close on exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


def send(end: socket.socket, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message; BrokenPipeError when the other end is gone."""
    data = json.dumps(message).encode()
    if fds:
        socket.send_fds(end, [data], fds)
    else:
        end.send(data, socket.MSG_NOSIGNAL)


def receive(end: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The next message and its descriptors; None when the other end is closed."""
    fds = array.array("i")
    try:
        data, ancillary, _, _ = end.recvmsg(_MOST_BYTES, socket.CMSG_LEN(_MOST_FDS * fds.itemsize), socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None, []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return (json.loads(data) if data else None), list(fds)


def read_plan(fd: int, *, keep: bool = False) -> dict[str, Any]:
    """The plan from its memfd, which is closed unless it is to be read again (`keep`)."""
    plan: dict[str, Any] = json.loads(os.pread(fd, os.fstat(fd).st_size, 0).decode())
    if not keep:
        os.close(fd)
    return plan


def write_plan(plan: Mapping[str, Any]) -> int:
    """A memfd that holds the plan."""
    return hold(json.dumps(plan).encode())


def hold(text: bytes) -> int:
    """A memfd with this in it: no size limit, nothing on disk."""
    fd = os.memfd_create("plan", os.MFD_CLOEXEC)
    os.write(fd, text)
    return fd
