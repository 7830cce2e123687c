"""A build as it stands and as it is shown: from events to a table, live where the front end allows it."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from magics.display import GREY, METADATA, RED, Bundle, Mode, Publish, seconds_text, size_text
from magics.live import LiveOutput, Made
from magics.transfers import ended_line, transfer_html, transfer_lines
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
from sandbox.cli.progress import last_state
from sandbox.cli.transferring import TransferView
from sandbox.image.registry.progress import TransferStarted, TransferWarning


@dataclass
class StepRow:
    """One step as shown: what it is, how it stands, and the end of what it printed."""

    index: int
    stage: str
    text: str
    line: int
    state: Literal["running", "done", "cached", "failed", "canceled"] = "running"
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
    pull: TransferView = field(default_factory=TransferView)
    """The image that is brought now, before the steps; those that have come: `pulled`."""
    pulled: list[str] = field(default_factory=list)

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
        if not self.total:
            return "… an image is brought"
        return f"… step {max(self.rows, default=0)} of {self.total} · {counts[1]}"


def _see_pull(view: BuildView, event: PullProgress) -> None:
    view.pull.see(event.transfer)
    if isinstance(event.transfer, TransferWarning):
        view.warnings.append(BuildWarning(event.transfer.message))
    elif view.pull.end:
        view.pulled.append(ended_line(view.pull))


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
    row.state, row.seconds = ("canceled" if event.canceled else "failed"), event.seconds


def _see_warning(view: BuildView, event: BuildWarning) -> None:
    view.warnings.append(event)


def _see_end(view: BuildView, event: BuildDone) -> None:
    view.done = event
    view.total = event.total


_SEE: dict[type, Callable[[BuildView, Any], None]] = {  # Any: each function takes the event of its row
    PullProgress: _see_pull,
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
    """docker's short form of a canonical name, or of an id."""
    return short_id(reference) if reference.startswith("sha256:") else reference.removeprefix("docker.io/").removeprefix("library/")


def _cells(row: StepRow, total: int) -> tuple[str, str, str, str]:
    size = size_text(row.bytes) if row.bytes else "–"
    return f"{row.index}/{total}", size, row.took, " ".join(row.text.split())


def _tail_lines(row: StepRow) -> list[str]:
    if row.state not in ("running", "failed"):
        return []
    return [shown for line in row.tail.split("\n") if (shown := last_state(line)).strip()][-_TAIL_LINES:]


_WIDEST = 100


def build_text(view: BuildView) -> str:
    """The build as text: a head line, then one line a step."""
    lines = [view.summary(), *(f"  {line}" for line in (*view.pulled, *transfer_lines(view.pull)))]
    if view.earlier:
        lines.append(f"  {view.earlier} step{'' if view.earlier == 1 else 's'} of earlier cells (goes on from {familiar(view.continues or '')})")
    for row in view.own_rows:
        step, size, took, text = _cells(row, view.total)
        lines.append(f"  {step:>5}  {size:>8}  {took:>8}  {text if len(text) <= _WIDEST else text[: _WIDEST - 1] + '…'}")
        lines += [f"  {'':>25}  {line[:_WIDEST]}" for line in _tail_lines(row)]
    lines += [f"  warning: {_warning(view, each)}" for each in view.warnings]
    return "\n".join(lines)


def build_html(view: BuildView) -> str:
    """The build as a compact table."""
    head = f'<div style="padding:2px 0;{RED if view.failed else ""}">{html.escape(view.summary())}</div>'
    rows = "".join(_html_row(row, view.total) for row in view.own_rows)
    if view.earlier:
        earlier = f"{view.earlier} step{'' if view.earlier == 1 else 's'} of earlier cells (goes on from {familiar(view.continues or '')})"
        rows = f'<tr><td colspan="4" style="{_CELL}{GREY}">{html.escape(earlier)}</td></tr>' + rows
    warnings = "".join(f'<div style="{GREY}">warning: {html.escape(_warning(view, each))}</div>' for each in view.warnings)
    table = f'<table style="border-collapse:collapse;margin:0;font-size:inherit">{rows}</table>'
    pulled = "".join(f'<div style="{GREY}">{html.escape(line)}</div>' for line in view.pulled) + transfer_html(view.pull)
    style = "font-family:var(--jp-code-font-family,monospace);font-size:90%"
    return f'<div class="sandbox-build" style="{style}">{head}{pulled}{table}{warnings}</div>'


_CELL = "text-align:left;padding:1px 12px 1px 0;border:0;background:none;vertical-align:top;white-space:nowrap;"
_STATE_STYLE = {"running": "", "done": "", "cached": GREY, "failed": RED, "canceled": GREY}


def _html_row(row: StepRow, total: int) -> str:
    step, size, took, text = map(html.escape, _cells(row, total))
    style = _CELL + _STATE_STYLE[row.state]
    right = style.replace("text-align:left", "text-align:right")
    tail = "".join(f'<div style="{GREY}">{html.escape(line)}</div>' for line in _tail_lines(row))
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


class BuildDisplay:
    """Shows a build while it runs, in one of the modes. Use as a context manager around the build; `see` is its on_event."""

    def __init__(self, mode: Mode, view: BuildView, publish: Publish, *, interval: float = 0.1) -> None:
        self.view = view
        self._mode = mode
        self._publish = publish
        self._live = LiveOutput(publish, self._made, interval=interval) if mode == "live" else None
        self._lock = threading.Lock()

    def see(self, event: BuildEvent) -> None:
        """Take one event in; called from whichever thread builds."""
        with self._lock:
            self.view.see(event)
        if self._live:
            self._live.changed()
        if self._mode == "plain":
            _print_plain(event)

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Show until the block ends, however it ends; afterwards the final table stands."""
        if self._live:
            self._live.start()
        try:
            yield
        finally:
            if self._live:
                self._live.stop()
            else:
                self._show_end()

    def _made(self) -> Made | None:
        """Nothing before the build has begun."""
        with self._lock:
            if not (self.view.total or self.view.pull.title):
                return None
            return {"text/plain": build_text(self.view), "text/html": build_html(self.view)}, build_metadata(self.view)

    def _show_end(self) -> None:
        if self._mode == "quiet":
            if self.view.done:
                print(self.view.done.id)
        elif self._mode == "plain":
            if self.view.total:
                print(build_text(self.view))
        elif (made := self._made()) is not None:
            self._publish(*made, None, False)


def _print_plain(event: BuildEvent) -> None:
    """One line an event, as docker's --progress plain."""
    if isinstance(event, PullProgress):
        if isinstance(event.transfer, TransferStarted):
            print(f"pulling {event.transfer.name}")
    elif isinstance(event, StepStarted):
        print(f"#{event.index} [{event.stage} {event.index}/{event.total}] {event.text}")
    elif isinstance(event, StepOutput):
        print("".join(f"#{event.index} {line}\n" for line in event.data.decode(errors="replace").splitlines()), end="")
    elif isinstance(event, StepDone):
        print(f"#{event.index} {'CACHED' if event.cached else 'DONE ' + seconds_text(event.seconds)}")
    elif isinstance(event, StepError):
        print(f"#{event.index} ERROR: {event.message}")
