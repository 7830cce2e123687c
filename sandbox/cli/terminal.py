"""The terminal this command runs in, on behalf of a program in a container: raw keys, window size, signals."""

from __future__ import annotations

import os
import signal
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
"""What `run` passes on to the program, as docker's --sig-proxy does."""


class Attached(Protocol):
    """A running program that takes signals and a window size."""

    def signal(self, number: int) -> None:
        """Send it a signal."""

    def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal its size."""


@contextmanager
def raw_keys(fd: int) -> Iterator[None]:
    """Each key goes through as it is: Ctrl-C is the program's. The terminal is given back as it was."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextmanager
def forwarded_signals(program: Attached) -> Iterator[list[int]]:
    """While entered, signals to this process go to the program; the list says which did."""
    passed: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        passed.append(number)
        program.signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield passed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
