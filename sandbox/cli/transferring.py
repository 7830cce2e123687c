"""How a pull or push is shown on stderr: live bars in a terminal, a line a layer in logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TextIO

import msgspec

from sandbox.cli.caller import caller_here
from sandbox.cli.formatting import seconds_text, short_id, size_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sandbox.image.registry.progress import BlobProgress, TransferDone, TransferEvent, TransferStarted

_WORDS = {
    "waiting": "Waiting", "present": "Already exists", "downloading": "Downloading", "extracting": "Extracting", "packing": "Preparing",
    "uploading": "Pushing", "mounted": "Mounted", "done": "Done",
}  # fmt: skip
_VERBS = {"pull": ("Pulling", "Pulled"), "push": ("Pushing", "Pushed"), "copy": ("Copying", "Copied")}
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


class TransferView:
    """A transfer as it stands, from its events: what goes where, each layer, how fast."""

    def __init__(self) -> None:
        self.title = ""
        """`Pulling NAME`, `Pushing NAME`, in the end `Pulled NAME`; empty before it has begun."""
        self.rows: dict[str, BlobProgress] = {}
        self.end: TransferDone | None = None
        self._started: TransferStarted | None = None
        self.meter = Meter()

    def see(self, event: TransferEvent) -> bool:
        """Take one event in; whether a layer has come into another phase."""
        from sandbox.image.registry import progress

        if isinstance(event, progress.TransferStarted):
            self._started, self.end = event, None
            self.title = f"{_VERBS[event.verb][0]} {event.name}"
            self.rows = {digest: progress.BlobProgress(digest, "waiting", 0, size) for digest, size in event.blobs}
        elif isinstance(event, progress.TransferDone):
            self.end = event
            if self._started:
                self.title = f"{_VERBS[self._started.verb][1]} {self._started.name}"
        elif isinstance(event, progress.BlobProgress):
            before = self.rows.get(event.digest)
            self.rows[event.digest] = event
            self.meter.note(sum(row.done for row in self.rows.values() if row.phase != "present"))
            return before is None or before.phase != event.phase
        return False

    @property
    def is_running(self) -> bool:
        """Whether it has begun and not ended."""
        return bool(self.title) and self.end is None

    @property
    def pace(self) -> str:
        """`12 MB/s, 3.0 s left`; empty while nothing is known."""
        return self.meter.text(sum(row.total - row.done for row in self.rows.values() if row.phase not in _ENDED))

    @property
    def amount(self) -> str:
        """`12 MB / 40 MB` of all layers."""
        return f"{size_text(sum(row.done for row in self.rows.values()))} / {size_text(sum(row.total for row in self.rows.values()))}"

    def cells(self) -> list[tuple[str, str, BlobProgress | None, str]]:
        """A line a layer: its short digest, its phase in docker's words, its progress while bytes move, these in numbers."""
        return [
            (short_id(row.digest), _WORDS[row.phase], row, f"{size_text(row.done)} / {size_text(row.total)}")
            if row.phase in _MOVING
            else (short_id(row.digest), _WORDS[row.phase], None, "")
            for row in self.rows.values()
        ]


def layers_text(count: int) -> str:
    """`1 layer`, `3 layers`."""
    return f"{count} layer{'' if count == 1 else 's'}"


def end_text(end: TransferDone) -> str:
    """The last line of a transfer: bytes moved, time, and what the registry still allows."""
    return f"{size_text(end.moved)} in {seconds_text(end.seconds)}{_limit_text(end.limit)}"


class TransferFace:
    """One line an event worth one: for logs."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.view = TransferView()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Give the screen back."""

    def __call__(self, event: TransferEvent) -> None:
        """Called by the transfer, one event after the other."""
        from sandbox.image.registry import progress

        is_new_phase = self.view.see(event)
        if isinstance(event, progress.TransferStarted):
            self.say(f"{self.view.title}: {layers_text(len(event.blobs))}")
        elif isinstance(event, progress.BlobProgress):
            if is_new_phase and event.phase in _ENDED:
                self.layer_ended(event)
        elif isinstance(event, progress.TransferWarning):
            self.say(f"warning: {event.message}")
        else:
            self.say(end_text(event))

    def layer_ended(self, event: BlobProgress) -> None:
        """A layer is where it should be."""
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
        return bars(self.view, self._console.size.height - 2)


def bars(view: TransferView, room: int) -> RenderableType:
    """A bar a layer, as many of the last as there are lines for, then the rate and time left of all."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, phase, row, amount in view.cells()[-max(1, room) :]:
        table.add_row(name, phase, ProgressBar(total=max(row.total, 1), completed=row.done, width=30) if row else "", amount)
    return Group(table, view.pace)


def transfer_face(*, quiet: bool) -> TransferFace:
    """How progress is shown: as the caller in this process wants it, else live when stderr is a terminal."""
    caller = caller_here()
    if caller and caller.transfers and not quiet:
        return caller.transfers()
    if quiet:
        return QuietTransferFace(sys.stderr)
    return LiveTransferFace(sys.stderr) if sys.stderr.isatty() else TransferFace(sys.stderr)


def _limit_text(limit: tuple[str, str] | None) -> str:
    """Rate-limit headers as a person reads them: `97;w=21600` is 97 in six hours."""
    if limit is None:
        return ""
    most, left = (text.partition(";")[0] for text in limit)
    return f"; the registry allows {left} of {most} more requests"
