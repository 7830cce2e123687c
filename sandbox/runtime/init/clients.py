"""Who is attached to a running program: whoever started it, and those that came through its door (`attach`)."""

from __future__ import annotations

import functools
import os
import select
import socket
import time

from sandbox.runtime.init import control, link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from sandbox.runtime.init.streams import Interest

    Attach = Callable[["Client", Mapping[str, Any]], object]
    Change = Callable[[Mapping[str, Any]], Mapping[str, Any]]

_STREAMS = ("stdin", "stdout", "stderr")


class DetachKeys:
    """docker's escape sequence in what is typed: what could be its beginning is held back until it is not."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """What is typed for the program, and whether the sequence is complete; what comes after it is lost."""
        if not self._keys:
            return data, False
        passed = b""
        for number in data:
            self._held += bytes([number])
            while not self._keys.startswith(self._held):
                passed, self._held = passed + self._held[:1], self._held[1:]
            if self._held == self._keys:
                return passed, True
        return passed, False


class Client:
    """One that is attached: its connection, and its descriptors as far as they are with us (-1: not)."""

    def __init__(self, end: socket.socket, stdio: Sequence[int], keys: bytes, *, is_starter: bool = False) -> None:
        self.end = end
        self.stdio = list(stdio)
        self.keys = DetachKeys(keys)
        self.is_starter = is_starter

    def tell(self, message: Mapping[str, Any]) -> bool:
        """Send it a message; False: it is gone."""
        try:
            link.send(self.end, message)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def let_go(self, fds: set[int]) -> None:
        """These descriptors of it are closed, or somebody else's now."""
        self.stdio = [-1 if fd in fds else fd for fd in self.stdio]

    def close_keyboard(self) -> None:
        """Nothing more is typed."""
        if self.stdio[0] >= 0:
            os.close(self.stdio[0])
            self.stdio[0] = -1

    def close(self) -> None:
        """It is attached no more."""
        for fd in {fd for fd in self.stdio if fd >= 0}:
            os.close(fd)
        self.stdio = [-1] * len(self.stdio)
        self.end.close()


class Door:
    """Where others come to a container while it has a supervisor: to attach, to change its networks, or to say that the next end is
    the last."""

    def __init__(self, directory: str) -> None:
        self._listener = control.listen(directory)
        self._visitors: set[socket.socket] = set()
        self.is_stopped = False
        """Somebody wants it stopped for good."""

    def interests(self, attach: Attach, change: Change) -> Iterator[Interest]:
        """What to wait for; `attach` gets who asks for that, and with what words; `change` a wish for another network."""
        yield self._listener.fileno(), select.POLLIN, self._open
        for visitor in self._visitors:
            yield visitor.fileno(), select.POLLIN, functools.partial(self._hear, visitor, attach, change)

    def wait(self, seconds: float) -> None:
        """Between two runs: until somebody wants it stopped, or the time is over. Nobody can attach."""
        end = time.monotonic() + seconds
        while not self.is_stopped:
            poll = select.poll()
            watched = {}
            for fd, events, ready in self.interests(_turn_away, _refuse):
                watched[fd] = ready
                poll.register(fd, events)
            found = poll.poll(max(0.0, end - time.monotonic()) * 1000)
            for fd, _ in found:
                watched[fd]()
            if not found:
                return

    def _open(self) -> None:
        try:
            visitor, _ = self._listener.accept()
        except BlockingIOError:
            return
        self._visitors.add(visitor)

    def _hear(self, visitor: socket.socket, attach: Attach, change: Change) -> None:
        self._visitors.discard(visitor)
        message, fds = link.receive(visitor)
        if message is not None and message["ask"] == "attach":
            given = dict(zip(message["streams"], fds, strict=True))
            attach(Client(visitor, [given.get(name, -1) for name in _STREAMS], bytes.fromhex(message["keys"])), message)
            return
        if message is not None and message["ask"] == "stop":
            self.is_stopped = True
        if message is not None and message["ask"] in ("connect", "disconnect"):
            try:
                link.send(visitor, change(message))
            except BrokenPipeError:
                pass  # it did not wait
        for fd in fds:
            os.close(fd)
        visitor.close()


def _turn_away(client: Client, _: Mapping[str, Any]) -> None:
    client.tell({"event": "refused", "code": 125, "message": "is restarting: wait until it runs", "step": "attach", "errno": None})
    client.close()


def _refuse(_: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"event": "refused", "message": "is restarting: wait until it runs", "errno": None}
