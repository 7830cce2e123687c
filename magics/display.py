"""What a cell shows of itself: figures as text, lines of our own, the usage line. No engine call is made here."""

from __future__ import annotations

import html
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from sandbox.errors import InvalidOption
from sandbox.runtime.spec import Completed, Usage

Mode = Literal["live", "final", "plain", "quiet"]
Bundle = dict[str, Any]  # Any: a MIME bundle or its metadata, JSON by MIME type

Publish = Callable[[Bundle, Bundle, str | None, bool], None]
"""Show a MIME bundle: data, metadata, display id (None: it will not change), whether it replaces what has that id."""

METADATA = "org.jupyter.sandbox"
GREY = "color:var(--jp-content-font-color2,#777)"
RED = "color:var(--jp-error-color1,#c33)"


def choose_mode(progress: str, *, in_kernel: bool, environ: Mapping[str, str]) -> Mode:
    """How a build is shown. nbval implements no display updates; its kernels inherit PYTEST_CURRENT_TEST, and get the final table only."""
    if progress == "quiet":
        return "quiet"
    if progress == "rawjson":
        raise InvalidOption("--progress rawjson: for programs; a cell shows a table", hint="the Python API has the same events: on_event")
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
    while value >= 999.5 and len(units) > 1:  # never `1000 kB`
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


def say(text: str, *, error: bool = False) -> None:
    """A line of our own in the cell's output."""
    print(text, file=sys.stderr if error else sys.stdout, flush=True)


# the usage line and the result


class CellResult(msgspec.Struct, frozen=True):
    """What a container cell leaves in `_`: how it ended and what it used; shown as one grey line."""

    exit_code: int
    why: str
    reason: str
    usage: Usage
    program: str
    network: str = "none"
    memory_limit: int | None = None
    denied: str = ""
    """What it asked of its network and its allow-list has not."""

    @property
    def ok(self) -> bool:
        """Whether the program ended by itself with 0."""
        return self.exit_code == 0 and self.why == "exited"

    def __repr__(self) -> str:
        return usage_line(self)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[Bundle, Bundle]:
        """Called by IPython's display hook: the line as text and HTML, the figures as metadata."""
        line = usage_line(self)
        style = f"font-family:var(--jp-code-font-family,monospace);font-size:90%;{GREY if self.ok else RED}"
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
    return CellResult(completed.exit_code, completed.why, completed.reason, completed.usage, program, network, memory_limit, completed.denied_text)


def usage_line(result: CellResult) -> str:
    """`✓ 1.8 s · cpu 1.2 s · peak 143 / 256 MiB · 3 procs · net off · bash (in the image)`; what this host cannot tell is left out."""
    used = result.usage
    parts = ["" if result.ok else (result.why if result.why != "exited" else f"exit {result.exit_code}"), seconds_text(used.wall)]
    parts.append("" if used.cpu is None else f"cpu {seconds_text(used.cpu)}")
    parts.append("" if used.peak_memory is None else f"peak {memory_text(used.peak_memory, result.memory_limit)}")
    parts.append("" if used.peak_pids is None else f"{used.peak_pids} proc{'' if used.peak_pids == 1 else 's'}")
    parts += [{"none": "net off", "": ""}.get(result.network, f"net {result.network}"), result.denied, result.program]
    return ("✓ " if result.ok else "✗ ") + " · ".join(part for part in parts if part)
