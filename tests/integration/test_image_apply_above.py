"""A layer applied above others: where its entries land, and what the directories it does not name look like."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest

from sandbox.errors import UnsafeLayer
from sandbox.image.apply import apply_tar
from sandbox.image.tree import Tree
from tests.integration.test_image_hostile_layers import entry, tar_of
from tests.support.host import requires

pytestmark = requires("root")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """usr/lib, lib -> usr/lib, out -> /../../.. (a link that would leave), private/ of 7:8, loop -> loop."""
    root = tmp_path / "base"
    (root / "usr/lib").mkdir(parents=True)
    (root / "usr/lib/old").write_text("old")
    (root / "lib").symlink_to("usr/lib")
    (root / "absolute").symlink_to("/usr/lib")
    (root / "out").symlink_to("../../..")
    (root / "loop").symlink_to("loop")
    (root / "private").mkdir(mode=0o700)
    os.chown(root / "private", 7, 8)
    os.utime(root / "private", (1000, 1000))
    return root


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    (tmp_path / "upper").mkdir()
    return tmp_path / "upper"


def names(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


@pytest.mark.parametrize("link", ["lib", "absolute"])
def test_entry_below_a_link_of_a_lower_layer_lands_where_it_leads(base: Path, upper: Path, link: str) -> None:
    apply_tar(tar_of(entry(f"{link}/new"), entry(f"{link}/deep/er")), upper, [str(base)])
    assert names(upper) == ["usr", "usr/lib", "usr/lib/deep", "usr/lib/deep/er", "usr/lib/new"]
    assert {e.name for e in Tree([str(base), str(upper)]).scandir("/lib")} == {"deep", "new", "old"}


def test_a_link_that_would_leave_stops_at_the_root(base: Path, upper: Path) -> None:
    (base.parent / "canary").write_text("alive")
    apply_tar(tar_of(entry("out/canary")), upper, [str(base)])
    assert names(upper) == ["canary"]
    assert (base.parent / "canary").read_text() == "alive"


def test_whiteout_below_a_link_removes_what_the_container_sees(base: Path, upper: Path) -> None:
    apply_tar(tar_of(entry("lib/.wh.old")), upper, [str(base)])
    assert Tree([str(base), str(upper)]).lookup("/usr/lib/old") is None


def test_a_loop_of_links_is_refused(base: Path, upper: Path) -> None:
    with pytest.raises(UnsafeLayer, match="too many links"):
        apply_tar(tar_of(entry("loop/x")), upper, [str(base)])


def test_a_directory_the_layer_names_takes_the_place_of_a_lower_link(base: Path, upper: Path) -> None:
    apply_tar(tar_of(entry("lib", tarfile.DIRTYPE), entry("lib/new")), upper, [str(base)])
    assert names(upper) == ["lib", "lib/new"]


def test_a_link_of_the_same_layer_is_refused(base: Path, upper: Path) -> None:
    with pytest.raises(UnsafeLayer):
        apply_tar(tar_of(entry("own", tarfile.SYMTYPE, "usr/lib"), entry("own/x")), upper, [str(base)])


def test_a_removed_link_is_not_followed(base: Path, upper: Path) -> None:
    apply_tar(tar_of(entry(".wh.lib"), entry("lib/new")), upper, [str(base)])
    assert names(upper) == ["lib", "lib/new"]
    assert {e.name for e in Tree([str(base), str(upper)]).scandir("/lib")} == {"new"}


def test_a_removed_directory_made_again_hides_the_old_one(base: Path, upper: Path) -> None:
    apply_tar(tar_of(entry(".wh.usr"), entry("usr", tarfile.DIRTYPE), entry("usr/new")), upper, [str(base)])
    assert {e.name for e in Tree([str(base), str(upper)]).scandir("/usr")} == {"new"}


def test_a_directory_the_layer_does_not_name_keeps_owner_mode_and_time(base: Path, upper: Path) -> None:
    apply_tar(tar_of(entry("private/new")), upper, [str(base)])
    status = (upper / "private").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), status.st_mtime) == (7, 8, 0o700, 1000)


def test_devices_are_made_as_docker_makes_them(upper: Path) -> None:
    apply_tar(tar_of(entry("sda", tarfile.BLKTYPE, device=(8, 0)), entry("mem", tarfile.CHRTYPE, device=(1, 1))), upper)
    assert stat.S_ISBLK(os.lstat(upper / "sda").st_mode)
    assert os.lstat(upper / "mem").st_rdev == os.makedev(1, 1)
