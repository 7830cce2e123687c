"""What the store's images take on disk, and what of it they share (`system df`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping

import msgspec

from sandbox.image.store import Image, Snapshot, Store
from sandbox.oci import Digest


class ImageUsage(msgspec.Struct, frozen=True):
    """Bytes of an image's files: `shared` with other images, `unique` to it; `size` is both."""

    image: Image
    shared: int
    unique: int

    @property
    def size(self) -> int:
        """All its layers' bytes."""
        return self.shared + self.unique


class StoreUsage(msgspec.Struct, frozen=True):
    """`images`: each one; `layers`: bytes of all layers of images, each once; `blobs`: bytes of blobs, which are kept for
    layers that were received or have left; `cache`: the snapshots only the build cache holds (docker's Build Cache)."""

    images: tuple[ImageUsage, ...]
    layers: int
    blobs: int
    cache: tuple[Snapshot, ...]

    @property
    def cache_size(self) -> int:
        """Bytes of the build cache."""
        return sum(snapshot.size for snapshot in self.cache)


def store_usage(store: Store, in_use: Container[str] = ()) -> StoreUsage:
    """How much everything takes. `in_use`: chain ids that containers hold; their snapshots are no build cache."""
    images = store.images()
    sizes = {snapshot.chain_id: snapshot.size for snapshot in store.snapshots()}
    holders = Counter(chain_id for image in images for chain_id in image.chain_ids)
    return StoreUsage(
        images=tuple(_image_usage(image, sizes, holders) for image in images),
        layers=sum(sizes[chain_id] for chain_id in holders),
        blobs=store.blob_bytes(),
        cache=tuple(store.unneeded_snapshots(in_use)),
    )


def _image_usage(image: Image, sizes: Mapping[Digest, int], holders: Mapping[Digest, int]) -> ImageUsage:
    shared = sum(sizes[chain_id] for chain_id in image.chain_ids if holders[chain_id] > 1)
    return ImageUsage(image, shared, sum(sizes[chain_id] for chain_id in image.chain_ids) - shared)
