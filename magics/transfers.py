"""A pull or push as a notebook shows it: a bar a layer, the rate and the time left; one line when it is done."""

from __future__ import annotations

import html
import sys
import threading
from typing import TYPE_CHECKING, Self

from magics.display import GREY, METADATA, Bundle, Mode, Publish
from magics.live import LiveOutput, Made
from sandbox.cli.transferring import TransferFace, TransferView, end_text, layers_text

if TYPE_CHECKING:
    from sandbox.image.registry.progress import TransferEvent

_STYLE = "font-family:var(--jp-code-font-family,monospace);font-size:90%"
_CELL = "text-align:left;padding:1px 12px 1px 0;border:0;background:none;white-space:nowrap"


class NotebookTransfer(TransferFace):
    """Shows a transfer in the output area: while it runs where outputs can change (`live`), else when it is over."""

    def __init__(self, mode: Mode, publish: Publish) -> None:
        super().__init__(sys.stderr)
        self._publish = publish
        self._lock = threading.Lock()
        self._ended: list[str] = []
        self._live = LiveOutput(publish, self._made) if mode == "live" else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live:
            self._live.stop()
        elif (made := self._made()) is not None:
            self._publish(*made, None, False)

    def __call__(self, event: TransferEvent) -> None:
        """As TransferFace."""
        with self._lock:
            super().__call__(event)
            if self.view.end is event:
                self._ended.append(ended_line(self.view))
        if self._live:
            self._live.changed()

    def say(self, text: str) -> None:
        """Only warnings are lines of their own."""
        if text.startswith("warning: "):
            super().say(text)

    def _made(self) -> Made | None:
        with self._lock:
            if not (self._ended or self.view.title):
                return None
            lines = [*self._ended, *transfer_lines(self.view)]
            ended = "".join(f"<div>{html.escape(line)}</div>" for line in self._ended)
            data = {"text/plain": "\n".join(lines), "text/html": f'<div style="{_STYLE}">{ended}{transfer_html(self.view)}</div>'}
            return data, transfer_metadata(self.view)


def ended_line(view: TransferView) -> str:
    """`✓ Pulled NAME · 3 layers · 12 MB in 0.4 s`."""
    moved = end_text(view.end) if view.end and view.end.moved else "nothing had to move"
    return f"✓ {view.title} · {layers_text(len(view.rows))} · {moved}"


def running_line(view: TransferView) -> str:
    """`Pulling NAME · 12 MB / 40 MB · 5 MB/s, 3.0 s left`."""
    return " · ".join(part for part in (view.title, view.amount, view.pace) if part)


def transfer_lines(view: TransferView) -> list[str]:
    """A transfer under way as text: the whole, then a line a layer; nothing when it is over."""
    if not view.is_running:
        return []
    return [running_line(view), *(f"  {name}  {phase:<14}  {amount}".rstrip() for name, phase, _, amount in view.cells())]


def transfer_html(view: TransferView) -> str:
    """A transfer under way as a table with bars; empty when it is over."""
    if not view.is_running:
        return ""
    rows = []
    for name, phase, row, amount in view.cells():
        bar = f'<progress max="{max(row.total, 1)}" value="{row.done}" style="width:16em;vertical-align:middle"></progress>' if row else ""
        rows.append("<tr>" + "".join(f'<td style="{_CELL}">{part}</td>' for part in (name, phase, bar, html.escape(amount))) + "</tr>")
    table = f'<table style="border-collapse:collapse;margin:0;font-size:inherit;{GREY}">{"".join(rows)}</table>'
    return f'<div class="sandbox-transfer"><div>{html.escape(running_line(view))}</div>{table}</div>'


def transfer_metadata(view: TransferView) -> Bundle:
    """The figures, for programs."""
    end = {"digest": view.end.digest, "moved": view.end.moved, "seconds": view.end.seconds} if view.end else {}
    layers = [{"digest": row.digest, "phase": row.phase, "bytes": row.total} for row in view.rows.values()]
    return {METADATA: {"transfer": {**end, "title": view.title, "layers": layers}}}
