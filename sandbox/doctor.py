"""What this host allows: each thing is tried, in a process of its own, and a cross says what it costs and how to get it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import msgspec
from msgspec.structs import asdict

from sandbox.runtime import cgroups
from sandbox.runtime.cgroups import systemd
from sandbox.runtime.init import files
from sandbox.runtime.spec import Limits

_PACKAGES = str(Path(__file__).resolve().parents[1])
_LONGEST = 60.0
"""Seconds a probe may take."""


class Check(msgspec.Struct, frozen=True):
    """One row: `ok`, the `detail` found, and for a cross what it costs and the remedy. `needed`: without it no container runs."""

    name: str
    ok: bool
    detail: str
    cost: str
    remedy: str
    needed: bool


class Report(msgspec.Struct, frozen=True):
    """All rows, in the order in which a container needs them."""

    checks: tuple[Check, ...]

    @property
    def can_run(self) -> bool:
        """Whether containers can run here at all."""
        return all(check.ok for check in self.checks if check.needed)

    def to_json(self) -> str:
        """The rows as one JSON array."""
        return json.dumps([asdict(check) for check in self.checks], indent=2)

    def render(self) -> str:
        """A line a row; below a cross its cost and remedy."""
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            lines.append(f"{'✓' if check.ok else '✗'} {check.name:{width}}  {check.detail}")
            if not check.ok:
                lines += [f"  {'':{width}}  costs: {check.cost}", f"  {'':{width}}  remedy: {check.remedy}"]
        return "\n".join(lines)


class _Probe(msgspec.Struct, frozen=True):
    """A program for `python -SI -c`: succeeds or raises; `{s}` names are those of sandbox.runtime.init.syscalls."""

    name: str
    code: str
    cost: str
    remedy: str
    needed: bool = True


_USERNS = "s.unshare(s.CLONE_NEWUSER)"
_MAPPED = "map_ids()"
_PROBES = (
    _Probe(
        "user namespace",
        _USERNS,
        "no isolation from the host's users: containers do not start",
        "sysctl user.max_user_namespaces; in a container, allow unshare",
    ),
    _Probe(
        "mount namespace",
        f"{_MAPPED}; s.unshare(s.CLONE_NEWNS)",
        "no container can start",
        "allow CLONE_NEWNS (seccomp of an outer container)",
    ),
    _Probe("pid namespace", f"{_MAPPED}; s.unshare(s.CLONE_NEWPID)", "no container can start", "allow CLONE_NEWPID"),
    _Probe(
        "network namespace",
        f"{_MAPPED}; s.unshare(s.CLONE_NEWNET); steps.loopback_up(None)",
        "--network none cannot work",
        "allow CLONE_NEWNET",
    ),
    _Probe(
        "uts and ipc namespaces",
        f"{_MAPPED}; s.unshare(s.CLONE_NEWUTS | s.CLONE_NEWIPC)",
        "no container can start",
        "allow CLONE_NEWUTS and CLONE_NEWIPC",
    ),
    _Probe(
        "cgroup namespace",
        f"{_MAPPED}; s.unshare(s.CLONE_NEWCGROUP)",
        "a container sees the host's cgroup paths",
        "Linux 4.6 or later",
        False,
    ),
    _Probe(
        "new proc",
        f"{_MAPPED}; s.unshare(s.CLONE_NEWPID | s.CLONE_NEWNS)\nif os.fork() == 0:\n    code = 1\n    try:\n        fd = s.fsopen('proc'); s.fsconfig_create(fd); s.fsmount(fd); code = 0\n"
        "    finally:\n        os._exit(code)\nif os.wait()[1]: raise OSError(1, 'mounting proc is refused: the outer /proc has covered parts')",
        "no container can start",
        "run outside of a container whose /proc is masked",
    ),
    _Probe(
        "overlay in a user namespace",
        f"{_MAPPED}; s.unshare(s.CLONE_NEWNS); steps.isolate_mounts(None); os.chdir(sys.argv[2])\nfor d in ('l', 'u', 'w', 'm'): os.mkdir(d)\n"
        "steps.mount_overlay(None, ['l'], 'u', 'w', 'm2', True, True); open('m2/x', 'w').close()",
        "no container can start",
        "Linux 5.11 or later, and a state directory (--root) that is not itself on overlay or NFS",
    ),
    _Probe(
        "idmapped mounts",
        "tree = s.open_tree(sys.argv[2]); s.mount_setattr(tree, attr_set=s.MOUNT_ATTR_IDMAP, userns_fd=mapped_userns())",
        "as root containers do not start; an ordinary user gets a single user id inside",
        "as root: Linux 5.19 and a state directory on ext4, xfs, btrfs or tmpfs",
        os.geteuid() == 0,
    ),
)
_PRELUDE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from sandbox.runtime.init import steps, syscalls as s
def write(path, text):
    with open(path, 'w') as file: file.write(text)
def map_ids():
    uid, gid = os.geteuid(), os.getegid()
    s.unshare(s.CLONE_NEWUSER)
    write('/proc/self/setgroups', 'deny'); write('/proc/self/uid_map', f'0 {uid} 1'); write('/proc/self/gid_map', f'0 {gid} 1')
def mapped_userns():
    told, tell = os.pipe(); stay, leave = os.pipe()
    pid = os.fork()
    if pid == 0:
        s.unshare(s.CLONE_NEWUSER); os.write(tell, b'x'); os.close(leave); os.read(stay, 1); os._exit(0)
    os.close(tell)
    if not os.read(told, 1): raise OSError(1, 'no user namespace')
    write(f'/proc/{pid}/uid_map', '0 1048576 65536'); write(f'/proc/{pid}/gid_map', '0 1048576 65536')
    return os.open(f'/proc/{pid}/ns/user', os.O_RDONLY)
try:
    exec(sys.argv[3])
except OSError as err:
    print(err.strerror or err); sys.exit(1)
"""


def examine(root: Path) -> Report:
    """Try everything a container of an engine at `root` needs. Nothing is left of it."""
    checks = [_try(probe, root) for probe in _PROBES]
    return Report((_system(), *checks, *_subordinate_ids(), *_cgroups(), *_networks(), _tun()))


def show(out: IO[str], *, root: Path, as_json: bool = False) -> int:
    """Print the report; 1 when containers cannot run here."""
    report = examine(root)
    out.write((report.to_json() if as_json else report.render()) + "\n")
    return 0 if report.can_run else 1


def _subordinate_ids() -> list[Check]:
    """What an ordinary user's containers need for users beside root; root may map any ids."""
    if os.geteuid() == 0:
        return []
    from sandbox.runtime.init import subids

    found = subids.find(os.geteuid(), os.getegid())
    said = f"{found['uid'][1][2]} from {found['uid'][1][0]} on" if found else "none, or no newuidmap"
    cost = "a single user id inside: no chown, no other users; RUN apt-get install fails, and files of others are root's"
    remedy = "as root: apt-get install uidmap; usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER"
    return [Check("subordinate ids", found is not None, said, cost, remedy, False)]


def _system() -> Check:
    return Check(
        "system",
        sys.platform == "linux",
        f"Linux {platform.release()}, Python {platform.python_version()}",
        "nothing runs",
        "use Linux",
        True,
    )


def _try(probe: _Probe, root: Path) -> Check:
    import tempfile

    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix=".doctor-", dir=root)
    try:
        command = [sys.executable, "-SI", "-c", _PRELUDE, _PACKAGES, scratch, probe.code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST, env={}, check=False)
    except subprocess.TimeoutExpired:
        return Check(probe.name, False, f"no answer within {_LONGEST:.0f} s", probe.cost, probe.remedy, probe.needed)
    finally:
        files.remove_tree(scratch)
    said = (done.stdout or done.stderr).strip().splitlines()
    return Check(
        probe.name,
        done.returncode == 0,
        "works" if done.returncode == 0 else said[-1] if said else "failed",
        probe.cost,
        probe.remedy,
        probe.needed,
    )


_LIMITS: Sequence[tuple[str, str, Limits]] = (
    ("memory limit", "--memory", Limits(memory=64 << 20)),
    ("swap limit", "--memory-swap", Limits(memory=64 << 20, memory_swap=64 << 20)),
    ("cpu limit", "--cpus", Limits(cpus=1.0)),
    ("process limit", "--pids-limit", Limits(pids=64)),
    ("cpu set", "--cpuset-cpus", Limits(cpuset_cpus="0")),
)


def _cgroups() -> list[Check]:
    """As containers get them: where a scope of systemd's is needed, the helper is started in one."""
    from sandbox.runtime.spawner import Spawner

    spawner = Spawner()
    try:
        if systemd.scope_command(os.environ):
            spawner.warm()
        layout = cgroups.discover(who=spawner.place)
        kind = f"{layout.kind}, in a scope of systemd's" if spawner.has_scope else "; ".join(filter(None, (layout.kind, spawner.complaint)))
        remedy = "run as root, or in a delegated cgroup: systemd-run --user --scope -p Delegate=yes …"
        version = Check("cgroup", layout.kind != "none", kind, "no limits and no usage figures", remedy, False)
        return [version, *(_limit(name, flag, limits, remedy, spawner.place) for name, flag, limits in _LIMITS)]
    finally:
        spawner.close()


def _limit(name: str, flag: str, limits: Limits, remedy: str, who: str) -> Check:
    """Make a group with this limit and remove it."""
    cost = f"{flag} is an error"
    problem = _problem(lambda: _make_group(limits, who))
    return Check(name, problem is None, "can be enforced" if problem is None else problem, cost, remedy, False)


def _make_group(limits: Limits, who: str) -> None:
    from sandbox.runtime.init import cgroup

    plan = cgroups.discover(who=who).plan(f"doctor.{os.getpid()}", limits)
    cgroup.make(plan.directories, moves=plan.moves, copies=plan.copies, writes=plan.writes, optional=plan.optional, groups=plan.groups)
    cgroup.remove(plan.groups)


def _problem(action: Callable[[], None]) -> str | None:
    from sandbox.errors import SandboxError

    try:
        action()
    except (SandboxError, OSError) as err:
        return str(err)
    return None


def _networks() -> list[Check]:
    from sandbox.doctor_networks import rows

    return [Check(*row, needed=False) for row in rows()]


def _tun() -> Check:
    usable = os.access("/dev/net/tun", os.R_OK | os.W_OK)
    cost = "networks of an ordinary user are errors"
    return Check("/dev/net/tun", usable, "usable" if usable else "not usable by this user", cost, "chmod 0666 /dev/net/tun", False)
