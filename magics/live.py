"""An output of a cell that changes while it is worked for."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from uuid import uuid4

from magics.display import Bundle, Publish

Made = tuple[Bundle, Bundle]
"""Data and metadata."""


class LiveOutput:
    """Shows what `make` makes (None: nothing yet), a new output the first time, then in its place: from `start` on at most ten times a
    second, each time after `changed`, and a last time at `stop`."""

    def __init__(self, publish: Publish, make: Callable[[], Made | None], *, interval: float = 0.1) -> None:
        self._publish = publish
        self._make = make
        self._interval = interval
        self._id = uuid4().hex
        self._is_there = False
        self._changed = threading.Event()
        self._ended = threading.Event()
        # The front end finds the cell of an output by a context variable: the thread needs this one's.
        context = contextvars.copy_context()
        self._ticker = threading.Thread(target=context.run, args=(self._tick,), name="live-output", daemon=True)

    def start(self) -> None:
        """Begin to show."""
        self._ticker.start()

    def changed(self) -> None:
        """There is news; called from any thread."""
        self._changed.set()

    def stop(self) -> None:
        """Show how it ended; nothing changes any more."""
        self._ended.set()
        self._ticker.join()
        self._show()

    def _tick(self) -> None:
        while not self._ended.wait(self._interval):
            if self._changed.is_set():
                self._changed.clear()
                self._show()

    def _show(self) -> None:
        if (made := self._make()) is not None:
            self._publish(*made, self._id, self._is_there)
            self._is_there = True
