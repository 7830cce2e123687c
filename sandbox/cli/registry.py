"""Verbs about registries: pull, push, login, logout."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from sandbox.cli.completing import complete_images
from sandbox.cli.flags import verb
from sandbox.cli.invocation import engine
from sandbox.errors import InvalidOption

if TYPE_CHECKING:
    from sandbox.image.registry.access import Terms

Command = Callable[..., int | None]
_MOST_STDIN = 1 << 16


def registry_options(function: Command) -> Command:
    """The flags of every verb that speaks to a registry."""
    for decorate in (
        click.option("--tls-verify", type=bool, metavar="BOOL", help="Verify certificates; false also allows plain HTTP."),
        click.option("--authfile", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Read credentials here only."),
        click.option("--creds", metavar="USER[:PASSWORD]", help="Credentials for this call; without a password it is asked for."),
    ):
        function = decorate(function)
    return function


def compression_options(*, default: str | None) -> Callable[[Command], Command]:
    """The flags of every verb by which images leave; `default` None: what the verb does without."""

    def decorate(function: Command) -> Command:
        kinds, shown = click.Choice(["none", "gzip", "zstd"]), default is not None
        kind = click.option("--compression", type=kinds, default=default, show_default=shown, help="Of layers built here.")
        level = click.option("--compression-level", type=int, metavar="N", help="How hard: gzip 0 to 3, zstd 1 to 19 (default 1).")
        force = click.option("--force-compression", is_flag=True, help="Also of layers that were pulled or loaded.")
        return kind(level(force(function)))

    return decorate


def terms_of(tls_verify: bool | None, authfile: Path | None, creds: str | None) -> Terms:
    """What the flags say."""
    from sandbox.image.registry.access import Terms
    from sandbox.image.registry.credentials import Credential

    credential = None
    if creds is not None:
        user, colon, secret = creds.partition(":")
        credential = Credential(user, secret if colon else getpass.getpass(f"Password for {user}: "))
    return Terms(tls_verify, authfile, credential)


@verb("pull")
@click.argument("name", metavar="NAME[:TAG|@DIGEST]", shell_complete=complete_images)
@click.option("-a", "--all-tags", is_flag=True, help="Every tag of the repository.")
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="For another platform than this machine's.")
@click.option("-q", "--quiet", is_flag=True, help="Print the name only.")
@registry_options
def pull(
    name: str, all_tags: bool, platform: str | None, quiet: bool, tls_verify: bool | None, authfile: Path | None, creds: str | None
) -> None:  # fmt: skip
    """Bring an image from a registry; short names mean docker.io."""
    from sandbox.cli.transferring import transfer_face

    terms = terms_of(tls_verify, authfile, creds)
    with engine() as opened, transfer_face(quiet=quiet) as face:
        pulled = opened.pull(name, platform=platform, all_tags=all_tags, terms=terms, on_event=face)
    for each in pulled:
        if not quiet:
            click.echo(f"Digest: {each.digest}")
            state = "Downloaded newer image for" if each.is_new else "Image is up to date for"
            click.echo(f"Status: {state} {each.reference.familiar}")
        click.echo(str(each.reference))


@verb("push")
@click.argument("name", metavar="IMAGE", shell_complete=complete_images)
@click.argument("target", required=False, metavar="[NAME[:TAG]]")
@compression_options(default="gzip")
@click.option("--digestfile", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the digest to a file.")
@click.option("-q", "--quiet", is_flag=True, help="Print the name only.")
@registry_options
def push(
    name: str, target: str | None, compression: Literal["none", "gzip", "zstd"], compression_level: int | None, force_compression: bool,
    digestfile: Path | None, quiet: bool, tls_verify: bool | None, authfile: Path | None, creds: str | None,
) -> None:  # fmt: skip
    """Send an image to the registry its name says, or to another name."""
    from sandbox.cli.transferring import transfer_face
    from sandbox.image.packing import Packing

    terms = terms_of(tls_verify, authfile, creds)
    packing = Packing(compression, force_compression, compression_level)
    with engine() as opened, transfer_face(quiet=quiet) as face:
        pushed = opened.push(name, target, packing=packing, terms=terms, on_event=face)
    if digestfile:
        digestfile.write_text(pushed.digest)
    click.echo(str(pushed.reference) if quiet else f"{pushed.reference.tag or 'image'}: digest: {pushed.digest} size: {pushed.size}")


@verb("login")
@click.argument("registry", default="docker.io", metavar="[REGISTRY]")
@click.option("-u", "--username", metavar="NAME", help="Who; asked for when it is not given.")
@click.option("-p", "--password", metavar="TEXT", help="Unsafe: others see it in the list of processes.")
@click.option("--password-stdin", is_flag=True, help="Read the password from stdin.")
@click.option("--tls-verify", type=bool, metavar="BOOL", help="Verify certificates; false also allows plain HTTP.")
@click.option("--authfile", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Keep it in this file.")
def login(
    registry: str, username: str | None, password: str | None, password_stdin: bool, tls_verify: bool | None, authfile: Path | None
) -> None:  # fmt: skip
    """Try a name and password with a registry, and keep them when it lets us in."""
    if password is not None and password_stdin:
        raise InvalidOption("--password and --password-stdin: only one of them")
    if password_stdin and not username:
        raise InvalidOption("--password-stdin: wants --username too")
    if password is not None:
        click.echo("WARNING! --password is seen by others; --password-stdin is not.", err=True)
    if not (username and (password_stdin or password is not None)) and not sys.stdin.isatty():
        raise InvalidOption("login: nobody can be asked here", hint="use --username and --password-stdin")
    user = username or click.prompt("Username")
    secret = _stdin_line() if password_stdin else password if password is not None else getpass.getpass()
    if not secret:
        raise InvalidOption("login: the password is empty")
    with engine() as opened:
        place = opened.login(registry, user, secret, terms=terms_of(tls_verify, authfile, None))
    click.echo(f"Login Succeeded (kept in {place})")


def _stdin_line() -> str:
    return sys.stdin.buffer.read(_MOST_STDIN).decode(errors="surrogateescape").removesuffix("\n").removesuffix("\r")


@verb("logout")
@click.argument("registry", default="docker.io", metavar="[REGISTRY]")
@click.option("-a", "--all", "everything", is_flag=True, help="Of every registry.")
@click.option("--authfile", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="In this file only.")
def logout(registry: str, everything: bool, authfile: Path | None) -> None:
    """Forget the name and password for a registry."""
    from sandbox.image.registry.credentials import CredentialFiles

    files = CredentialFiles(os.environ, Path.home(), authfile)
    for name in files.registries() if everything else [registry]:
        places: Sequence[str] = files.erase(name)
        click.echo(f"Removed login credentials for {name}" if places else f"Not logged in to {name}")
