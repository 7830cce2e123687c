"""`%container image tree`: the layers that images share, drawn by size; SVG alone, no script."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # a layer as JSON has it

from magics.display import size_text
from magics.verbs import Described

_WIDTH, _HEIGHT = 760.0, 320.0
_LABEL_WIDTH, _LABEL_HEIGHT, _LETTER = 46.0, 16.0, 6.6
Layer = Mapping[str, Any]


@dataclass(frozen=True)
class Box:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Tile:
    """One layer's rectangle; `root`: in which tree it stands, `depth`: how far above its root."""

    layer: Layer
    box: Box
    root: int
    depth: int


class LayerMap(Described):
    """The forest: its table as text, drawn in a notebook; in Python a sequence of its roots with their `Children`."""

    def _repr_html_(self) -> str:
        """Called by IPython's display hook."""
        return f'<div class="sandbox-layers">{treemap_svg(self._facts.objects)}{super()._repr_html_()}</div>'


def treemap_svg(layers: Sequence[Layer]) -> str:
    """Every layer as a rectangle whose area is its size, beside what stands on it."""
    tiles = [tile for root, (layer, box) in enumerate(_placed(layers, Box(0, 0, _WIDTH, _HEIGHT))) for tile in _tiles(layer, box, root, 0)]
    if not tiles:
        return ""
    drawn = "".join(map(_drawn, tiles))
    style = "max-width:100%;font:11px var(--jp-code-font-family,monospace)"
    size = f'viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" width="{_WIDTH:.0f}" height="{_HEIGHT:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="layers by size" {size} style="{style}">{drawn}</svg>'


def _tiles(layer: Layer, box: Box, root: int, depth: int) -> Iterator[Tile]:
    own = {**layer, "Children": []}
    for part, inner in _placed([own, *layer["Children"]], box):
        if part is own:
            yield Tile(own, inner, root, depth)
        else:
            yield from _tiles(part, inner, root, depth + 1)


def total(layer: Layer) -> int:
    """Its bytes and those of all above it."""
    size: int = layer["Size"]
    return size + sum(map(total, layer["Children"]))


def _placed(layers: Sequence[Layer], box: Box) -> Iterator[tuple[Layer, Box]]:
    """Each with its part of the box, in the layout of Bruls, Huizing and van Wijk (squarified treemaps): rows as square as can be."""
    left = sorted((layer for layer in layers if total(layer)), key=lambda layer: -total(layer))
    whole = sum(map(total, left))
    scale = box.width * box.height / whole if whole else 0.0
    while left:
        side = min(box.width, box.height)
        count = 1
        while count < len(left) and _worst(left[: count + 1], side, scale) <= _worst(left[:count], side, scale):
            count += 1
        row, left = left[:count], left[count:]
        yield from _row(row, box, scale)
        box = _rest(box, sum(map(total, row)) * scale)


def _worst(row: Sequence[Layer], side: float, scale: float) -> float:
    """The aspect ratio of the least square of them."""
    areas = [total(layer) * scale for layer in row]
    depth = sum(areas) / side
    return max(max(depth * depth / area, area / (depth * depth)) for area in areas)


def _row(row: Sequence[Layer], box: Box, scale: float) -> Iterator[tuple[Layer, Box]]:
    is_wide, at = box.width >= box.height, 0.0
    depth = sum(map(total, row)) * scale / (box.height if is_wide else box.width)
    for layer in row:
        length = total(layer) * scale / depth
        yield layer, Box(box.x, box.y + at, depth, length) if is_wide else Box(box.x + at, box.y, length, depth)
        at += length


def _rest(box: Box, area: float) -> Box:
    if box.width >= box.height:
        depth = area / box.height
        return Box(box.x + depth, box.y, max(box.width - depth, 1e-9), box.height)
    depth = area / box.width
    return Box(box.x, box.y + depth, box.width, max(box.height - depth, 1e-9))


def _drawn(tile: Tile) -> str:
    layer, box = tile.layer, tile.box
    names = ", ".join(layer["Images"])
    facts = [f"{layer['ID'][7:19]}  {size_text(layer['Size'])}  used by {layer['UsedBy']}", names, layer["CreatedBy"]]
    title = html.escape("\n".join(filter(None, facts)))
    hue, light = (tile.root * 67 + 205) % 360, min(38 + 9 * tile.depth, 70)
    place = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
    rectangle = f'<rect {place} fill="hsl({hue} 45% {light}%)" stroke="#fff"><title>{title}</title></rect>'
    if box.width < _LABEL_WIDTH or box.height < _LABEL_HEIGHT:
        return f"<g>{rectangle}</g>"
    text = names or layer["CreatedBy"] or layer["ID"][7:19]
    room = int(box.width / _LETTER) - 1
    lines = [text, size_text(layer["Size"])] if box.height >= 2 * _LABEL_HEIGHT else [text]
    labels = "".join(
        f'<text x="{box.x + 4:.1f}" y="{box.y + 13 + 14 * number:.1f}" fill="#fff" pointer-events="none">{html.escape(line[:room])}</text>'
        for number, line in enumerate(lines)
    )
    return f"<g>{rectangle}{labels}</g>"
