"""Faces of a build: each takes the builder's events and shows them its way, on stderr as docker's buildx does."""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TextIO

from sandbox.build.events import BuildDone, BuildEvent, BuildStarted, BuildWarning, StepDone, StepError, StepOutput, StepStarted
from sandbox.cli.formatting import short_id, size_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_SHOWN_LINES = 6
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]")
Step = StepStarted | StepDone | StepError


def seconds_text(seconds: float) -> str:
    """`0.4 s`, `12.0 s`, `3 min 5 s`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


class Lines:
    """Bytes of a program's output to whole lines: UTF-8 across pieces; a carriage return starts the line anew."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, data: bytes) -> list[str]:
        """The lines that are whole now."""
        *whole, self._rest = (self._rest + self._decoder.decode(data)).split("\n")
        self._rest = self._rest[-65536:]  # a program that prints no line end must not fill the memory
        return [_last_state(line) for line in whole]

    def flush(self) -> list[str]:
        """What is left without a line end."""
        rest, self._rest = self._rest + self._decoder.decode(b"", final=True), ""
        return [_last_state(rest)] if rest else []


def _last_state(line: str) -> str:
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
        """Called by the builder, from its thread."""
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
        self.handlers = {BuildWarning: lambda event: self.write(warning_text(event))}


def warning_text(event: BuildWarning) -> str:
    """`warning: line 3: …`."""
    return f"warning: {f'line {event.line}: ' if event.line else ''}{event.message}"


class PlainFace(Face):
    """One line an event, for logs: `#3 [2/5] COPY …`, `#3 0.412 its output`, `#3 DONE 0.4s`, `#3 CACHED`."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._several = False
        self._begun = 0.0
        self._lines: dict[str, Lines] = {}
        self.handlers = {
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
        self._begun, self._lines = self._clock(), {"stdout": Lines(), "stderr": Lines()}
        self.write(f"#{event.index} [{label(event, several=self._several)}] {event.text}")

    def _output(self, event: StepOutput) -> None:
        self._print(event.index, self._lines.setdefault(event.stream, Lines()).feed(event.data))

    def _print(self, index: int, lines: list[str]) -> None:
        for line in lines:
            self.write(f"#{index} {self._clock() - self._begun:.3f} {line}")

    def _flush(self, index: int) -> None:
        for lines in self._lines.values():
            self._print(index, lines.flush())

    def _done(self, event: StepDone) -> None:
        self._flush(event.index)
        self.write(f"#{event.index} CACHED\n" if event.cached else f"#{event.index} DONE {event.seconds:.1f}s\n")

    def _failed(self, event: StepError) -> None:
        self._flush(event.index)
        self.write(f"#{event.index} ERROR: {event.message}\n")

    def _all_done(self, event: BuildDone) -> None:
        for line in summary(event):
            self.write(line)


def label(event: Step, *, several: bool) -> str:
    """`2/5`, with the stage before it when there is more than one."""
    return f"{event.stage} {event.index}/{event.total}" if several else f"{event.index}/{event.total}"


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
        self._begun = 0.0
        self._lines: dict[str, Lines] = {}
        self._recent: deque[str] = deque(maxlen=_SHOWN_LINES)
        self._is_over = False
        self._live: Live = RichLive(console=self._console, get_renderable=self.render, refresh_per_second=8, transient=True)
        self.handlers = {
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
        for row in self._rows:
            self._console.print(self._row(row))

    def _plan(self, event: BuildStarted) -> None:
        self._several = len(event.stages) > 1

    def _start(self, event: StepStarted) -> None:
        self._begun, self._lines = self._clock(), {"stdout": Lines(), "stderr": Lines()}
        self._recent.clear()
        self._rows.append(event)

    def _output(self, event: StepOutput) -> None:
        self._recent.extend(line for line in self._lines.setdefault(event.stream, Lines()).feed(event.data) if line.strip())

    def _replace(self, event: StepDone | StepError) -> None:
        if self._rows and self._rows[-1].index == event.index:
            self._rows[-1] = event
        else:
            self._rows.append(event)
        self._recent.clear()

    def _all_done(self, event: BuildDone) -> None:
        self.close()
        for line in summary(event):
            self._console.print(line, markup=False)

    def render(self) -> RenderableType:
        """The view now: as many of the last rows as the screen has room for, then the running step's lines."""
        from rich.console import Group
        from rich.text import Text

        recent = [Text(f"     {line}", style="dim", no_wrap=True, overflow="ellipsis") for line in list(self._recent)]
        room = max(1, self._console.size.height - len(recent) - 1)
        return Group(*(self._row(row) for row in self._rows[-room:]), *recent)

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
        if isinstance(row, StepError):
            return "✗", "bold red", f"ERROR {seconds_text(row.seconds)}"
        if isinstance(row, StepStarted):
            return "•", "cyan", seconds_text(self._clock() - self._begun)
        if row.cached:
            return "✓", "blue", "CACHED"
        size = f"{size_text(row.bytes)}  " if row.bytes else ""
        return "✓", "green", f"{size}{seconds_text(row.seconds)}"
