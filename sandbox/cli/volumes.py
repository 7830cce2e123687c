"""`volume`: directories that outlive containers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from sandbox.cli.completing import complete_volumes
from sandbox.cli.filters import Filters, has_label, is_true, name_matches, parse_filters
from sandbox.cli.flags import Converted, verb
from sandbox.cli.formatting import Field, Lines, Listing, labels_text, show, size_text
from sandbox.cli.images import format_option
from sandbox.cli.inspect import show_objects
from sandbox.cli.invocation import confirm, each, engine
from sandbox.cli.system import force_option
from sandbox.engine import Engine
from sandbox.options import parse_pair
from sandbox.volumes import Volume

names_argument = click.argument("names", nargs=-1, required=True, metavar="VOLUME...", shell_complete=complete_volumes)


class Shown(msgspec.Struct, frozen=True):
    """One volume of the list."""

    volume: Volume
    place: Path


VOLUMES: Listing[Shown] = Listing(
    [
        Field("Driver", "DRIVER", lambda s: "local"),
        Field("Name", "VOLUME NAME", lambda s: s.volume.name),
        Field("Mountpoint", "MOUNTPOINT", lambda s: str(s.place)),
        Field("Scope", "SCOPE", lambda s: "local"),
        Field("Labels", "LABELS", lambda s: labels_text(s.volume.labels)),
    ],
    ["Driver", "Name"],
)


@verb("ls")
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only those: name, label, dangling.")
@format_option
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
def ls(filters: Sequence[str], format: str | None, quiet: bool) -> None:
    """List the volumes."""
    with engine() as opened:
        wanted = _filters(opened, filters)
        found = [Shown(volume, opened.volumes.data(volume.name)) for volume in opened.volumes.all() if wanted(volume)]
        VOLUMES.show(found, "{{.Name}}" if quiet else format)


def _filters(opened: Engine, texts: Sequence[str]) -> Filters[Volume]:
    return parse_filters(
        texts,
        {
            "name": lambda v, text: name_matches(v.name, text),
            "label": lambda v, text: has_label(v.labels, text),
            "dangling": lambda v, text: is_true(text) != bool(opened.volumes.users(v.name)),
        },
    )


@verb("create")
@click.argument("name", required=False)
@click.option("-d", "--driver", type=click.Choice(["local"]), default="local", help="Kind of volume.")
@click.option("--label", "labels", multiple=True, type=Converted(parse_pair, "label"), metavar="KEY=VALUE", help="Set a label.")
def create(name: str | None, driver: str, labels: Sequence[tuple[str, str]]) -> None:
    """Make a volume."""
    del driver  # there is one kind
    with engine() as opened:
        show(Lines((opened.volumes.create(name, labels=dict(labels)).name,)))


@verb("rm")
@names_argument
@click.option("-f", "--force", is_flag=True, help="None of that name is fine.")
def rm(names: Sequence[str], force: bool) -> int:
    """Remove volumes that no container has."""

    def remove(name: str) -> str:
        opened.volumes.remove(name, force=force)
        return name

    with engine() as opened:
        return each(names, remove)


@verb("inspect")
@names_argument
@click.option("-f", "--format", metavar="FORMAT", help="json, or a template.")
def inspect(names: Sequence[str], format: str | None) -> int:
    """Show everything about volumes as JSON."""
    return show_objects(names, _facts, format)


def _facts(opened: Engine, name: str) -> dict[str, object]:
    volume = opened.volumes.find(name)
    return {
        "Name": volume.name,
        "Driver": "local",
        "Mountpoint": str(opened.volumes.data(name)),
        "CreatedAt": datetime.fromtimestamp(volume.created, UTC).isoformat(),
        "Labels": volume.labels,
        "Scope": "local",
        "Options": {},
    }


@verb("prune")
@click.option("-a", "--all", "every", is_flag=True, help="Those with a name, too.")
@force_option
def prune(every: bool, force: bool) -> None:
    """Remove the volumes without a name that no container has."""
    which = "all volumes" if every else "the volumes without a name"
    if not force and not confirm(f"This will remove {which} that no container has. Are you sure?"):
        return
    with engine() as opened:
        names, freed = opened.volumes.prune(all=every)
        show(Lines((*names, f"Total reclaimed space: {size_text(freed)}")))
