"""msgspec's decoders, each made when it is first used: a command uses few, and a large type takes a millisecond.

Two threads that use a new type at once crash the process (msgspec 0.19 to 0.20), so one lock is for all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

Made = TypeVar("Made")
_FIRST_USE = threading.Lock()


class Decoder(Generic[Made]):
    """As msgspec.json.Decoder, later."""

    def __init__(self, kind: type[Made]) -> None:
        self._kind = kind
        self._made: msgspec.json.Decoder[Made] | None = None

    def decode(self, raw: bytes) -> Made:
        """The value; raises msgspec.DecodeError."""
        made = self._made
        if made is None:
            with _FIRST_USE:
                made = self._made = self._made or msgspec.json.Decoder(self._kind)
        return made.decode(raw)


class FirstUse:
    """Something that has to be done once, by one thread, before others go on."""

    def __init__(self, do: Callable[[], object]) -> None:
        self._do: Callable[[], object] | None = do

    def __call__(self) -> None:
        """Do it, unless it is done."""
        if self._do is None:
            return
        with _FIRST_USE:
            if self._do is not None:
                self._do()
                self._do = None
