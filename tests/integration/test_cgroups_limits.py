"""Real groups on this machine: every limit bites, and killing and removing leave nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from sandbox import errors
from sandbox.runtime import cgroups
from sandbox.runtime.cgroups import Cgroup, Layout
from sandbox.runtime.init import cgroup as acts
from sandbox.runtime.init import files
from sandbox.runtime.spec import Limits
from tests.support.host import requires
from tests.support.ordinary_user import OrdinaryUser

pytestmark = pytest.mark.anybody
MIB = 1 << 20
JOIN = 'for f in $JOINS; do echo 0 > "$f" || exit 99; done; exec "$@"'
"""The builtin echo of a shell writes from the shell itself, which has one thread: what the container's first process does."""

Make = Callable[..., Cgroup]


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Make a group with these limits; afterwards it is removed and gone."""
    made: list[Cgroup] = []

    def create(limits: Limits = Limits(), *, layout: Layout | None = None) -> Cgroup:
        id = f"test-{os.getpid()}-{len(made)}"
        made.append(cgroups.create((layout or cgroups.discover()).plan(id, limits)))
        return made[-1]

    yield create
    for group in made:
        group.remove()
        assert not any(os.path.exists(path) for path in group.plan.groups)


def v1_only() -> Layout:
    """This host without its v2 tree: killing and freezing have to do without cgroup.kill."""
    return Layout(tuple(h for h in cgroups.discover().hierarchies if h.version == 1))


def start(group: Cgroup, *argv: str) -> subprocess.Popen[str]:
    """Run it inside; it has said its first line when this returns."""
    child = subprocess.Popen(
        ["sh", "-c", JOIN, "sh", *argv], env={**os.environ, "JOINS": " ".join(group.plan.joins)}, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def run(group: Cgroup, code: str) -> subprocess.CompletedProcess[str]:
    """Run a Python text inside, to its end."""
    environment = {**os.environ, "JOINS": " ".join(group.plan.joins)}
    argv = ["sh", "-c", JOIN, "sh", sys.executable, "-SIc", code]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)


@requires("memory")
def test_memory_limit_kills_and_says_so(make: Make) -> None:
    group = make(Limits(memory=32 * MIB, memory_swap=32 * MIB))
    done = run(group, f"b = bytearray(64 * {MIB}); print(len(b))")
    assert done.returncode == -signal.SIGKILL
    used = group.usage()
    assert used.oom_kills in (1, 2)  # v2 counts each process of the group that goes together (memory.oom.group)
    assert used.peak_memory is not None
    assert 16 * MIB < used.peak_memory <= 32 * MIB


@requires("memory")
def test_program_below_its_memory_limit_lives(make: Make) -> None:
    group = make(Limits(memory=64 * MIB))
    assert run(group, f"b = bytearray(16 * {MIB}); print(len(b))").stdout == f"{16 * MIB}\n"
    assert group.usage().oom_kills == 0


@requires("pids")
def test_process_limit_refuses_the_next_fork_and_counts_it(make: Make) -> None:
    group = make(Limits(pids=3))
    code = """
import os, signal
made = 0
try:
    for _ in range(10):
        if os.fork() == 0:
            signal.pause()
        made += 1
except BlockingIOError:
    print(made)
"""
    child = run_and_kill(group, code)
    assert child == "2\n"
    used = group.usage()
    assert used.peak_pids in (3, None)  # pids.peak: Linux 6.1
    assert used.pids_refused == 1


def run_and_kill(group: Cgroup, code: str) -> str:
    """Run a text that leaves children behind; kill the group and return what it printed."""
    environment = {**os.environ, "JOINS": " ".join(group.plan.joins)}
    argv = ["sh", "-c", JOIN, "sh", sys.executable, "-SIuc", code]
    child = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    line = child.stdout.readline()
    group.kill()
    child.communicate(timeout=30)
    return line


@requires("cpus")
def test_cpu_limit_throttles(make: Make) -> None:
    group = make(Limits(cpus=0.5))  # not less: an emulated machine takes a processor's seconds to start the interpreter
    counts = Path(next(path for name, _, path in group.plan.places if name == "cpu"), "cpu.stat")
    done = run(group, f"while 'nr_throttled 0' in open({str(counts)!r}).read(): pass")  # a busy host may give less than that for a while
    assert (done.returncode, "nr_throttled 0" in counts.read_text()) == (0, False)


@requires("cpuset")
def test_cpu_set_leaves_only_those_cpus(make: Make) -> None:
    last = max(os.sched_getaffinity(0))
    group = make(Limits(cpuset_cpus=str(last)))
    assert run(group, "import os; print(os.sched_getaffinity(0))").stdout == f"{{{last}}}\n"


@requires("memory")
def test_cpu_time_and_peak_are_reported(make: Make) -> None:
    group = make(Limits(memory=256 * MIB))
    run(group, f"b = bytearray(40 * {MIB})\nimport time\nwhile time.process_time() < 0.2: pass")
    used = group.usage()
    assert used.cpu is not None
    assert used.cpu >= 0.19
    assert used.peak_memory is not None
    assert used.peak_memory > 40 * MIB
    assert used.pids == 0


@requires("cpuset")
def test_refused_limit_is_an_error_and_leaves_no_group() -> None:
    plan = cgroups.discover().plan(f"test-{os.getpid()}-refused", Limits(cpuset_cpus="8191", pids=5))
    with pytest.raises(errors.Unsupported, match="CPU set: refused by Linux"):
        cgroups.create(plan)
    assert not any(os.path.exists(path) for path in plan.groups)


@requires("memory")
@pytest.mark.parametrize("layout", [cgroups.discover, v1_only], ids=["all", "v1"])
def test_kill_ends_everything_also_what_left_its_session_or_ignores_signals(make: Make, layout: Callable[[], Layout]) -> None:
    group = make(layout=layout())
    script = 'trap "" TERM HUP INT; for i in 1 2 3; do setsid sh -c "sleep 1000 & sleep 1000" & done; echo ready; wait'
    child = start(group, "sh", "-c", script)
    group.kill()
    assert group.processes() == []
    assert child.wait(30) == -signal.SIGKILL
    child.communicate()


@requires("memory")
@pytest.mark.parametrize("layout", [cgroups.discover, v1_only], ids=["all", "v1"])
def test_frozen_group_stands_still_and_can_be_thawed_or_killed(make: Make, layout: Callable[[], Layout]) -> None:
    group = make(layout=layout())
    child = start(group, "sh", "-c", "echo ready; while :; do :; done")
    group.freeze()
    before = group.usage().cpu
    for _ in range(20):
        subprocess.run(["true"], check=True)
    assert group.usage().cpu == before
    group.thaw()
    while group.usage().cpu == before:  # the test's own time limit ends it
        subprocess.run(["true"], check=True)
    group.freeze()
    group.kill()
    assert child.wait(30) == -signal.SIGKILL
    child.communicate()


@requires("memory")
def test_remove_kills_what_is_inside_and_may_be_repeated(make: Make) -> None:
    group = make()
    child = start(group, "sh", "-c", "echo ready; sleep 1000")
    group.remove()
    assert child.wait(30) == -signal.SIGKILL
    child.communicate()
    assert not any(os.path.exists(path) for path in group.plan.groups)
    group.remove()
    assert group.usage() == cgroups.Reading()
    assert group.processes() == []
    group.kill()


@requires("memory")
def test_remove_takes_groups_made_below_it(make: Make) -> None:
    group = make()
    for path in group.plan.groups:
        os.makedirs(f"{path}/a/b")
    group.remove()
    assert not any(os.path.exists(path) for path in group.plan.groups)


@requires("memory", "pids")
def test_limits_of_a_running_group_can_be_raised_and_lowered(make: Make) -> None:
    group = make(Limits(memory=32 * MIB, pids=5))
    for size in (512, 16, 64):
        group.update(Limits(memory=size * MIB, pids=size))
        files = {Path(path).name: path for path, _ in cgroups.discover().plan(group.plan.id, Limits(memory=MIB, pids=1)).writes}
        assert Path(files.get("memory.limit_in_bytes") or files["memory.max"]).read_text().strip() == str(size * MIB)
        assert Path(files["pids.max"]).read_text().strip() == str(size)


@requires("pids")
def test_limit_that_needs_a_group_the_container_lacks_cannot_be_added_later(make: Make) -> None:
    group = make(Limits(pids=5))
    with pytest.raises(errors.Unsupported, match="CPU limit: the container was started without it"):
        group.update(Limits(cpus=1))


@requires("pids")
def test_group_in_use_is_not_taken_over_but_an_empty_one_is(make: Make) -> None:
    group = make()
    cgroups.create(group.plan)
    child = start(group, "sh", "-c", "echo ready; sleep 1000")
    with pytest.raises(errors.SetupFailed, match="file exists"):
        cgroups.create(group.plan)
    assert child.poll() is None
    group.kill()
    child.communicate()


@requires("pids")
def test_existing_lists_the_groups_by_id_and_the_base_goes_only_when_empty(make: Make) -> None:
    group = make()
    layout = cgroups.discover()
    assert layout.existing()[group.plan.id] == group.plan.groups
    layout.remove_base()
    assert layout.existing()[group.plan.id] == group.plan.groups


@requires("cgroup2")
def test_v2_group_with_processes_hands_controllers_down_once_they_moved_into_a_leaf() -> None:
    """The no-internal-processes rule for real, with whichever controller v2 has here."""
    tree = cgroups.discover().unified
    assert tree is not None
    offered = Path(tree.base, "cgroup.controllers").read_text().split()
    if not offered:
        pytest.skip("v2 has no controller here to try it with")
    top = f"{tree.base}/jsb-test-{os.getpid()}"
    control = f"{tree.base}/cgroup.subtree_control"
    was_on = offered[0] in Path(control).read_text().split()
    os.mkdir(top)
    child = subprocess.Popen(["sh", "-c", f"echo 0 > {top}/cgroup.procs; echo ready; exec sleep 1000"], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        files.write_value(control, f"+{offered[0]}")
        with pytest.raises(OSError, match="busy"):
            acts.make([], writes=[(f"{top}/cgroup.subtree_control", f"+{offered[0]}")])
        acts.make([f"{top}/leaf"], moves=[(top, f"{top}/leaf")], writes=[(f"{top}/cgroup.subtree_control", f"+{offered[0]}")])
        assert Path(top, "cgroup.subtree_control").read_text().split() == [offered[0]]
        assert Path(top, "leaf/cgroup.procs").read_text().split() == [str(child.pid)]
    finally:
        acts.remove([top])
        child.communicate()
        if not was_on:
            files.write_value(control, f"-{offered[0]}")


@requires("root")
def test_ordinary_user_is_told_why_a_limit_cannot_be_enforced(ordinary_user: OrdinaryUser) -> None:
    """Run by a system Python that anybody may execute; the sources are copied to where the user may read them."""
    sources = ordinary_user.home / "cgroups-src"
    package = Path(__file__).parents[2] / "sandbox"
    shutil.copytree(package, sources / "sandbox", ignore=shutil.ignore_patterns("__pycache__"))  # which other tests write just now
    shutil.copytree(Path(msgspec.__file__).parent, sources / "msgspec")
    code = (
        "import sys, types; sys.path.insert(0, sys.argv[1])\n"
        "package = types.ModuleType('sandbox'); package.__path__ = [sys.argv[1] + '/sandbox']; sys.modules['sandbox'] = package\n"
        "from sandbox.runtime import cgroups; from sandbox.runtime.spec import Limits; from sandbox.errors import Unsupported\n"
        "layout = cgroups.discover()\n"
        "print(layout.plan('x', Limits()).groups)\n"
        "try: layout.plan('x', Limits(memory=1 << 20))\n"
        "except Unsupported as err: print(err, '|', err.hint)\n"
    )
    done = ordinary_user.run(["/usr/bin/python3", "-c", code, str(sources)])
    assert done.returncode == 0, done.stderr
    groups, refusal = done.stdout.splitlines()
    assert groups == "()"
    assert f"is not writable by uid {ordinary_user.uid}" in refusal
    assert "Delegate=yes" in refusal
