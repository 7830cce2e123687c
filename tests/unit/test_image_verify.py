"""The images' oracle finds each kind of damage, and nothing where there is none."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandbox.image import archive
from sandbox.image.reference import Reference
from sandbox.image.store import Image, Store
from sandbox.oci import LAYER_GZIP, History, ImageConfig, RootFS, RunConfig
from tests.support.host import requires
from tests.support.image_verify import broken, layout_faults, strays, verify_layout, verify_store

pytestmark = requires("root", "image-schemas")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def image(store: Store) -> Image:
    """Two layers: the second has a long name, an attribute, a hard link, a whiteout and an opaque directory."""
    with store.draft() as draft:
        (draft.upper / "gone").write_text("x")
        (draft.upper / "d").mkdir()
        (draft.upper / "d/below").write_text("below")
        base = store.commit(draft, None)
    assert base is not None
    with store.draft() as draft:
        os.mknod(draft.upper / "gone", 0o020000, os.makedev(0, 0))
        (draft.upper / "d").mkdir()
        os.setxattr(draft.upper / "d", "user.overlay.opaque", b"y")
        deep = draft.upper / "d" / ("n" * 90) / ("m" * 90)
        deep.mkdir(parents=True)
        (deep / ("o" * 120)).write_text("long")
        (draft.upper / "tagged").write_text("a" * 700)
        os.setxattr(draft.upper / "tagged", "user.note", b"\x00\xff")
        os.link(draft.upper / "tagged", draft.upper / "twin")
        (draft.upper / "link").symlink_to("t" * 130)
        top = store.commit(draft, base.chain_id)
    assert top is not None
    config = ImageConfig(
        architecture="amd64",
        os="linux",
        config=RunConfig(env=["A=1"]),
        rootfs=RootFS("layers", [base.diff_id, top.diff_id]),
        history=[History(created_by="one"), History(created_by="two"), History(created_by="three", empty_layer=True)],
    )
    made = store.put_image(config)
    store.tag(Reference.parse("app"), made)
    return made


def test_a_whole_store_has_no_faults(store: Store, image: Image) -> None:
    verify_store(store.root)


def test_an_empty_store_has_no_faults(store: Store) -> None:
    verify_store(store.root)


def test_a_live_draft_is_no_stray(store: Store, image: Image) -> None:
    with store.draft():
        verify_store(store.root)


def sql(store: Store, statement: str, *values: str) -> None:
    with sqlite3.connect(store.root / "store.db") as db:
        db.execute("pragma foreign_keys = off")
        assert db.execute(statement, values).rowcount == 1
    db.close()


def blob(store: Store, digest: str) -> Path:
    return store.root / "blobs/sha256" / digest.removeprefix("sha256:")


def other_config(store: Store, image: Image, change: Callable[[dict[str, Any]], object]) -> None:
    """The image's config under another digest, its manifest likewise; all digests right, only what it says differs."""
    config = json.loads(image.config.raw)
    change(config)
    written = store.put_blob(json.dumps(config).encode(), "x")
    manifest = json.loads(image.manifest.raw)
    manifest["config"].update(digest=str(written.digest), size=written.size)
    described = store.put_blob(json.dumps(manifest).encode(), "x")
    sql(store, "insert into images values (?, ?)", str(written.digest), str(described.digest))


def other_manifest(store: Store, image: Image, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads(image.manifest.raw)
    change(manifest)
    described = store.put_blob(json.dumps(manifest).encode(), "x")
    sql(store, "update images set manifest = ? where id = ?", str(described.digest), str(image.id))


DAMAGES: dict[str, tuple[Callable[[Store, Image], object], str]] = {
    "blob changed": (lambda s, i: blob(s, i.id).write_bytes(i.config.raw.replace(b"A=1", b"A=2")), "its content is"),
    "config gone": (lambda s, i: blob(s, i.id).unlink(), "are not there"),
    "manifest gone": (lambda s, i: blob(s, i.manifest.digest).unlink(), "are not there"),
    "file of a snapshot changed": (lambda s, i: (s.snapshot(i.chain_ids[1]).path / "tagged").write_text("b" * 700), "its tar is"),
    "file of a snapshot grew": (lambda s, i: (s.snapshot(i.chain_ids[1]).path / "tagged").write_text("b" * 900), "its files hold"),
    "mode of a file changed": (lambda s, i: (s.snapshot(i.chain_ids[1]).path / "tagged").chmod(0o600), "its tar is"),
    "opaque mark lost": (lambda s, i: os.removexattr(s.snapshot(i.chain_ids[1]).path / "d", "user.overlay.opaque"), "its tar is"),
    "snapshot's directory gone": (lambda s, i: s.snapshot(i.chain_ids[1]).path.rename(s.root / "elsewhere"), "no directory"),
    "snapshot's row gone": (lambda s, i: sql(s, "delete from snapshots where chain_id = ?", i.chain_ids[1]), "has no snapshot"),
    "parent's row gone": (lambda s, i: sql(s, "delete from snapshots where chain_id = ?", i.chain_ids[0]), "has no row"),
    "wrong chain_id": (lambda s, i: sql(s, "update snapshots set parent = null where chain_id = ?", i.chain_ids[1]), "chain_id"),
    "wrong tar size": (lambda s, i: sql(s, "update snapshots set tar_size = 1 where chain_id = ?", i.chain_ids[1]), "promised 1"),
    "not regenerable": (lambda s, i: sql(s, "update snapshots set regenerable = 0 where chain_id = ?", i.chain_ids[1]), "neither a blob"),
    "dangling name": (lambda s, i: sql(s, "update names set image = ?", "sha256:" + "0" * 64), "name docker.io/library/app"),
    "history short": (lambda s, i: other_config(s, i, lambda c: c["history"].pop(0)), "history: 1 steps"),
    "history without empty_layer": (lambda s, i: other_config(s, i, lambda c: c["history"][2].pop("empty_layer")), "history: 3 steps"),
    "diff_id left out": (lambda s, i: other_config(s, i, lambda c: c["rootfs"]["diff_ids"].pop()), "2 layers, 1 diff_ids"),
    "config against the schema": (lambda s, i: other_config(s, i, lambda c: c.update(os=1)), "config $.os"),
    "env against the schema": (lambda s, i: other_config(s, i, lambda c: c["config"].update(Env="A=1")), "config $.config.Env"),
    "manifest against the schema": (lambda s, i: other_manifest(s, i, lambda m: m.update(schemaVersion=1)), "image-manifest"),
    "wrong size of the config": (lambda s, i: other_manifest(s, i, lambda m: m["config"].update(size=1)), "the manifest says 1"),
    "wrong size of a layer": (lambda s, i: other_manifest(s, i, lambda m: m["layers"][0].update(size=1)), "1 bytes in the manifest"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(store: Store, image: Image, name: str) -> None:
    damage, expected = DAMAGES[name]
    damage(store, image)
    found = broken(store.root)
    assert any(expected in fault for fault in found), found


def test_a_layer_blob_that_is_not_what_its_row_says_is_found(store: Store, image: Image) -> None:
    import gzip

    descriptor = store.put_blob(gzip.compress(b"other"), LAYER_GZIP)
    sql(store, "insert into layers values (?, ?, ?, 7)", image.diff_ids[0], descriptor.digest, LAYER_GZIP)
    found = "\n".join(broken(store.root))
    assert "promised 7" in found
    assert "its tar is" in found


STRAYS: dict[str, Callable[[Store], object]] = {
    "dead draft": lambda s: (s.root / "drafts/abc").mkdir(),
    "blob in the making": lambda s: (s.root / "blobs/sha256/.new-1").write_text("half"),
    "load in the making": lambda s: (s.root / ".load-x").mkdir(),
    "catalog in the making": lambda s: (s.root / "store.db.new-1").write_text("half"),
    "snapshot without a row": lambda s: (s.root / "snapshots" / ("0" * 64)).mkdir(),
    "blob nothing needs": lambda s: s.put_blob(b"alone", "x"),
}


@pytest.mark.parametrize("name", STRAYS)
def test_stray_is_found(store: Store, image: Image, name: str) -> None:
    STRAYS[name](store)
    assert len(strays(store.root)) == 1
    assert broken(store.root) == []
    with pytest.raises(AssertionError):
        verify_store(store.root)


@pytest.fixture
def layout(store: Store, image: Image, tmp_path: Path) -> Path:
    whole = io.BytesIO()
    archive.save(store, [(Reference.parse("app"), image)], whole, format="oci")
    whole.seek(0)
    with tarfile.open(fileobj=whole) as tar:
        tar.extractall(tmp_path / "layout", filter="data")
    return tmp_path / "layout"


def test_a_whole_layout_has_no_faults(layout: Path) -> None:
    verify_layout(layout)


def first_layer(layout: Path) -> Path:
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads((layout / "blobs/sha256" / index["manifests"][0]["digest"][7:]).read_text())
    return layout / "blobs/sha256" / manifest["layers"][0]["digest"][7:]


LAYOUT_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "layer changed": (lambda p: first_layer(p).write_bytes(b"x"), "its content is another"),
    "layer gone": (lambda p: first_layer(p).unlink(), "not there"),
    "stray blob": (lambda p: (p / "blobs/sha256" / ("0" * 64)).write_bytes(b""), "nothing names it"),
    "marker": (lambda p: (p / "oci-layout").write_text('{"imageLayoutVersion": "2"}'), "image-layout"),
    "index": (lambda p: (p / "index.json").write_text('{"manifests": []}'), "image-index"),
}


@pytest.mark.parametrize("name", LAYOUT_DAMAGES)
def test_damage_of_a_layout_is_found(layout: Path, name: str) -> None:
    damage, expected = LAYOUT_DAMAGES[name]
    damage(layout)
    found = layout_faults(layout)
    assert any(expected in fault for fault in found), found
