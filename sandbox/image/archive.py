"""Images in a tar: save and load in OCI's and docker's layouts, import of a root file system.

What `save` writes is an OCI layout (image-spec image-layout.md) in both formats; `docker` adds docker's manifest.json
beside it, as docker 25 and later write. `load` reads both, and docker's old archives that only have manifest.json.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Literal

import msgspec

from sandbox.errors import ImageError, InvalidImage, InvalidReference
from sandbox.image.apply import apply_tar, decompressed
from sandbox.image.reference import Reference
from sandbox.image.store import Image, Store
from sandbox.oci import (
    CONFIG_TYPE,
    INDEX_TYPE,
    LAYER_GZIP,
    LAYER_TAR,
    LAYER_ZSTD,
    MANIFEST_TYPE,
    Descriptor,
    Digest,
    Document,
    History,
    ImageConfig,
    Index,
    Manifest,
    RootFS,
    RunConfig,
    decode,
    encode,
)

Loaded = list[tuple[str | None, Image]]

_NAME, _TAG = "io.containerd.image.name", "org.opencontainers.image.ref.name"
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_DOCUMENT_LIMIT = 16 << 20
_MAX_LINKS = 8


class _DockerEntry(msgspec.Struct, rename="pascal"):
    """One row of docker's manifest.json."""

    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


_DOCKER = msgspec.json.Decoder(list[_DockerEntry])


# save


def save(store: Store, images: Sequence[tuple[Reference | None, Image]], out: IO[bytes], *, format: Literal["oci", "docker"]) -> None:
    """Write images to a tar; the same images give the same bytes. ImageError when a layer is not here."""
    with store.shared(), tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, "oci-layout", _LAYOUT)
        written: set[str] = set()
        for _, image in images:
            _save_blobs(store, image, tar, written)
        index = Index(schema_version=2, media_type=INDEX_TYPE, manifests=[_described(reference, image) for reference, image in images])
        _add(tar, "index.json", encode(index).raw)
        if format == "docker":
            _add(tar, "manifest.json", msgspec.json.encode([_docker_entry(image, names) for image, names in _by_image(images)]))


def _save_blobs(store: Store, image: Image, tar: tarfile.TarFile, written: set[str]) -> None:
    for number, layer in enumerate(image.manifest.value.layers):
        if layer.digest not in written:
            written.add(layer.digest)
            with store.layer_stream(image, number) as stream:
                _add_stream(tar, _blob(layer.digest), stream, layer.size)
    for document in (image.config, image.manifest):
        if document.digest not in written:
            written.add(document.digest)
            _add(tar, _blob(document.digest), document.raw)


def _blob(digest: str) -> str:
    return f"blobs/sha256/{Digest(digest).hex}"


def _described(reference: Reference | None, image: Image) -> Descriptor:
    media_type = image.manifest.value.media_type or MANIFEST_TYPE
    notes = None if reference is None else {_NAME: str(reference), **({_TAG: reference.tag} if reference.tag else {})}
    return Descriptor(media_type, str(image.manifest.digest), len(image.manifest.raw), annotations=notes)


def _by_image(images: Sequence[tuple[Reference | None, Image]]) -> Iterator[tuple[Image, list[str]]]:
    for image_id in dict.fromkeys(image.id for _, image in images):
        same = [(reference, image) for reference, image in images if image.id == image_id]
        yield same[0][1], [reference.familiar for reference, _ in same if reference is not None]


def _docker_entry(image: Image, names: list[str]) -> _DockerEntry:
    return _DockerEntry(_blob(image.id), [_blob(layer.digest) for layer in image.manifest.value.layers], names or None)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    _add_stream(tar, name, io.BytesIO(data), len(data))


def _add_stream(tar: tarfile.TarFile, name: str, stream: IO[bytes], size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    tar.addfile(info, stream)
    if stream.read(1):  # also lets a verifying reader see the end
        raise ImageError(f"{name}: longer than its descriptor says")


# load


@dataclass
class _Archive:
    """The regular files of an archive, unpacked under numbers, so that no name of it is ever a path of ours."""

    directory: Path
    files: dict[str, Path] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def find(self, name: str) -> Path:
        """The file of this name, links followed; InvalidImage."""
        for _ in range(_MAX_LINKS):
            if name not in self.links:
                break
            name = self.links[name]
        if name not in self.files:
            raise InvalidImage(f"archive: {name} is missing")
        return self.files[name]

    def read(self, name: str) -> bytes:
        """A document."""
        path = self.find(name)
        if path.stat().st_size > _DOCUMENT_LIMIT:
            raise InvalidImage(f"archive: {name} is too large for a document")
        return path.read_bytes()


def load(store: Store, stream: IO[bytes]) -> Loaded:
    """Take in every image of an archive; names and images. InvalidImage, DigestMismatch, UnsafeLayer: then nothing of it is named."""
    with store.shared(), tempfile.TemporaryDirectory(dir=store.root, prefix=".load-") as scratch:
        archive = _unpack(stream, Path(scratch))
        if "index.json" in archive.files:
            found = _load_layout(store, archive)
        elif "manifest.json" in archive.files:
            found = _load_docker(store, archive)
        else:
            raise InvalidImage(
                "archive: neither index.json nor manifest.json in it", hint="for the tar of a root file system use `sandbox import`"
            )
        for name, image in found:
            if name is not None:
                store.tag(Reference.parse(name), image)
    return found


def _unpack(stream: IO[bytes], directory: Path) -> _Archive:
    archive = _Archive(directory)
    try:
        with decompressed(stream) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
            for number, member in enumerate(tar):
                _unpack_member(archive, tar, member, number)
    except (tarfile.TarError, EOFError) as err:
        raise InvalidImage(f"archive: not a whole tar: {err}") from err
    return archive


def _unpack_member(archive: _Archive, tar: tarfile.TarFile, member: tarfile.TarInfo, number: int) -> None:
    name = member.name.removeprefix("./")
    if member.issym() or member.islnk():
        base = [] if member.islnk() else name.split("/")[:-1]
        archive.links[name] = _normal([*base, *member.linkname.split("/")])
    elif member.isreg():
        content = tar.extractfile(member)
        path = archive.directory / str(number)
        with path.open("xb") as out:
            while content is not None and (data := content.read(1 << 20)):
                out.write(data)
        archive.files[name] = path


def _normal(parts: Sequence[str]) -> str:
    kept: list[str] = []
    for part in parts:
        if part == "..":
            del kept[-1:]
        elif part not in ("", "."):
            kept.append(part)
    return "/".join(kept)


def _load_layout(store: Store, archive: _Archive) -> Loaded:
    names = _docker_names(archive)
    found: Loaded = []
    for descriptor in decode(Index, archive.read("index.json")).value.manifests:
        for chosen in _manifests(archive, descriptor):
            image = _load_manifest(store, archive, chosen)
            own = _own_name(descriptor)
            every = list(dict.fromkeys([*names.get(image.id, []), *([own] if own else [])]))
            known = {(name, loaded.id) for name, loaded in found}
            wanted: list[str | None] = [*every] or [None]
            found += [(name, image) for name in wanted if (name, image.id) not in known]
    return found


def _docker_names(archive: _Archive) -> dict[str, list[str]]:
    """Image id → names, where docker's manifest.json lies beside the layout."""
    if "manifest.json" not in archive.files:
        return {}
    rows = _docker_rows(archive)
    return {str(Digest.of(archive.read(row.config))): [Reference.parse(tag).familiar for tag in row.repo_tags or []] for row in rows}


def _manifests(archive: _Archive, descriptor: Descriptor) -> Iterator[Descriptor]:
    """The manifest, or those for this platform in a nested index."""
    if descriptor.media_type != INDEX_TYPE and "manifest.list" not in descriptor.media_type:
        yield descriptor
        return
    for inner in decode(Index, _verified(archive, descriptor)).value.manifests:
        if inner.platform is None or (inner.platform.os, inner.platform.architecture) == ("linux", machine()):
            yield inner


def machine() -> str:
    """This machine's processor, as OCI (Go) calls it."""
    name = os.uname().machine
    return _MACHINES.get(name, name)


_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def _own_name(descriptor: Descriptor) -> str | None:
    """A full name is taken; a bare tag names nothing."""
    notes = descriptor.annotations or {}
    text = notes.get(_NAME) or notes.get(_TAG) or ""
    if "/" not in text and ":" not in text:
        return None
    try:
        return Reference.parse(text).familiar
    except InvalidReference:
        return None


def _verified(archive: _Archive, descriptor: Descriptor) -> bytes:
    raw = archive.read(_blob(Digest.parse(descriptor.digest)))
    if Digest.of(raw) != descriptor.digest:
        raise InvalidImage(f"archive: {descriptor.digest[:19]}… is damaged")
    return raw


def _load_manifest(store: Store, archive: _Archive, descriptor: Descriptor) -> Image:
    manifest = decode(Manifest, _verified(archive, descriptor))
    config = decode(ImageConfig, _verified(archive, manifest.value.config))
    paths = [archive.find(_blob(Digest.parse(layer.digest))) for layer in manifest.value.layers]
    return _store_image(store, manifest, config, paths)


def _store_image(store: Store, manifest: Document[Manifest], config: Document[ImageConfig], paths: Sequence[Path]) -> Image:
    diff_ids = config.value.rootfs.diff_ids
    if len(diff_ids) != len(paths):
        raise InvalidImage(f"image: {len(paths)} layers in the manifest, {len(diff_ids)} diff_ids in the config")
    parent: Digest | None = None
    for layer, path, diff_id in zip(manifest.value.layers, paths, diff_ids, strict=True):
        with path.open("rb") as stream:
            store.put_blob(stream, layer.media_type, expected=layer)
        parent = store.apply_layer(parent, layer, diff_id=Digest.parse(diff_id)).chain_id
    return store.put_documents(manifest, config)


def _docker_rows(archive: _Archive) -> list[_DockerEntry]:
    try:
        return _DOCKER.decode(archive.read("manifest.json"))
    except msgspec.DecodeError as err:
        raise InvalidImage(f"manifest.json: {err}") from err


def _load_docker(store: Store, archive: _Archive) -> Loaded:
    found: Loaded = []
    for row in _docker_rows(archive):
        config = decode(ImageConfig, archive.read(row.config))
        paths = [archive.find(_normal(layer.split("/"))) for layer in row.layers]
        layers = [_describe(path) for path in paths]
        described = Descriptor(CONFIG_TYPE, str(config.digest), len(config.raw))
        manifest = encode(Manifest(schema_version=2, media_type=MANIFEST_TYPE, config=described, layers=layers))
        image = _store_image(store, manifest, config, paths)
        found += [(Reference.parse(tag).familiar, image) for tag in row.repo_tags or []] or [(None, image)]
    return found


_KINDS = ((b"\x1f\x8b", LAYER_GZIP), (b"\x28\xb5\x2f\xfd", LAYER_ZSTD))


def _describe(path: Path) -> Descriptor:
    with path.open("rb") as stream:
        start = stream.read(4)
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    kind = next((kind for magic, kind in _KINDS if start.startswith(magic)), LAYER_TAR)
    return Descriptor(kind, f"sha256:{digest}", path.stat().st_size)


# import


def import_rootfs(
    store: Store, stream: IO[bytes], reference: Reference | None, *, config: RunConfig, message: str, created: datetime
) -> Image:
    """Make an image of one layer from the tar of a root file system, plain or compressed."""
    with store.shared(), store.draft() as draft:
        apply_tar(stream, draft.upper)
        snapshot = store.commit(draft, None)
        if snapshot is None:
            raise InvalidImage("import: the tar is empty")
        when = created.isoformat().replace("+00:00", "Z")
        image = store.put_image(
            ImageConfig(
                created=when,
                architecture=machine(),
                os="linux",
                config=config,
                rootfs=RootFS("layers", [str(snapshot.diff_id)]),
                history=[History(created=when, created_by="sandbox import", comment=message)],
            )
        )
        if reference is not None:
            store.tag(reference, image)
    return image
