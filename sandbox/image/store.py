"""The local store of images: blobs, snapshots, names and the build cache below one directory.

Everything is made beside its place and renamed into it, so a killed process leaves at most files without a row, which
`prune_snapshots` sweeps: `snapshots/HEX` and `blobs/sha256/HEX` are complete whenever they exist. Whoever makes things
holds `shared()`, whoever removes them `exclusive()`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import sqlite3
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import IO

from sandbox.errors import DigestMismatch, ImageError, ImageNotFound, InvalidImage, InvalidReference
from sandbox.image.blobs import Blobs, Partial, digest_of, verified
from sandbox.image.catalog import Catalog, SnapshotRow
from sandbox.image.drafts import Draft, Drafts, Lock, spread
from sandbox.image.durability import boot_id, sync_file_system
from sandbox.image.images import CachedStep, Image, Snapshot, blobs_of, chain_id_above, check_documents
from sandbox.image.reference import Reference
from sandbox.image.tree import Tree
from sandbox.oci import (
    CONFIG_TYPE,
    LAYER_TAR,
    MANIFEST_TYPE,
    Descriptor,
    Digest,
    Document,
    ImageConfig,
    Manifest,
    chain_ids,
    decode,
    encode,
    oci_layer,
)

__all__ = ["CachedStep", "Draft", "Image", "Snapshot", "Store", "chain_id_above"]

_MIN_PREFIX = 2
LOADING = ".load-"
"""Begins the names of directories that hold an archive while it is loaded."""


class Store:
    """The images below `root`; created when missing. Several processes and threads may use one root at once."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._snapshots = self.root / "snapshots"
        self._lock = Lock(self.root / "lock")
        self._drafts = Drafts(self.root / "drafts", self._lock)
        self._blobs = Blobs(self.root / "blobs" / "sha256")
        with _disk_errors(f"{root}"):
            for directory in (self._blobs.directory, self._snapshots, self._drafts.directory):
                if not directory.is_dir():
                    _make_private(self.root, directory)
                    if directory == self._drafts.directory:
                        spread(directory)
            self._catalog = Catalog(self.root / "store.db")
            self._after_power_cut()

    def _after_power_cut(self) -> None:
        """In a new boot: what was not brought to the disk in the one before may be half there, so it goes."""
        boot = boot_id()
        if self._catalog.boot() == boot:
            return
        with self.exclusive():
            if self._catalog.boot() == boot:  # another process came first
                return
            for chain_id in self._catalog.unsynced():
                self._catalog.drop_snapshot(chain_id)
            self._sweep_directories({row.chain_id.hex for row in self._catalog.snapshots()})
            self._catalog.set_boot(boot)

    def shared(self) -> AbstractContextManager[object]:
        """Held while making images or containers: nothing is removed meanwhile. A thread may nest it."""
        return self._lock.hold(fcntl.LOCK_SH)

    def exclusive(self) -> AbstractContextManager[object]:
        """Held while removing: nobody makes anything meanwhile. Not to be taken inside `shared`."""
        return self._lock.hold(fcntl.LOCK_EX)

    # blobs

    def put_blob(self, source: bytes | IO[bytes], media_type: str, *, expected: Descriptor | None = None) -> Descriptor:
        """Store bytes or a stream; afterwards the digest is readable. DigestMismatch when it is not what was expected."""
        with self.shared(), _disk_errors("blob"):
            return self._blobs.put(source, media_type, expected)

    def open_blob(self, descriptor: Descriptor) -> IO[bytes]:
        """A blob's bytes; reading to the end checks digest and size (DigestMismatch). ImageError when it is not here."""
        return self._blobs.open(descriptor)

    def has_blob(self, digest: str) -> bool:
        """Whether the blob is here."""
        return self._blobs.has(digest)

    # snapshots

    @contextlib.contextmanager
    def draft(self) -> Iterator[Draft]:
        """An empty layer to fill; removed afterwards unless committed."""
        with _disk_errors("draft"), self._drafts.create() as draft:
            yield draft

    def commit(self, draft: Draft, parent: Digest | None) -> Snapshot | None:
        """Turn a draft's upper directory into the snapshot above `parent`. None when it holds no change.

        The same content above the same parent is the same snapshot, whoever commits it, however often.
        """
        from sandbox.image.layers import Changeset  # what only reads images does without

        with self.shared(), _disk_errors("layer"):
            changes = Changeset(draft.upper, self.lowers(parent))
            diff_id, tar_size = digest_of(changes)
            if changes.is_empty:
                return None
            return self._adopt(draft, parent, diff_id, changes.content_size, tar_size, regenerable=True)

    def _adopt(self, draft: Draft, parent: Digest | None, diff_id: Digest, size: int, tar_size: int, *, regenerable: bool) -> Snapshot:
        chain_id = chain_id_above(parent, diff_id)
        try:
            os.rename(draft.upper, self._snapshots / chain_id.hex)
        except OSError as err:  # somebody else was first: the same content by construction
            if err.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        row = SnapshotRow(chain_id, diff_id, parent, size, tar_size, regenerable)
        self._catalog.add_snapshot(row)
        return self._snapshot(row)

    def apply_layer(
        self, parent: Digest | None, layer: Descriptor, *, diff_id: Digest, wait_parent: Callable[[], object] = bool
    ) -> Snapshot:
        """The snapshot of a stored layer blob above `parent` (see `apply_stream`); DigestMismatch when its tar is not `diff_id`,
        UnsafeLayer."""
        with self.shared(), _disk_errors("layer"):
            self._catalog.add_layer(diff_id, layer)
            row = self._catalog.snapshot(chain_id_above(parent, diff_id))
            if row is not None:
                return self._snapshot(row)
            with self.open_blob(layer) as blob:
                return self.apply_stream(parent, layer, blob, diff_id=diff_id, wait_parent=wait_parent)

    def apply_stream(
        self, parent: Digest | None, layer: Descriptor, stream: IO[bytes], *, diff_id: Digest, wait_parent: Callable[[], object] = bool
    ) -> Snapshot:
        """As `apply_layer`, of bytes that are still on their way here; `stream` raises at its end when they are not the layer's.
        `wait_parent`: returns when the parent is there, which need not be before it is called, or raises."""

        def lowers() -> Sequence[str]:
            wait_parent()
            return self.lowers(parent)

        from sandbox.image.apply import apply_plain  # with tarfile: only when a layer comes in
        from sandbox.image.plain import ReadAhead, bomb_limit, decompressed

        with self.shared(), _disk_errors("layer"), self.draft() as draft, decompressed(stream) as plain:
            with ReadAhead(plain, bomb_limit(layer.size), f"layer {layer.digest[:19]}…") as whole:
                size = apply_plain(whole.read, draft.upper, lowers if parent else ())
                digest = whole.digest()
            if digest != diff_id:
                message = f"layer {layer.digest[:19]}…: expected diff_id {diff_id}, got {digest}"
                raise DigestMismatch(message, expected=diff_id, actual=digest)
            wait_parent()
            self._catalog.add_layer(diff_id, layer)
            return self._adopt(draft, parent, diff_id, size, whole.size, regenerable=False)

    @contextlib.contextmanager
    def partial_blob(self, digest: str, wait: Callable[[Callable[[], bool]], None]) -> Iterator[Partial | None]:
        """A blob that is fetched by us alone (see Blobs.partial); hold `shared` meanwhile. ImageError when the disk is full."""
        with _disk_errors("blob"), self._blobs.partial(digest, wait) as partial:
            yield partial

    def note_layer(self, diff_id: str, layer: Descriptor) -> None:
        """Remember that a blob that is here holds this layer."""
        with _disk_errors("layer"):
            self._catalog.add_layer(diff_id, layer)

    def blob_path(self, digest: str) -> Path:
        """Where a blob is, unverified."""
        return self._blobs.path(digest)

    def _snapshot(self, row: SnapshotRow) -> Snapshot:
        return Snapshot(row.chain_id, row.diff_id, row.parent, self._snapshots / row.chain_id.hex, row.size, row.tar_size)

    def snapshot(self, chain_id: str) -> Snapshot:
        """The snapshot of this chain id; ImageNotFound."""
        return self._snapshot(self._row(chain_id))

    def _row(self, chain_id: str) -> SnapshotRow:
        if row := self._catalog.snapshot(chain_id):
            return row
        raise _no_snapshot(chain_id)

    def lowers(self, chain_id: str | None) -> tuple[str, ...]:
        """The directories of a stack, lowest first, for an overlay's lower layers; empty for None. ImageNotFound."""
        if chain_id is None:
            return ()
        chain = self._catalog.chain(chain_id)
        if not chain:
            raise _no_snapshot(chain_id)
        return tuple(f"{self._snapshots}/{Digest(link).hex}" for link in chain)

    def snapshot_names(self) -> list[str]:
        """The names of the snapshots' directories."""
        return os.listdir(self._snapshots)

    def tree(self, chain_id: str | None) -> Tree:
        """The file system of a stack, to look into without mounting it."""
        return Tree(self.lowers(chain_id))

    # images

    def put_image(self, config: ImageConfig) -> Image:
        """Make the image of this config, whose layers are snapshots here. InvalidImage when one is missing.

        A layer made here gets no blob: its tar is written again, to the same digest, when the image leaves.
        """
        with self.shared(), _disk_errors("image"):
            document = encode(config)
            diff_ids = [Digest.parse(text) for text in config.rootfs.diff_ids]
            layers = [self._layer_of(chain_id) for chain_id in chain_ids(diff_ids)]
            descriptor = Descriptor(CONFIG_TYPE, document.digest, len(document.raw))
            manifest = encode(Manifest(schema_version=2, media_type=MANIFEST_TYPE, config=descriptor, layers=layers))
            return self.put_documents(manifest, document)

    def _layer_of(self, chain_id: Digest) -> Descriptor:
        row = self._catalog.snapshot(chain_id)
        if row is None:
            raise InvalidImage(f"config: its layer {chain_id[:19]}… is not in the store")
        for descriptor in self._catalog.layer_blobs(row.diff_id):
            if self._blobs.has(descriptor.digest):
                return oci_layer(descriptor)
        if not row.regenerable:
            hint = "load or pull its image again"
            raise InvalidImage(f"layer {row.diff_id[:19]}…: its blob is gone and its tar cannot be written again", hint=hint)
        return Descriptor(LAYER_TAR, row.diff_id, row.tar_size)

    def packed_layer(self, diff_id: str, media_type: str) -> Descriptor | None:
        """The blob here that holds a layer in this form, compressed before or received; None when there is none."""
        return next((found for found in self._catalog.packed(diff_id, media_type) if self._blobs.has(found.digest)), None)

    def keep_packed(self, diff_id: str, media_type: str, pieces: Iterable[bytes]) -> Descriptor:
        """Store a layer in a compressed form, to be found by `packed_layer` as long as an image has the layer."""
        with self.shared(), _disk_errors("layer"):
            descriptor = self._blobs.put_pieces(pieces, media_type)
            self._catalog.add_packed(diff_id, descriptor)
            return descriptor

    def put_documents(self, manifest: Document[Manifest], config: Document[ImageConfig]) -> Image:
        """Take a received image whose layers have been applied. InvalidImage when the documents do not fit each other."""
        image = Image(manifest, config)
        check_documents(image)
        with self.shared(), _disk_errors("image"):
            for chain_id in image.chain_ids:
                if self._catalog.snapshot(chain_id) is None:
                    raise InvalidImage(f"image {image.id.short}: its layer {chain_id[:19]}… has not been applied")
            self._blobs.put(config.raw, manifest.value.config.media_type, None)
            self._blobs.put(manifest.raw, manifest.value.media_type or MANIFEST_TYPE, None)
            if self._catalog.manifest_of(image.id) != manifest.digest:
                unsynced = self._catalog.unsynced()
                sync_file_system(self.root)
                self._catalog.add_image(image.id, manifest.digest, unsynced)
        return image

    def layer_stream(self, image: Image, index: int) -> IO[bytes]:
        """The bytes of a layer as its manifest promises them: the stored blob, else the tar written again; verified at the end."""
        return self.described_layer(image, index, image.manifest.value.layers[index])

    def described_layer(self, image: Image, index: int, descriptor: Descriptor) -> IO[bytes]:
        """The bytes of a layer in this form, which its manifest need not have yet; verified at the end. ImageError."""
        if self._blobs.has(descriptor.digest):
            return self._blobs.open(descriptor)
        if descriptor.digest != image.diff_ids[index]:
            raise _no_blob(descriptor.digest)
        return self.tar_stream(image, index)

    def tar_stream(self, image: Image, index: int) -> IO[bytes]:
        """The uncompressed tar of a layer, verified against its diff_id at the end. ImageError when it cannot be had."""
        return self.layer(image.chain_ids[index])[1]

    def layer(self, chain_id: str) -> tuple[Descriptor, IO[bytes]]:
        """What the layer of a snapshot is as an uncompressed tar, and its bytes, verified at the end. ImageNotFound, ImageError."""
        row = self._row(chain_id)
        promised = Descriptor(LAYER_TAR, row.diff_id, row.tar_size)
        if row.regenerable:
            from sandbox.image.layers import Changeset, ChangesetReader

            upper = self._snapshots / row.chain_id.hex
            return promised, verified(io.BufferedReader(ChangesetReader(Changeset(upper, self.lowers(row.parent)))), promised)
        from sandbox.image.plain import opened_plain

        for blob in self._catalog.layer_blobs(row.diff_id):
            if self._blobs.has(blob.digest):
                opened = self._blobs.open(blob)
                return promised, opened if blob.digest == row.diff_id else verified(opened_plain(opened), promised)
        raise _no_blob(row.diff_id)

    def tag(self, reference: Reference, image: Image) -> None:
        """Give an image a name; the name leaves whatever had it."""
        with _disk_errors("name"):
            if not self._catalog.set_name(str(reference), image.id):
                raise ImageNotFound(f"image {image.id.short}: not in the store")

    def untag(self, reference: Reference) -> bool:
        """Take a name away; False when nothing had it."""
        with _disk_errors("name"):
            return self._catalog.drop_name(str(reference))

    def names(self, image_id: str) -> list[Reference]:
        """The names of one image, sorted."""
        return [Reference.parse(text) for text in self._catalog.names_of(image_id)]

    def note_digest(self, name: str, digest: str, image: Image) -> None:
        """Remember that the repository `name` (registry and repository) knows an image by this digest: pulled from, or pushed to."""
        with _disk_errors("name"):
            self._catalog.add_digest(name, digest, image.id)

    def digests(self, image_id: str) -> list[tuple[str, str]]:
        """(repository, digest) by which registries know an image, sorted."""
        return self._catalog.digests_of(image_id)

    def lists(self) -> list[tuple[str, str]]:
        """(name, document) of every manifest list (see sandbox.image.lists), sorted."""
        return self._catalog.lists()

    def change_list(self, name: str, change: Callable[[str | None], str | None]) -> None:
        """Replace a manifest list by what `change` makes of it; None: there is none. What it raises leaves the list as it is."""
        with _disk_errors("manifest list"):
            self._catalog.change_list(name, change)

    def references(self) -> list[tuple[Reference, Digest]]:
        """All names and the image ids behind them, sorted."""
        return [(Reference.parse(text), Digest(image_id)) for text, image_id in self._catalog.names()]

    def images(self) -> list[Image]:
        """All images, those without a name too."""
        return [self._image(image_id, manifest) for image_id, manifest in self._catalog.images()]

    def _image(self, image_id: str, manifest: str) -> Image:
        return Image(decode(Manifest, self._document(manifest)), decode(ImageConfig, self._document(image_id)))

    def _document(self, digest: str) -> bytes:
        raw = self._blobs.path(digest).read_bytes()
        if Digest.of(raw) != digest:
            raise InvalidImage(f"blob {digest[:19]}…: damaged on disk", hint="remove the image and load, pull or build it again")
        return raw

    def find(self, name: str) -> Image:
        """The image of this reference, image id (with or without `sha256:`) or unique id prefix. ImageNotFound, InvalidInput."""
        image_id = self._find_id(name)
        manifest = self._catalog.manifest_of(image_id)
        if manifest is None:
            raise self._not_found(name)
        return self._image(image_id, manifest)

    def _find_id(self, name: str) -> str:
        reference = _reference_or_none(name)
        if reference and (image_id := self._catalog.image_of(str(reference))):
            return image_id
        if reference and reference.digest and (image_id := self._catalog.image_of_digest(reference.name, reference.digest)):
            return image_id
        prefix = name.removeprefix("sha256:")
        if len(prefix) >= _MIN_PREFIX and set(prefix) <= set("0123456789abcdef"):
            found = self._catalog.images_by_prefix(f"sha256:{prefix}")
            if len(found) == 1:
                return found[0]
            if found:
                raise ImageNotFound(f"{name}: begins the ids of {len(found)} images", hint="write more of the id")
        if reference is None and not name.startswith("sha256:"):
            Reference.parse(name)  # says what is wrong with it
        raise self._not_found(name)

    def _not_found(self, name: str) -> ImageNotFound:
        import difflib  # 4 ms, wanted only here

        known = [Reference.parse(text).familiar for text, _ in self._catalog.names()]
        reference = _reference_or_none(name)
        close = difflib.get_close_matches(reference.familiar if reference else name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "`sandbox images` lists what there is"
        return ImageNotFound(f"{name}: no such image", hint=hint)

    def image_created(self, image_id: str) -> datetime | None:
        """When the image says it was made; None when it does not say."""
        created = decode(ImageConfig, self._document(image_id)).value.created
        try:
            return datetime.fromisoformat(created) if created else None
        except ValueError:
            return None

    def image_size(self, image: Image) -> int:
        """The bytes of all its layers' files."""
        return sum(self._row(chain_id).size for chain_id in image.chain_ids)

    def remove(self, image_id: str) -> None:
        """Forget an image and its names, and delete the blobs no other image needs; its snapshots stay until pruned."""
        if not self._catalog.drop_image(image_id):
            raise ImageNotFound(f"image {image_id[:19]}: not in the store")
        # While somebody makes an image, a blob without an image may be his: then it waits for the next prune.
        with self._lock.hold(fcntl.LOCK_EX, wait=False) as alone:
            if alone:
                self._sweep_blobs()

    def snapshots(self) -> list[Snapshot]:
        """All snapshots."""
        return [self._snapshot(row) for row in self._catalog.snapshots()]

    def blob_bytes(self) -> int:
        """The bytes of all blobs."""
        return sum(self._blobs.path(digest).stat().st_size for digest in self._blobs.digests())

    def prune_snapshots(self, in_use: Container[str] = ()) -> list[Snapshot]:
        """Delete the snapshots that no image needs and `in_use` does not hold (nor their descendants), and all stray files."""
        with self.exclusive():
            rows = self._catalog.snapshots()
            needed = self._needed(rows, in_use)
            dropped = [row for row in rows if row.chain_id not in needed]
            for row in dropped:
                self._catalog.drop_snapshot(row.chain_id)
            self._sweep_blobs()
            self._sweep_directories({row.chain_id.hex for row in rows if row.chain_id in needed})
            return [self._snapshot(row) for row in dropped]

    def _needed(self, rows: list[SnapshotRow], in_use: Container[str]) -> set[str]:
        parents = {row.chain_id: row.parent for row in rows}
        tops = {image.top for image in self.images()} | {row.chain_id for row in rows if row.chain_id in in_use}
        needed: set[str] = set()
        for top in tops:
            link = top
            while link is not None and link not in needed:
                needed.add(link)
                link = parents.get(link)
        return needed

    def _sweep_directories(self, kept: set[str]) -> None:
        for path in self._snapshots.iterdir():
            if path.name not in kept:
                self._drafts.discard(path)
        for path in self.root.glob(f"{LOADING}*"):
            self._drafts.discard(path)
        self._drafts.sweep()

    def _sweep_blobs(self) -> None:
        images = self.images()
        needed = {blob for image in images for blob in blobs_of(image)}
        kept = {diff_id for image in images for diff_id in image.diff_ids}
        needed |= {digest for diff_id, digest in self._catalog.packed_blobs() if diff_id in kept}
        for digest in self._blobs.digests():
            if digest not in needed:
                self._catalog.drop_layers(digest)
                self._blobs.remove(digest)
        self._blobs.remove_temporary()

    # build cache

    def cached_step(self, key: str) -> CachedStep | None:
        """What the build step of this key led to; None when unknown or pruned."""
        row = self._catalog.step(key)
        return CachedStep(Digest(row[0]) if row[0] else None) if row else None

    def forget_steps(self) -> None:
        """Forget what every build step led to; the snapshots stay."""
        with _disk_errors("build cache"):
            self._catalog.drop_steps()

    def unneeded_snapshots(self, in_use: Container[str] = ()) -> list[Snapshot]:
        """The snapshots that `prune_snapshots` would delete."""
        rows = self._catalog.snapshots()
        needed = self._needed(rows, in_use)
        return [self._snapshot(row) for row in rows if row.chain_id not in needed]

    def remember_step(self, key: str, parent: Digest | None, chain_id: Digest | None) -> None:
        """Remember that the step of this key leads from `parent` to `chain_id` (the same when it changed nothing)."""
        with _disk_errors("build cache"):
            self._catalog.set_step(key, parent, chain_id)


def _no_blob(digest: str) -> ImageError:
    return ImageError(f"layer {digest[:19]}…: its blob is not in the store", hint="load or pull the image again")


def _no_snapshot(chain_id: str) -> ImageNotFound:
    return ImageNotFound(f"snapshot {chain_id[:19]}…: not in the store", hint="build, load or pull the image again")


def _reference_or_none(text: str) -> Reference | None:
    try:
        return Reference.parse(text)
    except InvalidReference:
        return None


def _make_private(root: Path, directory: Path) -> None:
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextlib.contextmanager
def _disk_errors(what: str) -> Iterator[None]:
    """Say plainly that the disk is full; other errors pass."""
    hint = "`sandbox prune` frees what no image or container needs"
    try:
        yield
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ImageError(f"{what}: {(err.strerror or 'disk full').lower()}", hint=hint) from err
        raise
    except sqlite3.OperationalError as err:
        if err.sqlite_errorname == "SQLITE_FULL":
            raise ImageError(f"{what}: no space left on device", hint=hint) from err
        raise
