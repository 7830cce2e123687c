"""The verb build: its flags, its context, how a failure looks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sandbox.build.outputs import check_outputs, parse_output
from sandbox.cli.checking import show_findings
from sandbox.cli.failures import step_details
from sandbox.cli.flags import verb
from sandbox.cli.formatting import seconds_text
from sandbox.cli.invocation import engine
from sandbox.cli.progress import Face, JsonFace, PlainFace, QuietFace, TerminalFace
from sandbox.errors import InvalidOption, SandboxError, StepFailed
from sandbox.options import BUILD, BuildOptions, given

if TYPE_CHECKING:
    from sandbox.build.events import BuildEvent
    from sandbox.build.outputs import Output


@verb("build", BUILD)
@click.argument("context", metavar="PATH | -")
@click.option("--iidfile", type=click.Path(dir_okay=False), metavar="FILE", help="Write the image's id to a file.")
def build(context: str, iidfile: str | None, **values: object) -> int:
    """Build an image from PATH/Dockerfile and the files in PATH.

    `-` as PATH reads the Dockerfile from stdin and has no files.
    """
    from sandbox.build.settings import settings_of  # the builder's, which the help does not need

    options = given(BuildOptions(), values)
    outputs = [parse_output(text) for text in options.export]
    refuse_screens(outputs)
    face = face_for(options)
    watch = Watch(face)
    with engine() as opened, face, build_input(context, options.file) as (directory, dockerfile):
        if options.check:
            return show_findings(*opened.check(directory, dockerfile=dockerfile, build_args=build_args(options.build_arg, os.environ)))
        try:
            image = opened.build(
                directory,
                dockerfile=dockerfile,
                tags=options.tag,
                build_args=build_args(options.build_arg, os.environ),
                target=options.target,
                no_cache=options.no_cache,
                labels=key_values(options.label, "label"),
                network=_network(options.network),
                settings=settings_of(options, os.environ),
                on_event=watch,
            )
        except StepFailed as err:
            face.close()
            return show_failure(err, watch, dockerfile)
        metadata = opened.export_image(image, outputs, tags=options.tag, stdout=sys.stdout.buffer)
    if options.metadata_file:
        import json

        Path(options.metadata_file).write_text(json.dumps(metadata, indent=2) + "\n")
    if iidfile:
        Path(iidfile).write_text(image.id)
    if (options.quiet or options.progress == "quiet") and not any(output.dest == "-" for output in outputs):
        click.echo(image.id)
    return 0


def refuse_screens(outputs: Sequence[Output]) -> None:
    """What cannot be written is refused before the build, and an archive on a screen; raises InvalidOption."""
    check_outputs(outputs)
    if any(output.dest == "-" for output in outputs) and os.isatty(1):
        raise InvalidOption("refusing to write an archive to a terminal", hint="name a file with dest=FILE, or redirect stdout")


class Watch:
    """Passes the events on to a face and remembers the step that runs, for the error message."""

    def __init__(self, face: Face) -> None:
        self._face = face
        self.failed: BuildEvent | None = None

    def __call__(self, event: BuildEvent) -> None:
        """Called by the builder."""
        if type(event).__name__ == "StepError" and not getattr(event, "canceled", False):
            self.failed = event
        self._face(event)


def show_failure(error: StepFailed, watch: Watch, dockerfile: str | Path | None) -> int:
    """The failed step: where it is, what stands around it, the last it printed."""
    lines = [f"BuildError: {error}", *step_details(error, place=place_of(error, watch.failed, dockerfile))]
    if error.hint:
        lines.append(f"  hint: {error.hint}")
    click.echo("\n".join(lines), err=True)
    return 1


def place_of(error: StepFailed, failed: BuildEvent | None, dockerfile: str | Path | None) -> str:
    """`Dockerfile line 3 of 6 | step 3/5 | stage base | after 4.2 s`."""
    from sandbox.build.events import StepError

    name, total = _file_facts(dockerfile)
    line = getattr(error.span, "first", None)
    parts = [f"{name} line {line}{f' of {total}' if total else ''}"] if line else [name]
    if isinstance(failed, StepError):
        parts += [f"step {failed.index}/{failed.total}", f"stage {failed.stage}", f"after {seconds_text(failed.seconds)}"]
    return " | ".join(parts)


def _file_facts(dockerfile: str | Path | None) -> tuple[str, int]:
    """The Dockerfile's name, and how many lines it has (0: cannot say)."""
    if isinstance(dockerfile, str):
        return "Dockerfile", len(dockerfile.splitlines())
    if dockerfile is None:
        return "Dockerfile", 0
    try:
        return dockerfile.name, len(dockerfile.read_text(errors="replace").splitlines())
    except OSError:
        return dockerfile.name, 0


def face_for(options: BuildOptions) -> Face:
    """How progress is shown: `auto` is a terminal's live view when stderr is one."""
    kind = "quiet" if options.quiet else options.progress
    if kind == "auto":
        kind = "tty" if sys.stderr.isatty() else "plain"
    faces: dict[str, type[Face]] = {"plain": PlainFace, "tty": TerminalFace, "quiet": QuietFace, "rawjson": JsonFace}
    return faces[kind](sys.stderr)


@contextmanager
def build_input(context: str, file: str | None) -> Iterator[tuple[Path, str | Path]]:
    """The context directory and the Dockerfile (text when it comes from stdin); raises InvalidOption."""
    if context == "-" and file not in (None, "-"):
        raise InvalidOption("build -: the Dockerfile comes from stdin", hint=f"leave out -f {file}, or name a context directory")
    if context == "-":
        import tempfile

        with tempfile.TemporaryDirectory(prefix="sandbox-context-") as empty:
            yield Path(empty), _stdin_text()
        return
    directory = Path(context)
    if not directory.is_dir():
        raise InvalidOption(f"context {context!r}: not a directory", hint="build takes a directory, or - for a Dockerfile on stdin")
    yield directory, _stdin_text() if file == "-" else _dockerfile(directory, file)


def _dockerfile(directory: Path, file: str | None) -> Path:
    path = Path(file) if file else directory / "Dockerfile"
    if not path.is_file():
        raise SandboxError(f"{path}: no such file", hint=None if file else "name the Dockerfile with -f FILE")
    return path


def _stdin_text() -> str:
    data = sys.stdin.buffer.read()
    try:
        return data.decode()
    except UnicodeDecodeError as err:
        hint = "a context as tar is not supported; unpack it and name the directory"
        raise InvalidOption("stdin: not a Dockerfile (not UTF-8 text)", hint=hint) from err


def build_args(texts: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """`--build-arg`: without a value the environment's, and nothing when that has none (docker's rule)."""
    pairs = (text.partition("=") for text in texts)
    return {name: value if equals else environ[name] for name, equals, value in pairs if equals or name in environ}


def key_values(texts: Sequence[str], what: str) -> dict[str, str]:
    """`key=value` texts as a mapping; a bare key has the value ''. InvalidOption for an empty key."""
    pairs = [text.partition("=") for text in texts]
    if any(not key for key, _, _ in pairs):
        raise InvalidOption(f"{what}: no key before the =")
    return {key: value for key, _, value in pairs}


def _network(text: str) -> str:
    return "host" if text == "default" else text
