"""How an error looks in a cell: a few lines of its own instead of a Python traceback, in cell line numbers."""

from __future__ import annotations

import re
import signal
from typing import TypeVar

from magics.build_view import BuildView
from magics.display import seconds_text
from magics.languages import ImageFacts, Invocation
from sandbox.build.source import Span
from sandbox.cli.failures import indented, step_details
from sandbox.errors import BuildError, CellFailed, ContainerError, DockerfileError, SandboxError, StepFailed, UnknownStage
from sandbox.runtime.spec import Completed

_KIND_COLUMN = 68
_NUMBERED = re.compile(r"([> ]) +(\d+) \|(.*)")
_DOCKERFILE_LINE = re.compile(r"\S+ line (\d+): ")
_BLANK_NUMBER = re.compile(r"  +\|(.*)")
_SHELLS = ("bash", "sh", "python3", "python", "node", "perl", "ruby")


def failure_of(completed: Completed, invocation: Invocation, *, where: str, facts: ImageFacts) -> CellFailed:
    """The error a completed cell stands for. Its message is free of ids and durations, since nbval compares it."""
    kind = _kind(completed)
    message, hint = completed.reason or _message(completed, invocation), None
    if kind == "exec" and message.startswith(f"{invocation.program}: "):
        message, hint = f"{message} in {where}" if message.endswith(": not found") else message, _other_program(invocation, facts)
    if completed.denied:
        hint = f"--allow-net {completed.denied_text}"
    return CellFailed(message, kind=kind, exit_code=completed.exit_code, usage=completed.usage, hint=hint)


def _kind(completed: Completed) -> str:
    if completed.why != "exited":
        return completed.why
    return "exec" if completed.exit_code in (126, 127) and completed.reason else "exit"


def _message(completed: Completed, invocation: Invocation) -> str:
    if completed.signal:
        return f"killed by {signal.Signals(completed.signal).name} (exit code {completed.exit_code})"
    return f"{invocation.program or 'program'}: exit code {completed.exit_code}"


def _other_program(invocation: Invocation, facts: ImageFacts) -> str | None:
    """What the image has instead."""
    tried = invocation.program.rsplit("/", 1)[-1]
    found = [name for name in _SHELLS if name != tried and facts.find(name)]
    return f"this image has {', '.join(found[:3])}; use --shell {found[0]}" if found else None


class CellText:
    """The cell an error is about: turns lines of the composed Dockerfile into lines of the cell (the magic line is 1). With a `name`
    the cell has no Dockerfile lines to show, and is called that."""

    def __init__(self, body: str, *, first_line: int = 2, inherited: int = 0, name: str = "") -> None:
        self._name = name
        self.lines = first_line - 1 + len(body.splitlines())
        self._shift = first_line - 1 - inherited
        self._inherited = inherited

    def line(self, number: int) -> int | None:
        """The cell's line; None when the Dockerfile's line belongs to an earlier cell."""
        return number + self._shift if number > self._inherited else None

    def where(self, span: object) -> str:
        """`cell line 3 of 6`, or that it is an earlier cell's."""
        return self.place(span.first) if isinstance(span, Span) else "cell"

    def place(self, number: int) -> str:
        """`cell line 3 of 6`, of the Dockerfile's line."""
        line = self.line(number)
        return "in an earlier cell" if line is None else self._name or f"cell line {line} of {self.lines}"

    def excerpt(self, text: str) -> str:
        """The engine's excerpt with the cell's line numbers; lines of earlier cells left out."""
        lines, shown, width = [], False, len(str(self.lines))
        for line in text.splitlines():
            if match := _NUMBERED.fullmatch(line):
                number = self.line(int(match[2]))
                shown = number is not None and not self._name
                line = f"{match[1]} {number or 0:>{width}} |{match[3]}"
            elif match := _BLANK_NUMBER.fullmatch(line):
                line = f"  {'':>{width}} |{match[1]}"
            if shown:
                lines.append(line)
        return "\n".join(lines)


def in_cell(error: DockerfileError | UnknownStage, cell: CellText) -> DockerfileError | UnknownStage:
    """The same error in cell line numbers."""
    match = _DOCKERFILE_LINE.match(str(error))
    message = str(error)[match.end() :] if match else str(error)
    if isinstance(error, UnknownStage):
        return UnknownStage(f"{cell.place(int(match[1]))}: {message}" if match else message, hint=error.hint)
    return DockerfileError(
        message, span=error.span, excerpt="\n".join([cell.where(error.span), cell.excerpt(error.excerpt)]), hint=error.hint
    )


def step_lines(error: StepFailed, cell: CellText, *, index: int, total: int, stage: str, seconds: float) -> list[str]:
    """A failed build step: which line of the cell, what stands around it, the last it printed."""
    place = f"{cell.where(error.span)} | step {index}/{total} | stage {stage} | after {seconds_text(seconds)}"
    return [f"BuildError: {error}", *step_details(error, place=place, excerpt=cell.excerpt(error.excerpt)), *_hint(error)]


def failed_step_lines(error: StepFailed, cell: CellText, view: BuildView) -> list[str]:
    """`step_lines` with the figures of the step that the view saw fail."""
    row = view.failed
    if row is None:  # it failed before its first step: FROM names no image
        return [
            f"BuildError: {error}",
            *step_details(error, place=cell.where(error.span), excerpt=cell.excerpt(error.excerpt)),
            *_hint(error),
        ]
    return step_lines(error, cell, index=row.index, total=view.total, stage=row.stage, seconds=row.seconds)


def error_lines(error: SandboxError) -> list[str]:
    """Any of our errors, as few lines as it needs."""
    if isinstance(error, CellFailed):
        hint = f"   hint: {error.hint}" if error.hint else ""
        return [f"{f'ContainerError: {error}  ':<{_KIND_COLUMN}}[{error.kind}]{hint}"]
    excerpt = indented(error.excerpt) if isinstance(error, DockerfileError | StepFailed) else []
    return [f"{_family(error)}: {error}", *excerpt, *_hint(error)]


_LOOK_INSIDE = re.compile(r"look inside: sandbox run (?:-\S+ )*(\S+) \S+")


def _hint(error: SandboxError) -> list[str]:
    """The remedy; a command line is turned into the cell that does the same (a cell has no terminal for `run -it`)."""
    if error.hint and (match := _LOOK_INSIDE.fullmatch(error.hint)):
        return [f"  look inside: %%container {match[1]}"]
    return [f"  hint: {as_magic(error.hint)}"] if error.hint else []


_COMMAND = re.compile(r"(?<![\w/-])sandbox (?=[a-z-])")


def as_magic(hint: str) -> str:
    """The hint with the command line's words as a notebook says them."""
    return _COMMAND.sub("%container ", hint)


def _family(error: SandboxError) -> str:
    """The name to catch it by."""
    if type(error) in (StepFailed,):
        return BuildError.__name__
    return ContainerError.__name__ if isinstance(error, CellFailed) else type(error).__name__


def shown_lines(error: SandboxError) -> list[str]:
    """What the cell shows of the error: a traceback of its own, when it has one."""
    own = getattr(error, "_render_traceback_", None)
    return own() if own else error_lines(error)


Shown = TypeVar("Shown", bound=BaseException)


def show_as(error: Shown, lines: list[str]) -> Shown:
    """Make IPython show exactly these lines for the error, instead of a traceback."""
    # A method IPython asks any exception for; the engine's classes know nothing of IPython, so the instance gets it here.
    error._render_traceback_ = lambda *_: lines  # type: ignore[attr-defined]
    return error
