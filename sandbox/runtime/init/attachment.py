"""The supervisor's part of a container's network: its link, its address, its published ports, its name server."""

from __future__ import annotations

import errno
import os
import signal
import socket

from sandbox.runtime.init import files, netlink, proxy, resolver, steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any


class Failed(Exception):
    """It cannot be attached; `facts` are what the client is told."""

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts: dict[str, Any] = {"message": message, **facts}


def make(network: dict[str, Any]) -> Attachment:
    """The kind that `network` asks for."""
    if "helper" not in network:
        return Attachment(network)
    from sandbox.runtime.init import usernet  # an ordinary user's alone

    return usernet.UserAttachment(network)


class Attachment:
    """One container in one network. `network` is what `Networks.attached` gave; its `ports` say in the end which were taken."""

    def __init__(self, network: dict[str, Any]) -> None:
        self.network = network
        self._resolver: resolver.Resolver | None = None
        self._proxy = 0

    def connect(self, pid: int, *, again: bool) -> None:
        """One end of a new link goes into the network namespace of `pid`, the other into the bridge; it may send from its own address, and
        what comes for its ports is passed on. Raises Failed."""
        self._publish()
        try:
            with netlink.Netlink() as net:
                if again:  # Linux may still be at taking the last one away
                    netlink.remove_link(net, self.network["link"])
                netlink.add_veth(net, self.network["link"], self.network["index"], steps.LINK, pid, self.network["mac"])
            self._change_owner(netlink.NEW_ELEMENT, netlink.CREATE)
        except OSError as err:
            raise Failed(f"network {self.network['name']}: {err.strerror}", step="network", errno=err.errno) from err

    def enter(self, pid: int) -> None:
        """The user namespace of `pid` has its ids now; nothing waited for that. Raises Failed."""

    def serve_names(self, fd: int) -> None:
        """Answer what is asked on this socket, which init opened inside."""
        self._resolver = resolver.Resolver(socket.socket(fileno=fd), self.network)

    def fds(self) -> Iterator[int]:
        """What to wait on; `serve` is called with those that can be read."""
        if self._resolver is not None:
            yield from self._resolver.fds()

    def serve(self, fd: int) -> None:
        """A question, or the answer to one that was passed on."""
        if self._resolver is not None:
            self._resolver.serve(fd)

    def unpublish(self) -> None:
        """Free the ports: they can be taken again when the container's end is told."""
        if self._proxy:
            os.kill(self._proxy, signal.SIGKILL)
            os.waitpid(self._proxy, 0)
            self._proxy = 0

    def close(self) -> None:
        """The container has ended; it may be attached again."""
        if self._resolver is not None:
            self._resolver.close()
            self._resolver = None

    def leave(self) -> None:
        """Give the address back. The link went with the network namespace; what could send from it is forgotten."""
        try:
            self._change_owner(netlink.DEL_ELEMENT, 0)
        except OSError as err:
            if err.errno != errno.ENOENT:  # the network was taken away, or its rules flushed
                raise
        finally:
            files.remove_file(self.network["lease"])

    def _change_owner(self, kind: int, flags: int) -> None:
        owner = netlink.owner_key(self.network["link"], self.network["mac"], self.network["address"])
        element = netlink.element(self.network["bridge"], netlink.OWNERS, [owner], family=netlink.BRIDGE)
        with netlink.Netlink(netlink.NETFILTER) as net:
            net.transact([(kind, element, flags)])

    def _publish(self, inside: Sequence[int] = ()) -> None:
        ports = self.network["ports"]
        listeners: list[socket.socket] = []
        try:
            for port in ports:
                listeners.append(_listen(port))
            self.network["ports"] = [{**port, "host": end.getsockname()[1]} for port, end in zip(ports, listeners, strict=True)]
            if listeners:
                self._proxy = proxy.start(listeners, [(self.network["address"], port["container"]) for port in ports], inside)
        finally:
            for listener in listeners:
                listener.close()


def _listen(port: dict[str, Any]) -> socket.socket:
    try:
        return proxy.listen(port)
    except OSError as err:
        taken = [port["host"], port["protocol"]] if err.errno == errno.EADDRINUSE else None
        message = f"port {port['address']}:{port['host']}: {(err.strerror or str(err)).lower()}"
        raise Failed(message, step="port", errno=err.errno, taken=taken) from err
