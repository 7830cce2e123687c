"""After a power cut (another boot id) nothing is there in part: what no image had brought to the disk is forgotten."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from sandbox.image.durability import Writeback, boot_id, sync_file_system
from sandbox.image.store import Snapshot, Store
from sandbox.oci import Digest, ImageConfig, RootFS
from tests.support.host import requires
from tests.support.image_verify import verify_store

pytestmark = requires("root", "image-schemas")


def layer(store: Store, content: str, parent: Digest | None = None) -> Snapshot:
    with store.draft() as draft:
        (draft.upper / "f").write_text(content)
        os.utime(draft.upper / "f", (1, 1))  # the same layer whenever it is made
        made = store.commit(draft, parent)
    assert made is not None
    return made


def new_boot(store: Store) -> Store:
    """The same store as the first process after a reboot opens it."""
    with sqlite3.connect(store.root / "store.db") as db:
        assert db.execute("update boot set id = 'another'").rowcount == 1
    db.close()
    return Store(store.root)


def test_an_image_is_there_after_a_power_cut_and_a_lone_layer_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    kept = layer(store, "kept")
    image = store.put_image(ImageConfig(architecture="amd64", os="linux", rootfs=RootFS("layers", [kept.diff_id])))
    lone = layer(store, "lone", kept.chain_id)
    store.remember_step("key", kept.chain_id, lone.chain_id)
    assert store.cached_step("key") is not None
    (lone.path / "f").write_text("")  # what a power cut makes of it
    again = new_boot(store)
    assert [found.id for found in again.images()] == [image.id]
    assert again.tree(image.top).read("/f") == b"kept"
    assert again.cached_step("key") is None
    assert not lone.path.exists()
    assert layer(again, "lone", kept.chain_id).chain_id == lone.chain_id
    assert again.tree(lone.chain_id).read("/f") == b"lone"
    verify_store(store.root)


def test_a_directory_without_a_row_is_not_trusted_after_a_power_cut(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    half = store.root / "snapshots" / ("0" * 64)
    half.mkdir()
    assert new_boot(store).images() == []
    assert not half.exists()


def test_the_same_boot_keeps_what_is_not_synced(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    lone = layer(store, "lone")
    assert Store(store.root).snapshot(lone.chain_id).path.is_dir()


def test_boot_id_is_one_for_all(tmp_path: Path) -> None:
    assert boot_id() == boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    sync_file_system(tmp_path)
    with pytest.raises(OSError, match="missing"):
        sync_file_system(tmp_path / "missing")


def test_a_store_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    kept = layer(store, "kept")
    with sqlite3.connect(store.root / "store.db") as db:
        db.executescript("drop table packed; drop table unsynced; drop table boot; pragma user_version = 1;")
    db.close()
    assert Store(store.root).snapshot(kept.chain_id).size == 4
    verify_store(store.root)


def test_what_was_written_early_and_failed_is_told_at_the_end(tmp_path: Path) -> None:
    with Writeback(tmp_path) as early:
        early.begin()
    assert not early._thread.is_alive()
    with pytest.raises(FileNotFoundError), Writeback(tmp_path / "none") as early:
        early.begin()
        early._thread.join(30)  # an error ends it
    with pytest.raises(RuntimeError, match="its own"), Writeback(tmp_path / "none") as early:
        raise RuntimeError("its own")
