"""The limits on a host that has cgroup v2 only, as distributions boot today: a virtual machine runs some of the limits' own tests."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.support import virtual_machine

CHOSEN = "memory_limit_kills or process_limit_refuses or cpu_limit_throttles or cpu_set_leaves"
REPOSITORY = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def _possible() -> None:
    """What is missing is only a package: qemu-system-x86, linux-image-cloud-amd64."""
    if (reason := virtual_machine.why_not()) is not None:
        pytest.fail(f"REQUIRE_ALL=1 and {reason}", pytrace=False) if os.environ.get("REQUIRE_ALL") == "1" else pytest.skip(reason)


def test_limits_bite_on_a_host_with_cgroup_v2_only(tmp_path: Path) -> None:
    tests = ["tests/integration/test_cgroups_limits.py"]
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp=/mnt/t", "-x", "-k", CHOSEN, *tests]
    script = "grep -q cgroup2 /proc/mounts && ! grep -q ' cgroup ' /proc/mounts || exit 77\n"
    script += virtual_machine.python_script(*arguments, repository=REPOSITORY)
    status, console = virtual_machine.run_in_machine(script, tmp_path, parameters="cgroup_no_v1=all", seconds=540)
    assert status == 0, console[-6000:]
    assert "4 passed" in re.sub(r"\x1b\[[0-9;]*m", "", console)


def test_failure_inside_the_machine_is_seen(tmp_path: Path) -> None:
    script = "cat /proc/self/cgroup\nexit 7\n"
    status, console = virtual_machine.run_in_machine(script, tmp_path, parameters="cgroup_no_v1=all", seconds=300)
    assert status == 7
    assert "0::/" in console
