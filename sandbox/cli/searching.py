"""The verb search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sandbox.cli.filters import is_true, parse_filters
from sandbox.cli.flags import verb
from sandbox.cli.formatting import Field, Lines, Listing, shortened, show
from sandbox.cli.images import format_option, no_trunc_option
from sandbox.cli.invocation import engine
from sandbox.cli.registry import registry_options, terms_of
from sandbox.errors import InvalidOption

if TYPE_CHECKING:
    from sandbox.image.registry.searching import Found

_DESCRIPTION = 45  # docker's width of this column


def _listing(truncate: bool) -> Listing[Found]:
    return Listing(
        [
            Field("Name", "NAME", lambda found: found.name),
            Field("Description", "DESCRIPTION", lambda f: shortened(f.description, _DESCRIPTION) if truncate else f.description),
            Field("StarCount", "STARS", lambda found: str(found.stars)),
            Field("IsOfficial", "OFFICIAL", lambda found: "[OK]" if found.official else ""),
        ],
        ["Name", "Description", "StarCount", "IsOfficial"],
    )


@verb("search")
@click.argument("term", metavar="TERM|HOST/TERM")
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="is-official=BOOL or stars=N (at least).")
@click.option("--limit", type=int, default=25, show_default=True, metavar="N", help="At most so many.")
@click.option("--list-tags", is_flag=True, help="List the tags of the repository TERM.")
@format_option
@no_trunc_option
@registry_options
def search(
    term: str, filters: Sequence[str], limit: int, list_tags: bool, format: str | None, no_trunc: bool, tls_verify: bool | None,
    authfile: Path | None, creds: str | None,
) -> None:  # fmt: skip
    """Look for images on Docker Hub, or in the registry HOST."""
    wanted = parse_filters(
        filters, {"is-official": lambda f, text: f.official == is_true(text), "stars": lambda f, text: f.stars >= _count(text)}
    )
    terms = terms_of(tls_verify, authfile, creds)
    with engine() as opened:
        if list_tags:
            show(Lines(tuple(opened.registry_tags(term, terms=terms))))
            return
        found = opened.search(term, limit=limit, terms=terms)
    _listing(not no_trunc).show([each for each in found if wanted(each)], format)


def _count(text: str) -> int:
    if not text.isdigit():
        raise InvalidOption(f"filter stars={text!r}: not a number")
    return int(text)
