"""A connection to the hub of an ordinary user's networks (init/hubkeeper), from the engine and from supervisors.

The hub holds a network namespace in which the bridges are, as root's are on the host (podman calls that a rootless netns), and the user
namespace it belongs to. Whoever is connected has descriptors of both and netlink sockets opened there: with those a process of the user,
who owns that user namespace, changes links and rules without entering anything (netlink(7), `netlink_net_capable`: whoever opened the
socket and whoever sends must both have the right). While one connection is open the hub stays.
"""

from __future__ import annotations

import errno
import os
import select
import socket

from sandbox.runtime.init import control, helper, link, netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "hub"
"""The socket's, in the directory of the networks."""
_ALWAYS = 4
"""Descriptors that a hub gives: two namespaces, two sockets; then one of its helper, if it has any."""


class Connection:
    """`user` and `net`: descriptors of its namespaces. Not for several threads at once: all sockets of a protocol are one. Should all of
    the hub be killed but its helper, whoever was connected ends that when closing."""

    def __init__(self, end: socket.socket, fds: Sequence[int]) -> None:
        self._end = end
        self._fds = list(fds)
        self.user, self.net = fds[:2]

    def sockets(self, protocol: int) -> netlink.Netlink:
        """A netlink socket of that namespace (netlink.Sockets)."""
        fd = self._fds[2 if protocol == netlink.ROUTE else 3]
        return netlink.Netlink(given=socket.socket(fileno=os.dup(fd)))

    @property
    def has_way_out(self) -> bool:
        """Whether a helper leads out from there."""
        return len(self._fds) > _ALWAYS

    def fileno(self) -> int:
        """What can be read once the hub has ended."""
        return self._end.fileno()

    def has_ended(self) -> bool:
        """Whether nothing is there any more."""
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        return bool(poll.poll(0))

    def dismiss(self) -> None:
        """Have it end now; where others are connected, with the last of them. It has ended, or answered, afterwards."""
        try:
            link.send(self._end, {"ask": "end"})
        except (BrokenPipeError, ConnectionResetError):
            return
        link.receive(self._end)

    def close(self) -> None:
        """It is needed no more."""
        if self.has_ended():
            for pidfd in self._fds[_ALWAYS:]:
                helper.kill(pidfd)
        self._end.close()
        for fd in self._fds:
            os.close(fd)


def connect(directory: str) -> Connection:
    """FileNotFoundError or ConnectionRefusedError when there is no hub, or it is ending."""
    end = control.connect(directory, NAME)
    message, fds = link.receive(end)
    if message is None:
        end.close()
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    return Connection(end, fds)
