"""The supervisor's part of a container's network: its link, its address, its published ports, its name server."""

from __future__ import annotations

import errno
import os
import signal
import socket

from sandbox.runtime.init import allowlist, netlink, places, proxy, resolver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any


_LONGEST_HOSTS = 1 << 20


class Failed(Exception):
    """It cannot be attached; `facts` are what the client is told."""

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts: dict[str, Any] = {"message": message, **facts}


class Attachment:
    """One container in its networks. `network` is what `Networks.attached` gave; its `ports` say in the end which were taken, its
    `places` where it is now. `deny` hears of what its allow-list has not."""

    def __init__(self, network: dict[str, Any], deny: Callable[[str], object]) -> None:
        self.network = network
        self._allow = allowlist.AllowList(network["allow"], self._sockets, deny) if network["allow"] else None
        self._resolver: resolver.Resolver | None = None
        self._listeners: list[socket.socket] = []
        self._proxy = 0
        self._hosts = -1

    @property
    def places(self) -> list[dict[str, Any]]:
        """Where it is now."""
        found: list[dict[str, Any]] = self.network["places"]
        return found

    def prepare(self) -> int:
        """Before there is a container: the user namespace that its own is to be nested in, -1 for ours. Failed."""
        return -1

    def connect(self, pid: int, namespaces: Sequence[int]) -> None:
        """For each place one end of a new link goes into the network namespace of `pid`, the other into the bridge; it may send from its
        own address, and what comes for its ports is passed on. `namespaces`: the user and the network namespace of `pid` where its own
        is nested, ours to close. Raises Failed."""
        del namespaces  # where it is not, there are none
        self._publish()
        for each in self.places:
            with _Named(each["name"]):
                places.plug_in(self._sockets, each, pid)

    def _sockets(self, protocol: int) -> netlink.Netlink:
        """Where the bridges are."""
        return netlink.Netlink(protocol)

    def _inside(self, pid: int, act: Callable[[], None]) -> None:
        """Do it in the network namespace of the container. OSError."""
        places.inside(pid, act)

    def _bridges(self) -> Sequence[int]:
        """The namespaces (user, net) to enter where the bridges are not in ours."""
        return ()

    def serve_names(self, fds: Sequence[int]) -> None:
        """Answer what is asked on the sockets, which init opened inside; the first descriptor is its /etc/hosts."""
        hosts, *ends = fds
        self._hosts = hosts
        self._resolver = resolver.Resolver((socket.socket(fileno=ends[0]), socket.socket(fileno=ends[1])), self.network, self._allow)

    def change(self, wish: Mapping[str, Any], pid: int) -> None:
        """While it runs: into one more network, or out of one. Raises Failed, and then nothing has changed."""
        before = self.places[:1]
        if wish["ask"] == "connect":
            self._join(wish["place"], pid)
        else:
            self._part(wish["network"], pid)
        if self._listeners and self.places[:1] != before:
            self._pass_on()  # ports lead to its first address

    def _join(self, place: dict[str, Any], pid: int) -> None:
        if any(each["name"] == place["name"] for each in self.places):
            raise Failed(f"network {place['name']}: the container is in it already")
        with _Named(place["name"]):
            places.plug_in(self._sockets, place, pid)
            try:
                self._inside(pid, lambda: places.set_up(place, [*self.places, place]))
            except OSError:
                places.unplug(self._sockets, place)
                raise
        self.places.append(place)
        if self._allow is not None:
            self._allow.enter(place["table"], place["subnets"])

    def _part(self, name: str, pid: int) -> None:
        place = next((each for each in self.places if each["name"] == name), None)
        if place is None:
            raise Failed(f"network {name}: the container is not in it")
        with _Named(name):
            places.unplug(self._sockets, place)
            self.places.remove(place)
            places.forget(self._sockets, place)
            self._inside(pid, lambda: places.route(self.places))
        if self._allow is not None:
            self._allow.leave(place["table"], place["subnets"])

    def rewrite_hosts(self, renew: Callable[[str], str]) -> None:
        """Its /etc/hosts, to which the program may have added lines of its own. OSError."""
        text = renew(os.pread(self._hosts, _LONGEST_HOSTS, 0).decode(errors="surrogateescape")).encode(errors="surrogateescape")
        os.pwrite(self._hosts, text, 0)
        os.ftruncate(self._hosts, len(text))

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
        self._stop_proxy()
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    def _stop_proxy(self) -> None:
        if self._proxy:
            os.kill(self._proxy, signal.SIGKILL)
            os.waitpid(self._proxy, 0)
            self._proxy = 0

    def close(self) -> None:
        """The container has ended; it may be attached again."""
        if self._resolver is not None:
            self._resolver.close()
            self._resolver = None
            os.close(self._hosts)

    def follow(self, before: Attachment) -> None:
        """Take over from the run before what outlives a run."""

    def leave(self) -> None:
        """Give the addresses back. The links went with the network namespace; what could send from them is forgotten."""
        for each in self.places:
            places.forget(self._sockets, each)

    def _publish(self) -> None:
        try:
            for port in self.network["ports"]:
                self._listeners.append(_listen(port))
            ends = zip(self.network["ports"], self._listeners, strict=True)
            self.network["ports"] = [{**port, "host": end.getsockname()[1]} for port, end in ends]
            if self._listeners:
                self._pass_on()
        except BaseException:
            self.unpublish()
            raise

    def _pass_on(self) -> None:
        """Anew, to where it is now: connections that were there end."""
        self._stop_proxy()
        if self.places:
            address = self.places[0]["address"]
            self._proxy = proxy.start(self._listeners, [(address, port["container"]) for port in self.network["ports"]], self._bridges())


class _Named:
    """What Linux refuses in this network is Failed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, err: object, trace: object) -> None:
        if isinstance(err, OSError):
            raise Failed(f"network {self._name}: {err.strerror}", step="network", errno=err.errno) from err


def _listen(port: dict[str, Any]) -> socket.socket:
    try:
        return proxy.listen(port)
    except OSError as err:
        taken = [port["host"], port["protocol"]] if err.errno == errno.EADDRINUSE else None
        message = f"port {port['address']}:{port['host']}: {(err.strerror or str(err)).lower()}"
        raise Failed(message, step="port", errno=err.errno, taken=taken) from err
