"""The supervisor's pumps: the program's output to the log and to whoever is attached; never blocking.

A slow reader slows the program, as a terminal does. One that is gone is dropped; the program and its log go on.
"""

from __future__ import annotations

import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol

    class Log(Protocol):
        """Who keeps what is printed."""

        def write(self, stream: str, data: bytes) -> None:
            """Take bytes of a stream."""

    Interest = tuple[int, int, Callable[[], object]]
    """A descriptor, what to wait for on it (poll(2)), and what to do then."""

_CHUNK = 65536
_ATOMIC = 4096  # PIPE_BUF: poll(2) says writable when this much fits


class Sink:
    """One reader's descriptor and the bytes it has coming."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.pending = b""

    def write(self) -> None:
        """It takes at least one atomic piece."""
        try:
            written = os.write(self.fd, self.pending[:_ATOMIC])
        except BlockingIOError:
            return
        except OSError:  # the reader is gone
            self.fd, self.pending = -1, b""
            return
        self.pending = self.pending[written:]


class Feed:
    """The program's input, where it is ours: what is typed by all that are attached. It never blocks us."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._pending = b""
        self._is_closed = False

    @property
    def is_full(self) -> bool:
        """The program has not taken the last yet: nobody is listened to meanwhile."""
        return bool(self._pending)

    def interests(self) -> Iterator[Interest]:
        """What it waits for now."""
        if self._pending:
            yield self.fd, select.POLLOUT, self._write

    def put(self, data: bytes) -> None:
        """Take what was typed."""
        if not self._is_closed:
            self._pending += data
            self._write()

    def _write(self) -> None:
        try:
            while self._pending:
                self._pending = self._pending[os.write(self.fd, self._pending) :]
        except BlockingIOError:
            return
        except OSError:  # the program reads no more
            self._is_closed, self._pending = True, b""


class Pump:
    """One stream: read from `source`, written to the log and to its sinks."""

    def __init__(self, stream: str, source: int, sinks: list[int], log: Log | None) -> None:
        self.stream, self.source, self._log = stream, source, log
        self.sinks = [Sink(fd) for fd in sinks]
        self.open = True
        self.printed = 0
        """Bytes so far."""

    def interests(self) -> Iterator[Interest]:
        """What it waits for now: more output once everybody has taken the last."""
        waiting = [sink for sink in self.sinks if sink.pending]
        for sink in waiting:
            yield sink.fd, select.POLLOUT, sink.write
        if self.open and not waiting:
            yield self.source, select.POLLIN, self.read

    def read(self) -> None:
        """The source is readable."""
        try:
            data = os.read(self.source, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: the last writer of a terminal is gone
            data = b""
        self._pass_on(data)
        self.open = bool(data)

    def forget(self, fds: set[int]) -> None:
        """Whoever took it there is attached no more."""
        for sink in self.sinks:
            if sink.fd in fds:
                sink.fd, sink.pending = -1, b""

    def drain(self, wait_writable: Callable[[int], bool]) -> None:
        """Everything that is left, after the last writer ended; gives up on a reader that `wait_writable` calls stuck."""
        os.set_blocking(self.source, False)
        while self._empty_sinks(wait_writable) and self._more():
            pass

    def close(self) -> None:
        """The source is read to its end."""
        os.close(self.source)

    def _pass_on(self, data: bytes) -> None:
        self.printed += len(data)
        if data and self._log:
            self._log.write(self.stream, data)
        self.sinks = [sink for sink in self.sinks if sink.fd >= 0]
        for sink in self.sinks:
            sink.pending = data

    def _empty_sinks(self, wait_writable: Callable[[int], bool]) -> bool:
        for sink in self.sinks:
            while sink.pending:
                if wait_writable(sink.fd):
                    sink.write()
                else:
                    sink.fd, sink.pending = -1, b""
        return True

    def _more(self) -> bool:
        """Read one piece; whether there was one."""
        try:
            data = os.read(self.source, _CHUNK)
        except OSError:
            data = b""
        self._pass_on(data)
        return bool(data)
