"""An image as it leaves: the same config, its layers compressed as asked, each of them once in the life of a store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing

import msgspec

from sandbox.image.compression import MEDIA_TYPES, Compression, check_level, compressed, compression_of
from sandbox.image.store import Image, Store
from sandbox.oci import LAYER_TAR, Descriptor, encode


class Packing(msgspec.Struct, frozen=True):
    """How layers leave. `compression` None: as the image's manifest has them. `force`: received layers are compressed anew
    too; else only those built here are. `level`: how hard (gzip 0 to 3, zstd 1 to 19; None: 1); a layer compressed before stays."""

    compression: Compression | None = None
    force: bool = False
    level: int | None = None

    def __post_init__(self) -> None:
        """InvalidOption for a level that the compression does not have, also when nothing will be compressed."""
        check_level(self.compression, self.level)


def pack(store: Store, image: Image, packing: Packing) -> Image:
    """The image whose manifest describes the layers as they leave; their bytes are what `store.layer_stream` then gives.

    ImageError when a layer's bytes are gone. A layer compressed before is not compressed again.
    """
    compression = packing.compression
    if compression is None:
        return image
    from concurrent.futures import ThreadPoolExecutor  # with logging, which a build without output does not need

    with store.shared(), ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        made = [pool.submit(pack_layer, store, image, index, packing) for index in range(len(image.diff_ids))]
        layers = [future.result() for future in made]
    return with_layers(image, layers)


def pack_layer(store: Store, image: Image, index: int, packing: Packing) -> Descriptor:
    """One layer as it leaves; its bytes are what `store.described_layer` then gives. ImageError."""
    current = image.manifest.value.layers[index]
    wanted = packing.compression
    is_received = current.media_type != LAYER_TAR or store.has_blob(current.digest)  # of layers built here there is no blob
    if wanted is None or compression_of(current.media_type) == wanted or (is_received and not packing.force):
        return current
    diff_id = image.diff_ids[index]
    if wanted == "none":
        return Descriptor(LAYER_TAR, diff_id, store.snapshot(image.chain_ids[index]).tar_size)
    if found := store.packed_layer(diff_id, MEDIA_TYPES[wanted]):
        return found
    with store.tar_stream(image, index) as tar, closing(compressed(tar, wanted, packing.level)) as pieces:
        return store.keep_packed(diff_id, MEDIA_TYPES[wanted], pieces)


def with_layers(image: Image, layers: Sequence[Descriptor]) -> Image:
    """The image with layers of the same content in other forms."""
    manifest = image.manifest.value
    if list(layers) == manifest.layers:
        return image
    return Image(encode(msgspec.structs.replace(manifest, layers=list(layers))), image.config)
