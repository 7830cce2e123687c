"""How a pull or push is shown on stderr: live bars in a terminal, a line a layer in logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TextIO

import msgspec

from sandbox.cli.formatting import short_id, size_text
from sandbox.cli.progress import seconds_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sandbox.image.registry.progress import BlobProgress, TransferEvent

_WORDS = {
    "waiting": "Waiting", "present": "Already exists", "downloading": "Downloading", "extracting": "Extracting", "packing": "Preparing",
    "uploading": "Pushing", "mounted": "Mounted", "done": "Done",
}  # fmt: skip
_VERBS = {"pull": "Pulling", "push": "Pushing", "copy": "Copying"}
_ENDED = ("present", "mounted", "done")
_MOVING = ("downloading", "uploading")
_LAST_SECONDS = 5.0


class Meter(msgspec.Struct):
    """How fast bytes came in the last seconds, and how long the rest will take."""

    clock: Callable[[], float] = time.monotonic
    _seen: list[tuple[float, int]] = msgspec.field(default_factory=list)

    def note(self, total: int) -> None:
        """So many bytes have moved by now."""
        now = self.clock()
        self._seen = [*(entry for entry in self._seen if now - entry[0] < _LAST_SECONDS), (now, total)]

    @property
    def rate(self) -> float:
        """Bytes a second."""
        if len(self._seen) < 2:
            return 0.0
        (begin, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - begin) if end > begin else 0.0

    def text(self, left: int) -> str:
        """`12 MB/s, 3.0 s left`; empty while nothing is known."""
        rate = self.rate
        return f"{size_text(rate)}/s, {seconds_text(left / rate)} left" if rate > 0 else ""


class TransferFace:
    """One line an event worth one: for logs."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.rows: dict[str, BlobProgress] = {}
        self.meter = Meter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Give the screen back."""

    def __call__(self, event: TransferEvent) -> None:
        """Called by the transfer, one event after the other."""
        from sandbox.image.registry import progress

        if isinstance(event, progress.TransferStarted):
            self.started(event.blobs)
            self.say(f"{_VERBS[event.verb]} {event.name}: {len(event.blobs)} layers")
        elif isinstance(event, progress.BlobProgress):
            before = self.rows.get(event.digest)
            self.rows[event.digest] = event
            self.meter.note(sum(row.done for row in self.rows.values() if row.phase != "present"))
            self.moved(event, is_new_phase=before is None or before.phase != event.phase)
        elif isinstance(event, progress.TransferWarning):
            self.say(f"warning: {event.message}")
        else:
            self.say(f"{size_text(event.moved)} in {seconds_text(event.seconds)}{_limit_text(event.limit)}")

    def started(self, blobs: tuple[tuple[str, int], ...]) -> None:
        """The layers are known."""
        from sandbox.image.registry.progress import BlobProgress

        self.rows = {digest: BlobProgress(digest, "waiting", 0, size) for digest, size in blobs}

    def moved(self, event: BlobProgress, *, is_new_phase: bool) -> None:
        """Something about one layer changed."""
        if is_new_phase and event.phase in _ENDED:
            self.say(f"{short_id(event.digest)}: {_WORDS[event.phase]}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self.stream.write(text + "\n")
        self.stream.flush()


class QuietTransferFace(TransferFace):
    """Shows warnings only."""

    def say(self, text: str) -> None:
        """Warnings stay."""
        if text.startswith("warning: "):
            super().say(text)


class LiveTransferFace(TransferFace):
    """Bars, one a layer, and the rate and time left of all; nothing of them stays."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(stream)
        self._console = Console(file=stream, highlight=False)
        self._live = Live(console=self._console, get_renderable=self.render, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.start(refresh=False)
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Above the bars."""
        self._console.print(text, markup=False)

    def render(self) -> RenderableType:
        """The bars now."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        rows = list(self.rows.values())
        for row in rows[-max(1, self._console.size.height - 2) :]:
            amount = f"{size_text(row.done)} / {size_text(row.total)}" if row.phase in _MOVING else ""
            bar = ProgressBar(total=max(row.total, 1), completed=row.done, width=30) if row.phase in _MOVING else ""
            table.add_row(short_id(row.digest), _WORDS[row.phase], bar, amount)
        left = sum(row.total - row.done for row in rows if row.phase not in _ENDED)
        return Group(table, self.meter.text(left))


def transfer_face(*, quiet: bool) -> TransferFace:
    """How progress is shown: live when stderr is a terminal."""
    if quiet:
        return QuietTransferFace(sys.stderr)
    return LiveTransferFace(sys.stderr) if sys.stderr.isatty() else TransferFace(sys.stderr)


def _limit_text(limit: tuple[str, str] | None) -> str:
    """Rate-limit headers as a person reads them: `97;w=21600` is 97 in six hours."""
    if limit is None:
        return ""
    most, left = (text.partition(";")[0] for text in limit)
    return f"; the registry allows {left} of {most} more requests"
