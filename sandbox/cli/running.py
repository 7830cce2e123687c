"""Verbs that start a program: run, create, start, exec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from sandbox.cli.completing import complete_containers, complete_images
from sandbox.cli.flags import Converted, verb
from sandbox.cli.invocation import each, engine
from sandbox.cli.programs import EXEC, exec_program, run_options, run_program, stay, take_part, tell_end, with_image
from sandbox.cli.terminal import ATTACHED, Manner, SignalProxy, Stdio, parse_detach_keys
from sandbox.errors import InvalidOption, WrongState
from sandbox.options import RUN, RunOptions
from sandbox.records import ALIVE

if TYPE_CHECKING:
    from sandbox.engine import Container

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
    return run_program(image, command, run_options(values), Manner(detach_keys, sig_proxy), quiet=quiet)


@verb("create", _CREATE, interspersed=False)
@image_argument
@command_argument
@quiet_option
def create(image: str, command: Sequence[str], quiet: bool, **values: object) -> None:
    """Make a container of IMAGE without starting it, and print its id."""
    with engine() as opened:
        options = with_image(opened, image, run_options(values), quiet=quiet)
        click.echo(opened.create(image, command, options=options).id)


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
            if container.status in ALIVE:  # docker: then it is attached to
                return take_part(container, options, manner)
            with Stdio.of(options, manner) as stdio, SignalProxy(is_on=sig_proxy) as signals:
                completed = stay(opened.attach_started(names[0], stdio.streams), options, signals)
            return tell_end(completed, signals)
        return each(names, lambda name: _start(opened.container(name), name))


def _start(container: Container, name: str) -> str:
    try:
        container.start()
    except WrongState as err:
        if err.actual not in ALIVE:
            raise
    return name  # docker: starting what runs is no error


def has_terminal(container: Container) -> bool:
    """Whether it was created with -t."""
    config = container.inspect().get("Config")
    return isinstance(config, dict) and bool(config.get("Tty"))


@verb("exec", EXEC, interspersed=False)
@click.argument("name", metavar="CONTAINER", shell_complete=complete_containers)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARG]...")
@detach_keys_option
def exec_(name: str, command: Sequence[str], detach_keys: bytes, **values: object) -> int:
    """Run one more program in a running container; the exit status is the program's."""
    return exec_program(name, command, run_options(values), Manner(detach_keys))
