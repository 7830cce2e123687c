"""Frames between the runner and the host: two lengths (JSON, then raw buffers), the JSON, the buffers."""

import json
import os
import signal
import struct
import threading
from collections import deque

HEADER = struct.Struct("!IQ")
LARGEST_JSON = 64 << 20
LARGEST_BUFFERS = 4 << 30
_MAPPED = 1 << 20


def pack(message, buffers=()):
    """A frame's beginning; the buffers follow it as they are."""
    views = [memoryview(each).cast("B") for each in buffers]
    text = json.dumps(dict(message, buffers=[len(each) for each in views])).encode()
    return HEADER.pack(len(text), sum(map(len, views))) + text, views


class Channel:
    """The runner's end: frames out under a lock, frames in through a thread, which also acts on an interrupt at once."""

    def __init__(self, end):
        self._end = end
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._frames = deque()
        self._arrived = threading.Semaphore(0)
        self._asking = threading.RLock()
        self._asked = 0
        self._sending = self._interrupted = False
        threading.Thread(target=self._read, name="sandbox-channel", daemon=True).start()

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
        while True:
            message, buffers = self._next()
            if message["op"] != "answer":  # the answer to a question that was interrupted
                return message, buffers

    def ask(self, message):
        """Send one frame and wait for the answer to it."""
        with self._asking:
            self._asked += 1
            self.send(dict(message, id=self._asked))
            while True:
                answer, _ = self._next()
                if answer.get("id") == self._asked:
                    return answer

    def _next(self):
        self._arrived.acquire()
        frame = self._frames.popleft()
        if frame is None:
            os._exit(0)
        return frame

    def _read(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # it is the main thread's, which it has to wake
        try:
            while True:
                message, buffers = self._read_frame()
                if message["op"] == "interrupt":
                    os.killpg(os.getpgrp(), signal.SIGINT)  # as a terminal does: children too
                else:
                    self._put((message, buffers))
        except (EOFError, OSError):
            self._put(None)

    def _put(self, frame):
        self._frames.append(frame)
        self._arrived.release()

    def _read_frame(self):
        text_size, buffer_size = HEADER.unpack(self._read_exactly(HEADER.size))
        message = json.loads(bytes(self._read_exactly(text_size)).decode())
        rest = memoryview(self._read_exactly(buffer_size))
        return message, split_buffers(message, rest)

    def _read_exactly(self, size):
        data = bytearray(size) if size < _MAPPED else _mapped(size)
        view = memoryview(data)
        while view:
            count = os.readv(self._end, [view])
            if not count:
                raise EOFError
            view = view[count:]
        return data


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
