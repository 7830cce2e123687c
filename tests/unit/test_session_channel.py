"""The host's end of a runner's socket, when its user interrupts in the middle of a message."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from sandbox.session.channel import Channel
from sandbox.session.inside.sandbox_runner.frames import pack

MESSAGE = {"op": "answer", "id": 7, "text": "x" * 2000}


class Interrupted(socket.socket):
    """A socket over which a few bytes go at a time, and during whose first transfer Ctrl-C is pressed."""

    pressed = False

    def _press(self) -> None:
        if not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)

    def send(self, data: Any, flags: int = 0) -> int:  # type: ignore[override]
        count = super().send(data[:100], flags)
        self._press()
        return count

    def recv(self, size: int, flags: int = 0) -> bytes:
        data = super().recv(size, flags)
        self._press()
        return data


@pytest.fixture
def ends() -> Iterator[tuple[Interrupted, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with Interrupted(fileno=ours.detach()) as end, theirs:
        yield end, theirs


def whole() -> bytes:
    head, views = pack(MESSAGE, ())
    return bytes(head) + b"".join(map(bytes, views))


def test_an_interrupt_waits_for_the_end_of_the_message(ends: tuple[Interrupted, socket.socket]) -> None:
    channel = Channel(ends[0], lambda *_: None)
    with pytest.raises(KeyboardInterrupt), channel.interrupts:
        channel.send(MESSAGE)
    assert ends[0].pressed and not channel.broken
    assert ends[1].recv(1 << 20) == whole()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_that_does_not_wait_leaves_half_a_message(ends: tuple[Interrupted, socket.socket]) -> None:
    with pytest.raises(KeyboardInterrupt):
        Channel(ends[0], lambda *_: None).send(MESSAGE)  # no cell runs: nobody holds it
    assert 0 < len(ends[1].recv(1 << 20)) < len(whole())


def test_what_was_received_is_kept(ends: tuple[Interrupted, socket.socket]) -> None:
    frames: list[object] = []
    channel = Channel(ends[0], lambda message, _: frames.append(message["text"]))
    ends[1].sendall(whole())
    with pytest.raises(KeyboardInterrupt), channel.interrupts:
        channel.read()
    ends[1].sendall(whole())
    channel.read()
    assert frames == [MESSAGE["text"]] * 2 and not channel.broken


def test_who_takes_nothing_is_not_waited_for(ends: tuple[Interrupted, socket.socket]) -> None:
    channel = Channel(ends[0], lambda *_: None)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), channel.interrupts:
        channel.send(MESSAGE, [bytes(8 << 20)])
    assert channel.broken == "interrupted in the middle of what it was sent"
    assert time.monotonic() - begun < 20, "the patience for whoever is only slow is 30 s"
