"""Frames between the runner and the host: two lengths (JSON, then raw buffers), the JSON, the buffers."""

import _thread  # and not threading, signal, json: with what they import they would cost each fresh cell 10 ms
import os
import struct
from _collections import deque

from .jsontext import dumps, loads

try:
    import _signal as signal
except ImportError:  # no CPython
    import signal

HEADER = struct.Struct("!IQ")
LARGEST_JSON = 32 << 20
LARGEST_BUFFERS = 4 << 30
_MAPPED = 1 << 20


def pack(message, buffers=()):
    """A frame's beginning; the buffers follow it as they are."""
    views = [memoryview(each).cast("B") for each in buffers]
    text = dumps(dict(message, buffers=[len(each) for each in views])).encode()
    if len(text) > LARGEST_JSON:
        raise TooLarge
    return HEADER.pack(len(text), sum(map(len, views))) + text, views


class TooLarge(Exception):
    """A message with more text than a frame holds."""


class NotPossible(Exception):
    """An object that cannot travel; the text says why and what else to do."""


class _Waiter:
    """Somebody who waits for an answer."""

    def __init__(self):
        self.answer = None
        self.answered = _thread.allocate_lock()
        self.answered.acquire()


class Channel:
    """The runner's end: frames out under a lock, frames in through a thread, which also acts on an interrupt at once."""

    def __init__(self, end):
        self._end = end
        self._lock = _thread.allocate_lock()
        self._owner = os.getpid()
        self._frames = deque()
        self._arrived = _thread.allocate_lock()
        self._waiting = {}
        self._asked = 0
        self._sending = self._interrupted = self._ended = False
        _thread.start_new_thread(self._read, ())

    @property
    def is_ours(self):
        """Whether this is the runner itself, and not a child it forked, which must stay silent."""
        return os.getpid() == self._owner

    def send(self, message, buffers=()):
        """Send one frame."""
        head, views = pack(message, buffers)
        with self._lock:
            self._sending = True
            try:
                for view in [memoryview(head), *views]:
                    while view:
                        view = view[os.write(self._end, view) :]
            finally:
                self._sending = False
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

    def interrupt(self, number, frame):
        """The handler of SIGINT: half a frame must not be left behind."""
        if self._sending:
            self._interrupted = True
        else:
            raise KeyboardInterrupt

    def receive(self):
        """The next request of the host and its buffers; ends the process when the host is gone."""
        while not self._frames:
            if self._ended:
                os._exit(0)
            self._arrived.acquire()
        return self._frames.popleft()

    def ask(self, message):
        """Send one frame and wait for the answer to it. Any thread may ask, also while others wait."""
        with self._lock:
            self._asked += 1
            number = self._asked
        waiter = self._waiting[number] = _Waiter()
        self.send(dict(message, id=number))
        waiter.answered.acquire()
        if waiter.answer is None:
            os._exit(0)
        return waiter.answer

    def _read(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # it is the main thread's, which it has to wake
        try:
            while True:
                message, buffers = self._read_frame()
                if message["op"] == "interrupt":
                    os.killpg(os.getpgrp(), signal.SIGINT)  # as a terminal does: children too
                elif message["op"] == "answer":
                    self._answer(message)
                else:
                    self._frames.append((message, buffers))
                    self._wake()
        except (EOFError, OSError):
            pass
        finally:
            self._ended = True
            self._wake()
            for waiter in list(self._waiting.values()):
                waiter.answered.release()

    def _answer(self, message):
        waiter = self._waiting.pop(message.get("id"), None)
        if waiter is not None:  # else its question was interrupted
            waiter.answer = message
            waiter.answered.release()

    def _wake(self):
        try:
            self._arrived.release()
        except RuntimeError:  # released already, and not yet looked
            pass

    def _read_frame(self):
        text_size, buffer_size = HEADER.unpack(self._read_exactly(HEADER.size))
        message = loads(bytes(self._read_exactly(text_size)).decode())
        rest = memoryview(self._read_exactly(buffer_size))
        return message, split_buffers(message, rest)

    def _read_exactly(self, size):
        data = bytearray(size) if size < _MAPPED else _mapped(size)
        view = memoryview(data)
        while view:
            count = _read_into(self._end, view)
            if not count:
                raise EOFError
            view = view[count:]
        return data


def _read_into(fd, view):
    """The number of bytes read, 0 at the end of the file."""
    if hasattr(os, "readv"):
        return os.readv(fd, [view])
    data = os.read(fd, min(len(view), 1 << 20))  # PyPy
    view[: len(data)] = data
    return len(data)


def _mapped(size):
    """Memory that is not written with zeros first."""
    import mmap

    return mmap.mmap(-1, size)


def split_buffers(message, data):
    """The buffers a frame announces, cut out of its tail."""
    buffers, place = [], 0
    for size in message.get("buffers", ()):
        buffers.append(data[place : place + size])
        place += size
    return buffers
