"""An image from the store to a registry: layers packed and sent at the same time, the manifest last.

A layer is sent only when it is not there and cannot be mounted from another repository of the same registry. What was pulled
is sent byte for byte; what was built here is compressed once in the life of the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import IO

import msgspec

from sandbox.errors import RegistryError
from sandbox.image.packing import Packing, pack_layer, with_layers
from sandbox.image.reference import Reference
from sandbox.image.registry.access import Access
from sandbox.image.registry.progress import BlobProgress, OnTransfer, Stride, Teller, TransferDone, TransferStarted, ignore
from sandbox.image.registry.repository import RawManifest, Repository
from sandbox.image.registry.wire import CHUNK, Broken
from sandbox.image.store import Image, Store
from sandbox.oci import MANIFEST_TYPE, Descriptor, Digest

_AT_ONCE = 4
_WHOLE = 4 << 20
"""Blobs up to this size are sent in one request, larger ones so that they can be taken up again."""


class Pushed(msgspec.Struct, frozen=True):
    """What a push left in the registry, under `reference`."""

    reference: Reference
    digest: Digest
    size: int


def push(store: Store, access: Access, image: Image, reference: Reference, packing: Packing, *, on_event: OnTransfer = ignore) -> Pushed:
    """Send an image; afterwards the registry has it under its name, with everything it needs. Unauthorized, RegistryError, ImageError."""
    begun, tell = time.monotonic(), Teller(on_event)
    repository = access.destination(reference)
    with store.shared():
        layers = image.manifest.value.layers
        tell(TransferStarted("push", reference.familiar, tuple((layer.digest, layer.size) for layer in layers)))
        manifest = Sender(store, access, repository, tell).send(image, packing)
        repository.put_manifest(reference.tag or manifest.digest, manifest)
        store.note_digest(reference.name, manifest.digest, image)
    tell(TransferDone(manifest.digest, tell.moved, time.monotonic() - begun, repository.connection.limit))
    return Pushed(reference, manifest.digest, len(manifest.raw))


class Sender(msgspec.Struct):
    """Sends blobs of images to one repository."""

    store: Store
    access: Access
    repository: Repository
    tell: Teller
    _sent: set[str] = msgspec.field(default_factory=set)

    def send(self, image: Image, packing: Packing) -> RawManifest:
        """Layers and config; the manifest that then may be stored, itself not sent."""
        self.repository.connection.hello()
        count = len(image.diff_ids)
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="push") as pool:
            made = [pool.submit(self._layer, image, index, packing) for index in range(count)]
            try:
                layers = [future.result() for future in made]
            except BaseException:
                self.access.stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        packed = with_layers(image, layers)
        config = packed.manifest.value.config
        self.blob(config, lambda: iter([image.config.raw]))
        manifest = packed.manifest
        return RawManifest(manifest.value.media_type or MANIFEST_TYPE, manifest.raw, manifest.digest)

    def _layer(self, image: Image, index: int, packing: Packing) -> Descriptor:
        current = image.manifest.value.layers[index]
        self.tell(BlobProgress(current.digest, "packing", 0, current.size))
        layer = pack_layer(self.store, image, index, packing)
        diff_id = image.diff_ids[index]
        origins = self.origins(diff_id)
        self.blob(layer, lambda: pieces_of(self.store.described_layer(image, index, layer)), shown=current.digest, origins=origins)
        return layer

    def blob(
        self, blob: Descriptor, pieces: Callable[[], Iterator[bytes]], *, shown: str | None = None, origins: Iterable[str] = ()
    ) -> None:
        """Have the registry hold this blob. `shown`: what progress calls it; `origins`: its repositories that may have it already."""
        name = shown or blob.digest
        if self.repository.has_blob(blob.digest):
            self.tell(BlobProgress(name, "present", blob.size, blob.size))
            return
        location: str | None = None
        for origin in origins:
            location = self.repository.begin_upload(blob.digest, origin)
            if location is None:
                self.tell(BlobProgress(name, "mounted", blob.size, blob.size))
                return
            break
        location = location or self.repository.begin_upload()
        if location is None:
            raise RegistryError(f"{self.repository.host}: took an upload that was not sent")
        Upload(self, blob, pieces, location, name).run()
        self.tell(BlobProgress(name, "done", blob.size, blob.size))

    def origins(self, diff_id: str) -> Iterator[str]:
        """Other repositories of the same server that have an image with this layer, in whatever form."""
        for image in self.store.images():
            if diff_id in image.diff_ids:
                for name, _ in self.store.digests(image.id):
                    if (place := self._origin(name)) is not None:
                        yield place

    def _origin(self, name: str) -> str | None:
        """What this server calls a repository; None when it is another's, or the one that is sent to."""
        try:
            endpoint = self.access.conf.destination(Reference.parse(name))
        except RegistryError:  # blocked
            return None
        is_near = endpoint.host == self.repository.host and endpoint.repository != self.repository.name
        return endpoint.repository if is_near else None


class Upload(msgspec.Struct):
    """One blob on its way. A cut connection is taken up where the registry says it was."""

    sender: Sender
    blob: Descriptor
    pieces: Callable[[], Iterator[bytes]]
    location: str
    shown: str
    _has: int = 0

    def run(self) -> None:
        """Until the registry has it. Broken, RegistryError."""
        attempt, wire = 0, self.sender.access.wire
        while True:
            before = self._has
            try:
                self._send()
                return
            except Broken:
                attempt = 1 if self._has > before else attempt + 1
                if attempt >= wire.patience.tries or self.sender.access.stop.is_set():
                    raise
                wire.rest(attempt)
                if self.sender.repository.has_blob(self.blob.digest):  # only the answer was lost
                    return
                self._find_place()

    def _send(self) -> None:
        repository = self.sender.repository
        if self.blob.size <= _WHOLE:
            data = b"".join(self.pieces())
            repository.end_upload(self.location, self.blob.digest, data, len(data))
            self.sender.tell.count(len(data))
            return
        while self._has < self.blob.size:
            rest = self.blob.size - self._has
            self.location, self._has = repository.send_piece(self.location, partial(self._from, self._has), self._has, rest)
        repository.end_upload(self.location, self.blob.digest)

    def _from(self, start: int) -> Iterator[bytes]:
        """The blob's bytes from there on."""
        place, stride = 0, Stride(CHUNK)
        for piece in self.pieces():
            begin, end = place, place + len(piece)
            place = max(begin, start)
            while place < end:
                data = piece[place - begin : place - begin + stride.size]
                stride.begin()
                yield data
                stride.end()
                place += len(data)
                self.sender.tell.count(len(data))
                self.sender.tell(BlobProgress(self.shown, "uploading", place, self.blob.size))
            place = end

    def _find_place(self) -> None:
        """Where to go on; from the beginning when the registry has forgotten."""
        state = self.sender.repository.upload_state(self.location)
        if state is None:
            location = self.sender.repository.begin_upload()
            if location is None:
                raise RegistryError(f"{self.sender.repository.host}: took an upload that was not sent")
            state = location, 0
        self.location, self._has = state


def pieces_of(stream: IO[bytes]) -> Iterator[bytes]:
    """A stream as a body that is sent; closed afterwards."""
    with stream:
        while piece := stream.read(CHUNK):
            yield piece
