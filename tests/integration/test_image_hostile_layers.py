"""Layers that try to write outside of their directory. A canary beside it would tell."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.errors import InvalidImage, UnsafeLayer
from sandbox.image.apply import apply_tar

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[Path]:
    """An empty layer directory, with a canary outside that must not change."""
    canary = tmp_path / "canary"
    canary.write_text("alive")
    directory = tmp_path / "layer"
    directory.mkdir()
    yield directory
    assert canary.read_text() == "alive"
    assert canary.stat().st_nlink == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["canary", "layer"]


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", device: tuple[int, int] = (0, 0)) -> tarfile.TarInfo:
    """One tar entry."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, (info.devmajor, info.devminor) = kind, link, device
    info.size = 4 if kind == tarfile.REGTYPE else 0
    return info


def tar_of(*entries: tarfile.TarInfo) -> io.BytesIO:
    """Files of it hold `dead`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info in entries:
            tar.addfile(info, io.BytesIO(b"dead") if info.isreg() else None)
    out.seek(0)
    return out


HOSTILE = {
    "dots": [entry("../canary")],
    "dots inside": [entry("a/../../canary")],
    "link out, then through it": [entry("out", tarfile.SYMTYPE, ".."), entry("out/canary")],
    "absolute link, then through it": [entry("out", tarfile.SYMTYPE, "/"), entry("out/new")],
    "hard link out": [entry("hard", tarfile.LNKTYPE, "../canary")],
    "hard link through a link": [entry("out", tarfile.SYMTYPE, ".."), entry("hard", tarfile.LNKTYPE, "out/canary")],
    "whiteout of dots": [entry(".wh...")],
    "whiteout of the directory": [entry(".wh..")],
    "whiteout through a link": [entry("out", tarfile.SYMTYPE, ".."), entry("out/.wh.canary")],
    "a device that is a whiteout": [entry("gone", tarfile.CHRTYPE, device=(0, 0))],
    "unknown kind": [entry("odd", b"Z")],
    "a directory just written into becomes a link": [entry("d/a"), entry("d", tarfile.SYMTYPE, ".."), entry("d/canary")],
    "and its subdirectory": [entry("d/e/a"), entry("d", tarfile.SYMTYPE, "../.."), entry("d/e/canary")],
    "a directory just linked from becomes a link": [
        entry("d/canary"),
        entry("one", tarfile.LNKTYPE, "d/canary"),
        entry("d", tarfile.SYMTYPE, ".."),
        entry("two", tarfile.LNKTYPE, "d/canary"),
    ],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_layer_is_refused(layer: Path, name: str) -> None:
    with pytest.raises(UnsafeLayer):
        apply_tar(tar_of(*HOSTILE[name]), layer)


def test_absolute_name_lands_inside(layer: Path) -> None:
    apply_tar(tar_of(entry(f"{layer.parent}/canary")), layer)
    assert (layer / str(layer.parent)[1:] / "canary").read_text() == "dead"


def test_file_replaces_a_link_instead_of_following_it(layer: Path) -> None:
    apply_tar(tar_of(entry("f", tarfile.SYMTYPE, "../canary"), entry("f")), layer)
    assert (layer / "f").read_text() == "dead"
    assert not (layer / "f").is_symlink()


def test_what_follows_a_removed_directory_lands_in_a_new_one(layer: Path) -> None:
    apply_tar(tar_of(entry("d/e/a"), entry(".wh.d"), entry("d/e/b")), layer)
    assert [path.name for path in (layer / "d/e").iterdir()] == ["b"]
    assert os.getxattr(layer / "d", "user.overlay.opaque") == b"y"


def test_a_hard_link_into_a_directory_made_anew_finds_the_new_one(layer: Path) -> None:
    first = [entry("d/a"), entry("one", tarfile.LNKTYPE, "d/a"), entry(".wh.d")]
    apply_tar(tar_of(*first, entry("d/a"), entry("two", tarfile.LNKTYPE, "d/a")), layer)
    assert (layer / "two").samefile(layer / "d/a")
    assert not (layer / "one").samefile(layer / "d/a")


def test_whiteout_becomes_overlays_own(layer: Path) -> None:
    apply_tar(tar_of(entry("d", tarfile.DIRTYPE), entry("d/.wh.gone"), entry("e", tarfile.DIRTYPE), entry("e/.wh..wh..opq")), layer)
    status = os.lstat(layer / "d/gone")
    assert stat.S_ISCHR(status.st_mode)
    assert status.st_rdev == 0
    assert os.getxattr(layer / "e", "user.overlay.opaque") == b"y"


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, tar_of(entry("whole")).getvalue()[:600]])
def test_what_is_no_tar_is_an_error(layer: Path, data: bytes) -> None:
    with pytest.raises(InvalidImage):
        apply_tar(io.BytesIO(data), layer)
