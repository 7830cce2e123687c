"""The supervisor's part of an ordinary user's networks: as root's, but the bridges are where the hub holds them (init/hub)."""

from __future__ import annotations

import errno
import os

from sandbox.runtime.init import attachment, hub, places
from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from sandbox.runtime.init import netlink

_OVER = "what carried its networks has ended: stop it and start it again"


class HubAttachment(attachment.Attachment):
    """One container in networks of the hub. Its connection keeps the hub; should that end nevertheless the container goes on without
    networks, and `lost` is called."""

    def __init__(self, network: dict[str, Any], deny: Callable[[str], object], lost: Callable[[], object]) -> None:
        super().__init__(network, deny)
        self._lost = lost
        self._hub: hub.Connection | None = None
        self._namespaces: Sequence[int] = ()

    def prepare(self) -> int:
        """Connect to the hub; its user namespace. Failed when it is not there, or not the one this container was in before."""
        try:
            if self.network.get("is_lost") or (self._hub and self._hub.has_ended()):
                raise ConnectionRefusedError(errno.ECONNREFUSED, _OVER)
            self._hub = self._hub or hub.connect(self.network["hub"])
        except OSError as err:
            raise attachment.Failed(f"network: {err.strerror}", step="network", errno=err.errno) from err
        return self._hub.user

    def connect(self, pid: int, namespaces: Sequence[int]) -> None:
        """As Attachment's."""
        self._namespaces = namespaces
        super().connect(pid, namespaces)

    def _sockets(self, protocol: int) -> netlink.Netlink:
        if self._hub is None:
            raise OSError(errno.ENOTCONN, _OVER)
        return self._hub.sockets(protocol)

    def _inside(self, pid: int, act: Callable[[], None]) -> None:
        del pid  # init is not dumpable any more
        in_namespaces(self._namespaces, act)

    def _bridges(self) -> Sequence[int]:
        return (self._hub.user, self._hub.net) if self._hub else ()

    def denied(self) -> list[str]:
        """As Attachment's; without a hub there is nobody to ask."""
        return super().denied() if self._hub else []

    def interests(self) -> Iterator[tuple[int, int]]:
        """As Attachment's, and the end of the hub."""
        yield from super().interests()
        if self._hub:
            yield self._hub.fileno(), 1  # POLLIN

    def serve(self, fd: int) -> None:
        """As Attachment's."""
        if self._hub is None or fd != self._hub.fileno():
            super().serve(fd)
            return
        self.unpublish()
        self._let_go()
        for each in self.places:
            places.forget(None, each)
        self.places.clear()
        self.network.update(ports=[], is_lost=True)
        self._lost()

    def close(self) -> None:
        """As Attachment's; the hub stays for the next run, and until the addresses were given back."""
        super().close()
        self._close_namespaces()

    def follow(self, before: attachment.Attachment) -> None:
        """As Attachment's."""
        assert isinstance(before, HubAttachment)
        self._hub, before._hub = before._hub, None

    def leave(self) -> None:
        """As Attachment's."""
        for each in self.places:
            places.forget(self._sockets if self._hub else None, each)
        self._let_go()

    def _let_go(self) -> None:
        if self._hub:
            self._hub.close()
            self._hub = None
        self._close_namespaces()

    def _close_namespaces(self) -> None:
        for fd in self._namespaces:
            os.close(fd)
        self._namespaces = ()


def in_namespaces(namespaces: Sequence[int], act: Callable[[], None]) -> None:
    """Do it in a user and a network namespace, in a child: nobody comes back from there. OSError. Not for a process with threads."""
    said, say = os.pipe()
    child = os.fork()
    if child == 0:
        number = errno.EIO
        try:
            for fd, kind in zip(namespaces, (s.CLONE_NEWUSER, s.CLONE_NEWNET), strict=True):
                s.setns(fd, kind)
            act()
            number = 0
        except OSError as err:
            number = err.errno or number
        finally:
            os.write(say, b"%d" % number)
            os._exit(0)
    os.close(say)
    with os.fdopen(said, "rb") as file:
        number = int(file.read() or errno.EIO)
    os.waitpid(child, 0)
    if number:
        raise OSError(number, os.strerror(number))


def make(network: dict[str, Any], deny: Callable[[str], object], lost: Callable[[], object]) -> attachment.Attachment:
    """The kind that `network` asks for."""
    return HubAttachment(network, deny, lost) if network["hub"] else attachment.Attachment(network, deny)
