"""`requires(...)`: try what a test needs of this host; skip with the reason, or fail where nothing may be skipped (REQUIRE_ALL=1).

A probe does the thing itself in a throwaway process and returns why it did not work, or None.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox.runtime import cgroups
from tests.support import image_schemas


def requires(*names: str) -> pytest.MarkDecorator:
    """Mark a test that needs these: a name of PROBES, or `tool:NAME` for a program on PATH."""
    for name in names:
        assert name in PROBES or name.startswith("tool:"), f"{name}: no such probe"
    return pytest.mark.requires(*names)


def missing(name: str) -> str | None:
    """Why this host cannot do `name`; None when it can."""
    if name.startswith("tool:"):
        program = name.removeprefix("tool:")
        return None if shutil.which(program) else f"{program}: not installed"
    return PROBES[name]()


def _tried(*argv: str) -> str | None:
    """Run it; its last line of complaint, or None."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as err:
        return str(err)
    complaint = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return None if done.returncode == 0 else complaint[-1]


def _root() -> str | None:
    return None if os.geteuid() == 0 else "must be root"


def _user_namespaces() -> str | None:
    return _tried("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "true")


def _overlay() -> str | None:
    """An overlay with `userxattr` mounted inside a user namespace, in the temporary directory the tests use."""
    with tempfile.TemporaryDirectory() as root:
        for name in ("lower", "upper", "work", "merged"):
            (Path(root) / name).mkdir()
        options = f"userxattr,lowerdir={root}/lower,upperdir={root}/upper,workdir={root}/work"
        return _tried("unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "overlay", "-o", options, "none", f"{root}/merged")


def _limit(name: str) -> Callable[[], str | None]:
    return lambda: cgroups.discover().obstacle(name)


def _cgroup2() -> str | None:
    return None if cgroups.discover().unified else "no cgroup v2 tree to write to"


def _pressure() -> str | None:
    """Pressure stall information, which v2 groups tell."""
    return _cgroup2() or (None if os.path.exists("/proc/pressure/cpu") else "no /proc/pressure: this Linux has no PSI")


def _network() -> str | None:
    """Fetch one small package as pip is configured here."""
    with tempfile.TemporaryDirectory() as target:
        return _tried(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", target, "iniconfig")


def _tun() -> str | None:
    """Whether anybody may make a TUN link in a network namespace of their own."""
    is_open = os.path.exists("/dev/net/tun") and os.stat("/dev/net/tun").st_mode & 0o006 == 0o006
    return None if is_open else "/dev/net/tun: not for everybody"


def _networks() -> str | None:
    """Whether containers of whoever runs the tests can be in networks."""
    return None if os.geteuid() == 0 else missing("tool:pasta") or _tun()


def _loopback() -> str | None:
    try:
        with socket.create_server(("127.0.0.1", 0)):
            return None
    except OSError as err:
        return str(err)


PROBES: dict[str, Callable[[], str | None]] = {
    "root": _root,
    "userns": _user_namespaces,
    "overlay": _overlay,
    "memory": _limit("memory"),
    "swap": _limit("memory_swap"),
    "cpus": _limit("cpus"),
    "cpuset": _limit("cpuset_cpus"),
    "pids": _limit("pids"),
    "io": _limit("io"),
    "cgroup2": _cgroup2,
    "pressure": _pressure,
    "network": _network,
    "loopback": _loopback,
    "tun": _tun,
    "networks": _networks,
    "image-schemas": image_schemas.missing,
}
