"""The magics: parse, call the engine, show. Registered by `load`, taken out by `unload`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from IPython.core.interactiveshell import ExecutionInfo, InteractiveShell
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand

from magics import display, failures
from magics.builds import BuildCells, Composed, cell_key
from magics.cells import BuildCell, CellOptions, ExecCell, RunCell, help_text, parse_build, parse_exec, parse_run
from magics.completion import Names, make_matcher
from magics.images import image_facts
from magics.languages import Invocation, choose, choose_for_exec
from magics.verbs import run_verb, verbs
from magics.words import Namespace, join_continuations, split_line
from sandbox.engine import Container, Engine
from sandbox.errors import DockerfileError, InvalidInput, InvalidOption, SandboxError, StepFailed
from sandbox.image.store import Image
from sandbox.options import RunOptions

_CELL_MAGICS = ("%%dockerfile", "%%container", "%%sandbox")


@magics_class
class SandboxMagics(Magics):
    """%%dockerfile, %%container, %%sandbox and %container over one lazily made Engine."""

    shell: InteractiveShell

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._builds = BuildCells()
        self._engine: Engine | None = None
        self._cell_id: str | None = None

    @property
    def engine(self) -> Engine:
        """The engine of this kernel, made when it is first needed."""
        if self._engine is None:
            self._engine = Engine()
        return self._engine

    def close(self) -> None:
        """End the engine's helper process; containers in the background go on."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def note_cell(self, info: ExecutionInfo) -> None:
        """IPython's pre_run_cell: which cell the next magic belongs to."""
        self._cell_id = info.cell_id

    @no_var_expand
    @cell_magic
    def dockerfile(self, line: str, cell: str) -> None:
        """Build the body of the cell; `%%dockerfile --help` lists the flags."""
        with shown_plainly():
            whole, body, taken = join_continuations(line, cell)
            build = parse_build(self._words(whole), body, first_line=taken + 1)
            if build.help:
                display.say(help_text("%%dockerfile"))
            else:
                self._build(build, cell_key(self._cell_id, line, cell))

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

    @no_var_expand
    @line_magic("container")  # type: ignore[arg-type]
    def container_line(self, line: str) -> None:
        """Every verb of the command line: `%container images`; `%container --help` lists them."""
        with shown_plainly():
            run_verb(self._words(join_continuations(line, "")[0]))

    def _words(self, line: str) -> list[str]:
        return split_line(line, self._namespace())

    def _namespace(self) -> Namespace:
        return Namespace(self.shell.user_ns, os.environ)

    def _in_container(self, magic: str, line: str, cell: str) -> object:
        with shown_plainly():
            whole, body, _ = join_continuations(line, cell)
            words = self._words(whole)
            if words[:1] == ["exec"] and magic == "%%container":
                return self._exec(parse_exec(words[1:], body))
            return self._run(parse_run(words[1:] if words[:1] == ["run"] else words, body, magic=magic), magic)

    # building

    def _build(self, cell: BuildCell, key: str) -> None:
        build_args = self._pairs(cell.options.build_arg, "--build-arg")
        composed = self._builds.compose(key, cell, build_args)
        view = display.BuildView(inherited=composed.inherited, continues=composed.continues)
        progress = "quiet" if cell.options.quiet else cell.options.progress
        shown = display.BuildDisplay(display.choose_mode(progress, in_kernel=self._in_kernel(), environ=os.environ), view, self._publish)
        text = failures.CellText(cell.body, first_line=cell.first_line, inherited=composed.inherited)
        try:
            with shown.showing():
                image = self._make_image(cell, composed, shown)
        except DockerfileError as err:
            raise failures.in_cell(err, text) from err
        except StepFailed as err:
            raise failures.show_as(err, failures.failed_step_lines(err, text, view)) from None
        self._builds.remember(composed, cell, build_args, display.image_name(view))
        if cell.output:
            self.shell.user_ns[cell.output] = image

    def _make_image(self, cell: BuildCell, composed: Composed, shown: display.BuildDisplay) -> Image:
        options = cell.options
        image = self.engine.build(
            _directory(cell.context),
            dockerfile=composed.text,
            tags=options.tag,
            build_args=composed.build_args,
            target=options.target,
            no_cache=options.no_cache,
            labels=self._pairs(options.label, "--label"),
            network="none" if options.network == "none" else "host",
            on_event=shown.see,
        )
        shown.view.size = self.engine.image_size(image)
        return image

    def _pairs(self, texts: Iterable[str], flag: str) -> dict[str, str]:
        """`K=V` as written; `K` alone is the Python variable K, then the environment's."""
        pairs = {}
        for text in texts:
            name, equals, value = text.partition("=")
            found = value if equals else self._namespace().value(name)
            if found is None:
                raise InvalidOption(f"{flag} {name}: neither a Python variable nor in the environment", hint=f"write {flag} {name}=VALUE")
            pairs[name] = found
        return pairs

    # running

    def _run(self, cell: RunCell, magic: str) -> object:
        if cell.cell.help:
            display.say(help_text(magic))
            return None
        _note_terminal(cell.cell)
        image = self.engine.image(cell.image)
        facts = image_facts(self.engine, image, cell.image)
        invocation = choose(cell.body, lang=cell.cell.lang, argv=cell.argv, entrypoint=cell.options.entrypoint, facts=facts)
        options = self._filled(replace(cell.options, entrypoint=invocation.entrypoint))
        if options.detach:
            return self._start(image, invocation, options)
        with self._streams(cell.cell) as streams:
            completed = self.engine.run(
                image,
                invocation.argv,
                options=options,
                rm=options.rm,
                stdin=self._stdin(cell.cell, invocation, cell.body),
                on_output=streams.write,
            )
        result = display.cell_result(completed, program=invocation.chosen, network=options.network, memory_limit=options.memory)
        failure = None if completed.ok else failures.failure_of(completed, invocation, where=f"image {cell.image}", facts=facts)
        return self._finish(cell.cell, result, failure)

    def _start(self, image: Image, invocation: Invocation, options: RunOptions) -> Container:
        if invocation.body_on_stdin:
            raise InvalidOption("-d: the body would be the program's stdin, which a background container does not have", hint="use --lang")
        container = self.engine.create(image, invocation.argv, options=options)
        container.start()
        display.say(f"{container.name} runs in the background: %container logs {container.name} · %container stop {container.name}")
        return container

    def _exec(self, cell: ExecCell) -> object:
        if cell.cell.help:
            display.say(help_text("%%container exec"))
            return None
        _note_terminal(cell.cell)
        container = self.engine.container(cell.container)
        facts = image_facts(self.engine, self.engine.image(container.image_id), container.image_name)
        invocation = choose_for_exec(cell.body, lang=cell.cell.lang, argv=cell.argv, facts=facts)
        options = cell.options
        with self._streams(cell.cell) as streams:
            completed = container.exec(
                invocation.argv,
                env=self._pairs(options.env, "-e"),
                user=options.user,
                workdir=options.workdir,
                stdin=self._stdin(cell.cell, invocation, cell.body),
                on_output=streams.write,
            )
        result = display.cell_result(completed, program=invocation.chosen, network="")
        failure = None if completed.ok else failures.failure_of(completed, invocation, where=f"container {cell.container}", facts=facts)
        return self._finish(cell.cell, result, failure)

    def _filled(self, options: RunOptions) -> RunOptions:
        """The options with what only the face can know: values of -e NAME, the lines of --env-file."""
        named = self._pairs(options.env, "-e")
        from_files = self._pairs([line for path in options.env_file for line in _env_lines(path)], "--env-file")
        return replace(options, env=tuple(f"{name}={value}" for name, value in {**from_files, **named}.items()), env_file=())

    def _stdin(self, options: CellOptions, invocation: Invocation, body: str) -> bytes | None:
        if options.stdin and invocation.body_on_stdin:
            raise InvalidOption(f"--stdin: {invocation.program} reads the cell's body there", hint="use --lang, so that stdin is free")
        if invocation.body_on_stdin:
            return body.encode()
        return None if options.stdin is None else self._input(options.stdin)

    def _input(self, source: str) -> bytes:
        """What `--stdin VAR|@FILE` names, as bytes."""
        if source.startswith("@"):
            return _read_file(source[1:], "--stdin")
        if source not in self.shell.user_ns:
            raise InvalidOption(f"--stdin {source}: no such Python variable", hint=f"for a file write --stdin @{source}")
        value = self.shell.user_ns[source]
        return value if isinstance(value, bytes) else str(value).encode()

    @contextlib.contextmanager
    def _streams(self, options: CellOptions) -> Iterator[display.OutputStreams]:
        """The program's output on its way to the cell, or to the variables of --out and --err."""
        variables = {name: variable for name, variable in (("stdout", options.out), ("stderr", options.err)) if variable}
        streams = display.OutputStreams(keep=frozenset(variables))
        try:
            yield streams
        finally:
            streams.close()
            self.shell.user_ns.update({variable: streams.text(name) for name, variable in variables.items()})

    def _finish(self, options: CellOptions, result: display.CellResult, failure: SandboxError | None) -> object:
        """The usage line; on a failure it stands above the error."""
        if failure is None:
            return result if options.stats else None
        if not options.raise_error:
            display.say("\n".join(failures.error_lines(failure)), error=True)
            return result if options.stats else None
        if options.stats:
            data, metadata = result.bundle()
            self._publish(data, metadata, None, False)
        raise failure

    # the shell

    def _in_kernel(self) -> bool:
        return getattr(self.shell, "kernel", None) is not None

    def _publish(self, data: display.Bundle, metadata: display.Bundle, display_id: str | None, update: bool) -> None:
        transient = None if display_id is None else {"display_id": display_id}
        self.shell.display_pub.publish(data=data, metadata=metadata, transient=transient, update=update)


@contextlib.contextmanager
def shown_plainly() -> Iterator[None]:
    """Errors raised on purpose appear as their own few lines; all others keep their traceback."""
    try:
        yield
    except SandboxError as err:
        if not hasattr(err, "_render_traceback_"):
            failures.show_as(err, failures.error_lines(err))
        raise


def _note_terminal(options: CellOptions) -> None:
    if options.terminal:
        display.say("-it does nothing here: a cell has no terminal; use --stdin VAR to give the program text", error=True)


def _directory(context: str) -> Path:
    path = Path(context).expanduser()
    if not path.is_dir():
        raise InvalidInput(f"context {context}: not a directory", hint="the context is relative to the notebook's own directory")
    return path


def _read_file(path: str, flag: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as err:
        raise InvalidInput(f"{flag} {path}: {(err.strerror or str(err)).lower()}") from err


def _env_lines(path: str) -> list[str]:
    """docker's --env-file: NAME=VALUE or NAME a line, # comments."""
    lines = _read_file(path, "--env-file").decode(errors="surrogateescape").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def give_body(lines: list[str]) -> list[str]:
    """IPython refuses a cell magic without a body; ours mean something then (`--help`, an image's own command): give it an empty line."""
    if len(lines) == 1 and lines[0].split(None, 1)[:1] and lines[0].split(None, 1)[0] in _CELL_MAGICS:
        return [lines[0].rstrip("\n") + "\n", "\n"]
    return lines


class _Loaded:
    """Everything one `load` brought to a shell, so that `unload` takes out exactly that."""

    def __init__(self, shell: InteractiveShell) -> None:
        self.magics = SandboxMagics(shell)
        names = Names(images=lambda: image_names(self.magics.engine), containers=lambda: container_names(self.magics.engine), verbs=verbs)
        self.matcher = make_matcher(names)
        self._shell = shell

    def attach(self) -> None:
        """Register with the shell."""
        self._shell.register_magics(self.magics)
        self._shell.events.register("pre_run_cell", self.magics.note_cell)
        self._shell.input_transformers_cleanup.append(give_body)
        self._shell.Completer.custom_matchers.append(self.matcher)

    def detach(self) -> None:
        """Undo `attach`."""
        self._shell.events.unregister("pre_run_cell", self.magics.note_cell)
        self._shell.input_transformers_cleanup.remove(give_body)
        self._shell.Completer.custom_matchers.remove(self.matcher)
        for kind, names in SandboxMagics.magics.items():
            for name in names:
                self._shell.magics_manager.magics[kind].pop(name, None)
        self.magics.close()


_ATTRIBUTE = "_sandbox_extension"
"""Where a shell keeps what was loaded into it: the shell owns it, so that no module has state."""


def load(shell: InteractiveShell) -> None:
    """Register with this shell; loading again starts afresh."""
    unload(shell)
    loaded = _Loaded(shell)
    loaded.attach()
    setattr(shell, _ATTRIBUTE, loaded)


def unload(shell: InteractiveShell) -> None:
    """Take out what `load` brought; nothing when it is not there."""
    loaded = getattr(shell, _ATTRIBUTE, None)
    if loaded is not None:
        loaded.detach()
        delattr(shell, _ATTRIBUTE)


def image_names(engine: Engine) -> list[str]:
    """The names of all images, as typed."""
    return [
        f"{each.repository}:{each.tag}" if each.tag != "latest" else str(each.repository) for each in engine.images() if each.repository
    ]


def container_names(engine: Engine) -> list[str]:
    """The names of all containers."""
    return [each.name for each in engine.containers(all=True)]
