"""The host's end of a runner's socket. Whatever comes from there is checked: it may be written by anyone inside the container."""

from __future__ import annotations

import json
import mmap
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any  # frames are JSON

from sandbox.session.inside.sandbox_runner.frames import HEADER, LARGEST_BUFFERS, LARGEST_JSON, split_buffers
from sandbox.session.interrupts import Interrupts
from sandbox.session.runners import Encode, as_frame

Frame = dict[str, Any]
OnFrame = Callable[[Frame, list[memoryview]], object]
_CHUNK = 1 << 20
_LARGEST_UNASKED = 64 << 20
"""Bytes beside the JSON of a frame when no values were asked for."""
_PATIENCE, _PATIENCE_WITH_BUFFERS = 2.0, 30.0
"""Seconds in which a runner has to take a byte of what it is sent: a message by itself finds room in the socket, unless nobody
ever read the ones before."""
_LOOK = 0.1
"""Seconds between two looks whether the one who waits was interrupted."""


class _Large:
    """A frame whose buffers are read straight to where they stay. Its memory is mapped, and so costs nothing before it arrives:
    a size announced by a liar takes no memory."""

    def __init__(self, message: Frame | None, size: int, begun: memoryview) -> None:
        self.message = message
        self.buffers = memoryview(mmap.mmap(-1, size))
        self._filled = len(begun)
        self.buffers[: self._filled] = begun

    @property
    def is_whole(self) -> bool:
        """Whether all of it is there."""
        return self._filled == len(self.buffers)

    def receive(self, end: socket.socket) -> int:
        """Take in what has come; the number of its bytes, 0 at the end of the file."""
        count = end.recv_into(self.buffers[self._filled :], 0, socket.MSG_DONTWAIT)
        self._filled += count
        return count


class Channel:
    """Frames to and from one runner. `broken` says why nothing more will come: the end of the file, or rubbish."""

    def __init__(self, end: socket.socket, on_frame: OnFrame, encode: Encode = as_frame) -> None:
        self._end = end
        self._on_frame = on_frame
        self._encode = encode
        self.interrupts = Interrupts()
        """Of whoever runs a cell."""
        self._data = bytearray()
        self._taken = 0
        """Bytes at the beginning of the data that belong to frames which were passed on."""
        self._large: _Large | None = None
        self.takes_values = False
        """Whether values of any size may come."""
        self.broken = ""

    def fileno(self) -> int:
        """What to wait on."""
        return self._end.fileno()

    def close(self) -> None:
        """The runner ends when it sees this."""
        self._end.close()
        self.broken = self.broken or "closed"

    def send(self, message: Mapping[str, Any], buffers: Sequence[bytes | memoryview] = ()) -> None:
        """Send one message; that the runner is gone, or does not listen, is no error here: its container's end tells why."""
        if self.broken:
            return
        try:
            with self.interrupts.held:
                for piece in self._encode(message, buffers):
                    self._send(memoryview(piece).cast("B"), _PATIENCE_WITH_BUFFERS if buffers else _PATIENCE)
        except (BrokenPipeError, ConnectionResetError):
            self.broken = self.broken or "the interpreter is gone"
        except TimeoutError:
            self.broken = self.broken or "the interpreter does not listen"

    def _send(self, data: memoryview, patience: float) -> None:
        """All of it; TimeoutError when nothing of it is taken for so long. An interrupt waits for the end of the message, but not for
        somebody who takes nothing."""
        free = select.poll()
        free.register(self._end, select.POLLOUT)
        blocked = None
        while data and not self.broken:
            try:
                data = data[self._end.send(data, socket.MSG_DONTWAIT) :]
                blocked = None
            except BlockingIOError:
                blocked = blocked or time.monotonic()
                if self.interrupts.came:
                    self.broken = "interrupted in the middle of what it was sent"
                elif not free.poll(_LOOK * 1000) and time.monotonic() >= blocked + patience:
                    raise TimeoutError from None

    def read(self) -> None:
        """The socket is readable: take what there is, and pass on every frame that is whole."""
        try:
            with self.interrupts.held:
                received = self._large.receive(self._end) if self._large else self._receive()
        except BlockingIOError:
            return
        except ConnectionResetError:
            received = 0
        if not received:
            self.broken = self.broken or "the interpreter closed its end"
            return
        while not self.broken and self._take_frame():
            continue
        del self._data[: self._taken]
        self._taken = 0

    def _receive(self) -> int:
        data = self._end.recv(_CHUNK, socket.MSG_DONTWAIT)
        self._data += data
        return len(data)

    def _take_frame(self) -> bool:
        """Pass on the first frame, when it is whole."""
        if self._large is not None:
            return self._take_large(self._large)
        with memoryview(self._data) as data:
            message, rest, size = self._cut(data)
        if size is None:
            return False
        if len(rest) < size:
            self._large = _Large(message, size, rest)
            return False
        return self._pass_on(message, rest)

    def _cut(self, data: memoryview) -> tuple[Frame | None, memoryview, int | None]:
        """The first frame's message, what is there of its buffers, and their size; None for that when it is not there."""
        nothing = (None, memoryview(b""), None)
        head = self._taken + HEADER.size
        if len(data) < head:
            return nothing
        text_size, buffer_size = HEADER.unpack_from(data, self._taken)
        if text_size > LARGEST_JSON or buffer_size > (LARGEST_BUFFERS if self.takes_values else _LARGEST_UNASKED):
            self.broken = "a frame larger than allowed"
            return nothing
        body, whole = head + text_size, head + text_size + buffer_size
        if len(data) < (body if buffer_size > _CHUNK else whole):
            return nothing
        self._taken = min(whole, len(data))
        return _parse(bytes(data[head:body])), memoryview(bytes(data[body:whole])), buffer_size

    def _take_large(self, large: _Large) -> bool:
        if not large.is_whole:
            return False
        self._large = None
        return self._pass_on(large.message, large.buffers)

    def _pass_on(self, message: Frame | None, data: memoryview) -> bool:
        buffers = _split(message, data)
        if message is None or buffers is None:
            self.broken = "rubbish instead of a frame"
            return False
        self._on_frame(message, buffers)
        return True


def _parse(text: bytes) -> Frame | None:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and isinstance(message.get("op"), str) else None


def _split(message: Frame | None, data: memoryview) -> list[memoryview] | None:
    sizes = message.get("buffers", []) if message else None
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes) or sum(sizes) != len(data):
        return None
    return list(split_buffers(message, data))
