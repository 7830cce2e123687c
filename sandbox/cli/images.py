"""Verbs about images."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import click
import msgspec

from sandbox.cli.completing import complete_images
from sandbox.cli.filters import Filters, has_label, is_true, parse_filters, reference_matches
from sandbox.cli.flags import verb
from sandbox.cli.formatting import Field, Lines, Listing, age_text, short_id, shortened, show, size_text, time_text
from sandbox.cli.invocation import each, engine
from sandbox.errors import InvalidOption

if TYPE_CHECKING:
    from sandbox.engine import Engine
    from sandbox.images import HistoryRow, ImageSummary

_CREATED_BY = 45  # docker's width of this column
format_option = click.option("--format", metavar="FORMAT", help="json, table TEMPLATE, or a template such as '{{.ID}}'.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
no_trunc_option = click.option("--no-trunc", is_flag=True, help="Do not shorten ids and texts.")


class ShownImage(msgspec.Struct, frozen=True):
    """One row of `images` and how to show it."""

    row: ImageSummary
    digest: str
    now: datetime
    truncate: bool

    @property
    def id(self) -> str:
        """The id as asked for."""
        return short_id(self.row.id) if self.truncate else self.row.id


IMAGES: Listing[ShownImage] = Listing(
    [
        Field("Containers", "CONTAINERS", lambda i: "N/A"),
        Field("CreatedAt", "CREATED AT", lambda i: time_text(i.row.created)),
        Field("CreatedSince", "CREATED", lambda i: age_text(i.row.created, i.now)),
        Field("Digest", "DIGEST", lambda i: i.digest or "<none>"),
        Field("ID", "IMAGE ID", lambda i: i.id),
        Field("Repository", "REPOSITORY", lambda i: i.row.repository or "<none>"),
        Field("SharedSize", "SHARED SIZE", lambda i: "N/A"),
        Field("Size", "SIZE", lambda i: size_text(i.row.size)),
        Field("Tag", "TAG", lambda i: i.row.tag or "<none>"),
        Field("UniqueSize", "UNIQUE SIZE", lambda i: "N/A"),
    ],
    ["Repository", "Tag", "ID", "CreatedSince", "Size"],
)


@verb("images")
@click.argument("repository", required=False, shell_complete=complete_images)
@click.option("-a", "--all", is_flag=True, expose_value=False, help="As docker's; there are no intermediate images here.")
@click.option("--digests", is_flag=True, help="Show the manifests' digests.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="dangling, reference, label, before, since or until.")
@format_option
@no_trunc_option
@quiet_option
def images(
    repository: str | None, digests: bool, filters: Sequence[str], format: str | None, no_trunc: bool, quiet: bool
) -> None:  # fmt: skip
    """List images, newest first. REPOSITORY[:TAG] shows only those, and may have wildcards."""
    with engine() as opened:
        wanted = image_filters(opened, [*filters, *([f"reference={repository}"] if repository else [])])
        rows = sorted(filter(wanted, opened.images()), key=lambda row: _moment(row.created), reverse=True)
        now = datetime.now(UTC)
        wants_digest = digests or _names_digest(format)
        shown = [ShownImage(row, _manifest_digest(opened, row) if wants_digest else "", now, not no_trunc) for row in rows]
    if quiet:
        show(Lines(tuple(dict.fromkeys(item.id for item in shown))))
        return
    columns = ["Repository", "Tag", *(["Digest"] if digests else []), "ID", "CreatedSince", "Size"]
    IMAGES.show(shown, format, columns=columns)


def _names_digest(format: str | None) -> bool:
    return format is not None and (format == "json" or "Digest" in format or "json" in format)


def _manifest_digest(opened: Engine, row: ImageSummary) -> str:
    """What the row's own registry calls it (of an index, when it came from one), else the digest it has here."""
    known = dict(name.rpartition("@")[::2] for name in opened.image_digests(row.id))
    return known.get(row.repository or "", str(opened.image(row.id).manifest.digest))


def _moment(created: datetime | None) -> datetime:
    return created or datetime.fromtimestamp(0, UTC)


def image_filters(opened: Engine, texts: Sequence[str]) -> Filters[ImageSummary]:
    """`-f` of images."""

    def created_of(name: str) -> datetime:
        wanted = opened.image(name).id
        return next(_moment(row.created) for row in opened.images() if row.id == wanted)

    def is_older(row: ImageSummary, text: str) -> bool:
        from sandbox.cli.containers import parse_moment

        return row.created is not None and row.created < parse_moment(text, datetime.now(UTC))

    def labels_of(row: ImageSummary) -> dict[str, str]:
        return opened.image(row.id).config.value.config.labels or {}

    return parse_filters(
        texts,
        {
            "dangling": lambda row, text: (row.repository is None) == is_true(text),
            "reference": lambda row, text: row.repository is not None and reference_matches(row.repository, row.tag, text),
            "label": lambda row, text: has_label(labels_of(row), text),
            "before": lambda row, text: _moment(row.created) < created_of(text),
            "since": lambda row, text: _moment(row.created) > created_of(text),
            "until": is_older,
        },
    )


@verb("rmi")
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...", shell_complete=complete_images)
@click.option("-f", "--force", is_flag=True, help="Also when containers use it or it has several names.")
def rmi(names: Sequence[str], force: bool) -> int:
    """Remove images: a name is taken away, and the image with its last one."""
    with engine() as opened:
        return each(names, lambda name: "\n".join(opened.remove_image(name, force=force)))


@verb("tag")
@click.argument("source", shell_complete=complete_images)
@click.argument("target")
def tag(source: str, target: str) -> None:
    """Give the image SOURCE the name TARGET as well."""
    with engine() as opened:
        opened.tag(source, target)


class ShownHistory(msgspec.Struct, frozen=True):
    """One row of `history` and how to show it."""

    row: HistoryRow
    now: datetime
    truncate: bool
    human: bool

    @property
    def id(self) -> str:
        """The id as asked for; only the top of an image has one."""
        identifier = self.row.id or "<missing>"
        return short_id(identifier) if self.truncate and self.row.id else identifier

    @property
    def created_by(self) -> str:
        """The instruction, on one line."""
        text = " ".join(self.row.created_by.split())
        return shortened(text, _CREATED_BY) if self.truncate else text


HISTORY: Listing[ShownHistory] = Listing(
    [
        Field("Comment", "COMMENT", lambda h: h.row.comment),
        Field("CreatedAt", "CREATED AT", lambda h: h.row.created.isoformat(timespec="seconds") if h.row.created else "N/A"),
        Field("CreatedBy", "CREATED BY", lambda h: h.created_by),
        Field("CreatedSince", "CREATED", lambda h: age_text(h.row.created, h.now) if h.human else time_text(h.row.created)),
        Field("ID", "IMAGE", lambda h: h.id),
        Field("Size", "SIZE", lambda h: size_text(h.row.size) if h.human else str(h.row.size)),
    ],
    ["ID", "CreatedSince", "CreatedBy", "Size", "Comment"],
)


@verb("history")
@click.argument("image", shell_complete=complete_images)
@click.option("-H", "--human", type=bool, default=True, show_default=True, help="Ages and rounded sizes.")
@format_option
@no_trunc_option
@quiet_option
def history(image: str, human: bool, format: str | None, no_trunc: bool, quiet: bool) -> None:
    """Show what an image was made of, newest first."""
    with engine() as opened:
        now = datetime.now(UTC)
        shown = [ShownHistory(row, now, not no_trunc, human) for row in opened.history(image)]
    if quiet:
        format = "{{.ID}}"
    HISTORY.show(shown, format)


@verb("save")
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...", shell_complete=complete_images)
@click.option("-o", "--output", type=click.Path(dir_okay=False), metavar="FILE", help="Write here and not to stdout.")
@click.option("--format", type=click.Choice(["docker", "oci"]), default="docker", show_default=True, help="Kind of archive.")
@click.option("--compression", type=click.Choice(["none", "gzip", "zstd"]), help="Of the layers (default: as the image has them).")
@click.option("--compression-level", type=int, metavar="N", help="How hard: gzip 0 to 3, zstd 1 to 19 (default 1).")
def save(
    names: Sequence[str], output: str | None, format: Literal["docker", "oci"], compression: Literal["none", "gzip", "zstd"] | None,
    compression_level: int | None,
) -> None:  # fmt: skip
    """Write images, with their names, to a tar archive."""
    refuse_terminal(output)
    with engine() as opened:
        target = output if output is not None else sys.stdout.buffer
        opened.save(names, target, format=format, compression=compression, level=compression_level)


def refuse_terminal(output: str | None) -> None:
    """An archive on a screen is never meant; raises InvalidOption."""
    if output is None and os.isatty(1):
        raise InvalidOption("refusing to write an archive to a terminal", hint="use -o FILE, or redirect stdout")


@verb("load")
@click.option("-i", "--input", "source", type=click.Path(dir_okay=False), metavar="FILE", help="Read this and not stdin.")
@click.option("-q", "--quiet", is_flag=True, expose_value=False, help="As docker's; no progress is printed anyway.")
def load(source: str | None) -> None:
    """Read images from an archive of docker save, sandbox save or an OCI layout (gzip and zstd too)."""
    if source is None and os.isatty(0):
        raise InvalidOption("load: stdin is a terminal", hint="use -i FILE, or redirect stdin")
    with engine() as opened:
        loaded = opened.load(source if source is not None else sys.stdin.buffer)
    for name, image in loaded:
        click.echo(f"Loaded image: {name}" if name else f"Loaded image ID: {image.id}")


@verb("import")
@click.argument("source", metavar="FILE|-")
@click.argument("name", required=False, metavar="[REPOSITORY[:TAG]]")
@click.option("-c", "--change", "changes", multiple=True, metavar="INSTRUCTION", help="Apply a Dockerfile instruction, such as 'CMD sh'.")
@click.option("-m", "--message", default="", metavar="TEXT", help="Commit message.")
def import_(source: str, name: str | None, changes: Sequence[str], message: str) -> None:
    """Make an image of a root file system tar (- reads stdin) and print its id."""
    with engine() as opened:
        image = opened.import_image(sys.stdin.buffer if source == "-" else source, name, changes=changes, message=message)
    click.echo(image.id)


@verb("capture")
@click.option("-t", "--tag", default="localhost/python", show_default=True, metavar="NAME[:TAG]", help="Name of the image.")
@click.option("--packages", multiple=True, metavar="NAME|all", help="Add an installed distribution, with what it needs (repeat, or a,b).")
def capture(tag: str, packages: Sequence[str]) -> None:
    """Make a base image of this machine's own Python and print its id."""
    names = [name for text in packages for name in text.split(",") if name]
    with engine() as opened:
        click.echo(opened.capture(tag, packages=names).id)
