"""Append-only files of JSON lines: a container's log in docker's json-file format, with rotation."""

from __future__ import annotations

import errno
import json
import os
import time

_LONGEST_LINE = 16384  # docker splits longer lines into several entries
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Log:
    """A json-file log, one entry a line of output. `max_size` bytes (0: no limit) fill a file, then the older ones become
    PATH.1, PATH.2 …; at most `max_file` are kept. A full disk costs lines, never the container; their number is told later."""

    def __init__(self, path: str, max_size: int = 0, max_file: int = 1) -> None:
        self._path, self._max_size, self._max_file = path, max_size, max_file
        self._rest = {"stdout": b"", "stderr": b""}
        self._lost = 0
        self._open()

    def write(self, stream: str, data: bytes) -> None:
        """Take bytes of a stream; whole lines are written, the rest waits."""
        lines = (self._rest[stream] + data).split(b"\n")
        self._rest[stream] = lines.pop()
        entries = [piece for line in lines for piece in _cut(line + b"\n")]
        *whole, self._rest[stream] = _cut(self._rest[stream])
        entries += whole
        self._append(stream, entries)

    def flush(self) -> None:
        """Write what is left without a line end: the program has ended."""
        for stream, rest in self._rest.items():
            if rest:
                self._rest[stream] = b""
                self._append(stream, [rest])

    def close(self) -> None:
        """Nothing more will come."""
        self.flush()
        os.close(self._fd)

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _append(self, stream: str, entries: list[bytes]) -> None:
        stamp = _stamp(time.time_ns())
        if self._lost and entries:
            entries = [f"[{self._lost} lines were lost: no space for the log]\n".encode(), *entries]
        # surrogateescape keeps bytes that are no UTF-8: json writes them as lone surrogates, readers turn them back.
        rows = [json.dumps({"log": e.decode("utf-8", "surrogateescape"), "stream": stream, "time": stamp}) for e in entries]
        for piece in self._pieces(rows):
            self._write(piece)

    def _pieces(self, rows: list[str]) -> list[bytes]:
        """All rows in one piece; row by row where a file may fill up in between."""
        lines = [row.encode() + b"\n" for row in rows]
        return lines if self._max_size else [b"".join(lines)] if lines else []

    def _write(self, data: bytes) -> None:
        if self._max_size and self._size and self._size + len(data) > self._max_size:
            self._rotate()
        try:
            written = os.write(self._fd, data)
        except OSError as err:
            if err.errno not in _NO_SPACE:
                raise
            written = 0
        if written < len(data):  # half an entry would not be JSON
            os.ftruncate(self._fd, self._size)
            self._lost += data.count(b"\n")
            return
        self._size += written
        self._lost = 0

    def _rotate(self) -> None:
        os.close(self._fd)
        if self._max_file == 1:
            os.unlink(self._path)
        for number in range(self._max_file - 1, 0, -1):
            older = f"{self._path}.{number - 1}" if number > 1 else self._path
            if os.path.exists(older):
                os.rename(older, f"{self._path}.{number}")
        self._open()


def _cut(line: bytes) -> list[bytes]:
    """At least one, none longer than an entry may be."""
    return [line[start : start + _LONGEST_LINE] for start in range(0, len(line), _LONGEST_LINE)] or [b""]


def _stamp(nanoseconds: int) -> str:
    """docker's time: RFC 3339 with nanoseconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(nanoseconds // 10**9)) + f".{nanoseconds % 10**9:09d}Z"
