"""The supervisor's part of a container's network: its link, its address, its published ports, its name server."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket

from sandbox.runtime.init import allowlist, files, netlink, proxy, resolver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any


class Failed(Exception):
    """It cannot be attached; `facts` are what the client is told."""

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts: dict[str, Any] = {"message": message, **facts}


def make(network: dict[str, Any], deny: Callable[[str], object]) -> Attachment:
    """The kind that `network` asks for."""
    if "helper" not in network:
        return Attachment(network, deny)
    from sandbox.runtime.init import usernet  # an ordinary user's alone

    return usernet.UserAttachment(network, deny)


class Attachment:
    """One container in one network. `network` is what `Networks.attached` gave; its `ports` say in the end which were taken. `deny`
    hears of what its allow-list has not."""

    def __init__(self, network: dict[str, Any], deny: Callable[[str], object]) -> None:
        self.network = network
        self._allow = allowlist.AllowList(network["allow"], deny) if network["allow"] else None
        self._resolver: resolver.Resolver | None = None
        self._proxy = 0

    def connect(self, pid: int, *, again: bool) -> None:
        """One end of a new link goes into the network namespace of `pid`, the other into the bridge; it may send from its own address, and
        what comes for its ports is passed on. Raises Failed."""
        self._publish()
        name = ""
        try:
            for each in (self.network, *self.network["more"]):
                name = each["name"]
                plug_in(each, pid, again=again)
        except OSError as err:
            raise Failed(f"network {name}: {err.strerror}", step="network", errno=err.errno) from err

    def enter(self, pid: int) -> None:
        """The user namespace of `pid` has its ids now; nothing waited for that. Raises Failed."""

    def serve_names(self, fds: Sequence[int]) -> None:
        """Answer what is asked on these sockets, which init opened inside."""
        ends = socket.socket(fileno=fds[0]), socket.socket(fileno=fds[1])
        self._resolver = resolver.Resolver(ends, self.network, self._places, self._allow)

    def _places(self) -> list[str]:
        return [os.path.dirname(each["lease"]) for each in (self.network, *self.network["more"])]

    def denied(self) -> list[str]:
        """What it asked of its network and its allow-list has not."""
        return self._allow.denied() if self._allow else []

    def interests(self) -> Iterator[tuple[int, int]]:
        """What to wait on, and for which poll(2) events; `serve` is called with those that are ready."""
        if self._resolver is not None:
            yield from self._resolver.interests()

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
        for each in (self.network, *self.network["more"]):
            forget(each)

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


def plug_in(place: Mapping[str, Any], pid: int, *, again: bool = False) -> None:
    """A link between the bridge of a place (what `Networks` gave) and the network namespace of `pid`, and the right to send. OSError."""
    with netlink.Netlink() as net:
        if again:  # Linux may still be at taking the last one away
            netlink.remove_link(net, place["link"])
        netlink.add_veth(net, place["link"], place["index"], place["end"], pid, place["mac"])
        if place["rate"]:
            netlink.limit_rate(net, socket.if_nametoindex(place["link"]), place["rate"])
    _change_owner(place, netlink.NEW_ELEMENT, netlink.CREATE)


def forget(place: Mapping[str, Any]) -> None:
    """Give the address back: what held it to its allow-list and rate, and what could send from it, is forgotten. The link goes with its
    network namespace. That the network was taken away, or its rules flushed, is fine. Whoever starts a container may be at forgetting it
    for us, and give the address to the next: networks.py's lock orders that."""
    try:
        lock = os.open(f"{os.path.dirname(place['lease'])}/../lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _unless_gone(_drop_tables, place)
        _unless_gone(_drop_owner, place)
        lease = files.read_json(place["lease"]) or {}
        if lease.get("container") == place["owner"]:
            files.remove_file(place["lease"])
    finally:
        os.close(lock)


def _unless_gone(drop: Callable[[Mapping[str, Any]], None], place: Mapping[str, Any]) -> None:
    try:
        drop(place)
    except OSError as err:
        if err.errno != errno.ENOENT:
            raise


def _drop_owner(place: Mapping[str, Any]) -> None:
    _change_owner(place, netlink.DEL_ELEMENT, 0)


def _change_owner(place: Mapping[str, Any], kind: int, flags: int) -> None:
    owner = netlink.owner_key(place["link"], place["mac"], place["address"])
    element = netlink.element(place["bridge"], netlink.OWNERS, [owner], family=netlink.BRIDGE)
    with netlink.Netlink(netlink.NETFILTER) as net:
        net.transact([(kind, element, flags)])


def _drop_tables(place: Mapping[str, Any]) -> None:
    """The rules that held it to its allow-list and its rate."""
    if families := place["families"]:
        table = netlink.text(1, place["table"])
        with netlink.Netlink(netlink.NETFILTER) as net:
            net.transact([(netlink.DEL_TABLE, netlink.nft_body(family, table), 0) for family in families])


def _listen(port: dict[str, Any]) -> socket.socket:
    try:
        return proxy.listen(port)
    except OSError as err:
        taken = [port["host"], port["protocol"]] if err.errno == errno.EADDRINUSE else None
        message = f"port {port['address']}:{port['host']}: {(err.strerror or str(err)).lower()}"
        raise Failed(message, step="port", errno=err.errno, taken=taken) from err
