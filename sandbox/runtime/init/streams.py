"""The supervisor's pump: the program's output to the log file and to an attached client, without ever blocking on either.

The log is docker's json-file format: one JSON object a line with `log`, `stream` and `time`.
"""

from __future__ import annotations

import json
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK = 65536
_ATOMIC = 4096  # PIPE_BUF: poll(2) says writable when this much fits
_LONGEST_LINE = 16384  # docker splits longer lines into several entries


class Log:
    """Appends to a json-file log, one entry a line of output."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  # lives as long as the supervisor
        self._rest = {"stdout": b"", "stderr": b""}

    def write(self, stream: str, data: bytes) -> None:
        """Take bytes of a stream; whole lines are written, the rest waits."""
        lines = (self._rest[stream] + data).split(b"\n")
        self._rest[stream] = lines.pop()
        entries = [line + b"\n" for line in lines]
        while len(self._rest[stream]) >= _LONGEST_LINE:
            entries.append(self._rest[stream][:_LONGEST_LINE])
            self._rest[stream] = self._rest[stream][_LONGEST_LINE:]
        self._append(stream, entries)

    def close(self) -> None:
        """Write what is left without a line end."""
        for stream, rest in self._rest.items():
            if rest:
                self._append(stream, [rest])
        self._file.close()

    def _append(self, stream: str, entries: list[bytes]) -> None:
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now % 10**9:09d}Z"
        # surrogateescape keeps bytes that are no UTF-8: json writes them as lone surrogates, readers turn them back.
        rows = [{"log": e.decode("utf-8", "surrogateescape"), "stream": stream, "time": stamp} for e in entries]
        if rows:
            self._file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


class Pump:
    """One stream: read from `source`, written to the log and, while it lives, to the client's `sink`."""

    def __init__(self, stream: str, source: int, sink: int | None, log: Log | None) -> None:
        self.stream, self.source, self.sink, self._log = stream, source, sink, log
        self._pending = b""
        self.open = True

    @property
    def wants_read(self) -> bool:
        """Whether there is room for more: a slow client slows the program, as a terminal does."""
        return self.open and not self._pending

    @property
    def wants_write(self) -> bool:
        """Whether the client has bytes coming."""
        return bool(self._pending)

    def read(self) -> None:
        """The source is readable."""
        try:
            data = os.read(self.source, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: the last writer of a terminal is gone
            data = b""
        if not data:
            self.open = False
            return
        if self._log:
            self._log.write(self.stream, data)
        if self.sink is not None:
            self._pending = data

    def write(self) -> None:
        """The client's end takes at least one atomic piece."""
        try:
            written = os.write(self.sink, self._pending[:_ATOMIC]) if self.sink is not None else 0
        except OSError:  # the client is gone; the program and its log go on
            self.sink, self._pending = None, b""
            return
        self._pending = self._pending[written:]

    def drain(self, wait_writable: Callable[[int], bool]) -> None:
        """Everything that is left, after the last writer ended; gives up on a client that `wait_writable` calls stuck."""
        os.set_blocking(self.source, False)
        while self._pending or self._more():
            if self._pending and wait_writable(self.sink if self.sink is not None else -1):
                self.write()
            elif self._pending:
                self.sink, self._pending = None, b""

    def _more(self) -> bool:
        """Read one piece; whether there was one."""
        try:
            data = os.read(self.source, _CHUNK)
        except OSError:
            data = b""
        if data and self._log:
            self._log.write(self.stream, data)
        if data and self.sink is not None:
            self._pending = data
        return bool(data)
