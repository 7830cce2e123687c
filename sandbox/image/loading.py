"""Images from an archive: OCI layouts, docker's archives of today (both) and of old (manifest.json only); layouts in a directory.

Nothing is read into memory but documents, each capped; the archive's files go to the store's disk under numbers, so that
no name of it is ever a path of ours. An archive that is cut or lies leaves nothing but, at most, blobs that the next prune takes.
"""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from sandbox.errors import InvalidImage, InvalidReference
from sandbox.image.blobs import check
from sandbox.image.layout import NAME_NOTE, TAG_NOTE, DockerEntry, blob_name
from sandbox.image.plain import decompressed
from sandbox.image.reference import Reference
from sandbox.image.store import LOADING, Image, Store
from sandbox.image.tarinput import STREAM_ERRORS, CappedInfo
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
    ImageConfig,
    Index,
    Manifest,
    decode,
    encode,
    machine,
)

Loaded = list[tuple[str | None, Image]]

_DOCUMENT_LIMIT = 16 << 20
_MAX_LINKS = 8
_MAX_FILES = 100_000
_DOCKER = msgspec.json.Decoder(list[DockerEntry])


class Archive(msgspec.Struct):
    """The regular files of an archive, unpacked under numbers, so that no name of it is ever a path of ours."""

    directory: Path
    files: dict[str, Path] = msgspec.field(default_factory=dict)
    links: dict[str, str] = msgspec.field(default_factory=dict)

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
    with store.shared(), tempfile.TemporaryDirectory(dir=store.root, prefix=LOADING) as scratch:
        return _take(store, unpack(stream, Path(scratch)))


def load_layout(store: Store, directory: Path) -> Loaded:
    """Take in every image of an OCI layout in a directory; as `load`."""
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()}
    if "index.json" not in files:
        raise InvalidImage(f"{directory}: no OCI layout (no index.json in it)")
    with store.shared():
        return _take(store, Archive(directory, files))


def _take(store: Store, archive: Archive) -> Loaded:
    if "index.json" in archive.files:
        found = _load_layout(store, archive)
    elif "manifest.json" in archive.files:
        found = _load_docker(store, archive)
    else:
        hint = "for the tar of a root file system use `sandbox import`"
        raise InvalidImage("archive: neither index.json nor manifest.json in it", hint=hint)
    for name, image in found:
        if name is not None:
            store.tag(Reference.parse(name), image)
    return found


def unpack(stream: IO[bytes], directory: Path) -> Archive:
    archive = Archive(directory)
    try:
        with decompressed(stream) as plain, tarfile.open(fileobj=plain, mode="r|", tarinfo=CappedInfo) as tar:
            for number, member in enumerate(tar):
                if number == _MAX_FILES:
                    raise InvalidImage(f"archive: more than {_MAX_FILES} files in it")
                _unpack_member(archive, tar, member, number)
    except STREAM_ERRORS as err:
        raise InvalidImage(f"archive: not a whole tar: {err}") from err
    return archive


def _unpack_member(archive: Archive, tar: tarfile.TarFile, member: tarfile.TarInfo, number: int) -> None:
    name = member.name.removeprefix("./")
    if member.issym() or member.islnk():
        base = [] if member.islnk() else name.split("/")[:-1]
        archive.links[name] = normal([*base, *member.linkname.split("/")])
    elif member.issparse():  # a few bytes that would become terabytes
        raise InvalidImage(f"archive: {name} is a sparse file")
    elif member.isreg():
        content = tar.extractfile(member)
        path = archive.directory / str(number)
        with path.open("xb") as out:
            while content is not None and (data := content.read(1 << 20)):
                out.write(data)
        archive.files[name] = path


def normal(parts: Sequence[str]) -> str:
    kept: list[str] = []
    for part in parts:
        if part == "..":
            del kept[-1:]
        elif part not in ("", "."):
            kept.append(part)
    return "/".join(kept)


def _load_layout(store: Store, archive: Archive) -> Loaded:
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


def _docker_names(archive: Archive) -> dict[str, list[str]]:
    """Image id → names, where docker's manifest.json lies beside the layout."""
    if "manifest.json" not in archive.files:
        return {}
    rows = docker_rows(archive)
    return {str(Digest.of(archive.read(row.config))): [Reference.parse(tag).familiar for tag in row.repo_tags or []] for row in rows}


def _manifests(archive: Archive, descriptor: Descriptor) -> Iterator[Descriptor]:
    """The manifest, or those for this platform in a nested index."""
    if descriptor.media_type != INDEX_TYPE and "manifest.list" not in descriptor.media_type:
        yield descriptor
        return
    for inner in decode(Index, _verified(archive, descriptor)).value.manifests:
        if inner.platform is None or (inner.platform.os, inner.platform.architecture) == ("linux", machine()):
            yield inner


def _own_name(descriptor: Descriptor) -> str | None:
    """A full name is taken; a bare tag names nothing."""
    notes = descriptor.annotations or {}
    text = notes.get(NAME_NOTE) or notes.get(TAG_NOTE) or ""
    if "/" not in text and ":" not in text:
        return None
    try:
        return Reference.parse(text).familiar
    except InvalidReference:
        return None


def _verified(archive: Archive, descriptor: Descriptor) -> bytes:
    raw = archive.read(blob_name(descriptor.digest))
    check(descriptor, Digest.of(raw), len(raw))
    return raw


def _load_manifest(store: Store, archive: Archive, descriptor: Descriptor) -> Image:
    manifest = decode(Manifest, _verified(archive, descriptor))
    config = decode(ImageConfig, _verified(archive, manifest.value.config))
    paths = [archive.find(blob_name(layer.digest)) for layer in manifest.value.layers]
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


def docker_rows(archive: Archive) -> list[DockerEntry]:
    try:
        return _DOCKER.decode(archive.read("manifest.json"))
    except msgspec.DecodeError as err:
        raise InvalidImage(f"manifest.json: {err}") from err


def _load_docker(store: Store, archive: Archive) -> Loaded:
    found: Loaded = []
    for row in docker_rows(archive):
        config = decode(ImageConfig, archive.read(row.config))
        paths = [archive.find(normal(layer.split("/"))) for layer in row.layers]
        layers = [described(path) for path in paths]
        about = Descriptor(CONFIG_TYPE, str(config.digest), len(config.raw))
        manifest = encode(Manifest(schema_version=2, media_type=MANIFEST_TYPE, config=about, layers=layers))
        image = _store_image(store, manifest, config, paths)
        found += [(Reference.parse(tag).familiar, image) for tag in row.repo_tags or []] or [(None, image)]
    return found


_KINDS = ((b"\x1f\x8b", LAYER_GZIP), (b"\x28\xb5\x2f\xfd", LAYER_ZSTD))


def described(path: Path) -> Descriptor:
    with path.open("rb") as stream:
        start = stream.read(4)
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    kind = next((kind for magic, kind in _KINDS if start.startswith(magic)), LAYER_TAR)
    return Descriptor(kind, f"sha256:{digest}", path.stat().st_size)
