"""cp on this machine's side: docker's path rules, and that a hostile tar of a container changes nothing outside the target."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.cli.copy import Extraction, Place, first_member, host_target, pack
from sandbox.errors import InvalidInput, UnsafeLayer

Member = tuple[tarfile.TarInfo, bytes | None]


def entry(name: str, data: bytes | None = None, **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.mode = 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    if data is not None:
        info.size = len(data)
    return info, data


def directory(name: str, mode: int = 0o755) -> Member:
    return entry(name, type=tarfile.DIRTYPE, mode=mode)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Member:
    return entry(name, type=kind, linkname=target)


def extract(members: list[Member], target: Path, name: str = "copy") -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data) if data is not None else None)
    first = first_member(out)
    with tarfile.open(fileobj=out, mode="r|") as archive, Extraction.below(target, first.name, name) as extraction:
        for member in archive:
            extraction.add(member, archive.extractfile(member) if member.isreg() else None)


def snapshot(place: Path) -> list[tuple[str, int, bytes | str | None]]:
    """Every path below, with its mode and what it holds."""
    return [(str(path), path.lstat().st_mode, content(path)) for path in sorted(place.rglob("*"))]


def content(path: Path) -> bytes | str | None:
    if path.is_symlink():
        return os.readlink(path)
    return path.read_bytes() if path.is_file() else None


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A directory beside the target that must not change."""
    place = tmp_path / "canary"
    (place / "inner").mkdir(parents=True)
    (place / "precious").write_text("precious")
    before = snapshot(place)
    yield place
    assert snapshot(place) == before


@pytest.fixture
def target(tmp_path: Path) -> Path:
    place = tmp_path / "target"
    place.mkdir()
    return place


def test_the_canary_sees_a_change(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "file").write_text("a")
    before = snapshot(place)
    (place / "file").write_text("b")
    assert snapshot(place) != before


def test_a_tree_comes_out_under_its_new_name(target: Path) -> None:
    extract(
        [
            directory("app", 0o750),
            entry("app/run", b"#!", mode=0o4755, mtime=1000),
            directory("app/data", 0o555),
            entry("app/data/x", b"x"),
            link("app/link", "data/x"),
            link("app/hard", "app/data/x", tarfile.LNKTYPE),
        ],
        target,
    )
    assert stat.S_IMODE((target / "copy").stat().st_mode) == 0o750
    assert stat.S_IMODE((target / "copy/run").stat().st_mode) == 0o755
    assert (target / "copy/run").stat().st_mtime == 1000
    assert stat.S_IMODE((target / "copy/data").stat().st_mode) == 0o555
    assert os.readlink(target / "copy/link") == "data/x"
    assert (target / "copy/hard").stat().st_ino == (target / "copy/data/x").stat().st_ino


def test_contents_go_into_the_directory_itself(target: Path) -> None:
    extract([directory("."), entry("a", b"a"), directory("d"), entry("d/b", b"b")], target, name="")
    assert sorted(path.name for path in target.rglob("*")) == ["a", "b", "d"]


def test_a_file_replaces_a_file_and_not_what_a_link_points_to(target: Path, canary: Path) -> None:
    (target / "copy").symlink_to(canary / "precious")
    extract([entry("f", b"new")], target)
    assert not (target / "copy").is_symlink()
    assert (target / "copy").read_bytes() == b"new"


Attack = Callable[[Path], list[Member]]
ATTACKS: dict[str, Attack] = {
    "a name with ..": lambda canary: [directory("d"), entry("d/../../canary/precious", b"owned")],
    "an absolute name": lambda canary: [directory("d"), entry(f"{canary}/precious", b"owned")],
    "a name beside the top": lambda canary: [directory("d"), entry("other/x", b"owned")],
    "a symlink out, then a file through it": lambda canary: [directory("d"), link("d/l", str(canary)), entry("d/l/precious", b"owned")],
    "a relative symlink out, then a file through it": lambda canary: [
        directory("d"),
        link("d/l", "../../canary"),
        entry("d/l/precious", b"owned"),
    ],
    "a chain of symlinks": lambda canary: [directory("d"), link("d/a", ".."), link("d/b", "a/../canary"), entry("d/b/precious", b"owned")],
    "a symlink as the top": lambda canary: [link("d", str(canary)), entry("d/precious", b"owned")],
    "a directory over a symlink": lambda canary: [
        directory("d"),
        link("d/l", str(canary)),
        directory("d/l", 0o777),
        entry("d/l/new", b"owned"),
    ],
    "a hard link out": lambda canary: [directory("d"), link("d/h", str(canary / "precious"), tarfile.LNKTYPE), entry("d/h", b"owned")],
    "a hard link out with ..": lambda canary: [directory("d"), link("d/h", "d/../../canary/precious", tarfile.LNKTYPE)],
    "a hard link through a symlink": lambda canary: [
        directory("d"),
        link("d/l", str(canary)),
        link("d/h", "d/l/precious", tarfile.LNKTYPE),
    ],
    "a device": lambda canary: [directory("d"), entry("d/sda", type=tarfile.BLKTYPE, devmajor=8, devminor=0)],
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_an_escape_is_refused_and_the_canary_lives(attack: Attack, target: Path, canary: Path) -> None:
    with pytest.raises(UnsafeLayer):
        extract(attack(canary), target)


def test_a_hard_link_to_a_file_that_was_there_before_is_refused(target: Path) -> None:
    (target / "copy").mkdir()
    (target / "copy/mine").write_text("mine")
    with pytest.raises(UnsafeLayer, match="not in the copy"):
        extract([directory("d"), link("d/h", "d/mine", tarfile.LNKTYPE)], target)


def test_a_link_in_the_target_is_not_followed(target: Path, canary: Path) -> None:
    (target / "copy").mkdir()
    (target / "copy/inner").symlink_to(canary / "inner")
    with pytest.raises(UnsafeLayer, match=r"link or no directory|in its place"):
        extract([directory("d"), directory("d/inner"), entry("d/inner/x", b"x")], target)


def test_a_file_does_not_replace_a_directory(target: Path) -> None:
    (target / "copy").mkdir()
    with pytest.raises(UnsafeLayer, match="directory is in its place"):
        extract([entry("f", b"x")], target)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("web:/etc", Place("web", "/etc")), ("web:relative", Place("web", "relative")),
        ("/a:b", Place(None, "/a:b")), ("./a:b", Place(None, "./a:b")),
        ("file", Place(None, "file")), ("-", Place(None, "-")), ("web:/a:b", Place("web", "/a:b")),
    ],
)  # fmt: skip
def test_places_are_read_by_dockers_rule(text: str, place: Place) -> None:
    assert Place.parse(text) == place


@pytest.mark.parametrize("text", [":/etc", "web:"])
def test_half_a_place_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="CONTAINER:PATH"):
        Place.parse(text)


def test_docker_rules_for_a_target_here(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").write_text("")
    at = str(tmp_path)
    assert host_target(f"{at}/dir", "file", "/etc/passwd") == (tmp_path / "dir", "passwd")
    assert host_target(f"{at}/new", "file", "/etc/passwd") == (tmp_path, "new")
    assert host_target(f"{at}/file", "file", "/etc/passwd") == (tmp_path, "file")
    assert host_target(f"{at}/dir", "directory", "/etc") == (tmp_path / "dir", "etc")
    assert host_target(f"{at}/dir", "directory", "/etc/") == (tmp_path / "dir", "etc")
    assert host_target(f"{at}/dir", "directory", "/etc/.") == (tmp_path / "dir", "")
    assert host_target(f"{at}/new", "directory", "/etc") == (tmp_path, "new")


@pytest.mark.parametrize(("target", "kind"), [("new/", "file"), ("file", "directory"), ("missing/new", "file")])
def test_targets_that_cannot_be(tmp_path: Path, target: str, kind: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput):
        host_target(f"{tmp_path}/{target}", kind, "/etc/x")  # type: ignore[arg-type]


def test_what_goes_into_a_container_belongs_to_root(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("x")
    out = io.BytesIO()
    pack(str(tmp_path / "d"), "new", out, keep_owners=False)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        assert archive.getnames() == ["new", "new/f"]
        assert {(m.uid, m.gid, m.uname) for m in archive} == {(0, 0, "")}
