"""OCI layouts written (image-spec image-layout.md): into a directory, or into a tar with docker's manifest.json beside it.

`save`, `build --output` and later push come here; how the layers are compressed was decided before, by `packing.pack`.
"""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

import msgspec

from sandbox.errors import ImageError, InvalidImage
from sandbox.image.reference import Reference
from sandbox.image.store import Image, Store
from sandbox.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor, Digest, Index, Platform, decode, encode

Named = tuple[Reference | None, Image]

NAME_NOTE, TAG_NOTE = "io.containerd.image.name", "org.opencontainers.image.ref.name"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_CHUNK = 1 << 20


class DockerEntry(msgspec.Struct, rename="pascal"):
    """One row of docker's manifest.json."""

    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class Sink(Protocol):
    """What files of a layout are written to."""

    def add(self, name: str, stream: IO[bytes], size: int) -> None:
        """Write a whole file of this size; ImageError when the stream has more or less."""

    def has(self, name: str) -> bool:
        """Whether a file of this name is there already."""


class TarSink:
    """A tar, without times, owners and padding to a record, so that the same files give the same bytes."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._names: set[str] = set()

    def add(self, name: str, stream: IO[bytes], size: int) -> None:
        """See Sink."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        self._tar.addfile(info, stream)
        _check_end(name, stream)
        self._names.add(name)

    def has(self, name: str) -> bool:
        """See Sink."""
        return name in self._names


class DirectorySink:
    """A directory; each file appears whole, by rename."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, name: str, stream: IO[bytes], size: int) -> None:
        """See Sink."""
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as out:
            while data := stream.read(_CHUNK):
                out.write(data)
            if out.tell() != size:
                raise ImageError(f"{name}: {out.tell()} bytes, its descriptor says {size}")

    def has(self, name: str) -> bool:
        """See Sink."""
        return (self._directory / name).exists()


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that appears under its name when the block ends well, and not at all otherwise. OSError."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as out:
            yield out
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def _check_end(name: str, stream: IO[bytes]) -> None:
    if stream.read(1):  # also lets a verifying reader see the end
        raise ImageError(f"{name}: longer than its descriptor says")


def write_archive(store: Store, images: Sequence[Named], out: IO[bytes], *, docker: bool = False) -> None:
    """Write a layout as a tar; `docker` adds docker's manifest.json, as docker 25 and later do."""
    with store.shared(), tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        sink = TarSink(tar)
        _write(store, images, sink, ())
        if docker:
            write_document(sink, "manifest.json", msgspec.json.encode([_docker_entry(image, names) for image, names in _by_image(images)]))


def write_layout(store: Store, images: Sequence[Named], directory: Path) -> None:
    """Write or extend a layout in a directory: images of the same names are replaced in its index, others stay."""
    directory.mkdir(parents=True, exist_ok=True)
    with store.shared():
        _write(store, images, DirectorySink(directory), indexed(directory))


def indexed(directory: Path) -> Sequence[Descriptor]:
    """What a layout that is extended has; InvalidImage for a directory that is something else."""
    path = directory / "index.json"
    if path.exists():
        return decode(Index, path.read_bytes()).value.manifests
    if any(directory.iterdir()):
        raise InvalidImage(f"{directory}: neither empty nor an OCI layout")
    return ()


def _write(store: Store, images: Sequence[Named], sink: Sink, present: Sequence[Descriptor]) -> None:
    write_document(sink, "oci-layout", LAYOUT)
    for _, image in images:
        _blobs(store, image, sink)
    write_index(sink, [_described(reference, image) for reference, image in images], present)


def write_index(sink: Sink, new: Sequence[Descriptor], present: Sequence[Descriptor]) -> None:
    """The index of a layout: what is new, and what is `present` and neither renamed nor there twice."""
    names = {note for descriptor in new if (note := _name_of(descriptor))}
    digests = {descriptor.digest for descriptor in new}
    kept = [old for old in present if (_name_of(old) not in names if _name_of(old) else old.digest not in digests)]
    write_document(sink, "index.json", encode(Index(schema_version=2, media_type=INDEX_TYPE, manifests=[*kept, *new])).raw)


def _blobs(store: Store, image: Image, sink: Sink) -> None:
    for number, layer in enumerate(image.manifest.value.layers):
        if not sink.has(blob_name(layer.digest)):
            with store.layer_stream(image, number) as stream:
                sink.add(blob_name(layer.digest), stream, layer.size)
    for document in (image.config, image.manifest):
        if not sink.has(blob_name(document.digest)):
            write_document(sink, blob_name(document.digest), document.raw)


def blob_name(digest: str) -> str:
    """A blob's place in a layout."""
    return f"blobs/sha256/{Digest.parse(digest).hex}"


def write_document(sink: Sink, name: str, data: bytes) -> None:
    """A small file of a layout."""
    sink.add(name, io.BytesIO(data), len(data))


def _described(reference: Reference | None, image: Image) -> Descriptor:
    media_type = image.manifest.value.media_type or MANIFEST_TYPE
    notes = None if reference is None else {NAME_NOTE: str(reference), **({TAG_NOTE: reference.tag} if reference.tag else {})}
    config = image.config.value
    platform = Platform(config.architecture, config.os, variant=config.variant)
    return Descriptor(media_type, str(image.manifest.digest), len(image.manifest.raw), annotations=notes, platform=platform)


def _name_of(descriptor: Descriptor) -> str | None:
    notes = descriptor.annotations or {}
    return notes.get(NAME_NOTE) or notes.get(TAG_NOTE)


def _by_image(images: Sequence[Named]) -> Iterator[tuple[Image, list[str]]]:
    for image_id in dict.fromkeys(image.id for _, image in images):
        same = [(reference, image) for reference, image in images if image.id == image_id]
        yield same[0][1], [reference.familiar for reference, _ in same if reference is not None]


def _docker_entry(image: Image, names: list[str]) -> DockerEntry:
    return DockerEntry(blob_name(image.id), [blob_name(layer.digest) for layer in image.manifest.value.layers], names or None)
