"""The verbs of `manifest`: lists of images for several platforms, as podman and docker have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from sandbox.cli.completing import complete_images, complete_manifests
from sandbox.cli.flags import verb
from sandbox.cli.formatting import Facts, Field, Listing, show
from sandbox.cli.images import format_option
from sandbox.cli.invocation import each, engine
from sandbox.cli.registry import compression_options, registry_options, terms_of
from sandbox.errors import InvalidOption

if TYPE_CHECKING:
    from sandbox.image.lists import ManifestList
    from sandbox.manifests import Note

Command = Callable[..., int | None]


def _note_options(function: Command) -> Command:
    """What can be said of an image in a list."""
    for decorate in (
        click.option("--annotation", "annotations", multiple=True, metavar="KEY=VALUE", help="An annotation of the image."),
        click.option("--os-features", multiple=True, metavar="TEXT", help="What of the operating system it needs."),
        click.option("--os-version", metavar="TEXT", help="Which version of it."),
        click.option("--variant", metavar="TEXT", help="Of the processor, such as v8."),
        click.option("--arch", metavar="TEXT", help="Its processor, such as arm64."),
        click.option("--os", "system", metavar="TEXT", help="Its operating system, such as linux."),
    ):
        function = decorate(function)
    return function


def _note(
    system: str | None,
    arch: str | None,
    variant: str | None,
    os_version: str | None,
    os_features: Sequence[str],
    annotations: Sequence[str],
) -> Note:
    from sandbox.manifests import Note

    return Note(system, arch, variant, os_version, tuple(os_features), _pairs(annotations))


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    for text in texts:
        if "=" not in text.lstrip("="):
            raise InvalidOption(f"--annotation {text!r}: not of the form KEY=VALUE")
    return {key: value for key, _, value in (text.partition("=") for text in texts)}


@verb("create")
@click.argument("name", metavar="LIST")
@click.argument("images", nargs=-1, metavar="[IMAGE...]", shell_complete=complete_images)
@click.option("-a", "--amend", is_flag=True, help="Add to a list that is there.")
@click.option("--all", "everything", is_flag=True, help="Of an index: the images of all platforms.")
@click.option("--annotation", "annotations", multiple=True, metavar="KEY=VALUE", help="An annotation of the list.")
@registry_options
def create(
    name: str, images: Sequence[str], amend: bool, everything: bool, annotations: Sequence[str], tls_verify: bool | None,
    authfile: Path | None, creds: str | None,
) -> None:  # fmt: skip
    """Make a list of images: of the store, else of a registry (docker://NAME: of a registry in any case)."""
    terms = terms_of(tls_verify, authfile, creds)
    with engine() as opened:
        made = opened.manifests.create(name, images, amend=amend, everything=everything, annotations=_pairs(annotations), terms=terms)
    click.echo(made.name)


@verb("add")
@click.argument("name", metavar="LIST", shell_complete=complete_manifests)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", shell_complete=complete_images)
@click.option("--all", "everything", is_flag=True, help="Of an index: the images of all platforms.")
@_note_options
@registry_options
def add(
    name: str, images: Sequence[str], everything: bool, system: str | None, arch: str | None, variant: str | None,
    os_version: str | None, os_features: Sequence[str], annotations: Sequence[str], tls_verify: bool | None, authfile: Path | None,
    creds: str | None,
) -> None:  # fmt: skip
    """Put images into a list; one of the same platform is replaced. What is not said of an image is what it says itself."""
    terms, note = terms_of(tls_verify, authfile, creds), _note(system, arch, variant, os_version, os_features, annotations)
    with engine() as opened:
        for image in images:
            for added in opened.manifests.add(name, image, note, everything=everything, terms=terms):
                click.echo(added.digest)


@verb("annotate")
@click.argument("name", metavar="LIST", shell_complete=complete_manifests)
@click.argument("wanted", metavar="DIGEST|IMAGE")
@_note_options
def annotate(
    name: str, wanted: str, system: str | None, arch: str | None, variant: str | None, os_version: str | None,
    os_features: Sequence[str], annotations: Sequence[str],
) -> None:  # fmt: skip
    """Say another platform, or more, of an image in a list."""
    with engine() as opened:
        note = _note(system, arch, variant, os_version, os_features, annotations)
        click.echo(opened.manifests.annotate(name, wanted, note).digest)


@verb("inspect")
@click.argument("name", metavar="LIST|NAME", shell_complete=complete_manifests)
@registry_options
def inspect(name: str, tls_verify: bool | None, authfile: Path | None, creds: str | None) -> None:
    """Show a list as the index it is, else what a registry has under this name (docker://NAME: in any case)."""
    with engine() as opened:
        document = json.loads(opened.manifests.document(name, terms=terms_of(tls_verify, authfile, creds)))
    show(Facts((document,), json.dumps(document, indent=4, ensure_ascii=False)))


LISTS: Listing[ManifestList] = Listing(
    [
        Field("Name", "NAME", lambda found: found.name),
        Field("Images", "IMAGES", lambda found: str(len(found.entries))),
        Field("Platforms", "PLATFORMS", lambda found: ", ".join(map(_platform_text, found.entries))),
    ],
    ["Name", "Images", "Platforms"],
)


def _platform_text(entry: object) -> str:
    from sandbox.image.lists import Entry
    from sandbox.image.registry.platforms import platform_text

    assert isinstance(entry, Entry)
    return platform_text(entry.descriptor.platform) if entry.descriptor.platform else "any"


@verb("ls")
@format_option
def ls(format: str | None) -> None:
    """List the lists."""
    with engine() as opened:
        LISTS.show(opened.manifests.all(), format)


@verb("push")
@click.argument("name", metavar="LIST", shell_complete=complete_manifests)
@click.argument("target", required=False, metavar="[DESTINATION]")
@click.option("--all", is_flag=True, expose_value=False, help="As podman's; the images always go along.")
@click.option("-p", "--purge", "--rm", is_flag=True, help="Remove the list afterwards.")
@click.option("--digestfile", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the digest to a file.")
@click.option("-q", "--quiet", is_flag=True, help="Print the digest only.")
@compression_options(default="gzip")
@registry_options
def push(
    name: str, target: str | None, purge: bool, digestfile: Path | None, quiet: bool, compression: Literal["none", "gzip", "zstd"],
    compression_level: int | None, force_compression: bool, tls_verify: bool | None, authfile: Path | None, creds: str | None,
) -> None:  # fmt: skip
    """Send a list and its images to the registry its name says, or to another place (see `image copy`)."""
    from sandbox.cli.transferring import transfer_face
    from sandbox.image.packing import Packing

    packing, terms = Packing(compression, force_compression, compression_level), terms_of(tls_verify, authfile, creds)
    with engine() as opened, transfer_face(quiet=quiet) as face:
        pushed = opened.manifests.push(name, target, packing=packing, terms=terms, on_event=face)
        if purge:
            opened.manifests.remove(name)
    if digestfile:
        digestfile.write_text(pushed.digest)
    click.echo(pushed.digest if quiet else f"digest: {pushed.digest} size: {pushed.size} images: {pushed.images}")


@verb("remove")
@click.argument("name", metavar="LIST", shell_complete=complete_manifests)
@click.argument("wanted", nargs=-1, required=True, metavar="DIGEST|IMAGE...")
def remove(name: str, wanted: Sequence[str]) -> int:
    """Take images out of a list."""

    def gone(one: str) -> str:
        opened.manifests.remove_entry(name, one)
        return one

    with engine() as opened:
        return each(wanted, gone)


@verb("rm")
@click.argument("names", nargs=-1, required=True, metavar="LIST...", shell_complete=complete_manifests)
def rm(names: Sequence[str]) -> int:
    """Remove lists; images stay."""

    def gone(name: str) -> str:
        opened.manifests.remove(name)
        return name

    with engine() as opened:
        return each(names, gone)
