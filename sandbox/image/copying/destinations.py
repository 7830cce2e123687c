"""Where copies go: each takes blobs, the manifests of an index, and at last the document that the name then stands for."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

import msgspec

from sandbox.errors import ImageError, InvalidOption
from sandbox.image.copying.places import DIRECTORY, DOCKER, DOCKER_ARCHIVE, OCI, STORE, Place
from sandbox.image.layout import (
    LAYOUT,
    TAG_NOTE,
    DirectorySink,
    DockerEntry,
    Sink,
    TarSink,
    blob_name,
    indexed,
    write_document,
    write_index,
    written_whole,
)
from sandbox.image.reference import Reference
from sandbox.image.registry.access import Access
from sandbox.image.registry.progress import Teller
from sandbox.image.registry.pulling import check_config, check_manifest
from sandbox.image.registry.pushing import Sender, pieces_of
from sandbox.image.registry.repository import RawManifest
from sandbox.image.store import Store
from sandbox.oci import Descriptor, Digest, ImageConfig, Manifest, decode

Opener = Callable[[], IO[bytes]]
_DIR_VERSION = b"Directory Transport Version: 1.1\n"


class Destination(Protocol):
    """A place that an image, or an index of several, is written to. `at_once`: how many blobs it takes at the same time;
    `refusal`: why it takes no index, None when it does."""

    at_once: int
    refusal: InvalidOption | None

    def blob(self, descriptor: Descriptor, opener: Opener, origin: Reference | None) -> None:
        """Take a blob, which need not be read when it is there; `origin`: where a registry may have it already."""

    def manifest(self, manifest: RawManifest) -> None:
        """Take a manifest that the index names."""

    def top(self, manifest: RawManifest) -> None:
        """Take what the name stands for: the last of all."""


class RegistryDestination:
    """`docker://`."""

    at_once = 4
    refusal: InvalidOption | None = None

    def __init__(self, store: Store, access: Access, reference: Reference, tell: Teller) -> None:
        self._reference = reference
        self._repository = access.destination(reference)
        self._sender = Sender(store, access, self._repository, tell)

    def blob(self, descriptor: Descriptor, opener: Opener, origin: Reference | None) -> None:
        """See Destination."""
        is_near = origin is not None and origin.registry == self._reference.registry and origin.repository != self._reference.repository
        origins = [origin.repository] if origin is not None and is_near else []
        self._sender.blob(descriptor, lambda: pieces_of(opener()), origins=origins)

    def manifest(self, manifest: RawManifest) -> None:
        """See Destination."""
        self._repository.put_manifest(manifest.digest, manifest)

    def top(self, manifest: RawManifest) -> None:
        """See Destination."""
        self._repository.put_manifest(self._reference.tag or manifest.digest, manifest)


class LayoutDestination:
    """`oci:` and the archives: files of a layout; `docker`: manifest.json beside it. `present`: what its index has."""

    def __init__(self, sink: Sink, where: Place, present: Sequence[Descriptor] = (), *, docker: bool = False) -> None:
        self._sink, self._where, self._present, self._docker = sink, where, present, docker
        self.at_once = 4 if isinstance(sink, DirectorySink) else 1
        hint = "leave out --all, or write an oci-archive:"
        self.refusal = InvalidOption(f"{where}: docker's archives hold no index", hint=hint) if docker else None
        write_document(sink, "oci-layout", LAYOUT)

    def blob(self, descriptor: Descriptor, opener: Opener, origin: Reference | None) -> None:  # noqa: ARG002 (see Destination)
        """See Destination."""
        name = blob_name(descriptor.digest)
        if not self._sink.has(name):
            with opener() as stream:
                self._sink.add(name, stream, descriptor.size)

    def manifest(self, manifest: RawManifest) -> None:
        """See Destination."""
        if not self._sink.has(blob_name(manifest.digest)):
            write_document(self._sink, blob_name(manifest.digest), manifest.raw)

    def top(self, manifest: RawManifest) -> None:
        """See Destination."""
        self.manifest(manifest)
        notes = {TAG_NOTE: self._where.name} if self._where.name else None
        write_index(
            self._sink, [Descriptor(manifest.media_type, str(manifest.digest), len(manifest.raw), annotations=notes)], self._present
        )
        if self._docker:
            self._docker_row(manifest)

    def _docker_row(self, manifest: RawManifest) -> None:
        image = decode(Manifest, manifest.raw).value
        tags = [Reference.parse(self._where.name).familiar] if self._where.name else None
        row = DockerEntry(blob_name(image.config.digest), [blob_name(layer.digest) for layer in image.layers], tags)
        write_document(self._sink, "manifest.json", msgspec.json.encode([row]))


class DirectoryDestination:
    """skopeo's `dir:`."""

    at_once = 4
    refusal: InvalidOption | None = None

    def __init__(self, directory: Path) -> None:
        if directory.is_dir() and any(directory.iterdir()) and not (directory / "version").is_file():
            raise ImageError(f"{directory}: neither empty nor a dir: image")
        directory.mkdir(parents=True, exist_ok=True)
        self._sink = DirectorySink(directory)
        write_document(self._sink, "version", _DIR_VERSION)

    def blob(self, descriptor: Descriptor, opener: Opener, origin: Reference | None) -> None:  # noqa: ARG002 (see Destination)
        """See Destination."""
        name = Digest.parse(descriptor.digest).hex
        if not self._sink.has(name):
            with opener() as stream:
                self._sink.add(name, stream, descriptor.size)

    def manifest(self, manifest: RawManifest) -> None:
        """See Destination."""
        write_document(self._sink, f"{manifest.digest.hex}.manifest.json", manifest.raw)

    def top(self, manifest: RawManifest) -> None:
        """See Destination."""
        write_document(self._sink, "manifest.json", manifest.raw)


class StoreDestination:
    """The engine's own store; one image a name."""

    at_once = 4

    def __init__(self, store: Store, reference: Reference) -> None:
        self._store, self._reference = store, reference
        hint = f"leave out --all, or choose with --platform; `sandbox manifest create {reference.familiar} …` makes a list here"
        message = f"{reference.familiar}: a name in the store stands for one image, not for an index"
        self.refusal: InvalidOption | None = InvalidOption(message, hint=hint)

    def blob(self, descriptor: Descriptor, opener: Opener, origin: Reference | None) -> None:  # noqa: ARG002 (see Destination)
        """See Destination."""
        if not self._store.has_blob(descriptor.digest):
            with opener() as stream:
                self._store.put_blob(stream, descriptor.media_type, expected=descriptor)

    def manifest(self, manifest: RawManifest) -> None:  # noqa: ARG002 (see Destination)
        """See Destination; it takes none."""
        if self.refusal is not None:
            raise self.refusal

    def top(self, manifest: RawManifest) -> None:
        """See Destination."""
        document = decode(Manifest, manifest.raw)
        check_manifest(document.value, manifest.media_type, self._reference.familiar)
        with self._store.open_blob(document.value.config) as stream:
            config = decode(ImageConfig, stream.read())
        check_config(config.value, document.value, self._reference.familiar)
        parent: Digest | None = None
        for layer, diff_id in zip(document.value.layers, config.value.rootfs.diff_ids, strict=True):
            parent = self._store.apply_layer(parent, layer, diff_id=Digest.parse(diff_id)).chain_id
        self._store.tag(self._reference, self._store.put_documents(document, config))


@contextlib.contextmanager
def open_destination(store: Store, access: Access, place: Place, tell: Teller) -> Iterator[Destination]:
    """A place to write to; a file is there when the block ends well, and not at all otherwise. ImageError, RegistryError, OSError."""
    path = Path(place.path)
    with contextlib.ExitStack() as opened:
        if place.transport == DOCKER:
            yield RegistryDestination(store, access, Reference.parse(place.name), tell)
        elif place.transport == STORE:
            opened.enter_context(store.shared())
            yield StoreDestination(store, Reference.parse(place.name))
        elif place.transport == DIRECTORY:
            yield DirectoryDestination(path)
        elif place.transport == OCI:
            path.mkdir(parents=True, exist_ok=True)
            yield LayoutDestination(DirectorySink(path), place, indexed(path))
        else:
            out = opened.enter_context(written_whole(path))
            tar = opened.enter_context(tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT))
            yield LayoutDestination(TarSink(tar), place, docker=place.transport == DOCKER_ARCHIVE)
