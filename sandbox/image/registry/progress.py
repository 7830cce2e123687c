"""What a transfer tells while it runs: typed events, told one after the other, whatever thread they come from."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

import msgspec

Phase = Literal["waiting", "present", "downloading", "extracting", "packing", "uploading", "mounted", "done"]


class TransferStarted(msgspec.Struct, frozen=True):
    """What goes where is known. `blobs`: (digest, bytes) of every layer, in order; bytes are 0 when not known yet."""

    verb: Literal["pull", "push", "copy"]
    name: str
    blobs: tuple[tuple[str, int], ...]


class BlobProgress(msgspec.Struct, frozen=True):
    """One layer: `done` of `total` bytes in this phase."""

    digest: str
    phase: Phase
    done: int
    total: int


class TransferWarning(msgspec.Struct, frozen=True):
    """Something its user should know; the transfer goes on."""

    message: str


class TransferDone(msgspec.Struct, frozen=True):
    """It is complete. `moved`: bytes that went over the wire; `limit`: (limit, remaining) as the registry's rate-limit headers say."""

    digest: str
    moved: int
    seconds: float
    limit: tuple[str, str] | None = None


TransferEvent = TransferStarted | BlobProgress | TransferWarning | TransferDone
OnTransfer = Callable[[TransferEvent], None]


class Teller:
    """Passes events on one at a time, and counts the bytes that moved."""

    def __init__(self, on_event: OnTransfer) -> None:
        self._on_event = on_event
        self._lock = threading.Lock()
        self.moved = 0

    def __call__(self, event: TransferEvent) -> None:
        """Called from any thread."""
        with self._lock:
            self._on_event(event)

    def count(self, size: int) -> None:
        """So many bytes went over the wire."""
        with self._lock:
            self.moved += size


class Stride:
    """How many bytes to move before one tells of it: as many as go in a tenth of a second, at most `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._since = time.monotonic()
        self.size = min(most, _LEAST_STRIDE)

    def begin(self) -> None:
        """They begin to move."""
        self._since = time.monotonic()

    def end(self) -> None:
        """They have moved."""
        took = time.monotonic() - self._since
        if took < _STRIDE_SECONDS / 2:
            self.size = min(self._most, self.size * 2)
        elif took > _STRIDE_SECONDS * 2:
            self.size = max(_LEAST_STRIDE, self.size // 2)


_LEAST_STRIDE, _STRIDE_SECONDS = 1 << 16, 0.1


def ignore(event: TransferEvent) -> None:
    """Nobody wants to know."""
