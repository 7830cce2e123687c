"""Python cells: run by the runner inside, in a fresh container or in a session; plots, values and questions come back from there."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from magics.cells import ExecCell, RunCell
from magics.display import Bundle, CellResult, cell_result
from magics.failures import failure_of, show_as
from magics.languages import ImageFacts, Invocation
from magics.output import OutputStreams
from magics.untrusted import harmless, harmless_metadata
from magics.verbs import Listed
from sandbox.cli.formatting import Table, age_text
from sandbox.errors import CellFailed, InvalidOption, SandboxError
from sandbox.runtime.spec import Completed
from sandbox.session.believed import CellCode, CellOutcome
from sandbox.session.interpreter import Interpreter
from sandbox.session.session import Session, Sessions

IDLE_SECONDS = 3600.0
"""A session without a cell for so long ends."""

_WIDGET = "application/vnd.jupyter.widget-view+json"
_NO_WIDGETS = "(a widget: only a kernel in the container can show it live: %container kernel install IMAGE)"


class CellFront(msgspec.Struct, frozen=True):
    """The cell as the runner's front end: output streams, displays made harmless, questions when the front end allows them."""

    streams: OutputStreams
    may_ask: bool
    make_safe: Callable[[Bundle], Bundle] = harmless

    def write(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """What the cell printed."""
        self.streams.write(stream, data)

    def display(self, data: Bundle, metadata: Bundle) -> None:
        """What the cell shows; its text stands after what was printed before."""
        self.streams.flush()
        self.streams.area.show(*self._safe(data, metadata))

    def display_as(self, data: Bundle, metadata: Bundle, display_id: str, *, update: bool) -> None:
        """What may change later, or what changed."""
        self.streams.flush()
        self.streams.area.show(*self._safe(data, metadata), display_id, update=update)

    def clear(self, *, wait: bool) -> None:
        """What the cell has shown so far goes."""
        self.streams.clear(wait=wait)

    def show_result(self, data: Bundle, metadata: Bundle) -> None:
        """The last expression's value: shown as any other, since the cell's own result is its usage line."""
        self.display(data, metadata)

    def ask(self, prompt: str, password: bool) -> str | None:
        """Ask through the notebook's own input()."""
        if not self.may_ask:
            return None
        self.streams.flush()
        return getpass.getpass(prompt) if password else input(prompt)

    def _safe(self, data: Bundle, metadata: Bundle) -> tuple[Bundle, Bundle]:
        shown = self.make_safe(data)
        if _WIDGET in data:
            shown = {**shown, "text/plain": f"{shown['text/plain']}\n{_NO_WIDGETS}"}
        return shown, harmless_metadata(metadata)


class Ended(msgspec.Struct, frozen=True):
    """How a Python cell ended, as the magics show it."""

    result: CellResult
    failure: SandboxError | None
    values: Mapping[str, object]


class Around(msgspec.Struct, frozen=True):
    """What a cell runs in, as errors and the usage line say it."""

    where: str
    network: str = ""
    memory_limit: int | None = None


def around(cell: RunCell) -> Around:
    """What a cell of its own container runs in."""
    return Around(f"image {cell.image}", cell.options.network_name, cell.options.memory)


def code_of(cell: RunCell | ExecCell, variables: Mapping[str, Any]) -> CellCode:  # Any: a Python namespace
    """The cell with the values of its inputs; InvalidOption when one is not there."""
    if missing := next((name for name in cell.cell.inputs if name not in variables), None):
        raise InvalidOption(f"--in {missing}: no such Python variable")
    inputs = {name: variables[name] for name in cell.cell.inputs}
    return CellCode(cell.body, cell.first_line, inputs, cell.cell.outputs, cell.cell.pickle, cell.cell.trust)


def run_once(
    interpreter: Interpreter, around: Around, code: CellCode, front: CellFront, invocation: Invocation, facts: ImageFacts
) -> Ended:
    """Run the cell as the only one of its interpreter."""
    if interpreter.refused is not None:
        interpreter.close()
        outcome = CellOutcome("died", interpreter.refused.exit_code, completed=interpreter.refused)
    else:
        outcome = interpreter.run(code, front, keep=False)
    completed = outcome.completed or Completed(outcome.exit_code, why="lost", reason=outcome.error[1])
    if outcome.status == "died" and completed.ok:  # it wrote to the runner's descriptor, or closed it
        completed = replace(completed, why="lost", reason=f"its result is lost: {outcome.error[1]}")
    result = cell_result(completed, program=invocation.chosen, network=around.network, memory_limit=around.memory_limit)
    return Ended(result, _failure(outcome, completed, invocation, around.where, facts), outcome.values)


def run_in(session: Session, cell: RunCell, code: CellCode, front: CellFront, invocation: Invocation, facts: ImageFacts) -> Ended:
    """Run the cell in a session. A cell's own time-out interrupts it; the session stays."""
    outcome = session.run(code, front, timeout=cell.options.timeout)
    completed = outcome.completed or Completed(outcome.exit_code, usage=outcome.usage)
    if outcome.status == "timeout":
        reason = f"interrupted: ran longer than --timeout {cell.options.timeout:g}s; its variables are kept"
        completed = Completed(124, why="timeout", reason=reason, usage=outcome.usage)
    options = cell.options
    chosen = f"session {session.name}, {invocation.chosen}"
    result = cell_result(completed, program=chosen, network=options.network_name, memory_limit=options.memory)
    return Ended(result, _failure(outcome, completed, invocation, f"image {session.image}", facts), outcome.values)


def _failure(outcome: CellOutcome, completed: Completed, invocation: Invocation, where: str, facts: ImageFacts) -> SandboxError | None:
    """The error the outcome stands for: the cell's own traceback, when it has one."""
    if outcome.status == "error" and completed.why == "exited":
        name, text = outcome.error
        error = CellFailed(f"{name}: {text}" if text else name, kind="error", exit_code=1, usage=completed.usage)
        return show_as(error, list(outcome.traceback) or [str(error)])
    if outcome.status == "object":
        return CellFailed(outcome.error[1], kind="object", exit_code=1, usage=completed.usage)
    if outcome.status == "died" and outcome.completed is None:
        return CellFailed(f"{invocation.program}: {outcome.error[1]}", kind="lost", exit_code=completed.exit_code, usage=completed.usage)
    return None if completed.ok and outcome.status in ("ok", "exit") else failure_of(completed, invocation, where=where, facts=facts)


def list_sessions(sessions: Sessions) -> Listed:
    """`%container sessions`."""
    now = datetime.now(UTC)
    keys = ("Name", "Image", "Status", "Cells", "LastUsed")
    rows = tuple((s.name, s.image, s.status, str(s.cells), age_text(datetime.fromtimestamp(s.used, UTC), now)) for s in sessions)
    return Listed(
        Table(("SESSION", "IMAGE", "STATUS", "CELLS", "LAST USED"), rows, tuple(dict(zip(keys, row, strict=True)) for row in rows))
    )
