"""The build cache: `builder prune`, also as `build prune`."""

from __future__ import annotations

import click

from sandbox.cli.flags import Converted, verb
from sandbox.cli.formatting import size_text
from sandbox.cli.invocation import confirm, engine
from sandbox.cli.system import force_option
from sandbox.options import parse_size

_WARNING = """WARNING! This will remove {what}.
Are you sure you want to continue?"""


@verb("prune")
@click.option("-a", "--all", "every", is_flag=True, help="Also forget the steps whose layers images need.")
@click.option("--filter", "filters", multiple=True, metavar="until=TIME", help="Only what no build used for so long.")
@click.option("--keep-storage", "keep", type=Converted(parse_size, "size"), metavar="BYTES", help="Leave this much, the last used first.")
@force_option
def prune(every: bool, filters: tuple[str, ...], keep: int | None, force: bool) -> int:
    """Remove build cache: layers no image needs, and the directories of cache mounts."""
    from sandbox.build.disk import Choice, parse_filters

    choice = Choice(every, parse_filters(filters), keep or 0)
    what = "all build cache" if every else "all build cache that no image needs"
    if not force and not confirm(_WARNING.format(what=what)):
        return 0
    with engine() as opened:
        report = opened.prune_cache(choice)
    for use in report.removed:
        click.echo(f"{use.id.removeprefix('sha256:')[:12]}\t{size_text(use.size)}\t{use.description}")
    click.echo(f"Total:\t{size_text(report.reclaimed)}")
    return 0
