"""Programs in containers on behalf of this terminal: `run`, `exec`, `start -a`, `attach`, once their words are read. Without click."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from sandbox.cli.caller import is_taken
from sandbox.cli.invocation import starting_engine, write_bytes
from sandbox.cli.pulling import OnDemandFace, quiet_face
from sandbox.cli.terminal import Manner, SignalProxy, Stdio, followed_window
from sandbox.errors import InvalidOption
from sandbox.options import RUN, RunOptions, given, parse_env_file, with_environment

if TYPE_CHECKING:
    from sandbox.engine import Completed, Container, Engine, Handling, Running

_FD = {"stdout": 1, "stderr": 2}
EXEC = tuple(row for row in RUN if row.field in ("detach", "interactive", "tty", "env", "env_file", "workdir", "user"))
"""The rows of `exec`."""


def run_program(image: str, command: Sequence[str], options: RunOptions, manner: Manner, *, quiet: bool = False) -> int:
    """`run`: the exit status is the program's. InvalidOption, ImageNotFound, SetupFailed, …"""
    refuse_missing_terminal(options)
    with starting_engine() as opened:
        options = with_image(opened, image, options, quiet=quiet)
        if options.detach:
            print(opened.start(image, command, options=options).id)
            return 0
        with Stdio.of(options, manner) as stdio, SignalProxy(is_on=manner.sig_proxy) as signals:
            completed = stay(opened.launch(image, command, options=options, streams=stdio.streams)[0], options, signals)
        return tell_end(completed, signals)


def exec_program(name: str, command: Sequence[str], options: RunOptions, manner: Manner) -> int:
    """`exec`: the exit status is the program's. InvalidOption, ContainerNotFound, WrongState, …"""
    refuse_missing_terminal(options)
    with starting_engine() as opened:
        container = opened.container(name)
        env = dict(entry.split("=", 1) for entry in options.env)
        if options.detach:
            container.exec(command, env=env, user=options.user, workdir=options.workdir, tty=options.tty, detach=True)
            return 0
        with Stdio.of(options, manner) as stdio, SignalProxy() as signals:
            where = {"user": options.user, "workdir": options.workdir}
            running = container.launch(command, env=env, **where, tty=options.tty, streams=stdio.streams, handling=handling(options))
            completed = stay(running, options, signals)
        return tell_end(completed, signals)


def with_image(opened: Engine, image: str, options: RunOptions, *, quiet: bool) -> RunOptions:
    """Pull the image if that is wanted, and show it: before the terminal is the program's. The options then ask for no more pull."""
    with OnDemandFace(quiet_face if quiet else None) as face:
        opened.wanted_image(image, options.pull, on_transfer=face)
    return replace(options, pull="never")


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
            _remark("its stdin is that of whoever started it: what you type here does not reach it")
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
        _remark(completed.reason)
    if completed.denied:
        _remark(f"--allow-net {completed.denied_text}")
    if completed.why == "detached" and signals.passed:  # as docker, which such a signal ends
        return 128 + signals.passed[0]
    return completed.exit_code


def _remark(text: str) -> None:
    print(f"sandbox: {text}", file=sys.stderr, flush=True)


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
