"""The terminal this command runs in, on behalf of a program in a container: raw keys, window size, signals."""

from __future__ import annotations

import os
import signal
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, Self

import msgspec

from sandbox.cli.formatting import is_taken
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


class Stdio(msgspec.Struct, frozen=True):
    """What a program's 0, 1 and 2 are here. Files and pipes are handed over as they are, so that bytes take no detour.
    A terminal is not, unless the program gets one of its own (-t): it could read our keys from any of the three."""

    streams: Streams

    @classmethod
    @contextmanager
    def of(cls, options: RunOptions) -> Iterator[Stdio]:
        """For a program run with these options."""
        from sandbox.engine import Streams

        with ExitStack() as opened:
            if options.tty and not is_taken():
                if options.interactive:  # before the program starts: going raw throws away what was typed before
                    opened.enter_context(raw_keys(0))
                yield cls(Streams(stdin=0 if options.interactive else None, stdout=1, stderr=1, window=window_size(1)))
                return
            stdin = opened.enter_context(typed_input()) if options.interactive and os.isatty(0) else 0
            yield cls(Streams(stdin=stdin if options.interactive else None, stdout=_unless_terminal(1), stderr=_unless_terminal(2)))


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
    """A pipe that gets what is typed here, until Ctrl-D."""
    read_end, write_end = os.pipe()

    def copy() -> None:
        try:
            while data := os.read(0, 65536):
                os.write(write_end, data)
        except BrokenPipeError:
            pass  # the program does not read any more
        finally:
            os.close(write_end)

    threading.Thread(target=copy, daemon=True, name="typed input").start()
    try:
        yield read_end
    finally:
        os.close(read_end)


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
    """While entered, signals to this process go to the program. Entered before the program is started: it may be ready, and
    say so, before its start has returned here; what comes meanwhile is passed on then, and a second signal ends the wait."""

    def __init__(self) -> None:
        self.passed: list[int] = []
        self._program: Attached | None = None
        self._before: dict[int, Handler] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._forward) for number in FORWARDED}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def to(self, program: Attached) -> None:
        """From now on to this program; also what has come already."""
        self._program = program
        for number in self.passed:
            program.signal(number)

    def _forward(self, number: int, _: FrameType | None) -> None:
        if self._program is None and self.passed:
            raise KeyboardInterrupt
        self.passed.append(number)
        if self._program is not None:
            self._program.signal(number)


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
