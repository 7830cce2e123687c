"""A program in a container as its caller holds it: `Streams` says what its 0, 1 and 2 are, `Running` that it is attached to it."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import termios
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import IO, Any, Literal, Self  # Any: reports are JSON

import msgspec
from msgspec.structs import replace

from sandbox.errors import SetupFailed
from sandbox.runtime.ending import completed, raise_refused
from sandbox.runtime.init import link, procs
from sandbox.runtime.spec import Completed, Limits

Stream = Literal["stdout", "stderr"]
OnOutput = Callable[[Stream, bytes], None]

_CHUNK = 65536
_LONGEST_WAIT = 1.0
"""Seconds. A SIGINT that comes just before poll(2) sleeps does not wake it (signal-safety of CPython): Python looks at least this often."""
_OVERRUN = 0.5
"""Seconds after the time is up in which bytes that have come are still taken."""
_ESCALATION = ((signal.SIGINT, 2.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, 10.0))
"""What an interrupt sends, and how many seconds it waits before the next."""


class Streams(msgspec.Struct, frozen=True):
    """What a program's 0, 1 and 2 are connected to. None: /dev/null for stdin, a pipe that is read for the others.
    `window`: rows and columns its terminal, if it gets one, has from the start. `channel`: what its descriptor 3 is; none without.
    `detach_keys`: typed on a terminal, they end the attachment and not the program; empty: nothing does. `may_leave`: `detach` is
    possible; without it a program that nobody else hears writes into the descriptors themselves."""

    stdin: int | bytes | IO[bytes] | None = None
    stdout: int | None = None
    stderr: int | None = None
    window: tuple[int, int] | None = None
    channel: int | None = None
    detach_keys: bytes = b""
    may_leave: bool = False


class Wiring:
    """Pipes between the caller and the program."""

    def __init__(self, streams: Streams, opened: ExitStack) -> None:
        self.theirs: list[int] = []
        self._close: list[int] = []
        self.feed: bytes | None = None
        self.stdin = -1
        self.outputs: dict[int, Stream] = {}
        opened.callback(self.close)
        self._wire_stdin(streams.stdin)
        self._wire_output("stdout", streams.stdout)
        self._wire_output("stderr", streams.stderr)
        self.theirs += [] if streams.channel is None else [streams.channel]

    def _wire_stdin(self, stdin: int | bytes | IO[bytes] | None) -> None:
        if isinstance(stdin, int):
            self.theirs.append(stdin)
        elif stdin is None:
            self.theirs.append(self._keep(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)))
        elif isinstance(stdin, bytes):
            read_end, self.stdin = os.pipe()
            os.set_blocking(self.stdin, False)
            self.theirs.append(self._keep(read_end))
            self.feed = stdin
        else:
            self.theirs.append(stdin.fileno())

    def _wire_output(self, name: Stream, fd: int | None) -> None:
        if fd is not None:
            self.theirs.append(fd)
            return
        read_end, write_end = os.pipe()
        self.outputs[read_end] = name
        self.theirs.append(self._keep(write_end))

    def _keep(self, fd: int) -> int:
        self._close.append(fd)
        return fd

    def close_theirs(self) -> None:
        """The program has its ends now; ours of them would keep the pipes open for ever."""
        while self._close:
            os.close(self._close.pop())

    def write_stdin(self) -> None:
        """One piece of stdin; closes it after the last, or when the program stopped reading."""
        assert self.feed is not None
        try:
            written = os.write(self.stdin, self.feed[:_CHUNK])
        except BlockingIOError:
            return
        except BrokenPipeError:
            written = len(self.feed)
        self.feed = self.feed[written:]
        if not self.feed:
            self.close_stdin()

    def close_stdin(self) -> None:
        """No more input."""
        os.close(self.stdin)
        self.stdin = -1

    def close(self) -> None:
        """Close every end of ours."""
        self.close_theirs()
        if self.stdin >= 0:
            self.close_stdin()
        for fd in list(self.outputs):
            os.close(fd)
            del self.outputs[fd]


class Running(msgspec.Struct):
    """A started container or exec that its caller is attached to. Leaving the context ends what still runs."""

    _client: socket.socket
    _wiring: Wiring
    _limits: Limits
    _timeout: float | None
    pid: int = 0
    _result: dict[str, Any] | None = None
    _captured: dict[Stream, list[bytes]] = msgspec.field(default_factory=lambda: {"stdout": [], "stderr": []})
    _attended: dict[int, Callable[[], object]] = msgspec.field(default_factory=dict)
    _is_program: bool = False
    is_guest: bool = False
    """Whether somebody else started it: then it goes on without us."""
    takes_input: bool = True
    """Whether what is given as stdin reaches the program."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def refused(self) -> Completed | None:
        """The result when the program could not be started (126, 127); None when it was."""
        return self._completed() if self._result and self._result["event"] == "refused" else None

    def close(self) -> None:
        """Let go: a container that still runs attached is killed by its supervisor, a detached one goes on."""
        self._client.close()
        self._wiring.close()

    def signal(self, number: int) -> None:
        """Send a signal to the program; nothing happens when it has ended."""
        self._tell({"signal": number})

    def interrupt_group(self) -> None:
        """SIGINT to the program's process group, as a terminal sends it: to the program and what it started. Nothing when it has ended."""
        try:
            os.killpg(self.pid if self._is_program else procs.program_of(self.pid), signal.SIGINT)
        except OSError:
            self.signal(signal.SIGINT)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the program's terminal its size."""
        self._tell({"size": [rows, columns]})

    def detach(self) -> None:
        """Leave: it goes on without us. `wait` then says `detached`."""
        self._tell({"detach": True})

    def _tell(self, message: Mapping[str, Any]) -> None:
        try:
            link.send(self._client, message)
        except (BrokenPipeError, ConnectionResetError):
            return  # it has ended; wait() says how

    def _wait_started(self) -> None:
        message, _ = link.receive(self._client)
        if message is None:
            raise SetupFailed("supervisor: ended before the container started")
        if message["event"] == "started":
            self.pid, self._is_program = int(message["pid"]), bool(message.get("is_program"))
        else:
            self._result = message
            raise_refused(message)

    def wait(self, on_output: OnOutput | None = None) -> Completed:
        """Until the container has ended and nothing of it is left; with output captured unless `on_output` takes it.

        On KeyboardInterrupt the program gets SIGINT, two seconds later SIGTERM, then SIGKILL (nothing when somebody else started it);
        then it is raised again.
        """
        take = on_output or self._capture
        try:
            self._pump(take, None)
        except KeyboardInterrupt:
            if not self.is_guest:
                self._end_interrupted(take)
            raise
        return self._completed()

    @property
    def ended(self) -> bool:
        """Whether its end has been reported, as far as `serve` and `wait` have looked."""
        return self._result is not None

    def attend(self, fd: int, ready: Callable[[], object]) -> None:
        """Call `ready` from `serve` and `wait` whenever `fd` can be read; it calls `unattend` at the end of the file."""
        self._attended[fd] = ready

    def unattend(self, fd: int) -> None:
        """Undo `attend`."""
        self._attended.pop(fd, None)

    def serve(self, on_output: OnOutput, until: Callable[[], bool], *, timeout: float | None = None) -> bool:
        """Move bytes until `until()`; False when the container has ended or the time is up before that."""
        return self._pump(on_output, None if timeout is None else time.monotonic() + timeout, until) and until()

    def drain(self, on_output: OnOutput) -> None:
        """Take what the program has printed until now, and no more: it may print faster than this reads."""
        for fd in list(self._wiring.outputs):
            left = _waiting_in(fd)
            while left > 0:
                left -= self._read_output(fd, on_output)

    def end(self) -> None:
        """Kill it, wait until nothing of it is left, and let go."""
        self._attended.clear()
        if self._result is None:
            self.signal(signal.SIGKILL)
            self._pump(lambda stream, data: None, time.monotonic() + _ESCALATION[-1][1], lambda: self._result is not None)
        self.close()

    def _end_interrupted(self, take: OnOutput) -> None:
        for number, patience in _ESCALATION:
            self.signal(number)
            if self._pump(take, time.monotonic() + patience):
                return

    def _capture(self, stream: Stream, data: bytes) -> None:
        self._captured[stream].append(data)

    def _pump(self, take: OnOutput, deadline: float | None, until: Callable[[], bool] = lambda: False) -> bool:
        """Move bytes until the supervisor has reported the end and the pipes are empty, or `until()`; False when time ran out, also
        when there are always more of them."""
        while (self._result is None or self._wiring.outputs) and not until():
            left = _LONGEST_WAIT if deadline is None else max(0.0, deadline - time.monotonic())
            ready = self._poll().poll(min(left, _LONGEST_WAIT) * 1000)
            for fd, _ in ready:
                self._serve(fd, take)
            if deadline is not None and time.monotonic() >= deadline + (_OVERRUN if ready else 0.0):
                return False
        return True

    def _poll(self) -> select.poll:
        poll = select.poll()
        if self._result is None:
            poll.register(self._client.fileno(), select.POLLIN)
        for fd in (*self._wiring.outputs, *self._attended):
            poll.register(fd, select.POLLIN)
        if self._wiring.stdin >= 0:
            poll.register(self._wiring.stdin, select.POLLOUT)
        return poll

    def _serve(self, fd: int, take: OnOutput) -> None:
        if fd == self._wiring.stdin:
            self._wiring.write_stdin()
        elif fd in self._wiring.outputs:
            self._read_output(fd, take)
        elif fd in self._attended:
            self._attended[fd]()
        elif fd == self._client.fileno() and self._result is None:
            message, _ = link.receive(self._client)
            self._result = message or {"event": "lost"}

    def _read_output(self, fd: int, take: OnOutput) -> int:
        """Pass one piece on; the number of its bytes, and nothing more comes when that is 0."""
        stream = self._wiring.outputs[fd]
        data = os.read(fd, _CHUNK)
        if data:
            take(stream, data)
        else:
            os.close(fd)
            del self._wiring.outputs[fd]
        return len(data)

    def _completed(self) -> Completed:
        assert self._result is not None
        done = completed(self._result, self._limits, self._timeout)
        return replace(done, stdout=b"".join(self._captured["stdout"]), stderr=b"".join(self._captured["stderr"]))


def _waiting_in(fd: int) -> int:
    """The bytes that can be read of a pipe or terminal at once."""
    import struct

    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0])
