"""A copy: blobs first, several at once, then the manifests, the name last; no byte of any of them is another than it was."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import msgspec

from sandbox.errors import InvalidImage
from sandbox.image.copying.destinations import Destination
from sandbox.image.copying.sources import Source
from sandbox.image.registry.platforms import choose, this_platform
from sandbox.image.registry.progress import BlobProgress, Teller, TransferDone, TransferStarted
from sandbox.image.registry.pulling import refuse_foreign
from sandbox.image.registry.repository import RawManifest
from sandbox.oci import Descriptor, Digest, Index, Manifest, Platform, decode

_DEPTH = 3


class Copied(msgspec.Struct, frozen=True):
    """What is there now: the digest and size of its manifest or index, and how many images it has."""

    digest: Digest
    size: int
    images: int


def copy(
    source: Source, destination: Destination, tell: Teller, what: str, *, everything: bool = False, platform: Platform | None = None
) -> Copied:
    """Copy what `source` has: of an index the image for `platform` (this machine's), or the whole with `everything`. NotInRegistry when
    there is none for it, InvalidImage, DigestMismatch, RegistryError: then the name at the destination is what it was."""
    begun, top = time.monotonic(), source.top()
    for _ in range(_DEPTH):
        if not top.is_index or everything:
            break
        top = source.manifest(choose(decode(Index, top.raw).value.manifests, platform or this_platform(), what))
    if top.is_index and destination.refusal is not None:
        raise destination.refusal
    images = _images(source, destination, top, tell, what, _DEPTH)
    destination.top(top)
    tell(TransferDone(top.digest, tell.moved, time.monotonic() - begun))
    return Copied(top.digest, len(top.raw), images)


def _images(source: Source, destination: Destination, top: RawManifest, tell: Teller, what: str, depth: int) -> int:
    if not top.is_index:
        copy_image(source, destination, top, tell, what)
        return 1
    if not depth:
        raise InvalidImage(f"{what}: indexes within indexes, too deep")
    count = 0
    for inner in decode(Index, top.raw).value.manifests:
        manifest = source.manifest(inner)
        count += _images(source, destination, manifest, tell, what, depth - 1)
        destination.manifest(manifest)
    return count


def copy_image(source: Source, destination: Destination, manifest: RawManifest, tell: Teller, what: str) -> None:
    """Everything that a manifest names; not the manifest."""
    document = decode(Manifest, manifest.raw).value
    refuse_foreign(document, what)
    blobs = {blob.digest: blob for blob in (*document.layers, document.config)}
    tell(TransferStarted("copy", what, tuple((layer.digest, layer.size) for layer in document.layers)))
    with ThreadPoolExecutor(destination.at_once, "copy") as pool:
        taken = [pool.submit(_copy_blob, source, destination, blob, tell) for blob in blobs.values()]
        try:
            for future in taken:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _copy_blob(source: Source, destination: Destination, blob: Descriptor, tell: Teller) -> None:
    def opened() -> IO[bytes]:
        if source.origin is not None:
            tell.count(blob.size)
        return source.blob(blob)

    destination.blob(blob, opened, source.origin)
    tell(BlobProgress(blob.digest, "done", blob.size, blob.size))
