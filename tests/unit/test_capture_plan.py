"""The captured tree as a value, and writing it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sandbox.errors import ImageError
from sandbox.image.capture_plan import Plan, Writer, Written, stamp


def write(plan: Plan, root: Path) -> Written:
    root.mkdir()
    return Writer(root).write(plan)


def tree(root: Path) -> dict[str, tuple[int, int, bytes]]:
    found = {}
    for directory, names, files in os.walk(root):
        for path in (Path(directory, name) for name in (*names, *files)):
            status = path.lstat()
            content = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
            found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, content)
    return found


def test_a_host_file_brings_every_link_on_its_way(tmp_path: Path) -> None:
    host = tmp_path / "host"
    (host / "usr/bin").mkdir(parents=True)
    (host / "etc").mkdir()
    (host / "usr/bin/mawk").write_text("awk")
    (host / "bin").symlink_to("usr/bin")
    (host / "usr/bin/awk").symlink_to(host / "etc/awk")
    (host / "etc/awk").symlink_to("../bin/mawk")
    plan = Plan()
    assert plan.host(str(host / "bin/awk"))
    write(plan, tmp_path / "out")
    inside = Path(f"{tmp_path}/out{host}")
    assert os.readlink(inside / "bin") == "usr/bin"
    assert os.readlink(inside / "usr/bin/awk") == str(host / "etc/awk")
    assert os.readlink(inside / "etc/awk") == "../bin/mawk"
    assert (inside / "usr/bin/mawk").read_text() == "awk"


def test_a_missing_or_unreadable_kind_of_file_is_said(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    plan = Plan()
    assert not plan.host(str(tmp_path / "gone"))
    assert not plan.host(str(tmp_path / "pipe"))
    with pytest.raises(ImageError, match="not a regular file"):
        plan.file("/pipe", str(tmp_path / "pipe"))


def test_a_planned_path_goes_through_planned_links(tmp_path: Path) -> None:
    plan = Plan()
    plan.directory("/usr/lib")
    plan.link("/lib", "usr/lib")
    plan.generated("/lib/x", "here")
    assert plan.resolve("/lib/x") == "/usr/lib/x"
    write(plan, tmp_path / "out")
    assert (tmp_path / "out/usr/lib/x").read_text() == "here"


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    plan = Plan()
    plan.link("/a", "b")
    plan.link("/b", "a")
    plan.resolve("/a/x")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert not plan.host(str(tmp_path / "a"))


def test_the_first_to_name_a_path_wins(tmp_path: Path) -> None:
    plan = Plan()
    plan.generated("/etc/x", "first")
    plan.generated("/etc/x", "second")
    write(plan, tmp_path / "out")
    assert (tmp_path / "out/etc/x").read_text() == "first"


def test_setuid_and_write_for_others_do_not_come_along(tmp_path: Path) -> None:
    source = tmp_path / "su"
    source.write_text("x")
    source.chmod(0o6777)
    plan = Plan()
    plan.file("/bin/su", str(source))
    write(plan, tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out/bin/su").stat().st_mode) == 0o755


def test_files_are_copies_and_one_inode_stays_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    os.link(tmp_path / "a", tmp_path / "b")
    plan = Plan()
    for name in "ab":
        plan.file(f"/{name}", str(tmp_path / name))
    write(plan, tmp_path / "out")
    first, second = (tmp_path / "out/a").stat(), (tmp_path / "out/b").stat()
    assert first.st_ino == second.st_ino != (tmp_path / "a").stat().st_ino
    (tmp_path / "a").write_text("changed on the host")
    assert (tmp_path / "out/b").read_text() == "one"


def test_an_edit_is_told_and_one_that_gives_nothing_leaves_the_file_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    plan = Plan()
    plan.file("/edited", str(tmp_path / "a"), lambda data: data.replace(b"old", b"newer"))
    plan.file("/same", str(tmp_path / "a"), lambda data: data)
    plan.file("/gone", str(tmp_path / "a"), lambda data: None)
    written = write(plan, tmp_path / "out")
    assert {path: size for path, (_, size) in written.edited.items()} == {"/edited": 5}
    assert written.dropped == ("/gone",)
    assert written.copied == {"/edited", "/same"}
    assert sorted(os.listdir(tmp_path / "out")) == ["edited", "same"]


def test_two_writings_are_the_same_tree_to_the_nanosecond(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_text("x")
    os.utime(source, ns=(5_500_000_000, 7_600_000_001))
    plan = Plan()
    plan.file("/usr/a", str(source))
    plan.generated("/etc/b", "x")
    plan.link("/c", "usr")
    for name in ("one", "two"):
        written = write(plan, tmp_path / name)
        assert written.newest == 7
        stamp(tmp_path / name, written.newest, copied=written.copied)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert {when for _, when, _ in tree(tmp_path / "one").values()} == {7_000_000_000}


def test_a_file_made_after_writing_is_stamped_too(tmp_path: Path) -> None:
    plan = Plan()
    plan.directory("/usr")
    write(plan, tmp_path / "out")
    (tmp_path / "out/usr/made").write_text("later")
    stamp(tmp_path / "out", 7, copied=frozenset())
    assert (tmp_path / "out/usr/made").stat().st_mtime_ns == (tmp_path / "out/usr").stat().st_mtime_ns == 7_000_000_000


def test_a_host_tree_leaves_out_what_it_is_told_to(tmp_path: Path) -> None:
    host = tmp_path / "zones"
    for name in ("Europe/Berlin", "posix/Europe/Berlin", "UTC"):
        (host / name).parent.mkdir(parents=True, exist_ok=True)
        (host / name).write_text(name)
    plan = Plan()
    assert plan.host_tree(str(host), skip=("posix",))
    assert not plan.host_tree(str(tmp_path / "gone"))
    files = {path.removeprefix(f"{host}/") for path, entry in plan.entries.items() if entry.kind == "file"}
    assert files == {"Europe/Berlin", "UTC"}
