"""`python -m magics.demo NOTEBOOK`: run a notebook for real in a fresh kernel and print each cell with its output.

Ends with 1 when a cell fails, unless the cell is tagged `raises-exception` (and then also when it does not fail).
Needs only what the project itself needs: no nbclient, no nbconvert.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

_GREY, _RED, _PLAIN = "\x1b[90m", "\x1b[31m", "\x1b[0m"
Message = dict[str, Any]  # Any: a Jupyter message, JSON


class Cell(msgspec.Struct, frozen=True):
    """One cell of a notebook file."""

    kind: str
    source: str
    may_fail: bool


def read_cells(path: Path) -> list[Cell]:
    """The cells of a notebook, in order."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [Cell(each["cell_type"], "".join(each["source"]), "raises-exception" in each["metadata"].get("tags", [])) for each in cells]


class Printer:
    """Writes cells and outputs as text; a display that is updated is printed when it has come to its end."""

    def __init__(self, write: Callable[[str], object], *, colour: bool) -> None:
        self._write = write
        self._colour = colour
        self._pending: dict[str, str] = {}
        self.error: str | None = None

    def cell(self, cell: Cell, number: int) -> None:
        """Print a cell's own text."""
        self.error = None
        if cell.kind == "markdown":
            self._write(f"\n{cell.source}\n")
            return
        lines = cell.source.splitlines()
        self._write("\n" + self._in(_GREY, f"In [{number}]:") + "\n" + "".join(f"    {line}\n" for line in lines) + "\n")

    def message(self, message: Message) -> None:
        """Print one output as it arrives."""
        content = message["content"]
        kind = message["msg_type"]
        if kind == "stream":
            self._write(content["text"])
        elif kind in ("display_data", "update_display_data", "execute_result"):
            self._bundle(content)
        elif kind == "error":
            self.error = f"{content['ename']}: {content['evalue']}"
            self._write(self._in(_RED, "\n".join(content["traceback"])) + "\n")

    def end_of_cell(self) -> None:
        """Print the displays that may have been changing until now."""
        for text in self._pending.values():
            self._write(text + "\n")
        self._pending.clear()

    def _bundle(self, content: Message) -> None:
        text = content["data"].get("text/plain", "")
        display_id = content.get("transient", {}).get("display_id")
        if display_id:
            self._pending[display_id] = text
        else:
            self._write(text + "\n")

    def _in(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self._colour else text


def run_cells(cells: Sequence[Cell], client: BlockingKernelClient, printer: Printer) -> str | None:
    """Run the cells in order; returns what went wrong in the first that did not end as it should, else None."""
    number = 0
    for cell in cells:
        number += cell.kind == "code"
        printer.cell(cell, number)
        if cell.kind != "code":
            continue
        client.execute_interactive(cell.source, allow_stdin=False, output_hook=printer.message)
        printer.end_of_cell()
        if bool(printer.error) != cell.may_fail:
            return f"cell {number}: {printer.error or 'was expected to fail, and did not'}"
    return None


def run_notebook(path: Path, printer: Printer) -> str | None:
    """Run a notebook in a kernel of this Python, in the notebook's own directory; the kernel is gone afterwards."""
    manager = KernelManager(kernel_name="python3")
    # No network but what the notebook names: root's default bridge would stay on a machine that only wanted to see it.
    manager.start_kernel(cwd=str(path.parent), env={"SANDBOX_NETWORK": "none", **os.environ})
    try:
        with closing(_Channels(manager.blocking_client())) as channels:
            return run_cells(read_cells(path), channels.client, printer)
    finally:
        manager.shutdown_kernel(now=False)


class _Channels:
    """The client's sockets, open until `close`."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self.client = client
        client.start_channels()
        client.wait_for_ready(timeout=60)

    def close(self) -> None:
        self.client.stop_channels()


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """Run the notebook named on the command line; returns the exit status."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m magics.demo NOTEBOOK\n")
        return 2
    path = Path(arguments[0]).resolve()
    if wrong := run_notebook(path, Printer(_write, colour=sys.stdout.isatty())):
        sys.stderr.write(f"\n{path.name}: {wrong}\n")
        return 1
    _write(f"\nThat was {path.name}, run for real. To try it yourself in JupyterLab:\n\n    {_lab_command()} {arguments[0]}\n")
    return 0


def _lab_command() -> str:
    """How JupyterLab is started with this Python, and how it gets there."""
    scripts = Path(sys.executable).parent
    if (scripts / "jupyter-lab").exists():
        return f"{scripts / 'jupyter'} lab"
    return f"{scripts / 'pip'} install jupyterlab && {scripts / 'jupyter'} lab"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
