"""Layout.plan(): the directories, writes and joins of a container's groups, pure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandbox import errors
from sandbox.runtime import cgroups
from sandbox.runtime.cgroups import Hierarchy, Layout
from sandbox.runtime.spec import Limits, Rate

GOLDEN = Path(__file__).parents[1] / "golden" / "cgroups"
MIB = 1 << 20
EVERYTHING = Limits(
    memory=64 * MIB,
    memory_swap=96 * MIB,
    memory_reservation=32 * MIB,
    cpus=1.5,
    cpu_shares=512,
    cpuset_cpus="0-1",
    cpuset_mems="0",
    pids=20,
    blkio_weight=500,
    io=(Rate("read_bps", "8:0", MIB), Rate("write_iops", "8:0", 100)),
)


def tree(
    version: cgroups.Version, name: str, *controllers: str, evacuate: bool = False, obstacle: str = "", swap: bool = True
) -> Hierarchy:
    mount = Path("/cg") / name
    own = mount / "own"
    return Hierarchy(version, frozenset(controllers), mount, own, own, swap=swap, obstacle=obstacle, evacuate=evacuate)


V1 = Layout(
    tuple(tree(1, name.replace(",", "+"), *name.split(",")) for name in ("cpu,cpuacct", "cpuset", "memory", "pids", "blkio", "freezer"))
)
V2 = Layout((tree(2, "", "cpuset", "cpu", "memory", "pids", "io"),))
V2_CROWDED = Layout((tree(2, "", "cpuset", "cpu", "memory", "pids", "io", evacuate=True),))
HYBRID = Layout((*V1.hierarchies, tree(2, "unified")))


@pytest.mark.parametrize(("name", "layout"), [("v1", V1), ("v2", V2), ("v2-evacuating", V2_CROWDED), ("hybrid", HYBRID)])
def test_plan_for_every_limit_is_the_golden_one(name: str, layout: Layout) -> None:
    plan = layout.plan("abc", EVERYTHING)
    assert json.loads(json.dumps(plan.plain())) == json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("layout", [V1, V2, V2_CROWDED, HYBRID])
def test_plan_travels_as_json_and_back(layout: Layout) -> None:
    plan = layout.plan("abc", EVERYTHING)
    assert cgroups.Plan.from_plain(json.loads(json.dumps(plan.plain()))) == plan


def writes(layout: Layout, limits: Limits) -> dict[str, str]:
    """File name → text, of the limits only."""
    return {Path(path).name: text for path, text in layout.plan("abc", limits).writes if "subtree_control" not in path}


@pytest.mark.parametrize(
    ("limits", "v1", "v2"),
    [
        (Limits(), {}, {}),
        (
            Limits(memory=MIB),  # docker: swap as much again
            {"memory.limit_in_bytes": "1048576", "memory.memsw.limit_in_bytes": "2097152"},
            {"memory.max": "1048576", "memory.oom.group": "1", "memory.swap.max": "1048576"},
        ),
        (
            Limits(memory=MIB, memory_swap=MIB),  # docker: no swap at all
            {"memory.limit_in_bytes": "1048576", "memory.memsw.limit_in_bytes": "1048576"},
            {"memory.max": "1048576", "memory.oom.group": "1", "memory.swap.max": "0"},
        ),
        (
            Limits(memory=MIB, memory_swap=-1),
            {"memory.limit_in_bytes": "1048576", "memory.memsw.limit_in_bytes": "-1"},
            {"memory.max": "1048576", "memory.oom.group": "1", "memory.swap.max": "max"},
        ),
        (Limits(cpus=0.5), {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}, {"cpu.max": "50000 100000"}),
        (Limits(cpus=0.001), {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "1000"}, {"cpu.max": "1000 100000"}),
        (Limits(pids=5), {"pids.max": "5"}, {"pids.max": "5"}),
        (Limits(pids=0), {"pids.max": "max"}, {"pids.max": "max"}),
        (Limits(pids=-1), {"pids.max": "max"}, {"pids.max": "max"}),
        (Limits(cpuset_mems="0"), {"cpuset.mems": "0"}, {"cpuset.mems": "0"}),
        (Limits(cpu_shares=1024), {"cpu.shares": "1024"}, {"cpu.weight": "39"}),
        (Limits(cpu_shares=2), {"cpu.shares": "2"}, {"cpu.weight": "1"}),
        (Limits(memory_reservation=MIB), {"memory.soft_limit_in_bytes": "1048576"}, {"memory.low": "1048576"}),
        (Limits(blkio_weight=1000), {"blkio.bfq.weight": "1000"}, {"io.weight": "default 10000"}),
        (
            Limits(io=(Rate("write_bps", "8:16", MIB),)),
            {"blkio.throttle.write_bps_device": "8:16 1048576"},
            {"io.max": "8:16 wbps=1048576"},
        ),
        (Limits(io=(Rate("read_iops", "8:16", 9),)), {"blkio.throttle.read_iops_device": "8:16 9"}, {"io.max": "8:16 riops=9"}),
        (Limits(cpuset_cpus="0,2-3"), {"cpuset.cpus": "0,2-3"}, {"cpuset.cpus": "0,2-3"}),
    ],
)
def test_each_limit_is_written_in_each_versions_words(limits: Limits, v1: dict[str, str], v2: dict[str, str]) -> None:
    assert writes(V1, limits) == v1
    assert writes(HYBRID, limits) == v1
    assert writes(V2, limits) == v2


@pytest.mark.parametrize(
    "limits",
    [
        Limits(memory_swap=MIB),
        Limits(memory=2 * MIB, memory_swap=MIB),
        Limits(memory=MIB, memory_reservation=2 * MIB),
        Limits(memory_swappiness=101),
        Limits(cpu_shares=1),
        Limits(blkio_weight=9),
        Limits(cpuset_cpus="one"),
        Limits(cpuset_mems="0;1"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused(limits: Limits) -> None:
    with pytest.raises(errors.InvalidOption):
        V2.plan("abc", limits)


@pytest.mark.parametrize(
    ("limits", "feature"),
    [
        (Limits(memory=MIB), "memory limit"),
        (Limits(pids=1), "process limit"),
        (Limits(cpus=1), "CPU limit"),
        (Limits(cpuset_cpus="0"), "CPU set"),
    ],
)
def test_limit_that_cannot_be_enforced_is_an_error_or_listed(limits: Limits, feature: str) -> None:
    bare = Layout((tree(2, "unified"),))
    with pytest.raises(errors.Unsupported) as caught:
        bare.plan("abc", limits)
    assert caught.value.feature == feature
    assert "--allow-unenforced" in str(caught.value.hint)
    plan = bare.plan("abc", limits, allow_unenforced=True)
    assert plan.unenforced == (str(caught.value),)
    assert plan.writes == ()


def test_limit_only_one_version_has_is_refused_on_the_other() -> None:
    assert writes(V1, Limits(memory_swappiness=10)) == {"memory.swappiness": "10"}
    with pytest.raises(errors.Unsupported, match=r"swappiness: only cgroup memory \(v1\) has it"):
        V2.plan("abc", Limits(memory_swappiness=10))


def test_swap_limit_without_swap_accounting_is_an_error_only_when_asked_for() -> None:
    layout = Layout((tree(1, "memory", "memory", swap=False),))
    assert writes(layout, Limits(memory=MIB)) == {"memory.limit_in_bytes": "1048576"}
    assert writes(layout, Limits(memory=MIB, memory_swap=-1)) == {"memory.limit_in_bytes": "1048576"}
    with pytest.raises(errors.Unsupported, match="swap limit: Linux does not account swap here"):
        layout.plan("abc", Limits(memory=MIB, memory_swap=MIB))


def test_swap_file_may_be_missing_only_when_nobody_asked_for_it() -> None:
    assert [Path(path).name for path in V2.plan("abc", Limits(memory=MIB)).optional] == ["memory.oom.group", "memory.swap.max"]
    optional = V2.plan("abc", Limits(memory=MIB, memory_swap=MIB)).optional
    assert [Path(path).name for path in optional] == ["memory.oom.group"]


def test_host_without_cgroups_runs_containers_without_limits() -> None:
    assert Layout(()).plan("abc", Limits()) == cgroups.Plan("abc")


def test_nobody_is_moved_for_a_container_without_limits() -> None:
    plan = V2_CROWDED.plan("abc", Limits())
    assert plan.moves == ()
    assert plan.writes == ()
    assert plan.groups == ("/cg/own/jupyter-sandbox/abc",)


def test_only_the_trees_that_serve_are_joined() -> None:
    joined = {Path(path).parts[2] for path in HYBRID.plan("abc", Limits(memory=MIB)).joins}
    assert joined == {"unified", "memory", "pids"}
    assert {Path(path).parts[2] for path in V1.plan("abc", Limits()).joins} == {"cpu+cpuacct", "memory", "pids", "freezer"}


def test_tree_we_may_not_write_to_is_left_out_when_nothing_needs_it() -> None:
    layout = Layout((tree(1, "memory", "memory", obstacle="not writable"), tree(1, "pids", "pids")))
    assert layout.plan("abc", Limits(pids=3)).groups == ("/cg/pids/own/jupyter-sandbox/abc",)
    with pytest.raises(errors.Unsupported, match="memory limit: not writable"):
        layout.plan("abc", Limits(memory=MIB))


def test_refused_write_names_the_limit() -> None:
    error = cgroups.refused(OSError(22, "Invalid argument", "/cg/abc/cpuset.cpus"))
    assert isinstance(error, errors.Unsupported)
    assert str(error) == "CPU set: refused by Linux (cpuset.cpus: invalid argument)"
    assert not isinstance(cgroups.refused(OSError(13, "Permission denied", "/cg/abc")), errors.Unsupported)
