"""Where copies come from: each gives a top document, the manifests an index names, and blobs, all of them verified."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

from sandbox.errors import ImageError, InvalidImage
from sandbox.image.blobs import check, verified
from sandbox.image.copying.places import DIRECTORY, DOCKER, DOCKER_ARCHIVE, OCI, OCI_ARCHIVE, STORE, Place
from sandbox.image.layout import NAME_NOTE, TAG_NOTE, blob_name
from sandbox.image.loading import Archive, described, docker_rows, normal, unpack
from sandbox.image.packing import Packing, pack
from sandbox.image.reference import Reference
from sandbox.image.registry.access import Access
from sandbox.image.registry.pulling import from_any
from sandbox.image.registry.repository import RawManifest, Repository, media_type_of
from sandbox.image.registry.streaming import blob_stream
from sandbox.image.store import LOADING, Store
from sandbox.oci import CONFIG_TYPE, INDEX_TYPE, MANIFEST_TYPE, Descriptor, Digest, Index, Manifest, decode, encode


class Source(Protocol):
    """An image, or an index of several, somewhere."""

    def top(self) -> RawManifest:
        """What the name stands for."""

    def manifest(self, descriptor: Descriptor) -> RawManifest:
        """A manifest that an index names."""

    def blob(self, descriptor: Descriptor) -> IO[bytes]:
        """Its bytes; reading to the end verifies them."""

    @property
    def origin(self) -> Reference | None:
        """The repository it is in, when that is a registry's: others of the same registry may mount from it."""


def _raw(raw: bytes, descriptor: Descriptor | None, media_type: str | None) -> RawManifest:
    digest = Digest.of(raw)
    if descriptor is not None:
        check(descriptor, digest, len(raw))
    return RawManifest(media_type_of(raw, descriptor.media_type if descriptor else media_type), raw, digest)


class RegistrySource:
    """`docker://`: mirrors are asked first."""

    def __init__(self, access: Access, reference: Reference) -> None:
        self._reference = reference
        self._sources: Sequence[Repository] = access.sources(reference)

    @property
    def origin(self) -> Reference | None:
        """See Source."""
        return self._reference

    def top(self) -> RawManifest:
        """See Source."""
        name = self._reference.digest or self._reference.tag or "latest"
        raw, self._sources = from_any(self._sources, lambda source: source.manifest(name))
        return raw

    def manifest(self, descriptor: Descriptor) -> RawManifest:
        """See Source."""
        raw, _ = from_any(self._sources, lambda source: source.manifest(Digest.parse(descriptor.digest)))
        check(descriptor, raw.digest, len(raw.raw))
        return raw

    def blob(self, descriptor: Descriptor) -> IO[bytes]:
        """See Source."""
        return blob_stream(self._sources, descriptor)


class StoreSource:
    """An image of the store; its layers as `packing` says."""

    origin: Reference | None = None

    def __init__(self, store: Store, name: str, packing: Packing) -> None:
        self._store = store
        self._image = pack(store, store.find(name), packing)
        self._places = {layer.digest: place for place, layer in enumerate(self._image.manifest.value.layers)}

    def top(self) -> RawManifest:
        """See Source."""
        manifest = self._image.manifest
        return RawManifest(manifest.value.media_type or MANIFEST_TYPE, manifest.raw, manifest.digest)

    def manifest(self, descriptor: Descriptor) -> RawManifest:
        """See Source."""
        raise ImageError(f"image {self._image.id.short}: is no index, so {descriptor.digest[:19]}… is not in it")

    def blob(self, descriptor: Descriptor) -> IO[bytes]:
        """See Source."""
        if descriptor.digest == self._image.id:
            return self._store.open_blob(descriptor)
        return self._store.layer_stream(self._image, self._places[descriptor.digest])


class LayoutSource:
    """An OCI layout, in a directory or unpacked from a tar. `name`: which of its images."""

    origin: Reference | None = None

    def __init__(self, archive: Archive, where: Place) -> None:
        self._archive = archive
        self._chosen = _chosen(decode(Index, archive.read("index.json")).value.manifests, where)

    def top(self) -> RawManifest:
        """See Source."""
        return self.manifest(self._chosen)

    def manifest(self, descriptor: Descriptor) -> RawManifest:
        """See Source."""
        return _raw(self._archive.read(blob_name(descriptor.digest)), descriptor, None)

    def blob(self, descriptor: Descriptor) -> IO[bytes]:
        """See Source."""
        return verified(self._archive.find(blob_name(descriptor.digest)).open("rb"), descriptor)


def _chosen(manifests: Sequence[Descriptor], where: Place) -> Descriptor:
    """The one of this name, or the only one. ImageError names what there is."""
    names = [_names_of(found) for found in manifests]
    fitting = [found for found, own in zip(manifests, names, strict=True) if not where.name or where.name in own]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(sorted({own[0] for own in names if own})) or f"{len(manifests)} without a name"
    what = "has several images" if fitting else f"has no image {where.name}" if where.name else "has no image"
    raise ImageError(f"{where.path}: {what}", hint=f"there is: {known}" if manifests else None)


def _names_of(descriptor: Descriptor) -> tuple[str, ...]:
    """All by which it may be called, the shortest first."""
    notes = descriptor.annotations or {}
    found = [notes[note] for note in (TAG_NOTE, NAME_NOTE) if notes.get(note)]
    if NAME_NOTE in notes:
        with contextlib.suppress(ValueError):
            found.append(Reference.parse(notes[NAME_NOTE]).familiar)
    return tuple(found)


class DockerArchiveSource:
    """docker's archive: its manifest.json names files, of which a manifest is made."""

    origin: Reference | None = None

    def __init__(self, archive: Archive, where: Place) -> None:
        rows = docker_rows(archive)
        wanted = Reference.parse(where.name) if where.name else None
        fitting = [row for row in rows if wanted is None or wanted in map(Reference.parse, row.repo_tags or [])]
        if len(fitting) != 1:
            known = ", ".join(tag for row in rows for tag in row.repo_tags or [])
            what = "has several images" if fitting else f"has no image {where.name}" if where.name else "has no image"
            raise ImageError(f"{where.path}: {what}", hint=f"there is: {known}" if known else None)
        paths = [archive.find(normal(layer.split("/"))) for layer in fitting[0].layers]
        layers = [described(path) for path in paths]
        config = archive.read(fitting[0].config)
        head = Descriptor(CONFIG_TYPE, str(Digest.of(config)), len(config))
        self._paths = {layer.digest: path for layer, path in zip(layers, paths, strict=True)}
        self._paths[head.digest] = archive.find(fitting[0].config)
        self._manifest = encode(Manifest(schema_version=2, media_type=MANIFEST_TYPE, config=head, layers=layers))

    def top(self) -> RawManifest:
        """See Source."""
        return RawManifest(MANIFEST_TYPE, self._manifest.raw, self._manifest.digest)

    def manifest(self, descriptor: Descriptor) -> RawManifest:
        """See Source."""
        raise InvalidImage(f"docker-archive: has no index, so {descriptor.digest[:19]}… is not in it")

    def blob(self, descriptor: Descriptor) -> IO[bytes]:
        """See Source."""
        return verified(self._paths[descriptor.digest].open("rb"), descriptor)


class DirectorySource:
    """skopeo's `dir:`: manifest.json, a file a blob named by its hex digits, `HEX.manifest.json` for what an index names."""

    origin: Reference | None = None

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        if not (directory / "manifest.json").is_file():
            raise ImageError(f"{directory}: no image (no manifest.json in it)")

    def top(self) -> RawManifest:
        """See Source."""
        return _raw((self._directory / "manifest.json").read_bytes(), None, None)

    def manifest(self, descriptor: Descriptor) -> RawManifest:
        """See Source."""
        path = self._directory / f"{Digest.parse(descriptor.digest).hex}.manifest.json"
        if not path.is_file():
            raise ImageError(f"{self._directory}: {path.name} is missing")
        return _raw(path.read_bytes(), descriptor, None)

    def blob(self, descriptor: Descriptor) -> IO[bytes]:
        """See Source."""
        path = self._directory / Digest.parse(descriptor.digest).hex
        if not path.is_file():
            raise ImageError(f"{self._directory}: blob {path.name[:12]}… is missing")
        return verified(path.open("rb"), descriptor)


@contextlib.contextmanager
def open_source(store: Store, access: Access, place: Place, packing: Packing) -> Iterator[Source]:
    """What is at a place, to be read within the block. ImageError, RegistryError, OSError."""
    with contextlib.ExitStack() as opened:
        if place.transport == DOCKER:
            yield RegistrySource(access, Reference.parse(place.name))
        elif place.transport == STORE:
            opened.enter_context(store.shared())
            yield StoreSource(store, place.name, packing)
        elif place.transport == DIRECTORY:
            yield DirectorySource(Path(place.path))
        else:
            archive = _layout(Path(place.path)) if place.transport == OCI else opened.enter_context(_unpacked(store, place))
            if place.transport == DOCKER_ARCHIVE and "manifest.json" in archive.files:
                yield DockerArchiveSource(archive, place)
            else:
                yield LayoutSource(archive, place)


def _layout(directory: Path) -> Archive:
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()}
    if "index.json" not in files:
        raise ImageError(f"{directory}: no OCI layout (no index.json in it)")
    return Archive(directory, files)


@contextlib.contextmanager
def _unpacked(store: Store, place: Place) -> Iterator[Archive]:
    with store.shared(), tempfile.TemporaryDirectory(dir=store.root, prefix=LOADING) as scratch:
        with Path(place.path).open("rb") as stream:
            archive = unpack(stream, Path(scratch))
        wanted = "index.json" if place.transport == OCI_ARCHIVE else "manifest.json"
        if wanted not in archive.files and "index.json" not in archive.files:
            raise ImageError(f"{place.path}: no {place.transport} (no {wanted} in it)")
        yield archive


def index_of(manifests: list[Descriptor], annotations: dict[str, str] | None) -> RawManifest:
    """A new index of these."""
    made = encode(Index(schema_version=2, media_type=INDEX_TYPE, manifests=manifests, annotations=annotations))
    return RawManifest(INDEX_TYPE, made.raw, made.digest)
