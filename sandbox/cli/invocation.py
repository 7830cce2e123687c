"""What every verb needs of the command line it was called by: the engine, several names at once, a question."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from sandbox.engine import Engine


@contextmanager
def engine() -> Iterator[Engine]:
    """The engine of `--root`, closed afterwards."""
    from sandbox.engine import Engine

    with Engine(state_directory(click.get_current_context())) as opened:
        yield opened


@contextmanager
def starting_engine() -> Iterator[Engine]:
    """As `engine`, for a verb that starts one program: the helper comes up while the engine is imported, which takes as long."""
    from sandbox.runtime.spawner import single

    spawner = single()
    try:
        spawner.warm()
        from sandbox.engine import Engine

        with Engine(state_directory(click.get_current_context()), spawner=spawner) as opened:
            yield opened
    finally:
        spawner.close()


def state_directory(ctx: click.Context) -> Path | None:
    """What `--root` or SANDBOX_ROOT says; None when neither does."""
    root = ctx.find_root().params.get("root")
    return root if isinstance(root, Path) else None


def is_debugging() -> bool:
    """Whether `--debug` was given."""
    ctx = click.get_current_context(silent=True)
    return bool(ctx and ctx.find_root().params.get("debug"))


def each(names: Sequence[str], action: Callable[[str], str | None]) -> int:
    """Do `action` for each name and print what it answers (docker prints the name back); a failure is reported and the
    rest still done. The status is 1 when one failed. A caller in this process gets the error of the only one raised."""
    from sandbox.cli.failures import show_error
    from sandbox.cli.formatting import is_taken

    status = 0
    for name in names:
        try:
            if (answer := action(name)) is not None:
                click.echo(answer)
        except SandboxError as err:
            if len(names) == 1 and is_taken():
                raise
            status = show_error(err, ())
    return status


def confirm(question: str) -> bool:
    """docker's `[y/N]` question; when nobody can be asked it is a no. A notebook asks through input()."""
    from sandbox.cli.formatting import is_taken

    if is_taken():
        try:
            answer = input(f"{question} [y/N] ")
        except (EOFError, NotImplementedError):  # this front end allows no questions
            click.echo(f"{question}\nnobody can be asked here: nothing was removed; add -f", err=True)
            return False
    else:
        click.echo(f"{question} [y/N] ", nl=False)
        answer = sys.stdin.readline() if not sys.stdin.closed else ""
    return answer.strip().lower() in ("y", "yes")


def write_bytes(data: bytes, fd: int = 1) -> None:
    """Everything to the descriptor, unbuffered; a caller in this process has a sys.stdout of its own (a cell), which gets text."""
    from sandbox.cli.formatting import is_taken

    if is_taken():
        click.echo(data.decode("utf-8", "replace"), nl=False, err=fd == 2)
        return
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
