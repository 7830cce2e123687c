"""Faces of a build: each takes the builder's events and shows them its way, on stderr as docker's buildx does."""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Self, TextIO

import msgspec

from sandbox.build.events import (
    BuildDone,
    BuildEvent,
    BuildStarted,
    BuildWarning,
    PullProgress,
    StepDone,
    StepError,
    StepOutput,
    StepStarted,
)
from sandbox.cli.formatting import seconds_text, short_id, size_text
from sandbox.cli.transferring import QuietTransferFace, TransferFace, TransferView, bars, end_text
from sandbox.image.registry.progress import TransferWarning

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_SHOWN_LINES = 6
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]")
Step = StepStarted | StepDone | StepError


class Lines:
    """Bytes of a program's output to whole lines: UTF-8 across pieces; a carriage return starts the line anew."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, data: bytes) -> list[str]:
        """The lines that are whole now."""
        *whole, self._rest = (self._rest + self._decoder.decode(data)).split("\n")
        self._rest = self._rest[-65536:]  # a program that prints no line end must not fill the memory
        return [last_state(line) for line in whole]

    def flush(self) -> list[str]:
        """What is left without a line end."""
        rest, self._rest = self._rest + self._decoder.decode(b"", final=True), ""
        return [last_state(rest)] if rest else []


def last_state(line: str) -> str:
    """What a terminal would show of it in the end, without colours."""
    return _ESCAPES.sub("", line.rstrip("\r").rpartition("\r")[2])


class Face:
    """Shows events by `handlers`, a table from event type to method. A context manager: `close` gives the screen back."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.handlers: dict[type, Callable[[Any], None]] = {}  # Any: each handler takes its own event type

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more will come."""

    def __call__(self, event: BuildEvent) -> None:
        """Called by the builder, one event after the other."""
        if handler := self.handlers.get(type(event)):
            handler(event)

    def write(self, line: str) -> None:
        """One line, at once."""
        self.stream.write(line + "\n")
        self.stream.flush()


class QuietFace(Face):
    """Shows warnings only."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.handlers = {BuildWarning: lambda event: self.write(warning_text(event)), PullProgress: shown_pull(QuietTransferFace(stream))}


def shown_pull(face: TransferFace) -> Callable[[PullProgress], None]:
    """How a pull that comes before the steps is shown."""
    return lambda event: face(event.transfer)


def warning_text(event: BuildWarning) -> str:
    """`warning: line 3: …`."""
    return f"warning: {f'line {event.line}: ' if event.line else ''}{event.message}"


class JsonFace(Face):
    """One JSON object a line, for programs: `event` is the type in snake case, the rest its fields; `time` in seconds since 1970."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time) -> None:
        super().__init__(stream)
        self._clock = clock

    def __call__(self, event: BuildEvent) -> None:
        """Called by the builder."""
        told = event.transfer if isinstance(event, PullProgress) else event
        fields = msgspec.structs.asdict(told)
        if isinstance(told, StepOutput):
            fields["data"] = told.data.decode("utf-8", "backslashreplace")
        import json

        self.write(json.dumps({"time": round(self._clock(), 6), "event": _snake(type(told).__name__), **fields}))


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class _Running(msgspec.Struct):
    """A step at work: since when, and what it printed that is no whole line yet."""

    begun: float
    lines: dict[str, Lines] = msgspec.field(default_factory=lambda: {"stdout": Lines(), "stderr": Lines()})
    recent: deque[str] = msgspec.field(default_factory=lambda: deque(maxlen=_SHOWN_LINES))


class PlainFace(Face):
    """One line an event, for logs: `#3 [2/5] COPY …`, `#3 0.412 its output`, `#3 DONE 0.4s`, `#3 CACHED`. Steps of several
    stages interleave: the number says whose a line is."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._several = False
        self._running: dict[int, _Running] = {}
        self.handlers = {
            PullProgress: shown_pull(TransferFace(stream)),
            BuildStarted: self._plan,
            StepStarted: self._start,
            StepOutput: self._output,
            StepDone: self._done,
            StepError: self._failed,
            BuildWarning: lambda event: self.write(warning_text(event)),
            BuildDone: self._all_done,
        }

    def _plan(self, event: BuildStarted) -> None:
        self._several = len(event.stages) > 1

    def _start(self, event: StepStarted) -> None:
        self._running[event.index] = _Running(self._clock())
        self.write(f"#{event.index} [{label(event, several=self._several)}] {event.text}")

    def _output(self, event: StepOutput) -> None:
        step = self._running[event.index]
        self._print(event.index, step, step.lines[event.stream].feed(event.data))

    def _print(self, index: int, step: _Running, lines: list[str]) -> None:
        for line in lines:
            self.write(f"#{index} {self._clock() - step.begun:.3f} {line}")

    def _flush(self, index: int) -> None:
        if step := self._running.pop(index, None):
            for lines in step.lines.values():
                self._print(index, step, lines.flush())

    def _done(self, event: StepDone) -> None:
        self._flush(event.index)
        self.write(f"#{event.index} CACHED\n" if event.cached else f"#{event.index} DONE {event.seconds:.1f}s\n")

    def _failed(self, event: StepError) -> None:
        self._flush(event.index)
        self.write(f"#{event.index} CANCELED\n" if event.canceled else f"#{event.index} ERROR: {event.message}\n")

    def _all_done(self, event: BuildDone) -> None:
        for line in summary(event):
            self.write(line)


def label(event: Step, *, several: bool) -> str:
    """`2/5`; with more than one stage its name and the step's number in it, as buildx has it."""
    if not several:
        return f"{event.index}/{event.total}"
    return f"{event.stage} {event.step}/{event.steps}" if event.steps else f"{event.stage} {event.index}/{event.total}"


def summary(event: BuildDone) -> list[str]:
    """The last lines of a build that succeeded."""
    cached = f", {event.cached} cached" if event.cached else ""
    names = [f"  {tag}" for tag in event.tags]
    return [f"built {short_id(event.id)} in {seconds_text(event.seconds)} ({event.total} steps{cached})", *names]


class TerminalFace(Face):
    """A live view: one row a step, the running step's last lines below it; collapses to the rows at the end."""

    def __init__(self, stream: TextIO, console: Console | None = None, clock: Callable[[], float] = monotonic) -> None:
        from rich.console import Console as RichConsole
        from rich.live import Live as RichLive

        super().__init__(stream)
        self._console = console or RichConsole(file=stream, highlight=False)
        self._clock = clock
        self._rows: list[Step] = []
        self._several = False
        self._running: dict[int, _Running] = {}
        self._pulled = TransferView()
        self._is_over = False
        self._live: Live = RichLive(console=self._console, get_renderable=self.render, refresh_per_second=8, transient=True)
        self.handlers = {
            PullProgress: self._pull,
            BuildStarted: self._plan,
            StepStarted: self._start,
            StepOutput: self._output,
            StepDone: self._replace,
            StepError: self._replace,
            BuildWarning: lambda event: self._console.print(warning_text(event), style="yellow", markup=False),
            BuildDone: self._all_done,
        }

    def __enter__(self) -> Self:
        self._live.start(refresh=False)
        return self

    def close(self) -> None:
        """Stop the live view and leave the rows on the screen; a second call does nothing."""
        if self._is_over:
            return
        self._is_over = True
        self._live.stop()
        for row in sorted(self._rows, key=lambda row: row.index):  # in the Dockerfile's order, not in that of time
            self._console.print(self._row(row))

    def _plan(self, event: BuildStarted) -> None:
        self._several = len(event.stages) > 1

    def _pull(self, event: PullProgress) -> None:
        self._pulled.see(event.transfer)
        if isinstance(event.transfer, TransferWarning):
            self._console.print(f"warning: {event.transfer.message}", style="yellow", markup=False)
        elif self._pulled.end:
            self._console.print(f"{self._pulled.title}: {end_text(self._pulled.end)}", markup=False)

    def _start(self, event: StepStarted) -> None:
        self._running[event.index] = _Running(self._clock())
        self._rows.append(event)

    def _output(self, event: StepOutput) -> None:
        if step := self._running.get(event.index):
            step.recent.extend(line for line in step.lines[event.stream].feed(event.data) if line.strip())

    def _replace(self, event: StepDone | StepError) -> None:
        """The row of a step that ended goes above those still at work."""
        self._running.pop(event.index, None)
        ended = [row for row in self._rows if not isinstance(row, StepStarted)]
        at_work = [row for row in self._rows if isinstance(row, StepStarted) and row.index != event.index]
        self._rows = [*ended, event, *at_work]

    def _all_done(self, event: BuildDone) -> None:
        self.close()
        for line in summary(event):
            self._console.print(line, markup=False)

    def render(self) -> RenderableType:
        """The view now: as many of the last rows as the screen has room for, then the running step's lines."""
        from rich.console import Group

        if self._pulled.is_running:
            return Group(self._pulled.title, bars(self._pulled, self._console.size.height - 3))
        at_work = [row for row in self._rows if isinstance(row, StepStarted)]
        shares = [(row, self._recent(row, max(1, _SHOWN_LINES // len(at_work)))) for row in at_work]
        room = max(1, self._console.size.height - sum(1 + len(lines) for _, lines in shares) - 1)
        ended = [row for row in self._rows if not isinstance(row, StepStarted)][-room:]
        return Group(*map(self._row, ended), *(part for row, lines in shares for part in (self._row(row), *lines)))

    def _recent(self, row: Step, count: int) -> list[RenderableType]:
        """The last lines of a step at work; steps at work share the room."""
        from rich.text import Text

        lines = list(self._running[row.index].recent)[-count:]
        return [Text(f"     {line}", style="dim", no_wrap=True, overflow="ellipsis") for line in lines]

    def _row(self, row: Step) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        mark, style, right = self._state(row)
        line = Table.grid(expand=True, padding=(0, 1))
        line.add_column(width=1)
        line.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        line.add_column(justify="right", no_wrap=True)
        left = Text(f"[{label(row, several=self._several)}] {row.text}")
        line.add_row(Text(mark, style), left, Text(right, style))
        return line

    def _state(self, row: Step) -> tuple[str, str, str]:
        """Mark, style and what stands on the right."""
        if isinstance(row, StepError) and row.canceled:
            return "–", "dim", "CANCELED"
        if isinstance(row, StepError):
            return "✗", "bold red", f"ERROR {seconds_text(row.seconds)}"
        if isinstance(row, StepStarted):
            return "•", "cyan", seconds_text(self._clock() - self._running[row.index].begun)
        if row.cached:
            return "✓", "blue", "CACHED"
        size = f"{size_text(row.bytes)}  " if row.bytes else ""
        return "✓", "green", f"{size}{seconds_text(row.seconds)}"
