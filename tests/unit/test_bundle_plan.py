"""A bundle's config as a plan: mount options, cgroup writes for both versions, the order of the steps. No privileges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sandbox.errors import InvalidBundle, SandboxError, Unsupported
from sandbox.runtime.bundle import resources
from sandbox.runtime.bundle.config import Config, Mount, read_config
from sandbox.runtime.bundle.mounts import mount_step
from sandbox.runtime.bundle.plan import make_plan, split_namespaces
from sandbox.runtime.bundle.template import default_config
from sandbox.runtime.init import syscalls as s

V1 = (
    "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 25 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "33 25 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
    "34 25 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
    "35 25 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
V1_OWN = "5:cpuset:/\n4:memory:/box\n3:cpu,cpuacct:/box\n2:pids:/\n1:name=systemd:/\n0::/\n"
V2 = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V2_OWN = "0::/user.slice/box\n"
MEMORY = {"memory": {"limit": 1000, "swap": 3000, "reservation": 10}}


def groups(asked: dict[str, Any], *, v2: bool = False, path: str = "/engine/one") -> resources.Groups:
    trees = resources.hierarchies(V2, V2_OWN) if v2 else resources.hierarchies(V1, V1_OWN)
    return resources.plan_groups("one", path, asked, trees)


def config(change: Any = None) -> Config:
    plain = default_config()
    if change:
        change(plain)
    return msgspec.convert(plain, Config)


def plan(change: Any = None) -> dict[str, Any]:
    return make_plan(config(change), Path("/bundle"), groups({}), seccomp=None)


@pytest.mark.parametrize(
    ("options", "on", "off", "propagation"),
    [
        (["bind", "ro"], s.MOUNT_ATTR_RDONLY, 0, []),
        (["bind", "rw"], 0, s.MOUNT_ATTR_RDONLY, []),
        (["bind", "ro", "rw"], 0, s.MOUNT_ATTR_RDONLY, []),  # the last word counts
        (["bind", "nosuid", "nodev", "noexec"], s.MOUNT_ATTR_NOSUID | s.MOUNT_ATTR_NODEV | s.MOUNT_ATTR_NOEXEC, 0, []),
        (["bind", "noatime"], 0x10, 0x60, []),
        (["bind", "rprivate"], 0, 0, [s.MS_PRIVATE | s.MS_REC]),
        (["bind", "shared", "slave"], 0, 0, [1 << 20, 1 << 19]),
    ],
)
def test_mount_words_become_attributes(options: list[str], on: int, off: int, propagation: list[int]) -> None:
    name, arguments = mount_step(Mount("/x", source="/y", options=tuple(options)), Path("/b"), {})

    assert name == "bind"
    assert (arguments["attr_set"], arguments["attr_clear"] & ~on, arguments["propagation"]) == (on, off, propagation)


def test_the_r_forms_are_for_the_whole_tree() -> None:
    _, arguments = mount_step(Mount("/x", source="/y", options=("rbind", "rro", "nosuid")), Path("/b"), {})

    assert (arguments["recursive"], arguments["tree_set"], arguments["attr_set"]) == (True, s.MOUNT_ATTR_RDONLY, s.MOUNT_ATTR_NOSUID)


def test_words_of_the_file_system_are_passed_on() -> None:
    _, arguments = mount_step(Mount("/x", "tmpfs", "tmpfs", ("size=64k", "sync", "nosuid")), Path("/b"), {})

    assert arguments["data"] == [("size", "64k"), ("sync", None)]


def test_a_relative_source_is_below_the_bundle() -> None:
    assert mount_step(Mount("/x", source="data", options=("bind",)), Path("/b"), {})[1]["source"] == "/b/data"


@pytest.mark.parametrize("option", ["remount", "idmap"])
def test_mount_words_that_cannot_be_are_refused(option: str) -> None:
    with pytest.raises(InvalidBundle, match=option):
        mount_step(Mount("/x", "tmpfs", "tmpfs", (option,)), Path("/b"), {})


def test_v1_groups_are_made_in_every_tree() -> None:
    made = groups({})

    assert made.version == 1
    assert made.places["memory"] == "/sys/fs/cgroup/memory/engine/one"
    assert made.places["cpu"] == made.places["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct/engine/one"
    assert len(made.directories) == 5
    assert made.shown["systemd"] == "/sys/fs/cgroup/systemd/engine/one"


def test_a_relative_path_is_below_our_own_group() -> None:
    assert groups({}, path="x").places["memory"] == "/sys/fs/cgroup/memory/box/sandbox-oci/x"
    assert groups({}, path="", v2=True).places[""] == "/sys/fs/cgroup/user.slice/box/sandbox-oci/one"


def test_a_new_cpuset_gets_its_values_from_above() -> None:
    copies = groups({}).copies

    assert copies[0] == ("/sys/fs/cgroup/cpuset/cpuset.cpus", "/sys/fs/cgroup/cpuset/engine/cpuset.cpus")
    assert copies[-1] == ("/sys/fs/cgroup/cpuset/engine/cpuset.mems", "/sys/fs/cgroup/cpuset/engine/one/cpuset.mems")


@pytest.mark.parametrize(
    ("asked", "v1", "v2"),
    [
        (
            MEMORY,
            ["memory.soft_limit_in_bytes=10", "memory.limit_in_bytes=1000", "memory.memsw.limit_in_bytes=3000"],
            ["memory.low=10", "memory.max=1000", "memory.swap.max=2000"],
        ),
        ({"memory": {"limit": -1}}, ["memory.limit_in_bytes=-1"], ["memory.max=max"]),
        ({"cpu": {"shares": 1024}}, ["cpu.shares=1024"], ["cpu.weight=39"]),
        ({"cpu": {"quota": 50000, "period": 100000}}, ["cpu.cfs_period_us=100000", "cpu.cfs_quota_us=50000"], ["cpu.max=50000 100000"]),
        ({"cpu": {"quota": -1}}, ["cpu.cfs_quota_us=-1"], ["cpu.max=max 100000"]),
        ({"cpu": {"cpus": "0-1", "mems": "0"}}, ["cpuset.cpus=0-1", "cpuset.mems=0"], ["cpuset.cpus=0-1", "cpuset.mems=0"]),
        ({"pids": {"limit": 7}}, ["pids.max=7"], ["pids.max=7"]),
        ({"pids": {"limit": -1}}, ["pids.max=max"], ["pids.max=max"]),
        ({"memory": {"limit": 0}, "cpu": {"shares": 0}}, [], []),  # not given
    ],
)
def test_limits_in_both_versions(asked: dict[str, Any], v1: list[str], v2: list[str]) -> None:
    def shown(made: resources.Groups) -> list[str]:
        return [f"{path.rpartition('/')[2]}={text}" for path, text in made.writes]

    assert (shown(groups(asked)), shown(groups(asked, v2=True))) == (v1, v2)


def test_block_io_throttles_are_for_v2_one_file() -> None:
    asked = {
        "blockIO": {
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 5}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 6}],
        }
    }

    assert [text for _, text in groups(asked, v2=True).writes] == ["8:0 rbps=5", "8:0 wiops=6"]


@pytest.mark.parametrize(
    ("asked", "v2", "words"),
    [
        ({"memory": {"swappiness": 5}}, True, "v2"),
        ({"cpu": {"idle": 1, "novel": 2}}, False, "cpu.novel"),
        ({"blockIO": {"weight": 10}}, False, "no blkio controller"),
        ({"network": {"classID": 5}}, False, "no net_cls controller"),
        ({"unified": {"memory.high": "5"}}, False, "needs cgroup v2"),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}, False, "no hugetlb controller"),
    ],
)
def test_a_limit_that_cannot_be_enforced_is_refused(asked: dict[str, Any], v2: bool, words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        groups(asked, v2=v2)


def test_unified_names_stay_in_the_group() -> None:
    assert groups({"unified": {"memory.high": "5"}}, v2=True).writes == (("/sys/fs/cgroup/engine/one/memory.high", "5"),)
    with pytest.raises(InvalidBundle, match="no file name"):
        groups({"unified": {"../other/memory.max": "5"}}, v2=True)


def test_device_rules_end_with_what_every_container_may_use() -> None:
    tree = "36 25 0:32 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n"
    trees = resources.hierarchies(tree, "6:devices:/\n")
    asked = {"devices": [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 10, "access": "r"}]}

    writes = resources.plan_groups("one", "", asked, trees, ("b 8:0 rwm",)).writes

    assert [(path.rpartition(".")[2], text) for path, text in writes][:2] == [("deny", "a"), ("allow", "c 10:* r")]
    assert writes[-1][1] == "b 8:0 rwm"
    assert "c 1:3 rwm" in [text for _, text in writes]


def test_no_cgroups_is_an_error_only_for_limits() -> None:
    assert resources.plan_groups("one", "", {}, ()).places == {}
    with pytest.raises(Unsupported, match="no cgroup"):
        resources.plan_groups("one", "", MEMORY, ())


def test_new_and_joined_namespaces() -> None:
    def change(plain: dict[str, Any]) -> None:
        plain["linux"]["namespaces"] = [
            {"type": "mount"},
            {"type": "pid"},
            {"type": "network", "path": "/n"},
            {"type": "user", "path": "/u"},
        ]

    new, joined = split_namespaces(config(change).linux)

    assert new == s.CLONE_NEWNS | s.CLONE_NEWPID
    assert joined == [("/u", s.CLONE_NEWUSER), ("/n", s.CLONE_NEWNET)]  # the user namespace gives the right to the others


def test_the_root_is_left_last() -> None:
    made = plan()

    assert [name for name, _ in made["first_steps"]] == ["propagate", "open_root"]
    assert made["last_steps"][-1][0] == "enter_root"
    assert [name for name, _ in made["last_steps"]].index("protect_root") < [name for name, _ in made["last_steps"]].index("mask")


def test_the_callers_own_paths_are_opened_before_the_ids_change() -> None:
    made = plan(lambda c: c["mounts"].append({"destination": "/x", "source": "/host/dir", "options": ["rbind"]}))

    assert ("open_source", {"path": "/host/dir", "recursive": True}) in made["first_steps"]


def test_devices_are_bound_in_a_user_namespace() -> None:
    def change(plain: dict[str, Any]) -> None:
        mapping = [{"containerID": 0, "hostID": 1000, "size": 10}]
        plain["linux"]["namespaces"].append({"type": "user"})
        plain["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}

    bound = {a["path"]: a["bind_from"] for name, a in plan(change)["steps"] if name == "device"}
    made = {a["path"]: a["bind_from"] for name, a in plan()["steps"] if name == "device"}

    assert bound["/dev/null"] == "/dev/null"
    assert made["/dev/null"] == ""


def test_capabilities_keep_only_names_that_exist() -> None:
    made = plan(lambda c: c["process"].update(capabilities={"bounding": ["CAP_KILL", "CAP_FROM_TOMORROW"]}))

    assert made["process"]["capabilities"]["bounding"] == ["KILL"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"ociVersion": 1}', '{"ociVersion": "1.0.0", "mounts": [{}]}', "\xff", '{"ociVersion": "0.9"}']
)
def test_any_other_text_is_an_error_of_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")

    with pytest.raises(SandboxError):
        read_config(tmp_path)


def test_the_config_is_kept_byte_for_byte(tmp_path: Path) -> None:
    text = json.dumps(default_config(), indent=7) + "\n\n"
    (tmp_path / "config.json").write_text(text)

    assert read_config(tmp_path)[1] == text.encode()
