"""discover(): which trees there are and whether we may make groups in them, on made-up hosts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.runtime import cgroups
from tests.support.cgroup_tree import V2_FILES, Tree, fake_host, v2_files


def test_v1_host_shows_one_hierarchy_per_mount_with_comounted_controllers_together(tmp_path: Path) -> None:
    proc = fake_host(tmp_path, Tree(1, "cpu,cpuacct", "/user"), Tree(1, "memory", "/user"), Tree(1, "name=systemd"), Tree(1, "blkio"))
    layout = cgroups.discover(proc)
    assert [(h.version, sorted(h.controllers)) for h in layout.hierarchies] == [(1, ["cpu", "cpuacct"]), (1, ["memory"]), (1, ["blkio"])]
    assert layout.hierarchies[1].own == tmp_path / "cg/memory/user"
    assert layout.kind == "v1"


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [("/a/b", "/", "/a/b"), ("/a/b", "/a", "/b"), ("/a", "/a", ""), ("/", "/", "")],
)
def test_own_directory_is_seen_through_the_mounted_root(tmp_path: Path, path: str, root: str, below: str) -> None:
    proc = fake_host(tmp_path, Tree(1, "memory", path, root))
    assert str(cgroups.discover(proc).hierarchies[0].own) == f"{tmp_path}/cg/memory{below}"


@pytest.mark.parametrize(("path", "root"), [("/other", "/docker/1"), ("/docker/12", "/docker/1"), ("/../..", "/")])
def test_group_outside_the_mounted_tree_is_an_obstacle(tmp_path: Path, path: str, root: str) -> None:
    proc = fake_host(tmp_path, Tree(1, "memory"))
    for name, old, new in (("cgroup", "memory:/", f"memory:{path}"), ("mountinfo", "0:1 / ", f"0:1 {root} ")):
        file = proc / "self" / name
        file.write_text(file.read_text().replace(old, new))
    assert cgroups.discover(proc).obstacle("memory") == "our own cgroup is outside the mounted tree"


def test_mount_point_with_a_blank_is_unescaped(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    proc = fake_host(tmp_path / "a b", Tree(1, "pids"))
    assert cgroups.discover(proc).hierarchies[0].mount == tmp_path / "a b/cg/pids"


def test_host_without_cgroups_has_an_empty_layout(tmp_path: Path) -> None:
    layout = cgroups.discover(fake_host(tmp_path))
    assert layout.hierarchies == ()
    assert layout.kind == "none"
    assert layout.obstacle("memory") == "no memory cgroup controller here"


def test_true_v2_root_hands_controllers_down_although_it_has_processes(tmp_path: Path) -> None:
    proc = fake_host(tmp_path, Tree(2, "", files={**V2_FILES, "cgroup.procs": "1\n50\n100\n"}))
    (h,) = cgroups.discover(proc).hierarchies
    assert (h.crowd, h.evacuate) == ("", False)
    assert h.controllers == {"cpuset", "cpu", "io", "memory", "pids"}


def test_v2_group_with_strangers_inside_cannot_hand_controllers_down(tmp_path: Path) -> None:
    proc = fake_host(tmp_path, Tree(2, "", "/app/scope", files=v2_files("50\n100\n")), parents={50: 1})
    layout = cgroups.discover(proc)
    assert layout.obstacle("memory") == f"others are in {tmp_path}/cg/unified/app/scope and it was not delegated to us"


def test_v2_group_with_only_us_and_our_children_is_evacuated(tmp_path: Path) -> None:
    proc = fake_host(tmp_path, Tree(2, "", "/app/scope", files=v2_files("100\n101\n102\n")), parents={101: 100, 102: 101})
    layout = cgroups.discover(proc)
    assert layout.hierarchies[0].evacuate
    assert layout.obstacle("memory") is None


def test_process_that_ended_meanwhile_does_not_make_a_crowd(tmp_path: Path) -> None:
    proc = fake_host(tmp_path, Tree(2, "", "/app/scope", files=v2_files("100\n999\n")))
    assert cgroups.discover(proc).hierarchies[0].evacuate


def test_root_of_a_cgroup_namespace_is_evacuated(tmp_path: Path) -> None:
    proc = fake_host(tmp_path, Tree(2, "", "/", files=v2_files("1\n50\n100\n")), parents={50: 1})
    assert cgroups.discover(proc).hierarchies[0].evacuate


def test_delegated_group_is_evacuated(tmp_path: Path) -> None:
    proc = fake_host(tmp_path, Tree(2, "", "/app/scope", files=v2_files("50\n100\n")), parents={50: 1})
    own = tmp_path / "cg/unified/app/scope"
    try:
        os.setxattr(own, "user.delegate", b"1")
    except OSError as err:
        pytest.skip(f"no user xattrs in {tmp_path}: {err}")
    assert cgroups.discover(proc).hierarchies[0].evacuate


def test_second_engine_finds_the_emptied_group_from_its_leaf(tmp_path: Path) -> None:
    proc = fake_host(tmp_path, Tree(2, "", f"/app/scope/{cgroups.ENGINE}"))
    scope = tmp_path / "cg/unified/app/scope"
    for name, text in v2_files("").items():
        (scope / name).write_text(text)
    (h,) = cgroups.discover(proc).hierarchies
    assert (h.base, h.crowd, h.evacuate) == (scope, "", False)


def test_read_only_tree_is_an_obstacle_for_every_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = fake_host(tmp_path, Tree(1, "memory"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # what a read-only mount answers, to root as well
    assert cgroups.discover(proc).obstacle("memory") == f"{tmp_path}/cg/memory is not writable by uid {os.geteuid()}"


def test_missing_swap_accounting_is_told_apart(tmp_path: Path) -> None:
    without = cgroups.discover(fake_host(tmp_path / "1", Tree(1, "memory")))
    with_swap = cgroups.discover(fake_host(tmp_path / "2", Tree(1, "memory", files={"memory.memsw.limit_in_bytes": "1"})))
    assert without.obstacle("memory_swap") == "Linux does not account swap here"
    assert with_swap.obstacle("memory_swap") is None
