"""What containers do now: top and stats."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from sandbox.cli.caller import is_taken
from sandbox.cli.completing import complete_containers
from sandbox.cli.containers import name_argument
from sandbox.cli.flags import verb
from sandbox.cli.formatting import Field, Listing, Table, memory_text, short_id, show
from sandbox.cli.images import format_option, no_trunc_option
from sandbox.cli.invocation import engine
from sandbox.errors import ContainerNotFound, WrongState

if TYPE_CHECKING:
    from sandbox.engine import Container
    from sandbox.measuring import Stats

_HOME_AND_CLEAR = "\033[H\033[J"
_INTERVAL = 1.0


@verb("top")
@name_argument
def top(name: str) -> None:
    """List the processes of a container, with the pids this machine knows them by."""
    with engine() as opened:
        rows = opened.container(name).top()
    headers = ("UID", "PID", "PPID", "TIME", "CMD")
    cells = tuple((r.user, str(r.pid), str(r.ppid), r.time, r.command) for r in rows)
    show(Table(headers, cells, tuple(dict(zip(headers, row, strict=True)) for row in cells)))


class Measured(msgspec.Struct, frozen=True):
    """One container of `stats`; `stats` is None when it does not run."""

    container: Container
    stats: Stats | None
    truncate: bool

    @property
    def id(self) -> str:
        """The id as asked for."""
        return short_id(self.container.id) if self.truncate else self.container.id

    @property
    def limit(self) -> int:
        """Its memory limit; the machine's memory when it has none, as docker says it."""
        own = self.stats.memory_limit if self.stats else None
        return own or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cpu(measured: Measured) -> str:
    percent = measured.stats.cpu_percent if measured.stats else 0.0
    return "--" if percent is None else f"{percent:.2f}%"


def _memory(measured: Measured) -> str:
    if measured.stats is None:
        return "0B / 0B"
    used = measured.stats.memory
    return f"{'--' if used is None else memory_text(used)} / {memory_text(measured.limit)}"


def _memory_share(measured: Measured) -> str:
    if measured.stats is None:
        return "0.00%"
    used = measured.stats.memory
    return "--" if used is None else f"{100 * used / measured.limit:.2f}%"


def _pids(measured: Measured) -> str:
    pids = measured.stats.pids if measured.stats else 0
    return "--" if pids is None else str(pids)


STATS: Listing[Measured] = Listing(
    [
        Field("BlockIO", "BLOCK I/O", lambda m: "--"),
        Field("CPUPerc", "CPU %", _cpu),
        Field("Container", "CONTAINER", lambda m: m.id),
        Field("ID", "CONTAINER ID", lambda m: m.id),
        Field("MemPerc", "MEM %", _memory_share),
        Field("MemUsage", "MEM USAGE / LIMIT", _memory),
        Field("Name", "NAME", lambda m: m.container.name),
        Field("NetIO", "NET I/O", lambda m: "--"),
        Field("PIDs", "PIDS", _pids),
    ],
    ["ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"],
)


@verb("stats")
@click.argument("names", nargs=-1, metavar="[CONTAINER]...", shell_complete=complete_containers)
@click.option("-a", "--all", "show_all", is_flag=True, help="Also those that do not run.")
@click.option("--no-stream", is_flag=True, help="One look, and no more.")
@format_option
@no_trunc_option
def stats(names: Sequence[str], show_all: bool, no_stream: bool, format: str | None, no_trunc: bool) -> None:
    """Show what containers use (all running ones when none is named), again every second; in a cell once."""
    no_stream |= is_taken()
    with engine() as opened:
        found = [opened.container(name) for name in names]
        clock, before = threading.Event(), {c.id: _look(c) for c in found or opened.containers(all=show_all)}
        while not clock.wait(_INTERVAL):
            shown = found or opened.containers(all=show_all)
            now = {c.id: _look(c, before.get(c.id)) for c in shown}
            measured = [Measured(c, now[c.id], not no_trunc) for c in shown]
            if no_stream:
                STATS.show(measured, format)
                return
            _show_again(measured, format)
            before = now


def _show_again(measured: Sequence[Measured], format: str | None) -> None:
    text = "\n".join(STATS.lines(measured, format))
    click.echo((_HOME_AND_CLEAR if sys.stdout.isatty() else "") + text)
    sys.stdout.flush()


def _look(container: Container, before: Stats | None = None) -> Stats | None:
    """What it uses; None when it does not run, or ended just now."""
    try:
        return container.stats(before)
    except (WrongState, ContainerNotFound):
        return None
