"""A build cache in a registry (`type=registry,ref=NAME`): the same document and layers as type=local's, under a tag of its own.

Imported when a build names one: the HTTP client takes 65 ms.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from sandbox.errors import InvalidImage
from sandbox.image.blobs import verified
from sandbox.image.reference import Reference
from sandbox.image.registry.access import Access
from sandbox.image.registry.progress import Teller, ignore
from sandbox.image.registry.pulling import pull
from sandbox.image.registry.pushing import Sender
from sandbox.image.registry.repository import RawManifest
from sandbox.image.store import Image, Store
from sandbox.oci import MANIFEST_TYPE, Descriptor, Digest, Manifest, decode

_DOCUMENT_LIMIT = 64 << 20
_CHUNK = 1 << 20


class RemoteCache(msgspec.Struct, frozen=True):
    """A cache in a registry: its `document`; `open` brings a layer."""

    reference: Reference
    document: bytes

    def open(self, descriptor: Descriptor) -> IO[bytes]:
        """A layer, fetched whole, and verified when it is read. RegistryError, DigestMismatch, InvalidImage."""
        kept = tempfile.TemporaryFile()  # noqa: SIM115  # the caller's to close
        with Access(os.environ) as access:
            answer = access.sources(self.reference)[-1].open_blob(descriptor)
            while piece := answer.read(_CHUNK):
                kept.write(piece)
                if kept.tell() > descriptor.size:
                    raise InvalidImage(f"layer {descriptor.digest[:19]}…: longer than the {descriptor.size} bytes its cache names")
            answer.done()
        kept.seek(0)
        return verified(kept, descriptor)


def find(store: Store, name: str, cache_type: str) -> RemoteCache | Image:
    """What a name in a registry is: a cache, or an image (pulled, for its inline cache). NotInRegistry, RegistryError."""
    reference = Reference.parse(name)
    with Access(os.environ) as access:
        source = access.sources(reference)[-1]  # mirrors come first, and may be behind
        raw = source.manifest(reference.digest or reference.tag or "latest")
        config = None if raw.is_index else decode(Manifest, raw.raw).value.config
        if config is not None and config.media_type == cache_type:
            return RemoteCache(reference, source.read_blob(config, _DOCUMENT_LIMIT))
        return pull(store, access, reference).image


def send(store: Store, layout: Path, manifest: RawManifest, name: str) -> None:
    """Put the cache of a layout directory under a name in its registry; what the registry has is not sent. RegistryError."""
    reference = Reference.parse(name)
    document = decode(Manifest, manifest.raw).value
    with Access(os.environ) as access:
        repository = access.destination(reference)
        sender = Sender(store, access, repository, Teller(ignore))
        for blob in (*document.layers, document.config):
            path = layout / "blobs" / "sha256" / Digest.parse(blob.digest).hex
            sender.blob(blob, lambda path=path: _pieces(path))  # type: ignore[misc]  # the loop's own path
        repository.put_manifest(reference.tag or manifest.digest, manifest)


def scratch(store: Store) -> tempfile.TemporaryDirectory[str]:
    """Where a layout may lie until it is sent: on the disk that the layers are on."""
    return tempfile.TemporaryDirectory(prefix="cache-", dir=store.root / "drafts")


def raw_manifest(data: bytes) -> RawManifest:
    """The manifest of a layout, as a registry takes it."""
    return RawManifest(MANIFEST_TYPE, data, Digest.of(data))


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            yield piece
