"""The terminal this command runs in, on behalf of a program in a container: raw keys, window size, signals."""

from __future__ import annotations

import os
import select
import signal
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, Self

import msgspec

from sandbox.cli.caller import is_taken
from sandbox.errors import InvalidOption
from sandbox.options import RunOptions

if TYPE_CHECKING:
    from sandbox.engine import Streams

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
"""What `run` passes on to the program, as docker's --sig-proxy does."""


Handler = Callable[[int, FrameType | None], Any] | int | None  # Any: as in the standard library


class Attached(Protocol):
    """A running program that takes signals and a window size."""

    def signal(self, number: int) -> None:
        """Send it a signal."""

    def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal its size."""

    def detach(self) -> None:
        """Leave it running."""


class Manner(msgspec.Struct, frozen=True):
    """How one is attached. `detach_keys`: what is typed on a terminal to leave; `sig_proxy`: signals to us go to the program."""

    detach_keys: bytes = b"\x10\x11"
    sig_proxy: bool = True


ATTACHED = Manner()
"""As nobody asked for anything else."""


def parse_detach_keys(text: str) -> bytes:
    """docker's `ctrl-p,ctrl-q`: single characters, DEL, or ctrl- with a letter or one of @ [ \\ ] ^ _."""
    return b"".join(_key(key, text) for key in text.split(",")) if text else ATTACHED.detach_keys


def _key(key: str, text: str) -> bytes:
    if len(key) == 1 and key.isascii():
        return key.encode()
    if key.upper() == "DEL":
        return b"\x7f"
    prefix, _, letter = key.lower().partition("-")
    if prefix != "ctrl" or len(letter) != 1 or not "@" <= letter.upper() <= "_":
        hint = "write single characters or ctrl-x, with commas between them, as in ctrl-p,ctrl-q"
        raise InvalidOption(f"--detach-keys {text!r}: {key!r} is no key", hint=hint)
    return bytes([ord(letter.upper()) - ord("@")])


class Stdio(msgspec.Struct, frozen=True):
    """What a program's 0, 1 and 2 are here. Files and pipes are handed over as they are, so that bytes take no detour.
    A terminal is not, unless the program gets one of its own (-t): it could read our keys from any of the three."""

    streams: Streams

    @classmethod
    @contextmanager
    def of(cls, options: RunOptions, manner: Manner = ATTACHED) -> Iterator[Stdio]:
        """For a program run with these options."""
        from sandbox.engine import Streams

        with ExitStack() as opened:
            if options.tty and (not is_taken() or (os.isatty(0) and os.isatty(1))):  # IPython in a terminal can lend it
                if options.interactive:  # before the program starts: going raw throws away what was typed before
                    opened.enter_context(raw_keys(0))
                stdin = 0 if options.interactive else None
                keys = manner.detach_keys if options.interactive else b""
                yield cls(Streams(stdin, 1, 1, window=window_size(1), detach_keys=keys))
                return
            stdin = 0 if options.interactive else None
            if options.interactive and os.isatty(0):
                stdin = opened.enter_context(typed_input())
            yield cls(Streams(stdin, _unless_terminal(1), _unless_terminal(2), may_leave=not manner.sig_proxy))


def window_size(fd: int) -> tuple[int, int] | None:
    """Rows and columns of a terminal; None when it is none."""
    if not os.isatty(fd):
        return None
    columns, rows = os.get_terminal_size(fd)
    return rows, columns


def _unless_terminal(fd: int) -> int | None:
    """None makes the runtime read a pipe, whose bytes `attach` then writes: to a terminal, or a caller in this process."""
    return None if is_taken() or os.isatty(fd) else fd


@contextmanager
def typed_input() -> Iterator[int]:
    """A pipe that gets what is typed here, until Ctrl-D or the end of the program: what is typed later is not for it."""
    read_end, write_end = os.pipe()
    stop, stopping = os.pipe()
    waiting = select.poll()
    waiting.register(0, select.POLLIN)
    waiting.register(stop, 0)

    def copy() -> None:
        try:
            while all(fd == 0 for fd, _ in waiting.poll()) and (data := os.read(0, 65536)):
                os.write(write_end, data)
        except BrokenPipeError:
            pass  # the program does not read any more
        finally:
            os.close(write_end)

    thread = threading.Thread(target=copy, daemon=True, name="typed input")
    thread.start()
    try:
        yield read_end
    finally:
        os.close(read_end)
        os.close(stopping)
        thread.join()
        os.close(stop)


@contextmanager
def raw_keys(fd: int) -> Iterator[None]:
    """Each key goes through as it is: Ctrl-C is the program's. The terminal is given back as it was."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class SignalProxy:
    """While entered, signals to this process go to the program; if it is not `is_on`, Ctrl-C leaves the program running. Entered before
    the program is started: it may be ready, and say so, before its start has returned here; what comes meanwhile is passed on then, and
    a second signal ends the wait."""

    def __init__(self, *, is_on: bool = True) -> None:
        self._is_on = is_on
        self.passed: list[int] = []
        self._program: Attached | None = None
        self._before: dict[int, Handler] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._forward) for number in (FORWARDED if self._is_on else (signal.SIGINT,))}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def to(self, program: Attached) -> None:
        """From now on to this program; also what has come already."""
        self._program = program
        for number in self.passed:
            self._pass(program, number)

    def _forward(self, number: int, _: FrameType | None) -> None:
        if self._program is None and self.passed:
            raise KeyboardInterrupt
        self.passed.append(number)
        if self._program is not None:
            self._pass(self._program, number)

    def _pass(self, program: Attached, number: int) -> None:
        if self._is_on:
            program.signal(number)
        else:
            program.detach()


@contextmanager
def followed_window(program: Attached, fd: int) -> Iterator[None]:
    """The program's terminal has this one's size, now and whenever it changes."""

    def follow(_: int, __: FrameType | None) -> None:
        columns, rows = os.get_terminal_size(fd)
        program.resize(rows, columns)

    before = signal.signal(signal.SIGWINCH, follow)
    follow(signal.SIGWINCH, None)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
