"""Published ports: connections to the host's ports, passed on to the container; datagrams too.

A child of the supervisor that ends with it. It holds the listening sockets, so nobody else can take the ports meanwhile; what it
connects to sees the gateway as the other side. One thread, nothing blocks: a slow reader slows its own connection only.
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import socket
import time

from sandbox.runtime.init import pid1
from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

_CHUNK = 1 << 16
_SPLICED = 1 << 20
_TURNS = 16
"""Reads and writes of one flow before others have their turn."""
_IDLE = 60.0
"""Seconds after which a datagram's sender is forgotten."""
_MOST_SENDERS = 1024
_BACKLOG = 128


def listen(port: Mapping[str, Any]) -> socket.socket:
    """The host's side of one published port; OSError when it is taken."""
    family = socket.AF_INET6 if ":" in port["address"] else socket.AF_INET
    kind = socket.SOCK_DGRAM if port["protocol"] == "udp" else socket.SOCK_STREAM
    listener = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        if kind == socket.SOCK_STREAM:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((port["address"], port["host"]))
        if kind == socket.SOCK_STREAM:
            listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def start(listeners: Sequence[socket.socket], targets: Sequence[tuple[str, int]], inside: Sequence[int] = ()) -> int:
    """Fork the proxy; its pid. `targets`: where each listener leads to, seen from the namespaces `inside` (user, net)."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            for fd, kind in zip(inside, (s.CLONE_NEWUSER, s.CLONE_NEWNET), strict=False):
                s.setns(fd, kind)
            s.prctl(s.PR_SET_PDEATHSIG, signal.SIGKILL)  # setns(2) into a user namespace clears it
            s.prctl_name("sandbox-proxy")
            pid1.close_others({0, 1, 2, *(each.fileno() for each in listeners)})
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            if os.getppid() == parent:
                _Proxy(listeners, targets).serve()
        finally:
            os._exit(0)
    return pid


class _Proxy:
    """`ready`: descriptor → what to do when it can be read or written."""

    def __init__(self, listeners: Sequence[socket.socket], targets: Sequence[tuple[str, int]]) -> None:
        self._poll = select.epoll()
        self._ready: dict[int, Callable[[int], object]] = {}
        self._wanted: dict[int, int] = {}
        self._senders: dict[tuple[int, Any], _Sender] = {}
        for listener, target in zip(listeners, targets, strict=True):
            is_stream = listener.type == socket.SOCK_STREAM
            self.watch(listener, select.EPOLLIN, self._acceptor(listener, target) if is_stream else self._receiver(listener, target))

    def serve(self) -> None:
        """Until it is killed."""
        while True:
            for fd, events in self._poll.poll(_IDLE):
                action = self._ready.get(fd)  # it may have been closed by the one before
                if action is not None:
                    action(events)
            if len(self._senders) > _MOST_SENDERS // 2:
                self._forget_idle()

    def watch(self, end: socket.socket, events: int, action: Callable[[int], object]) -> None:
        self._ready[end.fileno()] = action
        self._wanted[end.fileno()] = 0
        self.change(end, events)

    def change(self, end: socket.socket, events: int) -> None:
        """Nothing wanted is not to be told of its end either: that could not be acted upon, and would be told again and again."""
        fd = end.fileno()
        before, self._wanted[fd] = self._wanted[fd], events
        if before == events:
            return
        if not before:
            self._poll.register(fd, events)
        elif events:
            self._poll.modify(fd, events)
        else:
            self._poll.unregister(fd)

    def drop(self, end: socket.socket) -> None:
        if end.fileno() >= 0:
            self.change(end, 0)
            del self._ready[end.fileno()], self._wanted[end.fileno()]
            end.close()

    def _acceptor(self, listener: socket.socket, target: tuple[str, int]) -> Callable[[int], None]:
        def accept(_: int) -> None:
            try:
                client, _ = listener.accept()
            except OSError:  # gone again, or no descriptor left
                return
            client.setblocking(False)
            server = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            try:
                server.connect(target)
            except BlockingIOError:
                pass  # on its way
            except OSError:
                client.close()
                server.close()
                return
            _Connection(self, client, server)

        return accept

    def _receiver(self, listener: socket.socket, target: tuple[str, int]) -> Callable[[int], None]:
        def receive(_: int) -> None:
            try:
                data, sender = listener.recvfrom(65536)
            except OSError:
                return
            key = (listener.fileno(), sender)
            if key not in self._senders:
                if len(self._senders) >= _MOST_SENDERS:
                    return  # a datagram may be lost
                self._senders[key] = _Sender(self, listener, sender, target)
            self._senders[key].send(data)

        return receive

    def _forget_idle(self) -> None:
        now = time.monotonic()
        for key, sender in list(self._senders.items()):
            if now - sender.last > _IDLE:
                self.drop(sender.end)
                del self._senders[key]


class _Sender:
    """Whoever sends datagrams, and the socket that takes the answers to them."""

    def __init__(self, proxy: _Proxy, listener: socket.socket, sender: Any, target: tuple[str, int]) -> None:
        self.end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self.end.connect(target)
        self.last = time.monotonic()
        self._listener, self._sender = listener, sender
        proxy.watch(self.end, select.EPOLLIN, self._answer)

    def send(self, data: bytes) -> None:
        self.last = time.monotonic()
        try:
            self.end.send(data)
        except OSError:
            return  # nobody listens

    def _answer(self, _: int) -> None:
        try:
            self._listener.sendto(self.end.recv(65536), self._sender)
        except OSError:
            return


class _Connection:
    """Two sockets, and a flow each way between them."""

    def __init__(self, proxy: _Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._ends = (client, server)
        self._flows = (_Flow(client, server), _Flow(server, client))  # by who sends
        self._connecting = True
        proxy.watch(client, 0, lambda events: self._serve(0, events))
        proxy.watch(server, select.EPOLLOUT, lambda events: self._serve(1, events))

    def _serve(self, side: int, events: int) -> None:
        try:
            if self._connecting and side == 1:
                if error := self._ends[1].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(error, os.strerror(error))
                self._connecting = False
            if events & select.EPOLLOUT:
                self._flows[1 - side].move()
            if events & (select.EPOLLIN | select.EPOLLHUP):
                self._flows[side].move()
            if events & select.EPOLLERR:
                raise ConnectionResetError
        except OSError:
            self._close()
            return
        if any(flow.is_open or flow.held for flow in self._flows):
            self._wait()
        else:
            self._close()

    def _wait(self) -> None:
        if self._connecting:
            return
        for side in (0, 1):
            events = select.EPOLLOUT if self._flows[1 - side].held else 0
            if self._flows[side].is_open and not self._flows[side].held:
                events |= select.EPOLLIN
            self._proxy.change(self._ends[side], events)

    def _close(self) -> None:
        for end in self._ends:
            self._proxy.drop(end)
        for flow in self._flows:
            flow.close()


class _Flow:
    """What one end sends and the other takes; `held` bytes are on the way. Little goes through our memory; once more comes than one
    read takes, it goes through a pipe, without being copied (splice(2))."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.is_open = True
        self.held = 0
        self._source, self._sink = source, sink
        self._data = b""
        self._was_all = False
        self._pipe: tuple[int, int] | None = None

    def move(self) -> None:
        """As much as both ends let us now, and not so much that others wait long. OSError when one of them is gone."""
        try:
            for _ in range(_TURNS):
                if self.held:
                    self._write()
                    if self._was_all and not self.held:
                        return
                elif not self.is_open or not self._read():
                    return
        except BlockingIOError:
            return

    def _read(self) -> bool:
        """Whether there was something; else it has ended."""
        if self._pipe is None:
            self._data = self._source.recv(_CHUNK)
            self.held = len(self._data)
            self._was_all = self.held < _CHUNK  # asking for more would most often be in vain
            if not self._was_all:
                self._pipe = _open_pipe()
        else:
            self.held = os.splice(self._source.fileno(), self._pipe[1], _SPLICED, flags=os.SPLICE_F_NONBLOCK)
        if not self.held:
            self.is_open = False
            self._sink.shutdown(socket.SHUT_WR)
        return self.held > 0

    def _write(self) -> None:
        if self._data:
            sent = self._sink.send(self._data)
            self._data = self._data[sent:]
        else:
            assert self._pipe is not None
            sent = os.splice(self._pipe[0], self._sink.fileno(), self.held, flags=os.SPLICE_F_NONBLOCK)
        self.held -= sent

    def close(self) -> None:
        """Its ends have been closed."""
        for fd in self._pipe or ():
            os.close(fd)


def _open_pipe() -> tuple[int, int] | None:
    """One that takes much at once where Linux lets us; None when no descriptor is left: then bytes are copied on."""
    try:
        ends = os.pipe()
    except OSError:
        return None
    try:
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, _SPLICED)
    except OSError:
        return ends  # pipe(7): the user has too many large ones
    return ends
