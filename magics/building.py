"""Build cells at work: `%%dockerfile`, `%install`, and what the cells so far make together."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from msgspec.structs import replace

from magics import display, failures
from magics.build_cells import BuildCell, missing_hint
from magics.build_view import BuildDisplay, BuildView, image_name
from magics.builds import BuildCells, Composed, Given, cell_key
from magics.notebook import Notebook
from magics.stage_list import list_stages
from magics.verbs import Listed
from sandbox.build.settings import settings_of
from sandbox.build.source import Span
from sandbox.cli.failures import indented
from sandbox.engine import Completed, Engine
from sandbox.errors import ContainerError, DockerfileError, InvalidInput, StepFailed, UnknownStage
from sandbox.image.store import Image


class Builds:
    """Builds the cells of one notebook."""

    def __init__(self, notebook: Notebook) -> None:
        self._notebook = notebook
        self._cells = BuildCells()
        self._cell_id: str | None = None
        self._count = 0
        self.on_built: Callable[[Composed, Image, str], None] | None = None
        """Told what a cell has built, and its name."""

    def begin(self, cell_id: str | None) -> None:
        """A cell of the notebook begins."""
        self._cell_id, self._count = cell_id, 0

    def end(self) -> None:
        """It ended well: builds that it had at an earlier run and has no more are forgotten."""
        if self._cell_id is None:
            return
        kept = {self._numbered(number) for number in range(self._count)}
        for key in self._cells.known():
            if key.partition("#")[0] == self._cell_id and key not in kept:
                self._cells.forget(key)

    def build(self, engine: Engine, cell: BuildCell, line: str) -> None:
        """Build the cell, showing it; DockerfileError and StepFailed in the cell's line numbers."""
        key = self._numbered(self._count) if self._cell_id else cell_key(None, line, cell.body)
        self._count += 1
        given = self._given(cell)
        composed = self._cells.compose(key, cell, given)
        text = failures.CellText(cell.body, first_line=cell.first_line, inherited=composed.inherited, name=cell.name)
        try:
            if cell.options.check:
                self._check(engine, composed, text)
            else:
                self._build(engine, cell, composed, given, text)
        except (DockerfileError, UnknownStage) as err:
            raise failures.in_cell(err, text) from err

    def _build(self, engine: Engine, cell: BuildCell, composed: Composed, given: Given, text: failures.CellText) -> None:
        view = BuildView(inherited=composed.inherited, continues=composed.continues)
        shown = BuildDisplay(self._notebook.mode("quiet" if cell.options.quiet else cell.options.progress), view, self._notebook.publish)
        try:
            with shown.showing():
                image = self._make_image(engine, composed, shown)
        except StepFailed as err:
            lines = failures.failed_step_lines(err, text, view)
            exit_code = err.completed.exit_code if isinstance(err.completed, Completed) else 0
            raise failures.show_as(err, [*lines, *missing_hint(cell.name, exit_code)]) from None
        self._cells.remember(composed, cell, given, image_name(view))
        if self.on_built is not None:
            self.on_built(composed, image, image_name(view))
        if cell.output:
            self._notebook.set_variables({cell.output: image})
        if cell.kernel:
            _install_kernel(image_name(view), cell.kernel)

    def _make_image(self, engine: Engine, composed: Composed, shown: BuildDisplay) -> Image:
        given = composed.given
        with _directory(given.context) as directory:
            image = engine.build(
                directory,
                dockerfile=composed.text,
                tags=given.options.tag,
                build_args=given.build_args,
                target=given.options.target,
                no_cache=given.options.no_cache,
                labels=self._notebook.pairs(given.options.label, "--label"),
                network="host" if given.options.network == "default" else given.options.network,
                settings=replace(settings_of(given.options, os.environ), files=given.files),
                on_event=shown.see,
            )
        shown.view.size = engine.image_size(image)
        return image

    def _check(self, engine: Engine, composed: Composed, text: failures.CellText) -> None:
        """`--check`: what the rules find in this cell, nothing built."""
        given = composed.given
        with _directory(given.context) as directory:
            dockerfile, found = engine.check(directory, dockerfile=composed.text, build_args=given.build_args)
        own = [one for one in found if text.line(one.line) is not None]
        lines = [f"✓ no warnings · {len(dockerfile.instructions)} instructions"] if not own else []
        for one in own:
            excerpt = text.excerpt(dockerfile.source.excerpt(Span(one.line, one.line)))
            lines += [f"{one.rule}: {one.message}", *indented(f"{text.place(one.line)}\n{excerpt}")]
        display.say("\n".join(lines))

    def _given(self, cell: BuildCell) -> Given:
        build_args = self._notebook.pairs(cell.options.build_arg, "--build-arg")
        files = {name: self._content(name, variable) for name, variable in cell.files}
        return Given(build_args, files, cell.options, None if cell.context == "." else cell.context)

    def _content(self, name: str, variable: str) -> bytes:
        """The Python variable as the bytes of a file of that name."""
        if variable not in self._notebook.variables:
            raise InvalidInput(f"--file {name}={variable}: no such Python variable")
        return content_of(self._notebook.variables[variable], name)

    def _numbered(self, number: int) -> str:
        """A cell may hold several %install lines: each has a place of its own."""
        return f"{self._cell_id}#{number}" if number else str(self._cell_id)

    # all cells together

    def stages(self) -> Listed:
        """`%stages`: the stages that the cells so far make together."""
        from sandbox.build.dockerfile import parse

        text, _, image = self._cells.whole()
        return list_stages(parse(text), image)

    def export(self, path: str | None) -> None:
        """`%dockerfile export [FILE]`: the Dockerfile of the cells so far; what was given by flags is named in comments."""
        text, given, _ = self._cells.whole()
        text = _remarks(given) + text
        if path is None:
            self._notebook.show({"text/plain": text.rstrip("\n")}, {})
            return
        try:
            Path(path).expanduser().write_text(text)
        except OSError as err:
            raise InvalidInput(f"{path}: {(err.strerror or str(err)).lower()}") from err
        display.say(f"wrote {path}")

    def offer(self, path: str) -> None:
        """`%dockerfile import FILE`: a cell below with the file's text, its directory the context."""
        file = Path(path).expanduser()
        file = file / "Dockerfile" if file.is_dir() else file
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as err:
            raise InvalidInput(f"{path}: {getattr(err, 'strerror', None) or 'not text'}".lower()) from err
        context = "" if file.parent == Path() else f" {file.parent}"
        self._notebook.next_cell(f"%%dockerfile{context}\n{text.rstrip()}")


def content_of(value: object, name: str) -> bytes:
    """A file's bytes: bytes and text as they are, a table as the format its name says (CSV without one). InvalidInput for anything else."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Path):
        return value.read_bytes()
    write = getattr(value, "to_csv", None)
    if not callable(write):
        kind = type(value).__name__
        raise InvalidInput(f"--file {name}: a {kind} is neither text, bytes nor a table", hint="make it text first: json.dumps(…)")
    suffix = Path(name).suffix.lower()
    method, arguments = _TABLES.get(suffix, _TABLES[".csv"])
    found = getattr(value, method)(**arguments)
    return found if isinstance(found, bytes) else str(found).encode()


_TABLES: dict[str, tuple[str, Mapping[str, object]]] = {
    ".csv": ("to_csv", {"index": False}),
    ".tsv": ("to_csv", {"index": False, "sep": "\t"}),
    ".json": ("to_json", {"orient": "records"}),
    ".parquet": ("to_parquet", {}),
}


@contextlib.contextmanager
def _directory(context: str | None) -> Iterator[Path]:
    """The context's directory: the notebook's own when none is named, an empty one for docker's `-`."""
    if context == "-":
        with tempfile.TemporaryDirectory(prefix="sandbox-context-") as empty:
            yield Path(empty)
        return
    path = Path(context or ".").expanduser()
    if not path.is_dir():
        raise InvalidInput(f"context {context}: not a directory", hint="the context is relative to the notebook's own directory")
    yield path


def _remarks(given: Given) -> str:
    """What the text does not say, as comments: names only, since a value may be a secret."""
    flags = [f"--build-arg {name}=…" for name in given.build_args] + [f"{name}: made of a Python variable" for name in given.files]
    return "".join(f"# needs {flag}\n" for flag in flags)


def _install_kernel(image: str, name: str | bool) -> None:
    """`--kernel[=NAME]`: as `%container kernel install`; ContainerError when that fails (it has said why)."""
    from sandbox.cli.program import run

    names = [] if name is True else ["--name", str(name)]
    if code := run(["kernel", "install", "--user", "--replace", *names, image]):
        raise ContainerError(f"--kernel: no kernel was installed (exit status {code})")
