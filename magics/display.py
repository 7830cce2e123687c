"""What a cell shows: build progress and its final table, a program's output, the usage line, errors. No engine call is made here."""

from __future__ import annotations

import codecs
import contextvars
import html
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TextIO
from uuid import uuid4

from sandbox.build.events import BuildDone, BuildEvent, BuildStarted, BuildWarning, StepDone, StepError, StepOutput, StepStarted
from sandbox.runtime.spec import Completed, Usage

Mode = Literal["live", "final", "plain", "quiet"]
Bundle = dict[str, Any]  # Any: a MIME bundle or its metadata, JSON by MIME type

METADATA = "org.jupyter.sandbox"
_GREY = "color:var(--jp-content-font-color2,#777)"
_RED = "color:var(--jp-error-color1,#c33)"
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


def choose_mode(progress: str, *, in_kernel: bool, environ: Mapping[str, str]) -> Mode:
    """How a build is shown. nbval implements no display updates; its kernels inherit PYTEST_CURRENT_TEST, and get the final table only."""
    if progress == "quiet":
        return "quiet"
    if progress == "plain" or not in_kernel:
        return "plain"
    return "final" if "PYTEST_CURRENT_TEST" in environ else "live"


# figures


def seconds_text(seconds: float) -> str:
    """`0.04 s`, `1.8 s`, `2 min 5 s`."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def size_text(size: int) -> str:
    """docker's decimal sizes: `812 B`, `1.2 MB`."""
    value, units = float(size), ["B", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 100 else f"{value:.1f} {units[0]}"


def memory_text(peak: int, limit: int | None) -> str:
    """`143 / 256 MiB`, in the limit's own unit; `143 MiB` without one."""
    if limit is None:
        return _binary(peak, *_unit(peak))
    unit, size = _unit(limit)
    return f"{_number(peak / size)} / {_binary(limit, unit, size)}"


def _unit(size: int) -> tuple[str, int]:
    return next(((unit, each) for unit, each in (("GiB", 1 << 30), ("MiB", 1 << 20)) if size >= each), ("KiB", 1 << 10))


def _binary(value: int, unit: str, size: int) -> str:
    return f"{_number(value / size)} {unit}"


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if value < 10 else f"{value:.0f}"


def plain_lines(data: str) -> list[str]:
    """Terminal output as lines to show: colours dropped, and of a line rewritten with carriage returns its last state."""
    return [line.rstrip("\r").rsplit("\r", 1)[-1] for line in _ANSI.sub("", data).split("\n")]


def say(text: str, *, error: bool = False) -> None:
    """A line of our own in the cell's output."""
    print(text, file=sys.stderr if error else sys.stdout, flush=True)


# builds


@dataclass
class StepRow:
    """One step as shown: what it is, how it stands, and the end of what it printed."""

    index: int
    stage: str
    text: str
    line: int
    state: Literal["running", "done", "cached", "failed"] = "running"
    seconds: float = 0.0
    bytes: int = 0
    tail: str = ""

    @property
    def took(self) -> str:
        """The time column."""
        return {"running": "…", "cached": "CACHED"}.get(self.state) or seconds_text(self.seconds)


_TAIL = 4096
_TAIL_LINES = 4


@dataclass
class BuildView:
    """A build as it stands, from its events. `inherited`: this many lines of the Dockerfile are those of earlier cells."""

    inherited: int = 0
    continues: str | None = None
    total: int = 0
    rows: dict[int, StepRow] = field(default_factory=dict)
    warnings: list[BuildWarning] = field(default_factory=list)
    done: BuildDone | None = None
    size: int | None = None

    def see(self, event: BuildEvent) -> None:
        """Take one event in."""
        _SEE[type(event)](self, event)

    @property
    def own_rows(self) -> list[StepRow]:
        """The rows to show one by one: all but what earlier cells made and the cache gave back."""
        return [row for row in self.rows.values() if row.line > self.inherited or row.state not in ("cached", "done")]

    @property
    def earlier(self) -> int:
        """How many steps of earlier cells are shown as one line."""
        return len(self.rows) - len(self.own_rows)

    @property
    def cached(self) -> int:
        """Steps the cache gave back so far."""
        return sum(row.state == "cached" for row in self.rows.values())

    @property
    def failed(self) -> StepRow | None:
        """The step that failed, if one did."""
        return next((row for row in self.rows.values() if row.state == "failed"), None)

    def summary(self) -> str:
        """The head line: image, steps, cached, size, time."""
        made = sum(row.bytes for row in self.rows.values()) if self.size is None else self.size
        counts = [f"{self.total} step{'' if self.total == 1 else 's'}", f"{self.cached} cached"]
        if self.done:
            name = ", ".join(map(familiar, self.done.tags)) or "untagged"
            return f"✓ {name} · {short_id(self.done.id)} · " + " · ".join([*counts, size_text(made), seconds_text(self.done.seconds)])
        if failed := self.failed:
            return f"✗ step {failed.index} of {self.total} failed · " + " · ".join([*counts[1:], seconds_text(failed.seconds)])
        return f"… step {max(self.rows, default=0)} of {self.total} · {counts[1]}"


def _see_started(view: BuildView, event: BuildStarted) -> None:
    view.total = event.total


def _see_step(view: BuildView, event: StepStarted) -> None:
    view.rows[event.index] = StepRow(event.index, event.stage, event.text, event.line)


def _see_output(view: BuildView, event: StepOutput) -> None:
    if row := view.rows.get(event.index):
        row.tail = (row.tail + event.data.decode(errors="replace"))[-_TAIL:]


def _see_done(view: BuildView, event: StepDone) -> None:
    row = view.rows.setdefault(event.index, StepRow(event.index, event.stage, event.text, event.line))
    row.state, row.seconds, row.bytes = ("cached" if event.cached else "done"), event.seconds, event.bytes


def _see_error(view: BuildView, event: StepError) -> None:
    row = view.rows.setdefault(event.index, StepRow(event.index, event.stage, event.text, event.line))
    row.state, row.seconds = "failed", event.seconds


def _see_warning(view: BuildView, event: BuildWarning) -> None:
    view.warnings.append(event)


def _see_end(view: BuildView, event: BuildDone) -> None:
    view.done = event
    view.total = event.total


_SEE: dict[type, Callable[[BuildView, Any], None]] = {  # Any: each function takes the event of its row
    BuildStarted: _see_started,
    StepStarted: _see_step,
    StepOutput: _see_output,
    StepDone: _see_done,
    StepError: _see_error,
    BuildWarning: _see_warning,
    BuildDone: _see_end,
}


def image_name(view: BuildView) -> str:
    """What to call the built image: its first tag, else its id."""
    if view.done is None:
        return ""
    return familiar(view.done.tags[0]) if view.done.tags else view.done.id


def short_id(image_id: str) -> str:
    """The first 12 digits, as docker shows them."""
    return image_id.removeprefix("sha256:")[:12]


def familiar(reference: str) -> str:
    """docker's short form of a canonical name."""
    return reference.removeprefix("docker.io/").removeprefix("library/")


def _cells(row: StepRow, total: int) -> tuple[str, str, str, str]:
    size = size_text(row.bytes) if row.bytes else "–"
    return f"{row.index}/{total}", size, row.took, " ".join(row.text.split())


def _tail_lines(row: StepRow) -> list[str]:
    if row.state not in ("running", "failed"):
        return []
    return [line for line in plain_lines(row.tail) if line.strip()][-_TAIL_LINES:]


_WIDEST = 100


def build_text(view: BuildView) -> str:
    """The build as text: a head line, then one line a step."""
    lines = [view.summary()]
    if view.earlier:
        lines.append(f"  {view.earlier} step{'' if view.earlier == 1 else 's'} of earlier cells (goes on from {view.continues})")
    for row in view.own_rows:
        step, size, took, text = _cells(row, view.total)
        lines.append(f"  {step:>5}  {size:>8}  {took:>8}  {text if len(text) <= _WIDEST else text[: _WIDEST - 1] + '…'}")
        lines += [f"  {'':>25}  {line[:_WIDEST]}" for line in _tail_lines(row)]
    lines += [f"  warning: {_warning(view, each)}" for each in view.warnings]
    return "\n".join(lines)


def build_html(view: BuildView) -> str:
    """The build as a compact table."""
    head = f'<div style="padding:2px 0;{_RED if view.failed else ""}">{html.escape(view.summary())}</div>'
    rows = "".join(_html_row(row, view.total) for row in view.own_rows)
    if view.earlier:
        earlier = f"{view.earlier} step{'' if view.earlier == 1 else 's'} of earlier cells (goes on from {view.continues})"
        rows = f'<tr><td colspan="4" style="{_CELL}{_GREY}">{html.escape(earlier)}</td></tr>' + rows
    warnings = "".join(f'<div style="{_GREY}">warning: {html.escape(_warning(view, each))}</div>' for each in view.warnings)
    table = f'<table style="border-collapse:collapse;margin:0;font-size:inherit">{rows}</table>'
    return (
        f'<div class="sandbox-build" style="font-family:var(--jp-code-font-family,monospace);font-size:90%">{head}{table}{warnings}</div>'
    )


_CELL = "text-align:left;padding:1px 12px 1px 0;border:0;background:none;vertical-align:top;white-space:nowrap;"
_STATE_STYLE = {"running": "", "done": "", "cached": _GREY, "failed": _RED}


def _html_row(row: StepRow, total: int) -> str:
    step, size, took, text = map(html.escape, _cells(row, total))
    style = _CELL + _STATE_STYLE[row.state]
    right = style.replace("text-align:left", "text-align:right")
    tail = "".join(f'<div style="{_GREY}">{html.escape(line)}</div>' for line in _tail_lines(row))
    long = style.replace("white-space:nowrap", "white-space:pre-wrap;overflow-wrap:anywhere")
    return (
        f'<tr class="sandbox-{row.state}" style="background:none"><td style="{right}">{step}</td><td style="{right}">{size}</td>'
        f'<td style="{right}">{took}</td><td style="{long}">{text}{tail}</td></tr>'
    )


def _warning(view: BuildView, warning: BuildWarning) -> str:
    own = warning.line - view.inherited
    return f"line {own}: {warning.message}" if own > 0 and warning.line else warning.message


def build_metadata(view: BuildView) -> Bundle:
    """The figures, for programs; nbval does not compare metadata."""
    steps = [{"step": row.text, "state": row.state, "seconds": row.seconds, "bytes": row.bytes} for row in view.rows.values()]
    end = {"id": view.done.id, "tags": list(view.done.tags), "seconds": view.done.seconds} if view.done else {}
    return {METADATA: {"build": {**end, "cached": view.cached, "steps": steps}}}


Publish = Callable[[Bundle, Bundle, str | None, bool], None]
"""Show a MIME bundle: data, metadata, display id (None: it will not change), whether it replaces what has that id."""


class BuildDisplay:
    """Shows a build while it runs, in one of the modes. Use as a context manager around the build; `see` is its on_event."""

    def __init__(self, mode: Mode, view: BuildView, publish: Publish, *, interval: float = 0.1) -> None:
        self.view = view
        self._mode = mode
        self._publish = publish
        self._interval = interval
        self._id = uuid4().hex if mode == "live" else None
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._ended = threading.Event()

    def see(self, event: BuildEvent) -> None:
        """Take one event in; called from whichever thread builds."""
        with self._lock:
            self.view.see(event)
        self._changed.set()
        if self._mode == "plain":
            _print_plain(event)

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Show until the block ends, however it ends; afterwards the final table stands."""
        if self._mode != "live":
            try:
                yield
            finally:
                self._show_end()
            return
        self._show(update=False)
        # The front end finds the cell of an output by a context variable: the thread needs this one's.
        ticker = threading.Thread(target=contextvars.copy_context().run, args=(self._tick,), name="build-display", daemon=True)
        ticker.start()
        try:
            yield
        finally:
            self._ended.set()
            ticker.join()
            self._show(update=True)

    def _tick(self) -> None:
        """At most ten updates a second, and none without news."""
        while not self._ended.wait(self._interval):
            if self._changed.is_set():
                self._changed.clear()
                self._show(update=True)

    def _show(self, *, update: bool) -> None:
        with self._lock:
            data, metadata = {"text/plain": build_text(self.view), "text/html": build_html(self.view)}, build_metadata(self.view)
        self._publish(data, metadata, self._id, update)

    def _show_end(self) -> None:
        if self._mode == "quiet":
            if self.view.done:
                print(self.view.done.id)
        elif self._mode == "plain":
            print(build_text(self.view))
        else:
            self._show(update=False)


def _print_plain(event: BuildEvent) -> None:
    """One line an event, as docker's --progress plain."""
    if isinstance(event, StepStarted):
        print(f"#{event.index} [{event.stage} {event.index}/{event.total}] {event.text}")
    elif isinstance(event, StepOutput):
        print("".join(f"#{event.index} {line}\n" for line in event.data.decode(errors="replace").splitlines()), end="")
    elif isinstance(event, StepDone):
        print(f"#{event.index} {'CACHED' if event.cached else 'DONE ' + seconds_text(event.seconds)}")
    elif isinstance(event, StepError):
        print(f"#{event.index} ERROR: {event.message}")


# a program's output


@dataclass
class _Stream:
    """One of stdout and stderr on its way to the cell."""

    target: TextIO
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

    def __init__(self, *, keep: frozenset[str] = frozenset(), limit: int = 1 << 20, tail: int = 16 << 10, note: str = "") -> None:
        new_decoder = codecs.getincrementaldecoder("utf-8")
        self._streams = {
            name: _Stream(target, name in keep, new_decoder("replace"), limit)
            for name, target in (("stdout", sys.stdout), ("stderr", sys.stderr))
        }
        self._tail = tail
        self._note = note

    def write(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Take one piece in; the engine's on_output."""
        out = self._streams[stream]
        if out.keep:
            out.kept.append(data)
            return
        self._show(out, out.decoder.decode(data))

    def close(self) -> None:
        """Show what is left: half a character, the note of what was dropped, and the end of what was dropped."""
        for out in self._streams.values():
            self._show(out, out.decoder.decode(b"", final=True))
            if out.dropped:
                hidden = out.dropped - out.tail_size
                out.target.write(f"\n… {size_text(max(hidden, 0))} more{self._note} …\n" + "".join(out.tail))
            out.target.flush()

    def text(self, stream: str) -> str:
        """What was kept of the stream."""
        return b"".join(self._streams[stream].kept).decode(errors="replace")

    def _show(self, out: _Stream, text: str) -> None:
        shown, rest = text[: out.room], text[out.room :]
        if shown:
            out.target.write(shown)
            out.room -= len(shown)
        if rest:
            out.dropped += len(rest)
            _append_tail(out, rest[-self._tail :], self._tail)


def _append_tail(out: _Stream, text: str, limit: int) -> None:
    out.tail.append(text)
    out.tail_size += len(text)
    while out.tail_size - len(out.tail[0]) >= limit:
        out.tail_size -= len(out.tail.popleft())


# the usage line and the result


@dataclass(frozen=True)
class CellResult:
    """What a container cell leaves in `_`: how it ended and what it used; shown as one grey line."""

    exit_code: int
    why: str
    reason: str
    usage: Usage
    program: str
    network: str = "none"
    memory_limit: int | None = None

    @property
    def ok(self) -> bool:
        """Whether the program ended by itself with 0."""
        return self.exit_code == 0 and self.why == "exited"

    def __repr__(self) -> str:
        return usage_line(self)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[Bundle, Bundle]:
        """Called by IPython's display hook: the line as text and HTML, the figures as metadata."""
        line = usage_line(self)
        style = f"font-size:90%;{_GREY if self.ok else _RED}"
        return {"text/plain": line, "text/html": f'<span class="sandbox-usage" style="{style}">{html.escape(line)}</span>'}, self.metadata()

    def bundle(self) -> tuple[Bundle, Bundle]:
        """The same, for whoever publishes it."""
        return self._repr_mimebundle_()

    def metadata(self) -> Bundle:
        """The figures, for programs."""
        used = self.usage
        figures = {"wall": used.wall, "cpu": used.cpu, "peak_memory": used.peak_memory, "peak_pids": used.peak_pids}
        return {METADATA: {"exit_code": self.exit_code, "why": self.why, "usage": figures}}


def cell_result(completed: Completed, *, program: str, network: str = "none", memory_limit: int | None = None) -> CellResult:
    """The result object of a completed container."""
    return CellResult(completed.exit_code, completed.why, completed.reason, completed.usage, program, network, memory_limit)


def usage_line(result: CellResult) -> str:
    """`✓ 1.8 s · cpu 1.2 s · peak 143 / 256 MiB · 3 procs · net off · bash (in the image)`; what this host cannot tell is left out."""
    used = result.usage
    parts = ["" if result.ok else (result.why if result.why != "exited" else f"exit {result.exit_code}"), seconds_text(used.wall)]
    parts.append("" if used.cpu is None else f"cpu {seconds_text(used.cpu)}")
    parts.append("" if used.peak_memory is None else f"peak {memory_text(used.peak_memory, result.memory_limit)}")
    parts.append("" if used.peak_pids is None else f"{used.peak_pids} proc{'' if used.peak_pids == 1 else 's'}")
    parts += ["net off" if result.network == "none" else f"net {result.network}", result.program]
    return ("✓ " if result.ok else "✗ ") + " · ".join(part for part in parts if part)
