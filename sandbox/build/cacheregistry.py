"""A build cache in a registry (`type=registry,ref=NAME`): the same document as type=local's, layers compressed, under a tag of its own.

Imported when a build names one: the HTTP client takes 65 ms.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import closing
from typing import IO, TYPE_CHECKING

import msgspec

from sandbox.image.compression import compressed
from sandbox.image.reference import Reference
from sandbox.image.registry.access import Access
from sandbox.image.registry.progress import Teller, ignore
from sandbox.image.registry.pulling import pull
from sandbox.image.registry.pushing import Sender, pieces_of
from sandbox.image.registry.repository import RawManifest
from sandbox.image.registry.streaming import blob_stream
from sandbox.image.registry.wire import CHUNK
from sandbox.image.store import Image, Store
from sandbox.oci import LAYER_GZIP, MANIFEST_TYPE, Descriptor, Digest, Manifest, decode

if TYPE_CHECKING:
    from sandbox.build.cachesources import Gathered, Record

_DOCUMENT_LIMIT = 64 << 20


class RemoteCache(msgspec.Struct, frozen=True):
    """A cache in a registry: its `document`; `open` brings a layer."""

    reference: Reference
    document: bytes

    def open(self, descriptor: Descriptor) -> IO[bytes]:
        """A layer, fetched whole (mirrors first) and verified. RegistryError, DigestMismatch."""
        kept = tempfile.TemporaryFile()  # noqa: SIM115  # the caller's to close
        with Access(os.environ) as access, blob_stream(access.sources(self.reference), descriptor) as stream:
            shutil.copyfileobj(stream, kept, CHUNK)
        kept.seek(0)
        return kept


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


def packed(store: Store, record: Record) -> Descriptor:
    """The layer of a record as a push sends it; compressed unless it was before. ImageError."""
    diff_id = record.diff_id or ""
    if found := store.packed_layer(diff_id, LAYER_GZIP):
        return found
    _, tar = store.layer(Digest(record.chain_id or ""))
    with tar, closing(compressed(tar, "gzip")) as pieces:
        return store.keep_packed(diff_id, LAYER_GZIP, pieces)


def send(store: Store, cache: Gathered, name: str) -> None:
    """Put a cache under a name in its registry; what the registry has is not sent, what it has elsewhere mounted. RegistryError."""
    reference = Reference.parse(name)
    with Access(os.environ) as access:
        repository = access.destination(reference)
        sender = Sender(store, access, repository, Teller(ignore))
        for layer, record in cache.layers.values():
            origins = sender.origins(record.diff_id or "")
            sender.blob(layer, lambda layer=layer: pieces_of(store.open_blob(layer)), origins=origins)  # type: ignore[misc]  # the loop's own
        sender.blob(cache.config, lambda: iter([cache.document]))
        manifest = RawManifest(MANIFEST_TYPE, cache.manifest, Digest.of(cache.manifest))
        repository.put_manifest(reference.tag or manifest.digest, manifest)
