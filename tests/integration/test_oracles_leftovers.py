"""The oracles can fail: each kind of leftover, planted on purpose, is found; and a run that leaves one has failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sandbox.image.durability import boot_id
from sandbox.runtime import cgroups
from sandbox.runtime.spec import Limits
from tests.support import leftovers
from tests.support.host import requires
from tests.support.ordinary_user import take_away_orphans

CHECKOUT = Path(__file__).parents[2]
ID = f"{os.getpid():064x}"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """An engine's directory with one container in it, clean before and after."""
    path = tmp_path / "engine"
    (path / "containers" / ID).mkdir(parents=True)
    leftovers.nothing_left(path)
    yield path
    leftovers.nothing_left(path)


@requires("root")
def test_forgotten_mount_is_found(root: Path) -> None:
    (root / "merged").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", root / "merged"], check=True)
    with ExitStack() as undo:
        undo.callback(subprocess.run, ["umount", root / "merged"], check=True)
        with pytest.raises(AssertionError, match=r"left behind:\n  mount: .*engine/merged"):
            leftovers.nothing_left(root)


@pytest.mark.parametrize(
    "script",
    ["cd {root}; echo ready; exec sleep 1000", "exec <{root}/log; echo ready; exec sleep 1000", "echo ready; sleep 1000; : {root}/x"],
)
def test_forgotten_process_is_found_by_directory_file_or_argument(root: Path, script: str) -> None:
    (root / "log").touch()
    child = subprocess.Popen(["setsid", "sh", "-c", script.format(root=root)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(AssertionError, match=rf"left behind:\n  process {child.pid}: "):
            leftovers.nothing_left(root)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


@requires("root", "pids")
def test_forgotten_cgroup_is_found_by_its_containers_id(root: Path) -> None:
    before = frozenset(leftovers.everything_left())
    group = cgroups.create(cgroups.discover().plan(ID, Limits()))
    with ExitStack() as undo:
        undo.callback(group.remove)
        with pytest.raises(AssertionError, match=rf"left behind:\n  cgroup: .*{ID}"):
            leftovers.nothing_left(root)
        assert any(ID in line for line in leftovers.everything_left(before))


@requires("root", "tool:ip", "tool:nft")
@pytest.mark.parametrize(
    ("plant", "found"),
    [
        ("ip link add sbx0 type bridge", "network device: sbx0"),
        ("nft add table inet sbx0", "nftables: table inet sbx0"),
    ],
)
def test_forgotten_network_is_found(plant: str, found: str) -> None:
    """In a network namespace of its own, so that the machine's network is left alone."""
    code = "from tests.support import leftovers; print(*leftovers.everything_left(), sep='\\n')"
    script = f'"$1" -c "{code}" && {plant} && echo --- && "$1" -c "{code}"'
    done = subprocess.run(
        ["unshare", "--net", "sh", "-ec", script, "sh", sys.executable], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    clean, planted = done.stdout.split("---\n")
    assert found not in clean
    assert found in planted


def run_session(tmp_path: Path, test: str, *, require_all: str = "") -> subprocess.CompletedProcess[str]:
    """A pytest run of its own with our conftest and this one test."""
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "test_one.py").write_text(test)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = requires\n")
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "REQUIRE_ALL": require_all}
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    return subprocess.run(argv, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)


@requires("root", "pids")
def test_session_that_leaves_a_cgroup_fails_although_its_tests_pass(tmp_path: Path) -> None:
    plan = cgroups.discover().plan(f"session-{os.getpid()}", Limits())
    test = f"import os\ndef test_it():\n    for path in {plan.directories!r}: os.makedirs(path, exist_ok=True)\n"
    try:
        done = run_session(tmp_path, test)
    finally:
        cgroups.Cgroup(plan).remove()
    assert "1 passed" in done.stdout
    assert f"left behind on this host by the tests:\n  cgroup: {plan.groups[0]}" in done.stdout
    assert done.returncode == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(("require_all", "outcome"), [("", "1 skipped"), ("1", "1 error")])
def test_missing_requirement_skips_with_the_reason_unless_everything_is_required(tmp_path: Path, require_all: str, outcome: str) -> None:
    test = "from tests.support.host import requires\n@requires('tool:no-such-tool')\ndef test_it(): pass\n"
    done = run_session(tmp_path, test, require_all=require_all)
    assert outcome in done.stdout
    assert (done.returncode == 0) == (require_all == "")


_KILLED = """
import os, signal, subprocess, sys
from contextlib import ExitStack
sys.path.insert(0, {checkout!r})
from tests.support.ordinary_user import delegated_groups, ordinary_user
with ExitStack() as undo:
    user = undo.enter_context(ordinary_user())
    groups = undo.enter_context(delegated_groups(user))
    user.run(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"], groups=groups)
    if {other_boot}:
        subprocess.run(["usermod", "--comment", "another", user.name], check=True)
    print(user.name, user.home, *groups, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@requires("root", "tool:useradd", "tool:pkill")
@pytest.mark.parametrize("other_boot", [False, True])
def test_what_a_killed_run_left_of_its_users_is_taken_away_by_the_next(tmp_path: Path, other_boot: bool) -> None:
    script = tmp_path / "run.py"
    script.write_text(_KILLED.format(checkout=str(CHECKOUT), other_boot=other_boot))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    name, *places = done.stdout.split()
    assert all(Path(place).exists() for place in places)
    assert subprocess.run(["pgrep", "-u", name, "sleep"], check=False, capture_output=True).returncode == 0
    if other_boot:  # as a virtual machine sees its host's
        take_away_orphans()
        assert all(Path(place).exists() for place in places)
        subprocess.run(["usermod", "--comment", boot_id(), name], check=True)
    take_away_orphans()
    assert not any(Path(place).exists() for place in places)
    for file in ("/etc/passwd", "/etc/subuid", "/etc/subgid"):
        assert name not in Path(file).read_text()
