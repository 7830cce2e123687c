"""Verbs about the engine as a whole: prune, doctor, version, info."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING

import click

from sandbox.cli.caller import is_taken
from sandbox.cli.flags import verb
from sandbox.cli.formatting import Facts, Lines, Table, show, size_text
from sandbox.cli.images import format_option
from sandbox.cli.invocation import confirm, engine
from sandbox.cli.templates import Template, go_json
from sandbox.errors import InvalidOption

if TYPE_CHECKING:
    from sandbox.doctor import Report

force_option = click.option("-f", "--force", is_flag=True, help="Do not ask.")


def version_text() -> str:
    """The installed version."""
    return installed_version("jupyter-sandbox")


@verb("version")
@format_option
def version(format: str | None) -> None:
    """Show the version of the program, of Python and of Linux."""
    facts = {
        "Version": version_text(),
        "Python": platform.python_version(),
        "Os": "linux",
        "Arch": platform.machine(),
        "KernelVersion": platform.release(),
    }
    if format:
        data = {"Client": facts, "Server": facts}  # docker's two halves; here they are one
        show(Lines((go_json(data) if format == "json" else Template.parse(format).render(data),)))
        return
    show(Facts((facts,), "\n".join(f"{key + ':':<16}{value}" for key, value in facts.items())))


@verb("info")
@format_option
def info(format: str | None) -> None:
    """Show where the engine's state is and what is in it."""
    with engine() as opened:
        containers = opened.containers(all=True)
        running = sum(container.status == "running" for container in containers)
        facts = {
            "Root": str(opened.root),
            "Containers": len(containers),
            "ContainersRunning": running,
            "ContainersStopped": len(containers) - running,
            "Images": len({row.id for row in opened.images()}),
            "Driver": "overlay",
            "ServerVersion": version_text(),
            "KernelVersion": platform.release(),
            "Architecture": platform.machine(),
            "NCPU": os.cpu_count() or 0,
            "MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        }
    if format:
        show(Lines((go_json(facts) if format == "json" else Template.parse(format).render(facts),)))
        return
    said = {**facts, "MemTotal": size_text(float(str(facts["MemTotal"])))}
    show(Facts((facts,), "\n".join(f"{key}: {value}" for key, value in said.items())))


@verb("doctor")
@format_option
def doctor(format: str | None) -> int:
    """Say what this machine allows, and what each missing thing costs. The status is 1 when containers cannot run."""
    from sandbox import doctor as checks

    if format not in (None, "json"):
        raise InvalidOption(f"doctor --format {format!r}: only json is possible")
    with engine() as opened:
        if is_taken() and format is None:
            report = checks.examine(opened.root)
            show(_checked(report))
            return 0 if report.can_run else 1
        return checks.show(sys.stdout, root=opened.root, as_json=format == "json")


def _checked(report: Report) -> Table:
    """The report for a caller in this process."""
    keys = ("Name", "Ok", "Detail", "Cost", "Remedy")
    checks = report.checks
    rows = tuple((each.name, "✓" if each.ok else "✗", each.detail, *(("", "") if each.ok else (each.cost, each.remedy))) for each in checks)
    records = tuple({**dict(zip(keys, row, strict=True)), "Ok": each.ok} for row, each in zip(rows, checks, strict=True))
    shown = 3 if all(each.ok for each in checks) else 5
    return Table(("CHECK", "", "FOUND", "COSTS", "REMEDY")[:shown], tuple(row[:shown] for row in rows), records)


@verb("restore")
def restore() -> None:
    """After a reboot, start what its restart policy wants running, and print the names."""
    with engine() as opened:
        for container in opened.restore():
            click.echo(container.name)


_EVERYTHING = """WARNING! This will remove:
  - all stopped containers
  - {images}
  - unused layers, build cache and what interrupted commands left
Are you sure you want to continue?"""


@verb("prune")
@click.option("-a", "--all", "every", is_flag=True, help="All images no container uses, not only those without a name.")
@force_option
def prune(every: bool, force: bool) -> int:
    """Remove stopped containers, dangling images, unused layers and what interrupted commands left behind."""
    images = "all images without a container that uses them" if every else "all images without a name"
    if not force and not confirm(_EVERYTHING.format(images=images)):
        return 0
    with engine() as opened:
        report = opened.prune(all=every)
    _show("Deleted Containers:", report.containers)
    _show("Deleted Images:", report.images)
    _show("Deleted Layers:", report.snapshots)
    click.echo(f"Total reclaimed space: {size_text(report.reclaimed)}")
    return 0


def _show(title: str, lines: Sequence[str]) -> None:
    if lines:
        click.echo("\n".join([title, *lines, ""]))


@verb("prune")
@force_option
def prune_containers(force: bool) -> int:
    """Remove all stopped containers."""
    if not force and not confirm("WARNING! This will remove all stopped containers.\nAre you sure you want to continue?"):
        return 0
    with engine() as opened:
        report = opened.prune_containers()
    _show("Deleted Containers:", report.containers)
    click.echo(f"Total reclaimed space: {size_text(report.reclaimed)}")
    return 0


@verb("prune")
@click.option("-a", "--all", "every", is_flag=True, help="All images no container uses, not only those without a name.")
@force_option
def prune_images(every: bool, force: bool) -> int:
    """Remove unused images."""
    which = "all images without at least one container associated to them" if every else "all dangling images"
    if not force and not confirm(f"WARNING! This will remove {which}.\nAre you sure you want to continue?"):
        return 0
    with engine() as opened:
        report = opened.prune_images(all=every)
    _show("Deleted Images:", report.images)
    click.echo(f"Total reclaimed space: {size_text(report.reclaimed)}")
    return 0
