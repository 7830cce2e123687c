"""Which layers the store's images share: a forest whose paths are the images' stacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from sandbox.image.store import Image, Store


class Layer(msgspec.Struct):
    """One layer on what lies below it. `size`: bytes of its files; `images`: ids of those that end here; `used_by`: how many have it."""

    chain_id: str
    diff_id: str
    size: int
    created_by: str
    images: list[str] = []
    children: list[Layer] = []
    used_by: int = 0

    @property
    def total(self) -> int:
        """Its bytes and those of all above it."""
        return self.size + sum(child.total for child in self.children)

    def walk(self) -> Iterator[Layer]:
        """Itself and all above it."""
        yield self
        for child in self.children:
            yield from child.walk()


def layer_tree(store: Store, images: Sequence[Image]) -> list[Layer]:
    """The layers of these images, those of most bytes first."""
    roots: list[Layer] = []
    known: dict[str, Layer] = {}
    for image in images:
        beside = roots
        for (diff_id, chain_id), created_by in zip(zip(image.diff_ids, image.chain_ids, strict=True), _makers(image), strict=True):
            if chain_id not in known:
                known[chain_id] = Layer(chain_id, diff_id, store.snapshot(chain_id).size, created_by)
                beside.append(known[chain_id])
            known[chain_id].used_by += 1
            beside = known[chain_id].children
        if image.top:
            known[image.top].images.append(image.id)
    for layer in known.values():
        layer.children.sort(key=lambda child: -child.total)
    return sorted(roots, key=lambda root: -root.total)


def _makers(image: Image) -> list[str]:
    """What made each layer, as far as the history tells."""
    told = [" ".join(step.created_by.split()) for step in image.config.value.history if not step.empty_layer]
    return [*told, *[""] * len(image.diff_ids)][: len(image.diff_ids)]
