"""A disk that fills up while images come, go and are made: the error says so, the store is what it was, and with space the same works."""

from __future__ import annotations

import gc
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from sandbox import Engine, RunOptions, SandboxError
from sandbox.cli.copy import copy_in, copy_out
from sandbox.image.packing import Packing
from tests.support import image_verify
from tests.support.bad_registry import BadRegistry, bad_registry
from tests.support.host import requires
from tests.support.small_disk import fill, small_disk

pytestmark = requires("root", "userns", "overlay", "tool:busybox")

LARGE = 4 << 20
"""Bytes that nothing makes smaller."""
LEFT = 1 << 20
"""What is free meanwhile: each of them fails in the middle of LARGE."""


class Ground(msgspec.Struct, frozen=True):
    """`engine` on a `disk` that is about to be full, with the image `app` and the stopped container `box`, both with a LARGE file;
    `away`: a directory elsewhere, with an archive of the image, a root file system, a build context and a LARGE file."""

    engine: Engine
    disk: Path
    away: Path
    registry: BadRegistry

    @property
    def sent(self) -> str:
        """Another name of the image, in the registry."""
        return f"{self.registry.host}/sent/app:1"

    @property
    def state(self) -> object:
        """What the store has, without the name that a build which fails gives to how far it came."""
        store = self.engine.root
        names = sorted(str(row) for row in self.engine.images() if row.tag != "failed")
        return names, *(sorted(os.listdir(store / place)) for place in ("blobs/sha256", "snapshots", "drafts"))


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory, busybox_tar: Path) -> Path:
    place = tmp_path_factory.mktemp("away")
    (place / "context").mkdir()
    for name in ("large", "context/other"):
        (place / name).write_bytes(os.urandom(LARGE))
    root = place / "root.tar"
    root.write_bytes(busybox_tar.read_bytes())
    with tarfile.open(root, "a") as tar:
        tar.add(place / "large", "large")
    with Engine(place / "engine") as engine:
        (place / "context/layer").write_bytes(os.urandom(LARGE))
        engine.import_image(busybox_tar, "base")
        engine.build(place / "context", dockerfile="FROM base\nCOPY layer /\n", tags=["loaded"])
        engine.save(["loaded"], place / "loaded.tar")
    return place


@pytest.fixture
def ground(tmp_path: Path, away: Path) -> Iterator[Ground]:
    with small_disk(tmp_path / "disk", 64) as disk, bad_registry() as registry, Engine(disk / "engine") as engine:
        made = Ground(engine, disk, away, registry)
        engine.import_image(away / "root.tar", "app")
        engine.tag("app", made.sent)
        engine.run("app", ["cp", "/large", "/changed"], options=RunOptions(name="box"))
        yield made
        for container in engine.containers(all=True):
            container.remove(force=True)


Act = Callable[[Ground], object]
VERBS: dict[str, Act] = {
    "import": lambda on: on.engine.import_image(on.away / "root.tar", "new"),
    "load": lambda on: on.engine.load(on.away / "loaded.tar"),
    "build": lambda on: on.engine.build(on.away / "context", dockerfile="FROM app\nCOPY other /\n", tags=["new"]),
    "commit": lambda on: on.engine.container("box").commit("new"),
    "save": lambda on: on.engine.save(["app"], on.disk / "new.tar"),
    "save, compressed": lambda on: on.engine.save(["app"], on.away / "new.tar", compression="gzip"),
    "push": lambda on: on.engine.push(on.sent),
    "push, zstd": lambda on: on.engine.push(on.sent, packing=Packing("zstd")),
    "image copy out": lambda on: on.engine.copy_image("app", f"oci:{on.disk}/new"),
    "image copy to an archive": lambda on: on.engine.copy_image("app", f"oci-archive:{on.disk}/new.tar"),
    "image copy in": lambda on: on.engine.copy_image(f"docker-archive:{on.away}/loaded.tar", "store:new"),
    "export": lambda on: _export(on),
    "cp out": lambda on: copy_out(on.engine.container("box"), "/large", str(on.disk / "new")),
}


def _export(on: Ground) -> None:
    with (on.disk / "new").open("wb") as out:
        on.engine.container("box").export(out)


@pytest.mark.parametrize("verb", VERBS)
def test_without_space_it_is_an_error_the_store_is_what_it_was_and_with_space_it_works(ground: Ground, verb: str) -> None:
    before = ground.state
    ballast = fill(ground.disk, but=LEFT)
    with pytest.raises((SandboxError, OSError), match=r"(?i)no space"):
        VERBS[verb](ground)
    assert image_verify.broken(ground.engine.root) == []
    ballast.unlink()
    assert ground.state == before
    image_verify.verify_store(ground.engine.root)
    assert verb in ("export", "cp out") or [path.name for path in ground.disk.iterdir()] == ["engine"]
    VERBS[verb](ground)
    image_verify.verify_store(ground.engine.root)


def test_nobody_waits_for_the_threads_of_a_push_that_failed(ground: Ground) -> None:
    fill(ground.disk, but=LEFT)
    with pytest.raises((SandboxError, OSError), match=r"(?i)no space"):
        ground.engine.push(ground.sent)
    gc.collect()  # by another thread than compressed, whose workers ended with it


def test_what_is_copied_into_a_container_without_space_is_an_error_that_names_it(ground: Ground) -> None:
    ballast = fill(ground.disk, but=LEFT)
    with pytest.raises(SandboxError, match="new: no space"):
        copy_in(str(ground.away / "large"), ground.engine.container("box"), "/new")
    ballast.unlink()
    copy_in(str(ground.away / "large"), ground.engine.container("box"), "/new")
    copy_out(ground.engine.container("box"), "/new", str(ground.disk / "back"))
    assert (ground.disk / "back").read_bytes() == (ground.away / "large").read_bytes()


def test_the_state_would_show_a_layer_more(ground: Ground) -> None:
    """The twin."""
    before = ground.state
    VERBS["import"](ground)
    assert ground.state != before
