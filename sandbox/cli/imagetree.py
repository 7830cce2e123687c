"""The verb `image tree`: the layers that images share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import click

from sandbox.cli.completing import complete_images
from sandbox.cli.flags import verb
from sandbox.cli.formatting import LayerForest, Lines, aligned, short_id, shortened, show, size_text
from sandbox.cli.invocation import engine
from sandbox.cli.templates import go_json
from sandbox.image.layertree import Layer

_CREATED_BY = 60
Namer = Callable[[str], list[str]]
_HEADERS = ("LAYER", "SIZE", "USED BY", "IMAGES", "CREATED BY")


@verb("tree")
@click.argument("names", nargs=-1, metavar="[IMAGE...]", shell_complete=complete_images)
@click.option("--format", type=click.Choice(["table", "json"]), default="table", show_default=True, help="A table or JSON.")
@click.option("--no-trunc", is_flag=True, help="Do not shorten ids and texts.")
def tree(names: Sequence[str], format: str, no_trunc: bool) -> None:
    """Show of which layers images are made, and which of them they share; a notebook also draws them by size."""
    with engine() as opened:
        images = {image.id: image for image in (opened.image(name) for name in names or [row.id for row in opened.images()])}
        layers = opened.image_tree(list(images.values()))
        called: dict[str, list[str]] = {key: opened.image_names(image) or [short_id(key)] for key, image in images.items()}
    forest = tuple(_facts(layer, called.__getitem__) for layer in layers)
    if format == "json":
        show(Lines((go_json(forest),)))
        return
    rows = [row for layer in layers for row in _rows(layer, "", "", called.__getitem__, not no_trunc)]
    text = "\n".join([*aligned([_HEADERS, *rows]), "", _summary(layers)])
    show(LayerForest(forest, text))


def _facts(layer: Layer, namer: Namer) -> Mapping[str, object]:
    """The layer and all above it."""
    return {
        "ID": layer.diff_id,
        "Size": layer.size,
        "UsedBy": layer.used_by,
        "Images": _names(layer, namer),
        "CreatedBy": layer.created_by,
        "Children": [_facts(child, namer) for child in layer.children],
    }


def _names(layer: Layer, namer: Namer) -> list[str]:
    return [name for image in layer.images for name in namer(image)]


def _rows(layer: Layer, head: str, indent: str, namer: Namer, truncate: bool) -> Iterator[tuple[str, ...]]:
    identifier = short_id(layer.diff_id) if truncate else layer.diff_id
    made = shortened(layer.created_by, _CREATED_BY) if truncate else layer.created_by
    yield (head + identifier, size_text(layer.size), str(layer.used_by), ", ".join(_names(layer, namer)) or "-", made)
    for place, child in enumerate(layer.children):
        is_last = place == len(layer.children) - 1
        yield from _rows(child, indent + ("└─ " if is_last else "├─ "), indent + ("   " if is_last else "│  "), namer, truncate)


def _summary(layers: Sequence[Layer]) -> str:
    every = [layer for root in layers for layer in root.walk()]
    shared = sum(layer.size for layer in every if layer.used_by > 1)
    saved = sum(layer.size * (layer.used_by - 1) for layer in every)
    total = sum(layer.size for layer in every)
    return f"{len(every)} layers, {size_text(total)}: {size_text(shared)} shared, which saves {size_text(saved)}"
