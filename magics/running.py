"""Container cells at work: which program reads the body, in which container, and what becomes of what it gives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

from msgspec.structs import replace

from magics import display, failures
from magics.cells import CellOptions, ExecCell, RunCell
from magics.handles import Handle
from magics.images import image_facts
from magics.languages import ImageFacts, Invocation, choose, choose_for_exec
from magics.notebook import Notebook
from magics.outfiles import MOST_SHOWN, Seen, bundle_of, out_files, save_file
from magics.python_cells import Around, CellFront, Ended, around, code_of, run_once
from magics.warm_cells import WarmCells, safe
from sandbox.engine import Container, Engine, Streams
from sandbox.errors import InvalidOption, SandboxError
from sandbox.image.store import Image
from sandbox.options import RunOptions
from sandbox.outplaces import OutPlace
from sandbox.runtime.spec import Mount


class Cells:
    """Runs the container cells of one notebook."""

    def __init__(self, notebook: Notebook) -> None:
        self._notebook = notebook
        self.warm = WarmCells(notebook)

    def close(self) -> None:
        """End the sessions; containers in the background go on."""
        self.warm.close()

    def run(self, engine: Engine, cell: RunCell) -> object:
        """Run the body in a fresh container, or in a session; a handle with -d. Raises CellFailed."""
        _note_terminal(cell.cell)
        cell = self.warm.with_image(cell)
        image, facts, invocation = self.warm.begun_with(cell) or self._choose(engine, cell)
        options = self._notebook.filled(replace(cell.options, entrypoint=invocation.entrypoint))
        if options.detach:
            return self._start(engine, image, invocation, options, cell.cell.proc)
        cell = replace(cell, options=options)
        _refuse_values(invocation, cell.cell)
        with self._out_directory(engine, cell) as mounts:
            ended = self._run_body(engine, image, cell, invocation, facts, mounts)
        self._notebook.set_variables(ended.values)
        return self._finish(cell.cell, ended.result, ended.failure)

    def _choose(self, engine: Engine, cell: RunCell) -> tuple[Image, ImageFacts, Invocation]:
        """The image, and who reads the body."""
        with self._notebook.pulling() as face:
            image = engine.wanted_image(cell.image, cell.options.pull, on_transfer=face)
        facts = image_facts(engine, image, cell.image)
        invocation = choose(
            cell.body,
            lang=cell.cell.lang,
            argv=cell.argv,
            entrypoint=cell.options.entrypoint,
            facts=facts,
            on_stdin=cell.cell.on_stdin,
        )
        return image, facts, invocation

    def exec(self, engine: Engine, cell: ExecCell) -> object:
        """Run the body in a running container. Raises CellFailed."""
        _note_terminal(cell.cell)
        container = engine.container(cell.container)
        facts = image_facts(engine, engine.image(container.image_id), container.image_name)
        invocation = choose_for_exec(cell.body, lang=cell.cell.lang, argv=cell.argv, facts=facts)
        _refuse_values(invocation, cell.cell)
        run = self._exec_python if invocation.python else self._exec_program
        ended = run(container, cell, invocation, facts)
        self._notebook.set_variables(ended.values)
        return self._finish(cell.cell, ended.result, ended.failure)

    def _exec_program(self, container: Container, cell: ExecCell, invocation: Invocation, facts: ImageFacts) -> Ended:
        with self._notebook.streams(cell.cell) as streams:
            completed = container.exec(
                invocation.argv,
                env=self._notebook.pairs(cell.options.env, "-e"),
                user=cell.options.user,
                workdir=cell.options.workdir,
                stdin=self._stdin(cell.cell, invocation, cell.body),
                on_output=streams.write,
            )
        result = display.cell_result(completed, program=invocation.chosen, network="")
        failure = None if completed.ok else failures.failure_of(completed, invocation, where=f"container {cell.container}", facts=facts)
        return Ended(result, failure, {})

    def _exec_python(self, container: Container, cell: ExecCell, invocation: Invocation, facts: ImageFacts) -> Ended:
        code = code_of(cell, self._notebook.variables)
        with self._notebook.streams(cell.cell, may_clear=True) as streams:
            front = CellFront(streams, self._notebook.may_ask())
            interpreter = container.interpreter(
                invocation.python,
                env=self._notebook.pairs(cell.options.env, "-e"),
                user=cell.options.user,
                workdir=cell.options.workdir,
                stdin=self._stdin(cell.cell, invocation, cell.body),
            )
            return run_once(interpreter, Around(f"container {cell.container}"), code, front, invocation, facts)

    # one body

    def _run_body(
        self, engine: Engine, image: Image, cell: RunCell, invocation: Invocation, facts: ImageFacts, mounts: Sequence[Mount]
    ) -> Ended:
        if cell.cell.session:
            return self.warm.run(engine, image, cell, invocation, facts, mounts)
        if invocation.python:
            return self._run_python(engine, image, cell, invocation, facts, mounts)
        return self._run_program(engine, image, cell, invocation, facts, mounts)

    def _run_program(
        self, engine: Engine, image: Image, cell: RunCell, invocation: Invocation, facts: ImageFacts, mounts: Sequence[Mount]
    ) -> Ended:
        streams_in = Streams(stdin=self._stdin(cell.cell, invocation, cell.body))
        options = cell.options
        launch = partial(engine.launch, image, invocation.argv, options=options, streams=streams_in, mounts=mounts)
        with self._notebook.streams(cell.cell) as streams, launch()[0] as running:
            completed = running.wait(streams.write)
        result = display.cell_result(completed, program=invocation.chosen, network=options.network_name, memory_limit=options.memory)
        failure = None if completed.ok else failures.failure_of(completed, invocation, where=f"image {cell.image}", facts=facts)
        return Ended(result, failure, {})

    def _run_python(
        self, engine: Engine, image: Image, cell: RunCell, invocation: Invocation, facts: ImageFacts, mounts: Sequence[Mount]
    ) -> Ended:
        code = code_of(cell, self._notebook.variables)
        with self._notebook.streams(cell.cell, may_clear=True) as streams:
            front = CellFront(streams, self._notebook.may_ask(), safe(cell))
            stdin = self._stdin(cell.cell, invocation, cell.body)
            interpreter = engine.interpreter(image, invocation.python, options=cell.options, stdin=stdin, mounts=mounts)
            return run_once(interpreter, around(cell), code, front, invocation, facts)

    def _start(self, engine: Engine, image: Image, invocation: Invocation, options: RunOptions, variable: str | None) -> Handle:
        if invocation.body_on_stdin:
            raise InvalidOption("-d: the body would be the program's stdin, which a background container does not have", hint="use --lang")
        container = engine.create(image, invocation.argv, options=options)
        container.start()
        handle = Handle(container, self._notebook.publish, live=self._notebook.mode() == "live")
        if variable:
            self._notebook.set_variables({variable: handle})
        return handle

    def _stdin(self, options: CellOptions, invocation: Invocation, body: str) -> bytes | None:
        if options.stdin and invocation.body_on_stdin:
            raise InvalidOption(f"--stdin: {invocation.program} reads the cell's body there", hint="use --lang, so that stdin is free")
        if invocation.body_on_stdin:
            return body.encode()
        return None if options.stdin is None else self._notebook.input(options.stdin)

    @contextlib.contextmanager
    def _out_directory(self, engine: Engine, cell: RunCell) -> Iterator[Sequence[Mount]]:
        """/out of a session, or of a container that is removed afterwards: what this cell leaves there is shown and, where asked,
        saved."""
        taken = any(each.rstrip("/").endswith(":/out") or ":/out:" in each for each in cell.options.volume)
        if taken or not (cell.cell.session or cell.options.rm):
            yield ()
            return
        with contextlib.ExitStack() as used:
            if cell.cell.session:
                place, seen = self.warm.place(engine, cell.cell.session)
            else:
                place, seen = used.enter_context(OutPlace(engine.root)), Seen()
            yield (place.mount,)
            self._show_files(cell, place, seen)

    def _show_files(self, cell: RunCell, place: OutPlace, seen: Seen) -> None:
        count = 0
        for count, file in enumerate(out_files(place.path, seen), 1):
            if count <= MOST_SHOWN:
                self._notebook.show(bundle_of(file, safe(cell)), {})
            if cell.cell.save_files:
                save_file(file, cell.cell.save_files)
        if count > MOST_SHOWN:
            display.say(f"… {count - MOST_SHOWN} more files in /out" + ("" if cell.cell.save_files else "; --save-files DIR keeps them"))

    def _finish(self, options: CellOptions, result: display.CellResult, failure: SandboxError | None) -> object:
        """The usage line; on a failure it stands above the error."""
        if failure is None:
            return result if options.stats else None
        if not options.raise_error:
            display.say("\n".join(failures.shown_lines(failure)), error=True)
            return result if options.stats else None
        if options.stats:
            self._notebook.show(*result.bundle())
        raise failure


def _refuse_values(invocation: Invocation, cell: CellOptions) -> None:
    if not invocation.python and cell.only_python:
        raise InvalidOption(f"{cell.only_python}: the body is {invocation.chosen}, and this is for Python", hint="add --lang python")


def _note_terminal(options: CellOptions) -> None:
    if options.terminal:
        display.say("-it does nothing here: a cell has no terminal; use --stdin VAR to give the program text", error=True)
