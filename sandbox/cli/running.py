"""Verbs that start a program: run, create, start, exec."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from sandbox.cli.completing import complete_containers, complete_images
from sandbox.cli.flags import Converted, given, verb
from sandbox.cli.formatting import is_taken
from sandbox.cli.invocation import each, engine, starting_engine, write_bytes
from sandbox.cli.pulling import OnDemandFace, quiet_face
from sandbox.cli.terminal import ATTACHED, Manner, SignalProxy, Stdio, followed_window, parse_detach_keys
from sandbox.errors import InvalidOption
from sandbox.options import RUN, RunOptions, parse_env_file, with_environment

if TYPE_CHECKING:
    from sandbox.engine import Completed, Container, Engine, Handling, Running

_FD = {"stdout": 1, "stderr": 2}
_EXEC = [row for row in RUN if row.field in ("detach", "interactive", "tty", "env", "env_file", "workdir", "user")]
_CREATE = [row for row in RUN if row.field not in ("detach",)]
image_argument = click.argument("image", shell_complete=complete_images)
detach_keys_option = click.option(
    "--detach-keys", type=Converted(parse_detach_keys, "keys"), default=ATTACHED.detach_keys, show_default="ctrl-p,ctrl-q", metavar="KEYS",
    help="What to type on a terminal to leave the program running.",
)  # fmt: skip
sig_proxy_option = click.option(
    "--sig-proxy/--no-sig-proxy", default=True, show_default=True, help="Pass signals on to the program; else Ctrl-C leaves it running."
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Show nothing of the image's pull.")
command_argument = click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND] [ARG]...")


@verb("run", RUN, interspersed=False)
@image_argument
@command_argument
@detach_keys_option
@sig_proxy_option
@quiet_option
def run(image: str, command: Sequence[str], detach_keys: bytes, sig_proxy: bool, quiet: bool, **values: object) -> int:
    """Run a program in a new container of IMAGE; the exit status is the program's.

    125: the engine failed, 126: the program cannot be executed, 127: it is not there, 128+n: signal n ended it.
    """
    options = run_options(values)
    refuse_missing_terminal(options)
    with starting_engine() as opened:
        options = with_image(opened, image, options, quiet=quiet)
        if options.detach:
            click.echo(opened.start(image, command, options=options).id)
            return 0
        manner = Manner(detach_keys, sig_proxy)
        with Stdio.of(options, manner) as stdio, SignalProxy(is_on=sig_proxy) as signals:
            completed = stay(opened.launch(image, command, options=options, streams=stdio.streams)[0], options, signals)
        return tell_end(completed, signals)


@verb("create", _CREATE, interspersed=False)
@image_argument
@command_argument
@quiet_option
def create(image: str, command: Sequence[str], quiet: bool, **values: object) -> None:
    """Make a container of IMAGE without starting it, and print its id."""
    with engine() as opened:
        options = with_image(opened, image, run_options(values), quiet=quiet)
        click.echo(opened.create(image, command, options=options).id)


def with_image(opened: Engine, image: str, options: RunOptions, *, quiet: bool) -> RunOptions:
    """Pull the image if that is wanted, and show it: before the terminal is the program's. The options then ask for no more pull."""
    with OnDemandFace(quiet_face if quiet else None) as face:
        opened.wanted_image(image, options.pull, on_transfer=face)
    return replace(options, pull="never")


@verb("start")
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=complete_containers)
@click.option("-a", "--attach", "attached", is_flag=True, help="Show its output and wait for its end.")
@click.option("-i", "--interactive", is_flag=True, help="Also give it this stdin.")
@detach_keys_option
@sig_proxy_option
def start(names: Sequence[str], attached: bool, interactive: bool, detach_keys: bytes, sig_proxy: bool) -> int:
    """Start stopped containers."""
    if (attached or interactive) and len(names) > 1:
        raise InvalidOption("start: only one container can be attached")
    with engine() as opened:
        if attached or interactive:
            container, manner = opened.container(names[0]), Manner(detach_keys, sig_proxy)
            options = RunOptions(interactive=interactive, tty=has_terminal(container))
            if container.status in ("running", "paused", "restarting"):  # docker: then it is attached to
                return take_part(container, options, manner)
            with Stdio.of(options, manner) as stdio, SignalProxy(is_on=sig_proxy) as signals:
                completed = stay(opened.attach_started(names[0], stdio.streams), options, signals)
            return tell_end(completed, signals)
        return each(names, lambda name: _start(opened.container(name), name))


def _start(container: Container, name: str) -> str:
    if container.status not in ("running", "paused", "restarting"):  # docker: starting what runs is no error
        container.start()
    return name


def has_terminal(container: Container) -> bool:
    """Whether it was created with -t."""
    config = container.inspect().get("Config")
    return isinstance(config, dict) and bool(config.get("Tty"))


@verb("exec", _EXEC, interspersed=False)
@click.argument("name", metavar="CONTAINER", shell_complete=complete_containers)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARG]...")
@detach_keys_option
def exec_(name: str, command: Sequence[str], detach_keys: bytes, **values: object) -> int:
    """Run one more program in a running container; the exit status is the program's."""
    options = run_options(values)
    refuse_missing_terminal(options)
    with starting_engine() as opened:
        container = opened.container(name)
        env = dict(entry.split("=", 1) for entry in options.env)
        if options.detach:
            container.exec(command, env=env, user=options.user, workdir=options.workdir, tty=options.tty, detach=True)
            return 0
        with Stdio.of(options, Manner(detach_keys)) as stdio, SignalProxy() as signals:
            where = {"user": options.user, "workdir": options.workdir}
            running = container.launch(command, env=env, **where, tty=options.tty, streams=stdio.streams, handling=handling(options))
            completed = stay(running, options, signals)
        return tell_end(completed, signals)


def handling(options: RunOptions) -> Handling:
    """How the runtime treats an exec of ours."""
    from sandbox.engine import Handling

    return Handling(interactive=options.interactive)


def stay(running: Running, options: RunOptions, signals: SignalProxy) -> Completed:
    """Stay with the program until it ends, or its user leaves it. Signals and the window's size reach it meanwhile."""
    with running, ExitStack() as entered:
        if options.tty and os.isatty(1):
            entered.enter_context(followed_window(running, 1))
        signals.to(running)
        return running.wait(output_writer())


def take_part(container: Container, options: RunOptions, manner: Manner) -> int:
    """Attach to a container that somebody else started; the exit status is its program's, 0 when the user leaves it by the detach keys."""
    with Stdio.of(options, manner) as stdio, SignalProxy(is_on=manner.sig_proxy) as signals:
        running = container.attach(stdio.streams)
        if options.tty and stdio.streams.window:
            rows, columns = stdio.streams.window
            running.resize(rows + 1, columns)  # a change, so that the program draws what is on it again
        if options.interactive and not running.takes_input:
            click.echo("sandbox: its stdin is that of whoever started it: what you type here does not reach it", err=True)
        completed = stay(running, options, signals)
    return tell_end(completed, signals)


def output_writer() -> Callable[[str, bytes], None]:
    """What takes the program's bytes to where they belong; a character whose bytes come one by one stays whole for `write_bytes`."""
    if not is_taken():
        return lambda stream, data: write_bytes(data, _FD[stream])
    decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in _FD}
    return lambda stream, data: write_bytes(decoders[stream].decode(data).encode(), _FD[stream])


def tell_end(completed: Completed, signals: SignalProxy) -> int:
    """Its exit status; one line on stderr when it ended for a reason that is not the program's own, nor a signal the user
    sent through us. Said when the terminal is the user's again."""
    if completed.reason and not (completed.why == "signal" and completed.signal in signals.passed):
        click.echo(f"sandbox: {completed.reason}", err=True)
    if completed.denied:
        click.echo(f"sandbox: --allow-net {completed.denied_text}", err=True)
    if completed.why == "detached" and signals.passed:  # as docker, which such a signal ends
        return 128 + signals.passed[0]
    return completed.exit_code


def run_options(values: Mapping[str, object]) -> RunOptions:
    """The options, with the variables of files and of this environment read in: this is the edge where that happens."""
    options = given(RunOptions(), values)
    from_files = [line for file in options.env_file for line in parse_env_file(_read(file), file)]
    environment = with_environment([*from_files, *options.env], os.environ)
    return replace(options, env=environment, env_file=())


def _read(file: str) -> str:
    try:
        return Path(file).read_text("utf-8-sig")
    except UnicodeDecodeError as err:
        raise InvalidOption(f"--env-file {file}: not UTF-8 text") from err
    except OSError as err:
        raise InvalidOption(f"--env-file {file}: {(err.strerror or 'cannot be read').lower()}") from err


def refuse_missing_terminal(options: RunOptions) -> None:
    """docker's rule for -it without a terminal; raises InvalidOption."""
    if options.tty and options.interactive and not options.detach and not os.isatty(0):
        hint = "%%container IMAGE runs a cell, with --session NAME in a shell that stays; -it is for the command line"
        raise InvalidOption("-it: stdin is not a terminal", hint=hint if is_taken() else "leave out -t")
