"""The oracle of everything that makes or takes images: an engine's store, or an OCI layout, read without the product's code.

`verify_store(root)` and `verify_layout(directory)` fail with a list of what is wrong. After a kill, `broken(root)` is the
part that must hold at every moment; `strays(root)` is what the next prune may still have to sweep.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from tests.support.image_schemas import Schemas
from tests.support.image_tars import layer_tar

_TEMPORARY = (".new-", ".load-", ".part", ".tmp")
_CHUNK = 1 << 20
Json = dict[str, Any]


def verify_store(root: Path) -> None:
    """Fail with everything that is wrong in the store of an engine that is at rest."""
    _nothing([*broken(root), *strays(root)])


def verify_layout(directory: Path) -> None:
    """Fail with everything that is wrong in an OCI layout."""
    _nothing(layout_faults(directory))


def _nothing(faults: list[str]) -> None:
    assert not faults, "images:\n  " + "\n  ".join(faults)


# An engine's store


def broken(root: Path) -> list[str]:
    """What may never be seen, not even after a kill: a row, name or file that promises what is not there."""
    store = _Store(root)
    try:
        return [*store.blob_faults(), *store.snapshot_faults(), *store.image_faults()]
    finally:
        store.db.close()


def strays(root: Path) -> list[str]:
    """Half-written files, drafts whose maker is gone, snapshots and blobs that no row or image names."""
    store = _Store(root)
    try:
        return [*_temporary_files(root), *_dead_drafts(root), *store.unnamed()]
    finally:
        store.db.close()


class _Store:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs/sha256"
        self.db = sqlite3.connect(root / "store.db")
        self.schemas = Schemas()
        columns = "chain_id, diff_id, parent, size, tar_size, regenerable"
        self.snapshots = {row[0]: row for row in self.db.execute(f"select {columns} from snapshots")}
        self.images = dict(self.db.execute("select id, manifest from images"))

    def blob_faults(self) -> Iterator[str]:
        if self.db.execute("pragma integrity_check").fetchone() != ("ok",):
            yield "store.db: damaged"
        for path in self._blob_files():
            if (actual := _file_digest(path)) != path.name:
                yield f"blob {path.name[:12]}: its content is {actual[:12]}"
        columns = "diff_id, digest, media_type, size"
        for diff_id, digest, kind, size in self.db.execute(f"select {columns} from layers union select {columns} from packed"):
            path = self.blobs / digest.removeprefix("sha256:")
            if path.exists():
                yield from _layer_faults(path, kind, size, diff_id)

    def _blob_files(self) -> list[Path]:
        return [path for path in sorted(self.blobs.iterdir()) if not path.name.startswith(_TEMPORARY)]

    def snapshot_faults(self) -> Iterator[str]:
        for chain_id, diff_id, parent, size, tar_size, regenerable in self.snapshots.values():
            name = f"snapshot {chain_id[7:19]}"
            if chain_id != _chain(parent, diff_id):
                yield f"{name}: its chain_id is not that of {diff_id[:19]} above {parent}"
            if parent is not None and parent not in self.snapshots:
                yield f"{name}: its parent {parent[:19]} has no row"
                continue
            directory = self._directory(chain_id)
            if not directory.is_dir():
                yield f"{name}: no directory"
                continue
            if (actual := _content_size(directory)) != size:
                yield f"{name}: its files hold {actual} bytes, its row says {size}"
            if regenerable:
                yield from self._tar_faults(name, chain_id, diff_id, tar_size)

    def _tar_faults(self, name: str, chain_id: str, diff_id: str, tar_size: int) -> Iterator[str]:
        lowers = [self._directory(link) for link in self._stack(chain_id)[:-1]]
        actual, length = _digest(layer_tar(self._directory(chain_id), lowers))
        if actual != diff_id:
            yield f"{name}: its tar is {actual[:19]}, promised {diff_id[:19]}"
        if length != tar_size:
            yield f"{name}: its tar has {length} bytes, promised {tar_size}"

    def _stack(self, chain_id: str | None) -> list[str]:
        """The chain from the lowest layer to this one."""
        stack: list[str] = []
        while chain_id is not None and chain_id in self.snapshots:
            stack.insert(0, chain_id)
            chain_id = self.snapshots[chain_id][2]
        return stack

    def _directory(self, chain_id: str) -> Path:
        return self.root / "snapshots" / chain_id.removeprefix("sha256:")

    def image_faults(self) -> Iterator[str]:
        for reference, image in self.db.execute("select reference, image from names"):
            if image not in self.images:
                yield f"name {reference}: its image {image[:19]} is not there"
        for image, manifest in self.images.items():
            yield from (f"image {image[7:19]}: {fault}" for fault in self._one_image(image, manifest))

    def _one_image(self, image: str, manifest_digest: str) -> Iterator[str]:
        raw = {digest: _read(self.blobs / digest.removeprefix("sha256:")) for digest in (image, manifest_digest)}
        if gone := [digest for digest, data in raw.items() if data is None]:
            yield f"documents {gone} are not there"
            return
        manifest, config = json.loads(raw[manifest_digest] or b""), json.loads(raw[image] or b"")
        if manifest["config"]["digest"] != image:
            yield f"its manifest names the config {manifest['config']['digest'][:19]}"
        yield from document_faults(self.schemas, manifest, config, len(raw[image] or b""))
        parent: str | None = None
        for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=False):
            parent = _chain(parent, diff_id)
            yield from self._layer(layer, diff_id, parent)

    def _layer(self, layer: Json, diff_id: str, chain_id: str) -> Iterator[str]:
        if chain_id not in self.snapshots:
            yield f"its layer {chain_id[:19]} has no snapshot"
            return
        path = self.blobs / layer["digest"].removeprefix("sha256:")
        if path.exists():
            yield from _layer_faults(path, layer["mediaType"], layer["size"], diff_id)
        elif layer["digest"] != diff_id or not self.snapshots[chain_id][5]:
            yield f"its layer {layer['digest'][:19]} has neither a blob nor a tar that can be written again"
        elif layer["size"] != self.snapshots[chain_id][4]:
            yield f"its layer {diff_id[:19]}: {layer['size']} bytes in the manifest, {self.snapshots[chain_id][4]} in the store"

    def unnamed(self) -> Iterator[str]:
        known = {chain_id.removeprefix("sha256:") for chain_id in self.snapshots}
        yield from (f"snapshots/{name}: no row" for name in sorted(os.listdir(self.root / "snapshots")) if name not in known)
        needed = {digest.removeprefix("sha256:") for pair in self.images.items() for digest in pair}
        needed |= {row[0].removeprefix("sha256:") for row in self.db.execute("select digest from layers union select digest from packed")}
        yield from (f"blob {path.name[:12]}: nothing needs it" for path in self._blob_files() if path.name not in needed)


def _temporary_files(root: Path) -> Iterator[str]:
    for directory in (root, root / "blobs/sha256"):
        for name in sorted(os.listdir(directory)):
            if name.startswith(_TEMPORARY) or ".new-" in name or name.endswith(".part"):
                yield f"{name}: half-written"


def _dead_drafts(root: Path) -> Iterator[str]:
    for path in sorted((root / "drafts").iterdir()):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield f"drafts/{path.name}: nobody is making it"
        except BlockingIOError:
            continue  # somebody is
        finally:
            os.close(fd)


# Documents


def document_faults(schemas: Schemas, manifest: Json, config: Json, config_size: int) -> Iterator[str]:
    """Whether a manifest and its config are valid and fit each other."""
    yield from schemas.faults("image-manifest", manifest)
    yield from schemas.faults("config", config)
    layers, diff_ids = len(manifest["layers"]), len(config["rootfs"]["diff_ids"])
    if layers != diff_ids:
        yield f"{layers} layers, {diff_ids} diff_ids"
    if manifest["config"]["size"] != config_size:
        yield f"config: {config_size} bytes, the manifest says {manifest['config']['size']}"
    history = config.get("history") or []
    made = sum(not step.get("empty_layer", False) for step in history)
    if history and made != layers:  # config.md: history is optional as a whole
        yield f"history: {made} steps made a layer, there are {layers}"


# An OCI layout


def layout_faults(directory: Path) -> list[str]:
    """What is wrong in an OCI layout (image-spec image-layout.md)."""
    schemas = Schemas()
    marker, index = json.loads((directory / "oci-layout").read_text()), json.loads((directory / "index.json").read_text())
    faults = [*schemas.faults("image-layout", marker), *schemas.faults("image-index", index)]
    blobs = directory / "blobs/sha256"
    needed: set[str] = set()
    for descriptor in index["manifests"]:
        faults += _manifest_faults(blobs, descriptor, schemas, needed)
    faults += [f"{name}: nothing names it" for name in sorted(os.listdir(blobs)) if f"sha256:{name}" not in needed]
    return faults


def _manifest_faults(blobs: Path, descriptor: Json, schemas: Schemas, needed: set[str]) -> Iterator[str]:
    raw = yield from _described(blobs, descriptor, needed)
    if raw is None:
        return
    manifest = json.loads(raw.read_bytes())
    config_file = yield from _described(blobs, manifest["config"], needed)
    if config_file is None:
        return
    config = json.loads(config_file.read_bytes())
    yield from document_faults(schemas, manifest, config, config_file.stat().st_size)
    for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=False):
        path = yield from _described(blobs, layer, needed)
        if path is not None:
            yield from _layer_faults(path, layer["mediaType"], layer["size"], diff_id)


def _described(blobs: Path, descriptor: Json, needed: set[str]) -> Any:  # Any: a generator with a return value
    """The file of a descriptor, after faults of its digest and size; None when it is not there."""
    needed.add(descriptor["digest"])
    path = blobs / descriptor["digest"].removeprefix("sha256:")
    if not path.is_file():
        yield f"{descriptor['digest'][:19]}: not there"
        return None
    if path.stat().st_size != descriptor["size"]:
        yield f"{descriptor['digest'][:19]}: {path.stat().st_size} bytes, promised {descriptor['size']}"
    if _file_digest(path) != path.name:
        yield f"{descriptor['digest'][:19]}: its content is another"
    return path


# Bytes


def _layer_faults(path: Path, media_type: str, size: int, diff_id: str) -> Iterator[str]:
    if path.stat().st_size != size:
        yield f"layer {path.name[:12]}: {path.stat().st_size} bytes, promised {size}"
    suffix, found = media_type.rpartition("+")[2] if "+" in media_type else "", _compression(path)
    if suffix not in ("gzip", "zstd", ""):
        suffix = ""
    if found != suffix and not media_type.startswith("application/vnd.docker."):
        yield f"layer {path.name[:12]}: {media_type}, but its content is {found or 'plain'}"
    try:
        with path.open("rb") as stream, _plain(stream, found) as plain:
            actual, _ = _digest(iter(lambda: plain.read(_CHUNK), b""))
    except (OSError, EOFError, ValueError) as err:
        yield f"layer {path.name[:12]}: cannot be read: {err}"
        return
    if actual != diff_id:
        yield f"layer {path.name[:12]}: its tar is {actual[:19]}, promised {diff_id[:19]}"


def _compression(path: Path) -> str:
    with path.open("rb") as stream:
        magic = stream.read(4)
    return {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd"}.get(magic[:2], "")


def _plain(stream: IO[bytes], compression: str) -> IO[bytes]:
    if compression == "gzip":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=stream))
    if compression == "zstd":
        from backports import zstd  # the standard library has it from 3.14 on

        return cast("IO[bytes]", zstd.ZstdFile(stream, "rb"))
    return stream


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(pieces: Iterable[bytes]) -> tuple[str, int]:
    whole, length = hashlib.sha256(), 0
    for piece in pieces:
        whole.update(piece)
        length += len(piece)
    return f"sha256:{whole.hexdigest()}", length


def _chain(parent: str | None, diff_id: str) -> str:
    return f"sha256:{hashlib.sha256(f'{parent} {diff_id}'.encode()).hexdigest()}" if parent else diff_id


def _content_size(directory: Path) -> int:
    """The bytes of regular files, hard links once."""
    sizes: dict[int, int] = {}
    for place, _, names in os.walk(directory):
        for name in names:
            status = os.lstat(os.path.join(place, name))
            if stat.S_ISREG(status.st_mode):
                sizes[status.st_ino] = status.st_size
    return sum(sizes.values())
