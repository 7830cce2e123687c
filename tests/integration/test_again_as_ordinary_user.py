"""The tests marked `anybody` once more, as an ordinary user with subordinate ids and a cgroup of their own (as systemd's `Delegate=yes`
gives; what such a user can do without is in test_ordinary_user.py), under the system's Python. Of a parametrised test one case."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support.host import requires
from tests.support.ordinary_user import SYSTEM_PYTHON, OrdinaryUser, delegated_groups, packages_of

pytestmark = [
    requires("root", "userns", "overlay", "tool:busybox", "tool:newuidmap"),
    pytest.mark.xdist_group("ordinary user"),
    pytest.mark.timeout(900),
]

HERE = Path(__file__).parents[2]
_PLUGINS = ("-p", "xdist.plugin", "-p", "pytest_timeout", "-p", "no:cacheprovider")
_WHICH = ("-n", "2", "--dist", "loadfile", "-m", "anybody", "--one-of-each")
_FEWEST = 530
"""How many tests pass at least: a run that selects nothing shows nothing."""


def install(user: OrdinaryUser) -> None:
    """What `pip install --user` would have installed: a capture takes packages from there."""
    place = user.run([SYSTEM_PYTHON, "-c", "import site; print(site.getusersitepackages())"]).stdout.strip()
    user.run(["mkdir", "-p", place])
    Path(place).rmdir()
    Path(place).symlink_to(packages_of(user))


def test_what_anybody_can_do_an_ordinary_user_can(ordinary_user: OrdinaryUser) -> None:
    place = ordinary_user.home / "checkout"
    shutil.copytree(HERE / "tests", place / "tests", ignore=shutil.ignore_patterns("__pycache__", "corpus", "browser"))
    shutil.copy(HERE / "pyproject.toml", place)
    scratch = ordinary_user.home / "scratch"
    scratch.mkdir()
    shutil.chown(scratch, ordinary_user.uid, ordinary_user.gid)
    install(ordinary_user)
    env = {"PYTHONPATH": str(packages_of(ordinary_user)), "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    argv = [SYSTEM_PYTHON, "-m", "pytest", "-q", *_PLUGINS, *_WHICH, f"--basetemp={scratch}/t", "tests/integration"]
    with delegated_groups(ordinary_user) as groups:
        done = ordinary_user.run(argv, env=env, cwd=place, timeout=880, groups=groups)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= _FEWEST, done.stdout[-2000:]
