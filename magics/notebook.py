"""What the magics need of the notebook around them: its variables, its output area, its stdin, its cell ids."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.interactiveshell import InteractiveShell
from msgspec.structs import replace

from magics import display
from magics.cells import CellOptions
from magics.output import Area, HeldArea, LiveArea, Name, OutputStreams
from magics.words import Namespace, split_line
from sandbox.cli.pulling import OnDemandFace
from sandbox.errors import InvalidInput, InvalidOption
from sandbox.options import RunOptions

if TYPE_CHECKING:
    from sandbox.cli.transferring import TransferFace


class Notebook:
    """One shell (a kernel's or a terminal's) as the magics use it."""

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell
        self.expressions = True
        """Whether `{expr}` on a magic line is evaluated."""

    @property
    def variables(self) -> Mapping[str, object]:
        """The user's variables."""
        return self.shell.user_ns

    def own_names(self) -> list[str]:
        """The variables that the user has made."""
        return [name for name in self.shell.user_ns if not name.startswith("_") and name not in self.shell.user_ns_hidden]

    def set_variables(self, values: Mapping[str, object]) -> None:
        """Set variables of the user's."""
        self.shell.user_ns.update(values)

    def next_cell(self, text: str) -> None:
        """Offer a new cell with this text below."""
        self.shell.set_next_input(text)

    # the magic line

    def words(self, line: str) -> list[str]:
        """The words of a magic line, expanded; InvalidOption."""
        return split_line(line, self._namespace())

    def pairs(self, texts: Iterable[str], flag: str) -> dict[str, str]:
        """`K=V` as written; `K` alone is the Python variable K, then the environment's. InvalidOption when it is neither."""
        pairs = {}
        for text in texts:
            name, equals, value = text.partition("=")
            found = value if equals else self._namespace().value(name)
            if found is None:
                raise InvalidOption(f"{flag} {name}: neither a Python variable nor in the environment", hint=f"write {flag} {name}=VALUE")
            pairs[name] = found
        return pairs

    def filled(self, options: RunOptions) -> RunOptions:
        """The options with what only the face can know: values of -e NAME, the lines of --env-file."""
        named = self.pairs(options.env, "-e")
        from_files = self.pairs([line for path in options.env_file for line in _env_lines(path)], "--env-file")
        return replace(options, env=tuple(f"{name}={value}" for name, value in {**from_files, **named}.items()), env_file=())

    def input(self, source: str) -> bytes:
        """What `--stdin VAR|@FILE` names, as bytes; InvalidInput, InvalidOption."""
        if source.startswith("@"):
            return _read_file(source[1:], "--stdin")
        if source not in self.variables:
            raise InvalidOption(f"--stdin {source}: no such Python variable", hint=f"for a file write --stdin @{source}")
        value = self.variables[source]
        return value if isinstance(value, bytes) else str(value).encode()

    def _namespace(self) -> Namespace:
        return Namespace(self.variables, os.environ, expressions=self.expressions)

    # the output area

    def publish(self, data: display.Bundle, metadata: display.Bundle, display_id: str | None, update: bool) -> None:
        """Show a bundle, or replace the one of that id."""
        transient = None if display_id is None else {"display_id": display_id}
        self.shell.display_pub.publish(data=data, metadata=metadata, transient=transient, update=update)

    def show(self, data: display.Bundle, metadata: display.Bundle) -> None:
        """Show a bundle that will not change."""
        self.publish(data, metadata, None, False)

    def mode(self, progress: str = "auto") -> display.Mode:
        """How what changes is shown here."""
        return display.choose_mode(progress, in_kernel=self._kernel is not None, environ=os.environ)

    def transfers(self) -> Callable[[], TransferFace] | None:
        """What makes the displays of pulls and pushes; None where they are lines, as on a terminal."""
        mode = self.mode()
        if mode == "plain":
            return None
        from magics.transfers import NotebookTransfer  # only a transfer needs it

        return lambda: NotebookTransfer(mode, self.publish)

    def pulling(self) -> OnDemandFace:
        """For a cell whose image may have to be pulled; to be used as a context manager."""
        return OnDemandFace(make=self.transfers())

    def may_ask(self) -> bool:
        """Whether the front end can ask the person: a terminal can, a notebook says so with each cell."""
        return bool(self._kernel._allow_stdin) if self._kernel is not None else sys.stdin.isatty()

    @property
    def _kernel(self) -> Any:  # Any: ipykernel's, when there is one
        return getattr(self.shell, "kernel", None)

    @contextlib.contextmanager
    def streams(self, options: CellOptions, *, may_clear: bool = False) -> Iterator[OutputStreams]:
        """A program's output on its way to the cell, or to the variables of --out and --err. `may_clear`: it knows clear_output."""
        named: tuple[tuple[Name, str | None], ...] = (("stdout", options.out), ("stderr", options.err))
        variables = {name: variable for name, variable in named if variable}
        streams = OutputStreams(self._area(may_clear), keep=frozenset(variables))
        try:
            yield streams
        finally:
            streams.close()
            streams.area.close()
            self.set_variables({variable: streams.text(name) for name, variable in variables.items()})

    def _area(self, may_clear: bool) -> Area:
        """The cell's output area; where the front end knows no updates, what one would leave."""
        live = LiveArea(self.publish, self.shell.display_pub.clear_output)
        return HeldArea(live, may_clear=may_clear) if self.mode() == "final" else live


def _read_file(path: str, flag: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as err:
        raise InvalidInput(f"{flag} {path}: {(err.strerror or str(err)).lower()}") from err


def _env_lines(path: str) -> list[str]:
    """docker's --env-file: NAME=VALUE or NAME a line, # comments."""
    lines = _read_file(path, "--env-file").decode(errors="surrogateescape").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
