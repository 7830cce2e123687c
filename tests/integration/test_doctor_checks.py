"""The doctor: all ticks where containers run, and a cross where something was taken away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.doctor import examine

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_everything_needed_works_for_root_here(tmp_path: Path) -> None:
    report = examine(tmp_path)
    assert report.can_run, report.render()
    assert list(tmp_path.iterdir()) == []


def test_no_user_namespaces_is_a_cross_with_cost_and_remedy(tmp_path: Path) -> None:
    code = "\n".join(
        [
            "import sys",
            "from pathlib import Path",
            "from sandbox.doctor import show",
            "sys.exit(show(sys.stdout, root=Path(sys.argv[1]), as_json=True))",
        ]
    )
    limited = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", limited, "sh", sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert not rows["user namespace"]["ok"]
    assert rows["user namespace"]["cost"]
    assert rows["user namespace"]["remedy"]
