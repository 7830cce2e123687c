"""`sandbox attach`."""

from __future__ import annotations

import os

import click

from sandbox.cli.completing import complete_containers
from sandbox.cli.flags import verb
from sandbox.cli.invocation import engine
from sandbox.cli.programs import take_part
from sandbox.cli.running import detach_keys_option, has_terminal, sig_proxy_option
from sandbox.cli.terminal import Manner
from sandbox.errors import InvalidOption
from sandbox.options import RunOptions


@verb("attach")
@click.argument("name", metavar="CONTAINER", shell_complete=complete_containers)
@click.option("--no-stdin", is_flag=True, help="Only look on.")
@detach_keys_option
@sig_proxy_option
def attach(name: str, no_stdin: bool, detach_keys: bytes, sig_proxy: bool) -> int:
    """Show what a running container prints from now on, and type into one that was made with -i.

    Several can be attached at once. The exit status is the program's when it ends meanwhile.
    """
    with engine() as opened:
        container = opened.container(name)
        options = RunOptions(interactive=container.takes_input and not no_stdin, tty=has_terminal(container))
        if options.tty and options.interactive and not os.isatty(0):
            raise InvalidOption(f"attach {name}: it has a terminal, and stdin is none", hint="use --no-stdin to look on")
        return take_part(container, options, Manner(detach_keys, sig_proxy))
