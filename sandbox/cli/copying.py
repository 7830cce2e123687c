"""The verb `image copy`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from sandbox.cli.completing import complete_images
from sandbox.cli.flags import verb
from sandbox.cli.invocation import engine
from sandbox.cli.registry import compression_options, terms_of

if TYPE_CHECKING:
    from sandbox.image.packing import Packing

Command = Callable[..., int | None]


def _side_options(side: str) -> Callable[[Command], Command]:
    """skopeo's flags of one side."""

    def decorate(function: Command) -> Command:
        of = "source" if side == "src" else "destination"
        verify = click.option(f"--{side}-tls-verify", type=bool, metavar="BOOL", help=f"Verify the {of}'s certificate.")
        creds = click.option(f"--{side}-creds", metavar="USER[:PASSWORD]", help=f"Credentials for the {of}.")
        return verify(creds(function))

    return decorate


@verb("copy")
@click.argument("source", shell_complete=complete_images)
@click.argument("target", metavar="DESTINATION")
@click.option("-a", "--all", "everything", is_flag=True, help="Of an index: the images of all platforms.")
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Of an index: for another platform than this machine's.")
@click.option("--digestfile", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the digest to a file.")
@click.option("-q", "--quiet", is_flag=True, help="Print the digest only.")
@click.option("--authfile", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Read credentials here only.")
@_side_options("src")
@_side_options("dest")
@compression_options(default=None)
def copy(
    source: str, target: str, everything: bool, platform: str | None, digestfile: Path | None, quiet: bool, authfile: Path | None,
    src_tls_verify: bool | None, src_creds: str | None, dest_tls_verify: bool | None, dest_creds: str | None,
    compression: Literal["none", "gzip", "zstd"] | None, compression_level: int | None, force_compression: bool,
) -> None:  # fmt: skip
    """Copy an image, byte for byte, between docker://NAME, oci:DIR[:NAME], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME],
    dir:DIR and the store (store:NAME, or NAME alone). Layers built here leave the store as gzip."""
    from sandbox.cli.transferring import transfer_face
    from sandbox.image.packing import Packing

    packing: Packing | None = Packing(compression, force_compression, compression_level) if compression else None
    terms, target_terms = terms_of(src_tls_verify, authfile, src_creds), terms_of(dest_tls_verify, authfile, dest_creds)
    with engine() as opened, transfer_face(quiet=quiet) as face:
        copied = opened.copy_image(
            source, target, everything=everything, platform=platform, packing=packing, terms=terms, target_terms=target_terms, on_event=face
        )
    if digestfile:
        digestfile.write_text(copied.digest)
    click.echo(copied.digest if quiet else f"digest: {copied.digest} size: {copied.size} images: {copied.images}")
