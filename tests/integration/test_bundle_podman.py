"""podman with `--runtime sandbox-oci`: another engine drives the runtime through everything it asks of one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.runtime.init import cgroup
from tests.support.host import requires

pytestmark = [requires("root", "userns", "tool:podman", "tool:conmon"), pytest.mark.xdist_group("bundles")]

# Linux's own limits are what podman may ask for here; more needs CAP_SYS_RESOURCE.
CONFIG = """
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=32768:32768"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
[engine.runtimes]
sandbox-oci = ["{runtime}"]
"""


@dataclass(frozen=True)
class Podman:
    """podman with a store of its own."""

    place: Path

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        argv = ["podman", "--root", f"{self.place}/root", "--runroot", f"{self.place}/run", "--storage-driver", "overlay"]
        argv += ["--runtime", "sandbox-oci", *arguments]
        env = {"CONTAINERS_CONF": f"{self.place}/containers.conf", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.place)}
        done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120)
        assert not check or done.returncode == 0, f"podman {arguments}: {done.returncode}: {done.stderr}"
        return done

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """podman run --rm without a network."""
        return self("run", "--rm", "--network", "none", *arguments, check=check)


@pytest.fixture(scope="module")
def podman(busybox_tar: Path) -> Iterator[Podman]:
    place = Path(tempfile.mkdtemp(prefix="podman-"))  # podman refuses a run root of more than 50 characters
    runtime = place / "sandbox-oci"
    runtime.write_text(f'#!/bin/sh\nexec {sys.executable} -m sandbox.runtime.bundle "$@"\n')
    runtime.chmod(0o755)
    (place / "containers.conf").write_text(CONFIG.format(runtime=runtime))
    made = Podman(place)
    made("import", str(busybox_tar), "busybox")
    yield made
    made("rm", "--all", "--force", "--time", "0")
    subprocess.run(["umount", f"{place}/root/overlay"], check=False, capture_output=True)  # podman keeps it mounted
    cgroup.remove([str(group) for group in Path("/sys/fs/cgroup").glob("*/libpod_parent")])  # conmon may be on its way out
    shutil.rmtree(place)


def test_run_tells_output_and_status(podman: Podman) -> None:
    done = podman.run("busybox", "sh", "-c", "id -u; grep Seccomp: /proc/self/status; exit 7", check=False)

    assert (done.returncode, done.stdout.split()) == (7, ["0", "Seccomp:", "2"])


@pytest.mark.parametrize(("program", "code"), [("nothing-here", 127), ("/etc", 126)])
def test_a_program_that_cannot_run_has_podmans_own_status(podman: Podman, program: str, code: int) -> None:
    assert podman.run("busybox", program, check=False).returncode == code


def test_a_container_lives_through_all_verbs(podman: Podman) -> None:
    script = "trap 'exit 3' TERM; while :; do sleep 0.05; done"
    podman("run", "-d", "--name", "life", "--network", "none", "busybox", "sh", "-c", script)
    assert podman("exec", "life", "sh", "-c", "exit 9", check=False).returncode == 9
    assert podman("exec", "--tty", "life", "tty").stdout.strip() == "/dev/pts/0"
    podman("pause", "life")
    assert json.loads(podman("inspect", "life").stdout)[0]["State"]["Status"] == "paused"
    podman("unpause", "life")
    podman("stop", "--time", "20", "life")
    assert json.loads(podman("inspect", "life").stdout)[0]["State"]["ExitCode"] == 3
    podman("start", "life")
    podman("kill", "life")
    assert podman("wait", "life").stdout.strip() == "137"
    podman("rm", "life")


def test_options_reach_the_container(podman: Podman, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mounted")
    tmp_path.chmod(0o755)
    flags = ["--hostname", "inside", "--user", "1000:1000", "--workdir", "/tmp", "-e", "A=b"]
    flags += ["--read-only", "--tmpfs", "/scratch", "-v", f"{tmp_path}:/data:ro"]
    script = "hostname; id -u; pwd; cat /data/file; echo; touch /x 2>/dev/null || echo ro; echo $A; touch /scratch/x && echo rw"

    told = podman.run(*flags, "busybox", "sh", "-c", script)

    assert told.stdout.split() == ["inside", "1000", "/tmp", "mounted", "ro", "b", "rw"]


def test_a_user_namespace_of_podmans(podman: Podman) -> None:
    told = podman.run("--uidmap", "0:300000:65536", "busybox", "sh", "-c", "id -u; cat /proc/self/uid_map; touch /x && stat -c %u /x")

    assert told.stdout.split() == ["0", "0", "300000", "65536", "0"]


@requires("memory")
def test_limits_of_podmans(podman: Podman) -> None:
    assert podman.run("-m", "32m", "busybox", "cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes").stdout.strip() == str(32 << 20)


def test_a_terminal_of_podmans(podman: Podman) -> None:
    assert podman.run("--tty", "busybox", "sh", "-c", "tty; test -c /dev/console && echo console").stdout.split() == [
        "/dev/pts/0",
        "console",
    ]
