"""The tests marked `anybody` once more, as an ordinary user with subordinate ids, under the system's Python."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support.host import requires
from tests.support.ordinary_user import SYSTEM_PYTHON, OrdinaryUser, packages_of

pytestmark = [
    requires("root", "userns", "overlay", "tool:busybox", "tool:newuidmap"),
    pytest.mark.xdist_group("ordinary user"),
    pytest.mark.timeout(400),
]

HERE = Path(__file__).parents[2]
_PLUGINS = ("-p", "xdist.plugin", "-p", "pytest_timeout", "-p", "no:cacheprovider")
_FEWEST = 50
"""How many tests pass at least: a run that selects nothing shows nothing."""


def test_what_anybody_can_do_an_ordinary_user_can(ordinary_user: OrdinaryUser) -> None:
    place = ordinary_user.home / "checkout"
    shutil.copytree(HERE / "tests", place / "tests", ignore=shutil.ignore_patterns("__pycache__", "corpus", "browser"))
    shutil.copy(HERE / "pyproject.toml", place)
    scratch = ordinary_user.home / "scratch"
    scratch.mkdir()
    shutil.chown(scratch, ordinary_user.uid, ordinary_user.gid)
    env = {"PYTHONPATH": str(packages_of(ordinary_user)), "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    argv = [SYSTEM_PYTHON, "-m", "pytest", "-q", *_PLUGINS, "-n", "2", "-m", "anybody", f"--basetemp={scratch}/t", "tests/integration"]
    done = ordinary_user.run(argv, env=env, cwd=place, timeout=380)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= _FEWEST, done.stdout[-2000:]
