"""An interrupt that waits a moment: half a message must not be left behind, sent or received."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class Interrupts:
    """While its block runs, SIGINT that comes within a `with interrupts.held:` waits for the end of that. Python calls signal handlers in
    the main thread alone (signal, "Execution of Python signal handlers"), so in another there is nothing to do."""

    def __init__(self) -> None:
        self.held = Held(self)
        self.came = False
        self.is_holding = False
        self._handler: Any = None  # Any: as in the standard library

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread() and callable(handler := signal.getsignal(signal.SIGINT)):
            self._handler = handler
            signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.is_holding:
            self.came = True
        else:
            self._handler(number, frame)

    def let_go(self) -> None:
        """What came meanwhile is taken now."""
        self.is_holding = False
        if self.came:
            self.came = False
            self._handler(signal.SIGINT, None)


class Held:
    """A context manager that is made once: entering and leaving it costs nothing to speak of."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts

    def __enter__(self) -> None:
        self._interrupts.is_holding = True

    def __exit__(self, *exc: object) -> None:
        self._interrupts.let_go()
