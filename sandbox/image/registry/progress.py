"""What a transfer tells while it runs: typed events, told one after the other, whatever thread they come from."""

from __future__ import annotations

import threading
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


def ignore(event: TransferEvent) -> None:
    """Nobody wants to know."""
