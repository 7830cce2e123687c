"""A program's output on its way to the cell: decoded piece by piece, in order, capped in the middle."""

from __future__ import annotations

import codecs
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from magics.display import Bundle, Publish, size_text

Name = Literal["stdout", "stderr"]
_BETWEEN_UPDATES = 0.05
"""Seconds: of faster updates of one display only the last is shown."""


class Area(Protocol):
    """A cell's output area."""

    def write(self, name: Name, text: str) -> None:
        """Text of one stream."""

    def flush(self, name: Name) -> None:
        """What was written stands before what comes next."""

    def show(self, data: Bundle, metadata: Bundle, display_id: str | None = None, *, update: bool = False) -> None:
        """A bundle, or a new one in the place of that id."""

    def clear(self, *, wait: bool) -> None:
        """Take everything away, with `wait` when something new comes."""

    def close(self) -> None:
        """The cell is over."""


class LiveArea:
    """Shows at once; of updates that follow each other quickly the last."""

    def __init__(self, publish: Publish, clear: Callable[[bool], None]) -> None:
        self._publish = publish
        self._clear = clear
        self._late: dict[str, tuple[Bundle, Bundle]] = {}
        self._written: set[Name] = set()
        self._shown: dict[str, float] = {}

    def write(self, name: Name, text: str) -> None:
        """As Area."""
        getattr(sys, name).write(text)
        self._written.add(name)

    def flush(self, name: Name) -> None:
        """As Area. A kernel's streams are flushed by another thread, which takes as long as half a cell: not for nothing."""
        if name in self._written:
            self._written.discard(name)
            getattr(sys, name).flush()

    def show(self, data: Bundle, metadata: Bundle, display_id: str | None = None, *, update: bool = False) -> None:
        """As Area."""
        now = time.monotonic()
        if display_id is not None and update and now - self._shown.get(display_id, 0.0) < _BETWEEN_UPDATES:
            self._late[display_id] = (data, metadata)
            return
        if display_id is not None:
            self._late.pop(display_id, None)
            self._shown[display_id] = now
        self._publish(data, metadata, display_id, update)

    def clear(self, *, wait: bool) -> None:
        """As Area."""
        self._late.clear()
        self._shown.clear()
        self._clear(wait)

    def close(self) -> None:
        """Show the last of the updates that came too quickly."""
        for display_id, (data, metadata) in self._late.items():
            self._publish(data, metadata, display_id, True)
        self._late.clear()


@dataclass
class _Shown:
    """One display as it stands."""

    data: Bundle
    metadata: Bundle
    display_id: str | None


class HeldArea:
    """For front ends without updates: from the first display that may change on, shown at the end as it then stands.

    Before that everything is shown at once, as in a LiveArea: a person, or a grader with a time limit, sees how far a cell got. Not so
    with `may_clear`, for cells that can take away what they have shown: of those too only what stands at the end is shown.
    """

    def __init__(self, live: Area, *, may_clear: bool = False) -> None:
        self._live = live
        self._may_clear = may_clear
        self._held: list[tuple[Name, str] | _Shown] = []

    @property
    def _holds(self) -> bool:
        return self._may_clear or bool(self._held)

    def write(self, name: Name, text: str) -> None:
        """As Area."""
        if self._holds:
            self._held.append((name, text))
        else:
            self._live.write(name, text)

    def flush(self, name: Name) -> None:
        """As Area."""
        if not self._holds:
            self._live.flush(name)

    def show(self, data: Bundle, metadata: Bundle, display_id: str | None = None, *, update: bool = False) -> None:
        """As Area."""
        if update:
            for each in self._held:
                if isinstance(each, _Shown) and each.display_id == display_id:
                    each.data, each.metadata = data, metadata
        elif self._holds or display_id is not None:
            self._held.append(_Shown(data, metadata, display_id))
        else:
            self._live.show(data, metadata)

    def clear(self, *, wait: bool) -> None:
        """As Area."""
        self._held.clear()
        if not self._may_clear:
            self._live.clear(wait=wait)

    def close(self) -> None:
        """As Area."""
        for each in self._held:
            if isinstance(each, _Shown):
                self._live.show(each.data, each.metadata)
            else:
                self._live.write(*each)
                self._live.flush(each[0])
        self._held.clear()


@dataclass
class _Stream:
    """One of stdout and stderr on its way to the cell."""

    keep: bool
    decoder: codecs.IncrementalDecoder
    room: int
    kept: list[bytes] = field(default_factory=list)
    tail: deque[str] = field(default_factory=deque)
    tail_size: int = 0
    dropped: int = 0


class OutputStreams:
    """A program's output on its way to the cell: decoded piece by piece, `\\r` and colours as they are, capped in the middle.

    `keep`: streams that go to a Python variable instead of being shown.
    """

    def __init__(self, area: Area, *, keep: frozenset[str] = frozenset(), limit: int = 1 << 20, tail: int = 16 << 10) -> None:
        new_decoder = codecs.getincrementaldecoder("utf-8")
        self.area = area
        self._streams: dict[Name, _Stream] = {name: _Stream(name in keep, new_decoder("replace"), limit) for name in ("stdout", "stderr")}
        self._limit = limit
        self._tail = tail
        self._last: Name | None = None

    def write(self, stream: Name, data: bytes) -> None:
        """Take one piece in; the engine's on_output."""
        out = self._streams[stream]
        if out.keep:
            out.kept.append(data)
            return
        if self._last not in (None, stream):  # each stream is buffered by itself: their order is kept by flushing
            self.area.flush(self._last)
        self._last = stream
        self._show(stream, out.decoder.decode(data))

    def flush(self) -> None:
        """What was shown so far stands before what is shown otherwise."""
        for name in self._streams:
            self.area.flush(name)

    def clear(self, *, wait: bool) -> None:
        """What was shown is taken away; there is room again."""
        self.area.clear(wait=wait)
        for out in self._streams.values():
            out.room, out.dropped, out.tail_size = self._limit, 0, 0
            out.tail.clear()

    def close(self) -> None:
        """Show what is left: half a character, the note of what was dropped, and the end of what was dropped."""
        for name, out in self._streams.items():
            self._show(name, out.decoder.decode(b"", final=True))
            if out.dropped:
                hidden = out.dropped - out.tail_size
                self.area.write(name, f"\n… {size_text(max(hidden, 0))} more …\n" + "".join(out.tail))
            self.area.flush(name)

    def text(self, stream: Name) -> str:
        """What was kept of the stream."""
        return b"".join(self._streams[stream].kept).decode(errors="replace")

    def _show(self, name: Name, text: str) -> None:
        out = self._streams[name]
        shown, rest = text[: out.room], text[out.room :]
        if shown:
            self.area.write(name, shown)
            out.room -= len(shown)
        if rest:
            out.dropped += len(rest)
            _append_tail(out, rest[-self._tail :], self._tail)


def _append_tail(out: _Stream, text: str, limit: int) -> None:
    out.tail.append(text)
    out.tail_size += len(text)
    while out.tail_size - len(out.tail[0]) >= limit:
        out.tail_size -= len(out.tail.popleft())
