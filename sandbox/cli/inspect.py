"""The verb inspect: docker-shaped JSON of images and containers, as an array."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from sandbox.cli.caller import is_taken
from sandbox.cli.completing import complete_containers, complete_everything, complete_images
from sandbox.cli.failures import show_error
from sandbox.cli.flags import verb
from sandbox.cli.formatting import Facts as Told
from sandbox.cli.formatting import Lines, show
from sandbox.cli.invocation import engine
from sandbox.cli.templates import Template, go_json
from sandbox.errors import ContainerNotFound, ImageNotFound, InvalidReference, NetworkNotFound, SandboxError, VolumeNotFound

if TYPE_CHECKING:
    from sandbox.engine import Engine

Facts = dict[str, object]  # docker's JSON
Look = Callable[["Engine", str], Facts]
_NOT_FOUND = (ContainerNotFound, ImageNotFound, InvalidReference, NetworkNotFound, VolumeNotFound)
format_option = click.option("-f", "--format", metavar="FORMAT", help="json, or a template such as '{{.State.Status}}'.")


@verb("inspect")
@click.argument("names", nargs=-1, required=True, metavar="NAME|ID...", shell_complete=complete_everything)
@click.option("--type", "kind", type=click.Choice(["container", "image"]), help="Look only for this kind.")
@format_option
def inspect(names: Sequence[str], kind: str | None, format: str | None) -> int:
    """Show everything about containers or images as JSON. A container comes before an image of the same name."""
    looks: dict[str | None, Look] = {"container": _container, "image": _image, None: _either}
    return show_objects(names, looks[kind], format)


@verb("inspect")
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...", shell_complete=complete_images)
@format_option
def inspect_image(names: Sequence[str], format: str | None) -> int:
    """Show everything about images as JSON."""
    return show_objects(names, _image, format)


@verb("inspect")
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=complete_containers)
@format_option
def inspect_container(names: Sequence[str], format: str | None) -> int:
    """Show everything about containers as JSON."""
    return show_objects(names, _container, format)


def show_objects(names: Sequence[str], look: Look, format: str | None) -> int:
    """Print what was found, then report what was not; the status is 1 when something was not."""
    found: list[Facts] = []
    missing: list[SandboxError] = []
    template = Template.parse(format) if format and format != "json" else None
    with engine() as opened:
        for name in names:
            try:
                found.append(look(opened, name))
            except _NOT_FOUND as err:
                missing.append(err)
    if template:
        show(Lines(tuple(template.render(facts) for facts in found)))
    elif format == "json":
        show(Lines((go_json(found),)))
    elif found or not is_taken():
        show(Told(tuple(found), json.dumps(found, indent=4, ensure_ascii=False)))
    for error in missing:
        show_error(error, ())
    return 1 if missing else 0


def _container(opened: Engine, name: str) -> Facts:
    return opened.container(name).inspect()


def _image(opened: Engine, name: str) -> Facts:
    return opened.inspect_image(name)


def _either(opened: Engine, name: str) -> Facts:
    try:
        return _container(opened, name)
    except ContainerNotFound:
        try:
            return _image(opened, name)
        except _NOT_FOUND as err:
            raise ContainerNotFound(f"{name}: no such container or image", hint=err.hint) from err
