"""Names of containers: each is one container's, whoever comes, goes and is renamed at the same time."""

from __future__ import annotations

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox import ContainerError, Engine, InvalidOption, RunOptions
from sandbox.records import Record, Records
from sandbox.runtime.init import naming
from tests.support.host import requires

pytestmark = pytest.mark.anybody
running = requires("userns", "overlay", "tool:busybox")
_numbers = itertools.count()


def new_one(records: Records) -> str:
    """The id of a container that has a directory and no name yet."""
    identity = f"{next(_numbers):064x}"
    records.directory(identity).mkdir(parents=True)
    return identity


def test_a_name_that_many_take_and_give_up_is_never_two_containers(tmp_path: Path) -> None:
    records, lock = Records(tmp_path), threading.Lock()
    holders: set[str] = set()
    most = []

    def come_and_go(_: int) -> None:
        mine, names = new_one(records), list[str]()
        try:
            names.append(records.claim_name(mine, "only"))
        except ContainerError:
            pass
        else:
            with lock:
                holders.add(mine)
                most.append(len(holders))
            assert os.readlink(records.name_link("only")) == mine
            with lock:
                holders.remove(mine)
        records.remove(mine, names)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(come_and_go, range(2000)))
    assert set(most) == {1}
    assert len(most) > 10
    assert list((tmp_path / "names").iterdir()) == []


def at_once(link: str, container_id: str) -> bool:
    """What giving up must not be: nobody looks."""
    os.unlink(link)
    return bool(container_id)


@pytest.mark.parametrize(("give_up", "is_kept"), [(naming.give_up, True), (at_once, False)])
def test_whoever_takes_the_name_of_one_that_is_gone_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, give_up: object, is_kept: bool
) -> None:
    records = Records(tmp_path)
    gone, first, second = (new_one(records) for _ in range(3))
    records.claim_name(gone, "only")
    records.directory(gone).rmdir()

    def late(link: str, container_id: str) -> bool:
        """Both have seen that it is gone; the other is quicker."""
        monkeypatch.setattr(naming, "give_up", give_up)
        records.claim_name(first, "only")
        return naming.give_up(link, container_id)

    monkeypatch.setattr(naming, "give_up", late)
    if is_kept:
        with pytest.raises(ContainerError, match=f"already used by container {first[:12]}"):
            records.claim_name(second, "only")
    else:
        records.claim_name(second, "only")
    assert os.readlink(records.name_link("only")) == (first if is_kept else second)


def test_one_that_goes_leaves_its_name_to_who_has_it_by_now(tmp_path: Path) -> None:
    records = Records(tmp_path)
    first, second = new_one(records), new_one(records)
    records.claim_name(first, "only")
    records.directory(first).rmdir()
    records.claim_name(second, "only")
    records.remove(first, ["only"])
    assert os.readlink(records.name_link("only")) == second


@running
def test_a_name_is_taken_before_its_container_is_whole(engine: Engine, busybox_image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of one whose directory is not there yet looked like that of one that is gone: two containers got it."""
    real = Records.claim_name

    def while_it_is_made(self: Records, container_id: str, name: str | None) -> str:
        taken = real(self, container_id, name)
        with pytest.raises(ContainerError, match="already used"):
            real(self, "f" * 64, name)
        return taken

    monkeypatch.setattr(Records, "claim_name", while_it_is_made)
    assert engine.create("busybox", ["true"], options=RunOptions(name="only")).name == "only"


@running
@pytest.mark.parametrize(("name", "error"), [("taken", ContainerError), ("not/one", InvalidOption)])
def test_a_container_that_gets_no_name_leaves_nothing(engine: Engine, busybox_image: str, name: str, error: type[Exception]) -> None:
    engine.create("busybox", ["true"], options=RunOptions(name="taken"))
    before = sorted(os.listdir(engine.root / "containers"))
    with pytest.raises(error):
        engine.create("busybox", ["true"], options=RunOptions(name=name))
    assert sorted(os.listdir(engine.root / "containers")) == before


@running
def test_a_container_renamed_while_it_runs_takes_its_new_name_along_and_not_its_old_one(engine: Engine, busybox_image: str) -> None:
    moved = engine.start("busybox", ["sleep", "1000"], options=RunOptions(name="old", rm=True))
    moved.rename("new")
    other = engine.create("busybox", ["true"], options=RunOptions(name="old"))
    moved.stop(timeout=0)
    assert engine.container("old").id == other.id
    assert os.listdir(engine.root / "names") == ["old"]


@running
def test_a_rename_that_cannot_be_written_takes_no_name(engine: Engine, busybox_image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    container = engine.create("busybox", ["true"], options=RunOptions(name="old"))

    def full(self: Records, record: Record) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Records, "write", full)
        with pytest.raises(OSError, match="No space left"):
            container.rename("new")
    assert os.listdir(engine.root / "names") == ["old"]
    assert engine.container("old").id == container.id
