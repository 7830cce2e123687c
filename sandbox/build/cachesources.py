"""`--cache-to` and `--cache-from`: the steps of a build and their layers, kept outside the engine.

type=local is an OCI layout whose one manifest has a document of ours as config: for each step its key, where it starts,
where it leads, when it was made; its layers are the manifest's. type=registry is the same, under a name in a registry.
type=inline puts the document into the image's config: its layers are there anyway. An imported step is taken only above
the very root file system it was made above.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from sandbox.errors import ImageNotFound, InvalidImage, InvalidOption
from sandbox.image.blobs import verified
from sandbox.image.store import Image, Store
from sandbox.oci import MANIFEST_TYPE, Descriptor, Digest, Manifest, decode, encode

if TYPE_CHECKING:
    from sandbox.build.cacheregistry import RemoteCache

CACHE_TYPE = "application/vnd.jupyter-sandbox.cache.v1+json"
_VERSION = 1
_KINDS = ("local", "inline", "registry")


class CacheSpec(msgspec.Struct, frozen=True):
    """One --cache-to or --cache-from: its kind, the directory or image it is about, whether all stages' steps are kept."""

    kind: str
    place: str = ""
    every_stage: bool = False


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step: `chain_id` is where it leads from `parent`; `diff_id` of the layer it made, when it made one."""

    key: str
    created: str
    parent: str | None = None
    chain_id: str | None = None
    diff_id: str | None = None
    layer: Descriptor | None = None


class Records(msgspec.Struct, frozen=True):
    """The document: every record of a build."""

    version: int
    steps: list[Record]


def parse_cache(text: str, flag: str) -> CacheSpec:
    """`type=local,dest=DIR[,mode=min|max]` (src= to read), `type=registry,ref=NAME`, `type=inline`, or a name. InvalidOption."""
    if "=" not in text:
        return CacheSpec("registry", text)
    fields = {key: value for key, _, value in (word.partition("=") for word in next(csv.reader([text]), []))}
    kind, mode = fields.pop("type", ""), fields.pop("mode", "min")
    place = fields.pop("dest" if flag == "--cache-to" else "src", "") if kind == "local" else fields.pop("ref", "")
    if kind not in _KINDS or mode not in ("min", "max") or fields:
        hint = "write type=local,dest=DIR, or type=inline" if flag == "--cache-to" else "write type=local,src=DIR, or an image's name"
        raise InvalidOption(f"{flag} {text}: not understood", hint=hint)
    if (kind == "inline") == (flag == "--cache-from") and kind == "inline":
        raise InvalidOption(f"{flag} {text}: name the image whose config holds the cache", hint=f"{flag} IMAGE")
    if kind != "inline" and not place:
        raise InvalidOption(f"{flag} {text}: no directory or image named")
    return CacheSpec(kind, place, mode == "max")


class Imported(msgspec.Struct):
    """The records a build may take from elsewhere. `place`: gives a layer in this engine's store."""

    store: Store
    _records: dict[str, tuple[Record, Callable[[Descriptor], IO[bytes]]]] = msgspec.field(default_factory=dict)

    def add(self, spec: CacheSpec) -> None:
        """Read one source. NotInRegistry for a cache that nobody has written yet; InvalidImage, RegistryError."""
        if spec.kind == "local":
            self._add_layout(Path(spec.place))
        else:
            self._add_image(spec.place)

    def _add_layout(self, directory: Path) -> None:
        try:
            index = msgspec.json.decode((directory / "index.json").read_bytes())
            blobs = _Blobs(directory)
            manifest = decode(Manifest, blobs.read(msgspec.convert(index["manifests"][0], Descriptor))).value
            raw = blobs.read(manifest.config)
        except (OSError, KeyError, IndexError, TypeError, msgspec.MsgspecError) as err:
            hint = "--cache-to type=local,dest=DIR writes one"
            raise InvalidImage(f"--cache-from {directory}: no cache in it ({err})", hint=hint) from err
        self._take(raw, blobs.open)

    def _add_image(self, name: str) -> None:
        try:
            found: Image | RemoteCache = self.store.find(name)
        except ImageNotFound:
            from sandbox.build import cacheregistry  # the HTTP client

            found = cacheregistry.find(self.store, name, CACHE_TYPE)
        if not isinstance(found, Image):
            self._take(found.document, found.open)
        elif (text := found.config.value.cache) is not None:
            self._take(text.encode(), _has_none)

    def _take(self, raw: bytes, opener: Callable[[Descriptor], IO[bytes]]) -> None:
        try:
            document = msgspec.json.decode(raw, type=Records)
        except msgspec.MsgspecError as err:
            raise InvalidImage(f"--cache-from: damaged ({err})") from err
        if document.version == _VERSION:
            self._records |= {record.key: (record, opener) for record in document.steps}

    def find(self, key: str, parent: Digest | None) -> Record | None:
        """The record of this key that starts from `parent`, its layer in the store; None when there is none."""
        record, opener = self._records.get(key, (None, _has_none))
        if record is None or record.parent != parent:
            return None
        if record.chain_id not in (None, parent) and not self._has_layer(record, parent, opener):
            return None
        return record

    def _has_layer(self, record: Record, parent: Digest | None, opener: Callable[[Descriptor], IO[bytes]]) -> bool:
        try:
            self.store.snapshot(record.chain_id or "")
        except ImageNotFound:
            if record.layer is None:
                return False
            from sandbox.image.apply import apply_plain  # with tarfile: only when a layer comes in
            from sandbox.image.plain import ReadAhead, bomb_limit, decompressed

            what = f"--cache-from: layer {record.layer.digest[:19]}…"
            with self.store.draft() as draft, opener(record.layer) as blob, decompressed(blob) as plain:
                with ReadAhead(plain, bomb_limit(record.layer.size), what) as whole:
                    apply_plain(whole.read, draft.upper)
                    whole.digest()  # to its end, where the blob is verified
                snapshot = self.store.commit(draft, parent)
            if snapshot is None or snapshot.chain_id != record.chain_id:
                raise InvalidImage(f"--cache-from: layer {record.layer.digest[:19]}… is not the one its record names") from None
        return True


def _has_none(descriptor: Descriptor) -> IO[bytes]:
    raise InvalidImage(f"layer {descriptor.digest[:19]}…: not in this cache")


class _Blobs(msgspec.Struct, frozen=True):
    """The blobs of a layout."""

    directory: Path

    def path(self, digest: str) -> Path:
        return self.directory / "blobs" / "sha256" / Digest.parse(digest).hex

    def open(self, descriptor: Descriptor) -> IO[bytes]:
        return verified(self.path(descriptor.digest).open("rb"), descriptor)

    def read(self, descriptor: Descriptor) -> bytes:
        with self.open(descriptor) as stream:
            return stream.read()

    def write(self, descriptor: Descriptor, stream: IO[bytes]) -> None:
        """Beside its place, then renamed; one that is there is the same."""
        path = self.path(descriptor.digest)
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.urandom(4).hex()}")
        try:
            with fresh.open("wb") as out:
                import shutil

                shutil.copyfileobj(stream, out, 1 << 20)
            fresh.rename(path)
        finally:
            fresh.unlink(missing_ok=True)

    def write_bytes(self, data: bytes, media_type: str) -> Descriptor:
        import io

        descriptor = Descriptor(media_type, str(Digest.of(data)), len(data))
        self.write(descriptor, io.BytesIO(data))
        return descriptor

    def sweep(self, kept: Iterable[str]) -> None:
        names = {Digest.parse(digest).hex for digest in kept}
        for path in (self.directory / "blobs" / "sha256").iterdir():
            if path.name not in names:
                path.unlink()


def document_of(records: Iterable[Record]) -> bytes:
    """The records as bytes, the same for the same records."""
    return msgspec.json.encode(Records(_VERSION, sorted(records, key=lambda record: record.key)))


def export_registry(store: Store, records: Iterable[Record], name: str) -> None:
    """Put records and layers, compressed as for a push, under this name in its registry. RegistryError, Unauthorized."""
    from sandbox.build import cacheregistry  # the HTTP client

    with store.shared():
        made = _gathered(records, lambda record: cacheregistry.packed(store, record))
        cacheregistry.send(store, made, name)


class Gathered(msgspec.Struct, frozen=True):
    """What a cache consists of: its `manifest`, the `document` that is the manifest's config, its layers with the record of each."""

    manifest: bytes
    document: bytes
    layers: Mapping[str, tuple[Descriptor, Record]]

    @property
    def config(self) -> Descriptor:
        """The document's."""
        return Descriptor(CACHE_TYPE, str(Digest.of(self.document)), len(self.document))


def _gathered(records: Iterable[Record], describe: Callable[[Record], Descriptor]) -> Gathered:
    """The cache of these records. `describe`: a record's layer in the form it will have there; asked once a layer."""
    layers: dict[str, tuple[Descriptor, Record]] = {}
    kept = []
    for record in records:
        if record.diff_id is not None and record.chain_id is not None:
            if record.chain_id not in layers:
                layers[record.chain_id] = describe(record), record
            found, _ = layers[record.chain_id]
            record = msgspec.structs.replace(record, layer=Descriptor(found.media_type, str(found.digest), found.size))
        kept.append(record)
    made = Gathered(b"", document_of(kept), {str(layer.digest): (layer, record) for layer, record in layers.values()})
    unique = [made.layers[digest][0] for digest in sorted(made.layers)]  # stages end in any order
    manifest = encode(Manifest(schema_version=2, media_type=MANIFEST_TYPE, config=made.config, layers=unique))
    return msgspec.structs.replace(made, manifest=manifest.raw)


def export_local(store: Store, records: Iterable[Record], place: str) -> None:
    """Write records and layers as an OCI layout; what an earlier build left there goes."""
    directory = Path(place)
    blobs = _Blobs(directory)

    def write(record: Record) -> Descriptor:
        layer, stream = store.layer(Digest(record.chain_id or ""))
        with stream:
            blobs.write(layer, stream)
        return layer

    made = _gathered(records, write)
    config = blobs.write_bytes(made.document, CACHE_TYPE)
    descriptor = blobs.write_bytes(made.manifest, MANIFEST_TYPE)
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    index: Mapping[str, object] = {"schemaVersion": 2, "manifests": [msgspec.to_builtins(descriptor)]}
    fresh = directory / f"index.json.{os.urandom(4).hex()}"
    fresh.write_bytes(msgspec.json.encode(index))
    fresh.rename(directory / "index.json")
    blobs.sweep([descriptor.digest, config.digest, *made.layers])
