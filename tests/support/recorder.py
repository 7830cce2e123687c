"""A front end that writes down what a session gives it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class Recorder:
    """`events`: what it was given, in order; `first` is set by the first output; `answers` are given to questions."""

    def __init__(self, answers: tuple[str, ...] = ()) -> None:
        self.events: list[tuple[str, Any]] = []
        self.first = threading.Event()
        self._answers = list(answers)

    def write(self, stream: str, data: bytes) -> None:
        self.first.set()
        if self.events and self.events[-1][0] == stream:
            self.events[-1] = (stream, self.events[-1][1] + data.decode(errors="replace"))
        else:
            self.events.append((stream, data.decode(errors="replace")))

    def display(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        self.events.append(("display", data))

    show_result = display

    def display_as(self, data: dict[str, Any], metadata: dict[str, Any], display_id: str, *, update: bool) -> None:
        self.events.append(("display as", (data, display_id, update)))

    def clear(self, *, wait: bool) -> None:
        self.events.append(("clear", wait))

    def ask(self, prompt: str, password: bool) -> str | None:
        self.events.append(("ask", (prompt, password)))
        return self._answers.pop(0) if self._answers else None

    def text(self, stream: str) -> str:
        """All it was given of a stream."""
        return "".join(text for name, text in self.events if name == stream)


@contextmanager
def interrupted_at_first(front: Recorder) -> Iterator[None]:
    """Ctrl-C is pressed when the block's cell has printed something; the block must end by that."""

    def interrupt() -> None:
        front.first.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    waiting = threading.Thread(target=interrupt)
    waiting.start()
    with pytest.raises(KeyboardInterrupt):
        yield
    waiting.join()
