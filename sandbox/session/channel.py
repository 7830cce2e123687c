"""The host's end of a runner's socket. Whatever comes from there is checked: it may be written by anyone inside the container."""

from __future__ import annotations

import json
import mmap
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any  # frames are JSON

from sandbox.session.inside.sandbox_runner.frames import HEADER, LARGEST_BUFFERS, LARGEST_JSON, split_buffers
from sandbox.session.runners import Encode, as_frame

Frame = dict[str, Any]
OnFrame = Callable[[Frame, list[memoryview]], object]
_CHUNK = 1 << 20


class _Large:
    """A frame whose buffers are read straight to where they stay. Its memory is mapped, and so costs nothing before it arrives:
    a size announced by a liar takes no memory."""

    def __init__(self, message: Frame, size: int, begun: memoryview) -> None:
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
        self._data = bytearray()
        self._large: _Large | None = None
        self.broken = ""

    def fileno(self) -> int:
        """What to wait on."""
        return self._end.fileno()

    def close(self) -> None:
        """The runner ends when it sees this."""
        self._end.close()
        self.broken = self.broken or "closed"

    def send(self, message: Mapping[str, Any], buffers: Sequence[bytes | memoryview] = ()) -> None:
        """Send one message; that the runner is gone is no error here: its container's end tells why."""
        try:
            for piece in self._encode(message, buffers):
                self._end.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            self.broken = self.broken or "the interpreter is gone"

    def read(self) -> None:
        """The socket is readable: take what there is, and pass on every frame that is whole."""
        try:
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

    def _receive(self) -> int:
        data = self._end.recv(_CHUNK, socket.MSG_DONTWAIT)
        self._data += data
        return len(data)

    def _take_frame(self) -> bool:
        """Pass on the first frame, when it is whole."""
        if self._large is not None:
            return self._take_large(self._large)
        head = HEADER.size
        if len(self._data) < head:
            return False
        text_size, buffer_size = HEADER.unpack_from(self._data)
        if text_size > LARGEST_JSON or buffer_size > LARGEST_BUFFERS:
            self.broken = "a frame larger than allowed"
            return False
        body, whole = head + text_size, head + text_size + buffer_size
        if len(self._data) < (body if buffer_size > _CHUNK else whole):
            return False
        message = _parse(bytes(memoryview(self._data)[head:body]))
        if message is not None and len(self._data) < whole:
            self._large = _Large(message, buffer_size, memoryview(self._data)[body:])
            self._data = bytearray()
            return False
        buffers, self._data = memoryview(self._data)[body:whole], self._data[whole:]
        return self._pass_on(message, buffers)

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
