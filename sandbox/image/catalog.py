"""The store's tables: names, images, snapshots, layer blobs and the build cache, in one sqlite file.

WAL with synchronous=NORMAL: no commit is lost by killing a process; a power cut may lose the last ones. It may also keep a
row and lose the files it is about: `unsynced` names the snapshots whose files nobody has brought to the disk yet, `boot`
the boot they were made in (durability.py decides). Every write is one `begin immediate` transaction.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from sandbox.errors import ImageError
from sandbox.image.databases import create_database
from sandbox.oci import Descriptor, Digest

_VERSION = 4
_SCHEMA = """
begin immediate;
create table if not exists images (id text primary key, manifest text not null) without rowid;
create table if not exists names (reference text primary key, image text not null references images (id)) without rowid;
create table if not exists snapshots (
    chain_id text primary key, diff_id text not null, parent text, size integer not null, tar_size integer not null,
    regenerable integer not null) without rowid;
create table if not exists layers (diff_id text not null, digest text not null, media_type text not null, size integer not null,
    primary key (diff_id, digest)) without rowid;
create table if not exists packed (diff_id text not null, media_type text not null, digest text not null, size integer not null,
    primary key (diff_id, media_type)) without rowid;
create table if not exists digests (name text not null, digest text not null, image text not null,
    primary key (name, digest)) without rowid;
create table if not exists lists (name text primary key, document text not null) without rowid;
create table if not exists unsynced (chain_id text primary key) without rowid;
create table if not exists boot (id text not null);
create table if not exists steps (key text primary key, parent text, chain_id text) without rowid;
create index if not exists names_by_image on names (image);
pragma user_version = 4;
commit;
"""
_ANCESTORS = """
with recursive chain (id, parent, depth) as (
    select chain_id, parent, 0 from snapshots where chain_id = ?
    union all select s.chain_id, s.parent, depth + 1 from chain join snapshots s on s.chain_id = chain.parent)
select id, parent from chain order by depth desc"""
_STEP = """
select chain_id from steps
where key = ? and (chain_id is null or exists (select 1 from snapshots s where s.chain_id = steps.chain_id))"""
_SNAPSHOT = "select chain_id, diff_id, parent, size, tar_size, regenerable from snapshots"


class SnapshotRow(msgspec.Struct, frozen=True):
    """A snapshot's row. `regenerable`: whether write_tar over its directory gives the very bytes of diff_id."""

    chain_id: Digest
    diff_id: Digest
    parent: Digest | None
    size: int
    tar_size: int
    regenerable: bool


class Catalog:
    """One connection per thread and process (sqlite connections do not survive a fork)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._db()

    def _db(self) -> sqlite3.Connection:
        opened: tuple[int, sqlite3.Connection] | None = getattr(self._local, "opened", None)
        if opened and opened[0] == os.getpid():
            return opened[1]
        db = _connect(self._path)
        self._local.opened = (os.getpid(), db)
        return db

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One write transaction, taken back when the block raises."""
        db = self._db()
        db.execute("begin immediate")
        try:
            yield db
            db.execute("commit")
        except BaseException:
            if db.in_transaction:
                db.execute("rollback")
            raise

    # snapshots

    def add_snapshot(self, row: SnapshotRow) -> None:
        """Remember a snapshot whose directory is in place; the same one twice is the same."""
        with self.write() as db:
            if not db.execute("select 1 from snapshots where chain_id = ?", (row.chain_id,)).fetchone():
                db.execute("insert or ignore into unsynced values (?)", (row.chain_id,))
            db.execute(
                "insert into snapshots values (?, ?, ?, ?, ?, ?)"
                " on conflict do update set regenerable = max(regenerable, excluded.regenerable)",
                (row.chain_id, row.diff_id, row.parent, row.size, row.tar_size, row.regenerable),
            )

    def snapshot(self, chain_id: str) -> SnapshotRow | None:
        """One snapshot."""
        row = self._db().execute(f"{_SNAPSHOT} where chain_id = ?", (chain_id,)).fetchone()
        return _snapshot_row(row) if row else None

    def snapshots(self) -> list[SnapshotRow]:
        """All snapshots."""
        return [_snapshot_row(row) for row in self._db().execute(_SNAPSHOT)]

    def chain(self, chain_id: str) -> list[str]:
        """The chain ids from the lowest layer to this one; empty when one of them is missing."""
        rows = self._db().execute(_ANCESTORS, (chain_id,)).fetchall()
        return [row[0] for row in rows] if rows and rows[0][1] is None else []

    def drop_snapshot(self, chain_id: str) -> None:
        """Forget a snapshot and every build step that starts from it or leads to it."""
        with self.write() as db:
            db.execute("delete from snapshots where chain_id = ?", (chain_id,))
            db.execute("delete from steps where parent = ?1 or chain_id = ?1", (chain_id,))
            db.execute("delete from unsynced where chain_id = ?", (chain_id,))

    def unsynced(self) -> list[str]:
        """Chain ids whose files may not be on the disk yet."""
        return [row[0] for row in self._db().execute("select chain_id from unsynced")]

    def boot(self) -> str | None:
        """The boot that the last user of the store ran in."""
        row = self._db().execute("select id from boot").fetchone()
        return row[0] if row else None

    def set_boot(self, boot: str) -> None:
        """Remember the boot."""
        with self.write() as db:
            db.execute("delete from boot")
            db.execute("insert into boot values (?)", (boot,))

    # layer blobs

    def add_layer(self, diff_id: str, descriptor: Descriptor) -> None:
        """Remember which blob holds a layer."""
        with self.write() as db:
            row = (diff_id, descriptor.digest, descriptor.media_type, descriptor.size)
            db.execute("insert or ignore into layers values (?, ?, ?, ?)", row)

    def layer_blobs(self, diff_id: str) -> list[Descriptor]:
        """The blobs known to hold this layer, in whatever compression."""
        rows = self._db().execute("select media_type, digest, size from layers where diff_id = ? order by digest", (diff_id,))
        return [Descriptor(media_type, digest, size) for media_type, digest, size in rows]

    def drop_layers(self, digest: str) -> None:
        """Forget a layer blob."""
        with self.write() as db:
            db.execute("delete from layers where digest = ?", (digest,))
            db.execute("delete from packed where digest = ?", (digest,))

    def add_packed(self, diff_id: str, descriptor: Descriptor) -> None:
        """Remember the blob that a layer was compressed to."""
        with self.write() as db:
            row = (diff_id, descriptor.media_type, descriptor.digest, descriptor.size)
            db.execute("insert or replace into packed values (?, ?, ?, ?)", row)

    def packed(self, diff_id: str, media_type: str) -> list[Descriptor]:
        """Blobs of this media type that hold a layer: compressed here, or received."""
        rows = self._db().execute(
            "select digest, size from packed where diff_id = ?1 and media_type = ?2"
            " union select digest, size from layers where diff_id = ?1 and media_type = ?2",
            (diff_id, media_type),
        )
        return [Descriptor(media_type, digest, size) for digest, size in rows]

    def packed_blobs(self) -> list[tuple[str, str]]:
        """(diff_id, digest) of everything compressed here."""
        return list(self._db().execute("select diff_id, digest from packed"))

    # images and names

    def add_image(self, image_id: str, manifest: str, synced: Sequence[str] = ()) -> None:
        """Remember an image whose documents are in place; a later manifest of the same image replaces the earlier.
        `synced`: snapshots that are on the disk by now."""
        with self.write() as db:
            db.executemany("delete from unsynced where chain_id = ?", [(chain_id,) for chain_id in synced])
            db.execute("insert into images values (?, ?) on conflict do update set manifest = excluded.manifest", (image_id, manifest))

    def manifest_of(self, image_id: str) -> str | None:
        """The digest of an image's manifest."""
        row = self._db().execute("select manifest from images where id = ?", (image_id,)).fetchone()
        return row[0] if row else None

    def images(self) -> list[tuple[str, str]]:
        """(image id, manifest digest) of all images."""
        return list(self._db().execute("select id, manifest from images order by id"))

    def images_by_prefix(self, prefix: str) -> list[str]:
        """Ids that begin so; `prefix` includes `sha256:`."""
        return [row[0] for row in self._db().execute("select id from images where id >= ? and id < ? order by id", (prefix, prefix + "g"))]

    def drop_image(self, image_id: str) -> bool:
        """Forget an image and its names."""
        with self.write() as db:
            db.execute("delete from names where image = ?", (image_id,))
            db.execute("delete from digests where image = ?", (image_id,))
            return db.execute("delete from images where id = ?", (image_id,)).rowcount > 0

    def set_name(self, reference: str, image_id: str) -> bool:
        """Point a name at an image; False when there is no such image (any more)."""
        with self.write() as db:
            known = db.execute("select 1 from images where id = ?", (image_id,)).fetchone()
            if known:
                db.execute("insert or replace into names values (?, ?)", (reference, image_id))
            return bool(known)

    def add_digest(self, name: str, digest: str, image_id: str) -> None:
        """Remember the digest by which a repository knows an image."""
        with self.write() as db:
            db.execute("insert or replace into digests values (?, ?, ?)", (name, digest, image_id))

    def digests_of(self, image_id: str) -> list[tuple[str, str]]:
        """(repository, digest) by which an image is known elsewhere, sorted."""
        return list(self._db().execute("select name, digest from digests where image = ? order by name, digest", (image_id,)))

    def image_of_digest(self, name: str, digest: str) -> str | None:
        """The image that a repository knows by this digest."""
        row = self._db().execute("select image from digests where name = ? and digest = ?", (name, digest)).fetchone()
        return row[0] if row else None

    def drop_name(self, reference: str) -> bool:
        """Forget a name."""
        with self.write() as db:
            return db.execute("delete from names where reference = ?", (reference,)).rowcount > 0

    def image_of(self, reference: str) -> str | None:
        """The image id behind a name."""
        row = self._db().execute("select image from names where reference = ?", (reference,)).fetchone()
        return row[0] if row else None

    def names(self) -> list[tuple[str, str]]:
        """(name, image id) of all names, sorted."""
        return list(self._db().execute("select reference, image from names order by reference"))

    def names_of(self, image_id: str) -> list[str]:
        """All names of one image, sorted."""
        return [row[0] for row in self._db().execute("select reference from names where image = ? order by reference", (image_id,))]

    # manifest lists

    def lists(self) -> list[tuple[str, str]]:
        """(name, document) of every manifest list, sorted."""
        return list(self._db().execute("select name, document from lists order by name"))

    def change_list(self, name: str, change: Callable[[str | None], str | None]) -> None:
        """Replace a list's document by what `change` makes of it (None: there is none), in one transaction."""
        with self.write() as db:
            row = db.execute("select document from lists where name = ?", (name,)).fetchone()
            document = change(row[0] if row else None)
            if document is None:
                db.execute("delete from lists where name = ?", (name,))
            else:
                db.execute("insert or replace into lists values (?, ?)", (name, document))

    # build cache

    def step(self, key: str) -> tuple[str | None] | None:
        """The chain id (None: the empty stack) a step led to; None when unknown or its snapshot is gone."""
        row: tuple[str | None] | None = self._db().execute(_STEP, (key,)).fetchone()
        return row

    def drop_steps(self) -> None:
        """Forget what every step led to."""
        with self.write() as db:
            db.execute("delete from steps")

    def set_step(self, key: str, parent: str | None, chain_id: str | None) -> None:
        """Remember what a step led to."""
        with self.write() as db:
            db.execute("insert or replace into steps values (?, ?, ?)", (key, parent, chain_id))


def _snapshot_row(row: tuple[str, str, str | None, int, int, int]) -> SnapshotRow:
    chain_id, diff_id, parent, size, tar_size, regenerable = row
    return SnapshotRow(Digest(chain_id), Digest(diff_id), Digest(parent) if parent else None, size, tar_size, bool(regenerable))


def _connect(path: Path) -> sqlite3.Connection:
    if not path.exists():
        create_database(path, _SCHEMA)
    # One connection serves one thread (Catalog._db), but the garbage collector may close it from another.
    db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    db.execute("pragma synchronous = normal")
    version: int = db.execute("pragma user_version").fetchone()[0]
    if version in (1, 2, 3):  # what is new are tables only
        db.executescript(_SCHEMA)
        version = _VERSION
    if version != _VERSION:
        db.close()
        raise ImageError(f"{path}: written by another version of jupyter-sandbox", hint="update the older one, or choose another --root")
    return db
