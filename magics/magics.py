"""The magics: parse, call the engine, show. `loading` registers them with a shell."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from IPython.core.interactiveshell import ExecutionInfo, ExecutionResult, InteractiveShell
from IPython.core.magic import Magics, cell_magic, line_cell_magic, line_magic, magics_class, no_var_expand

from magics import build_cells, cells, display, failures
from magics.build_cells import BuildCell, parse_build, parse_install
from magics.building import Builds
from magics.builds import Composed
from magics.cells import ExecCell, parse_exec, parse_run
from magics.notebook import Notebook
from magics.running import Cells
from magics.verbs import run_verb
from magics.words import join_continuations
from sandbox.engine import Engine
from sandbox.errors import InvalidOption, SandboxError
from sandbox.image.store import Image


@magics_class
class SandboxMagics(Magics):
    """%%dockerfile, %%container, %%sandbox, %install, %stages and %container over one lazily made Engine."""

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._notebook = Notebook(shell)
        self._builds = Builds(self._notebook)
        self._cells = Cells(self._notebook)
        self._engine: Engine | None = None
        self._own_verbs: dict[str, Callable[[Sequence[str]], object]] = {
            "sessions": self._cells.warm.listed,
            "reset": self._cells.warm.reset,
        }

    @property
    def engine(self) -> Engine:
        """The engine of this kernel, made when it is first needed."""
        if self._engine is None:
            self._engine = Engine()
        return self._engine

    def adapt(
        self, *, on_built: Callable[[Composed, Image, str], None], verbs: Mapping[str, Callable[[Sequence[str]], object]], expressions: bool
    ) -> None:
        """For a kernel around them: who is told of builds, `%container` verbs of its own, whether `{expr}` on a line is evaluated."""
        self._builds.on_built = on_built
        self._own_verbs.update(verbs)
        self._notebook.expressions = expressions

    def session_names(self) -> list[str]:
        """The sessions of this notebook."""
        return self._cells.warm.names()

    def variable_names(self) -> list[str]:
        """The variables of this notebook."""
        return self._notebook.own_names()

    def reset_sessions(self, names: Sequence[str]) -> None:
        """`%container reset NAME…`."""
        self._cells.warm.reset(names)

    def close(self) -> None:
        """End the sessions and the engine's helper process; containers in the background go on."""
        self._cells.close()
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def begin_cell(self, info: ExecutionInfo) -> None:
        """IPython's pre_run_cell: which cell the next magics belong to."""
        self._builds.begin(info.cell_id)

    def end_cell(self, result: ExecutionResult) -> None:
        """IPython's post_run_cell."""
        if result.success:
            self._builds.end()

    @no_var_expand
    @cell_magic("dockerfile")  # type: ignore[arg-type]
    def dockerfile(self, line: str, cell: str) -> None:
        """Build the body of the cell; `%%dockerfile --help` lists the flags."""
        with shown_plainly():
            whole, body, taken = join_continuations(line, cell)
            self._build(parse_build(self._notebook.words(whole), body, first_line=taken + 1), "%%dockerfile", line)

    @no_var_expand
    @line_magic("dockerfile")  # type: ignore[arg-type]
    def dockerfile_line(self, line: str) -> None:
        """`%dockerfile export [FILE]`, `%dockerfile import FILE`."""
        with shown_plainly():
            verb, *rest = self._notebook.words(line) or ["--help"]
            if verb in ("-h", "--help"):
                display.say(build_cells.USAGES["%dockerfile"].text())
            elif verb == "export" and len(rest) <= 1:
                self._builds.export(*rest or (None,))
            elif verb == "import" and len(rest) == 1:
                self._builds.offer(rest[0])
            else:
                raise InvalidOption(f"%dockerfile {line.strip()}: not known", hint="%dockerfile export [FILE], or import FILE")

    @no_var_expand
    @line_cell_magic
    def install(self, line: str, cell: str = "") -> None:
        """Install packages on top of the build cell before; `%install --help` lists the flags."""
        with shown_plainly():
            self._build(parse_install(self._notebook.words(line), cell), "%install", line)

    @no_var_expand
    @line_magic
    def stages(self, line: str) -> object:
        """The stages of the build cells so far."""
        with shown_plainly():
            if line.strip():
                display.say(build_cells.USAGES["%stages"].text())
                return None
            return self._builds.stages()

    @no_var_expand
    @cell_magic("container")  # type: ignore[arg-type]
    def container_cell(self, line: str, cell: str) -> object:
        """Run the body of the cell in a container; `%%container --help` lists the flags."""
        return self._in_container("%%container", line, cell)

    @no_var_expand
    @cell_magic
    def sandbox(self, line: str, cell: str) -> object:
        """Run the body of the cell in a locked-down container; `%%sandbox --help` lists the flags."""
        return self._in_container("%%sandbox", line, cell)

    def docker_cell(self, verb: str, line: str, cell: str) -> object:
        """`%%docker run`, `%%docker exec`."""
        return self._in_container(f"%%docker {verb}", line, cell)

    @no_var_expand
    @line_magic("container")  # type: ignore[arg-type]
    def container_line(self, line: str) -> object:
        """Every verb of the command line: `%container images`; `%container --help` lists them."""
        with shown_plainly():
            words = self._notebook.words(join_continuations(line, "")[0])
            own = self._own_verbs.get(words[0]) if words else None
            return own(words[1:]) if own else run_verb(words, self._notebook.transfers())

    def _build(self, cell: BuildCell, magic: str, line: str) -> None:
        if cell.help:
            display.say(build_cells.USAGES[magic].text())
        else:
            self._builds.build(self.engine, cell, line)

    def _in_container(self, magic: str, line: str, body: str) -> object:
        with shown_plainly():
            whole, body, taken = join_continuations(line, body)
            words = self._notebook.words(whole)
            if magic == "%%docker exec":
                return self._exec(parse_exec(words, body, magic=magic, first_line=taken + 1), magic)
            if words[:1] == ["exec"] and magic == "%%container":
                return self._exec(parse_exec(words[1:], body, first_line=taken + 1), "%%container exec")
            words = words[1:] if words[:1] == ["run"] and magic != "%%docker run" else words
            cell = parse_run(words, body, magic=magic, first_line=taken + 1)
            if cell.cell.help:
                display.say(cells.USAGES[magic].text())
                return None
            return self._cells.run(self.engine, cell)

    def _exec(self, cell: ExecCell, magic: str) -> object:
        if cell.cell.help:
            display.say(cells.USAGES[magic].text())
            return None
        return self._cells.exec(self.engine, cell)


@contextlib.contextmanager
def shown_plainly() -> Iterator[None]:
    """Errors raised on purpose appear as their own few lines; all others keep their traceback."""
    try:
        yield
    except SandboxError as err:
        if not hasattr(err, "_render_traceback_"):
            failures.show_as(err, failures.error_lines(err))
        raise
    except KeyboardInterrupt as err:
        if not hasattr(err, "_render_traceback_"):
            failures.show_as(err, ["KeyboardInterrupt: stopped; nothing of the cell runs any more"])
        raise
