"""What the store hands out: images and snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import msgspec

from sandbox.errors import InvalidImage
from sandbox.oci import Digest, Document, ImageConfig, Manifest, chain_ids


class Image(msgspec.Struct, frozen=True, dict=True):
    """An image in the store: its two documents. Its id is the digest of the config."""

    manifest: Document[Manifest]
    config: Document[ImageConfig]

    @property
    def id(self) -> Digest:
        """The digest of the config."""
        return self.config.digest

    @cached_property
    def diff_ids(self) -> tuple[Digest, ...]:
        """The uncompressed layers, lowest first."""
        return tuple(Digest.parse(text) for text in self.config.value.rootfs.diff_ids)

    @cached_property
    def chain_ids(self) -> tuple[Digest, ...]:
        """The snapshot of each prefix of the layers."""
        return tuple(chain_ids(self.diff_ids))

    @property
    def top(self) -> Digest | None:
        """The chain id of the whole stack; None for an image without layers."""
        return self.chain_ids[-1] if self.chain_ids else None

    def __repr__(self) -> str:
        return f"<Image {self.id.short} {len(self.manifest.value.layers)} layers>"


class Snapshot(msgspec.Struct, frozen=True):
    """A read-only layer directory: `path`, in overlayfs' own form. `size`: bytes of its regular files; `tar_size`: of its tar."""

    chain_id: Digest
    diff_id: Digest
    parent: Digest | None
    path: Path
    size: int
    tar_size: int


class CachedStep(msgspec.Struct, frozen=True):
    """What a remembered build step led to; `chain_id` None is the empty stack."""

    chain_id: Digest | None


def chain_id_above(parent: Digest | None, diff_id: Digest) -> Digest:
    """The chain id of a layer on top of a stack."""
    return Digest.of(f"{parent} {diff_id}".encode()) if parent else diff_id


def blobs_of(image: Image) -> Iterator[str]:
    """The digests of its documents and layers."""
    yield image.id
    yield image.manifest.digest
    yield from (layer.digest for layer in image.manifest.value.layers)


def check_documents(image: Image) -> None:
    """Raise InvalidImage unless manifest and config are of one image."""
    manifest = image.manifest.value
    if manifest.config.digest != image.id or manifest.config.size != len(image.config.raw):
        raise InvalidImage(f"manifest {image.manifest.digest.short}: its config is {manifest.config.digest[:19]}…, not {image.id[:19]}…")
    if len(manifest.layers) != len(image.diff_ids):
        counts = f"{len(manifest.layers)} layers in the manifest, {len(image.diff_ids)} diff_ids in the config"
        raise InvalidImage(f"image {image.id.short}: {counts}")
