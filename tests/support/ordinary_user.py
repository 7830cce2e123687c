"""A user without privileges, with a subordinate id range, made and removed by root."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pwd
import re
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sandbox.image.durability import boot_id
from sandbox.runtime import cgroups


@dataclass(frozen=True)
class OrdinaryUser:
    """`home` is theirs alone; it lies below /var/tmp so that every directory above may be passed by them."""

    name: str
    uid: int
    gid: int
    home: Path

    def own(self, path: Path) -> None:
        """Make a file or directory theirs."""
        os.chown(path, self.uid, self.gid)

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 60,
        groups: Sequence[Path] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run it as this user, in a new session, with no group or capability of ours, in these cgroups."""
        join = ["sh", "-c", _JOIN, "sh", " ".join(map(str, groups))] if groups else []
        command = [*join, *self.prefix(env), *argv]
        return subprocess.run(command, cwd=cwd or self.home, capture_output=True, text=True, timeout=timeout, check=False)

    def prefix(self, env: Mapping[str, str] | None = None) -> list[str]:
        """What runs the words after it as this user."""
        drop = ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups", "--inh-caps=-all", "--reset-env"]
        settings = {"HOME": str(self.home), "PATH": os.environ["PATH"], **(env or {})}
        return [*drop, "--", "env", *(f"{name}={value}" for name, value in settings.items())]


_JOIN = 'for group in $1; do echo 0 > "$group/cgroup.procs"; done; shift; exec "$@"'
Say = Callable[..., "subprocess.CompletedProcess[str]"]
"""A command line's words, `check` and `timeout` → how it ended."""
SYSTEM_PYTHON = "/usr/bin/python3"
"""What such a user can execute: the tests' own Python may be in root's home."""
_HEAVY = ("jupyterlab*", "matplotlib*", "pandas*", "numpy*", "pyarrow*", "playwright*", "mypy*", "babel*", "fontTools*")
_NOT_NEEDED = ("__pycache__", "*.pth", *_HEAVY)
_FIRST_IDS = 1 << 30
"""Where the ranges of test users begin: far above what anybody has."""
_PREFIX = "jsbtest"
_ORPHAN = re.compile(_PREFIX + r"(\d+)[a-h]")
_numbers = itertools.count()


def packages_of(user: OrdinaryUser) -> Path:
    """Our code and what it needs, where that user may read it; copied once."""
    import click

    import sandbox

    copied = user.home / "packages"
    if not copied.exists():
        shutil.copytree(Path(click.__file__).parents[1], copied, ignore=shutil.ignore_patterns(*_NOT_NEEDED))
        for name in ("sandbox", "magics", "kernelspec"):
            source = Path(sandbox.__file__).parents[1] / name
            shutil.copytree(source, copied / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        used = [str(copied / name) for name in ("sandbox", "magics", "kernelspec", "click", "msgspec")]
        subprocess.run([SYSTEM_PYTHON, "-m", "compileall", "-q", *used], check=True)  # they may not write there themselves
    return copied


def speaker(user: OrdinaryUser, tar: Path) -> Say:
    """`sandbox WORDS…` as this user, with the root file system of this tar as the image `box`."""
    env = {"PYTHONPATH": str(packages_of(user)), "SANDBOX_ROOT": str(state(user))}

    def run(*words: str, check: bool = False, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        done = user.run([SYSTEM_PYTHON, "-m", "sandbox", *words], env=env, timeout=timeout)
        assert not check or done.returncode == 0, done.stderr
        return done

    archive = user.home / "box.tar"
    archive.write_bytes(tar.read_bytes())
    run("import", str(archive), "box", check=True, timeout=100)
    return run


def state(user: OrdinaryUser) -> Path:
    """Where `speaker` keeps everything."""
    return user.home / "ids"


def others_files(user: OrdinaryUser) -> list[str]:
    """What in the user's state directory is not the user's."""
    command = ["find", state(user), "-ignore_readdir_race", "!", "-uid", str(user.uid)]  # the next container's files come and go
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return found.stdout.split()


@contextmanager
def ordinary_user(*, subordinate_ids: bool = True) -> Iterator[OrdinaryUser]:
    """useradd … userdel; parallel workers take turns, since the password files have one lock that does not wait. Some hosts give
    new users subordinate ids, some do not: here it is what was asked for."""
    number = next(_numbers)
    name = f"{_PREFIX}{os.getpid()}{'abcdefgh'[number % 8]}"
    home = Path(tempfile.mkdtemp(prefix="jsb-", dir="/var/tmp"))
    with _taking_turns():
        about = ["--home-dir", home, "--no-create-home", "--shell", "/bin/sh", "--comment", boot_id()]
        subprocess.run(["useradd", *about, name], check=True, capture_output=True)
        _set_subordinate_ids(name, _FIRST_IDS + (os.getpid() % 2000 * 8 + number % 8) * 65536 if subordinate_ids else None)
    try:
        entry = pwd.getpwnam(name)
        os.chown(home, entry.pw_uid, entry.pw_gid)
        yield OrdinaryUser(name, entry.pw_uid, entry.pw_gid, home)
    finally:
        with _taking_turns():
            subprocess.run(["userdel", "--force", name], check=True, capture_output=True)
        subprocess.run(["rm", "-rf", "--one-file-system", home], check=True)


def take_away_orphans() -> None:
    """Users of test runs that were killed, with their processes, cgroups and files. A virtual machine sees those of its host, too, whose
    makers it does not see: only what was made in this boot."""
    with _taking_turns():
        for entry in pwd.getpwall():
            made_by = _ORPHAN.fullmatch(entry.pw_name)
            if made_by and entry.pw_gecos == boot_id() and not _is_python(int(made_by[1])):
                _take_away(entry)


def _take_away(entry: pwd.struct_passwd) -> None:
    for tree in cgroups.discover().hierarchies:
        if not tree.obstacle:
            _end_group(tree.base / entry.pw_name)
    subprocess.run(["pkill", "-KILL", "-u", str(entry.pw_uid)], check=False)
    subprocess.run(["userdel", "--force", entry.pw_name], check=True, capture_output=True)
    _set_subordinate_ids(entry.pw_name, None)
    subprocess.run(["rm", "-rf", "--one-file-system", entry.pw_dir], check=True)


def _is_python(pid: int) -> bool:
    try:
        return b"python" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def _end_group(group: Path) -> None:
    if not group.exists():
        return
    for procs in group.glob("**/cgroup.procs"):
        for pid in map(int, procs.read_text().split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    _await_ends(group)
    _remove_group(group)


def _remove_group(group: Path) -> None:
    subprocess.run(["find", group, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+"], check=True)


@contextmanager
def delegated_groups(user: OrdinaryUser) -> Iterator[list[Path]]:
    """A cgroup of this user's in every tree of this host, as systemd's `Delegate=yes` gives: below it limits can be enforced."""
    groups = []
    for tree in cgroups.discover().hierarchies:
        if not tree.obstacle:
            groups.append(_delegate(tree.base / user.name, user))
    try:
        yield groups
    finally:
        for group in groups:
            _await_ends(group)
            _remove_group(group)


def _await_ends(group: Path) -> None:
    """Of processes in it that are on their way out, as a hub is for some seconds."""
    for procs in group.glob("**/cgroup.procs"):
        for pid in map(int, procs.read_text().split()):
            with contextlib.suppress(ProcessLookupError):
                end = os.pidfd_open(pid)
                select.select([end], [], [], 20)
                os.close(end)


def _delegate(group: Path, user: OrdinaryUser) -> Path:
    group.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):  # v1: a new group has none, and takes nobody
        if (group / name).exists() and not (group / "cgroup.subtree_control").exists():
            (group / name).write_text((group.parent / name).read_text())
    for place in (group, *(group / name for name in ("cgroup.procs", "tasks", "cgroup.threads", "cgroup.subtree_control"))):
        if place.exists():
            os.chown(place, user.uid, user.gid)
    return group


def _set_subordinate_ids(name: str, first: int | None) -> None:
    """One range, or none. The files are changed as usermod(8) does, which cannot say `whatever there is`."""
    for file in (Path("/etc/subuid"), Path("/etc/subgid")):
        kept = [row for row in (file.read_text().splitlines() if file.exists() else []) if not row.startswith(f"{name}:")]
        rows = kept if first is None else [*kept, f"{name}:{first}:65536"]
        temporary = file.with_name(f"{file.name}.{name}")
        temporary.write_text("".join(f"{row}\n" for row in rows))
        temporary.chmod(0o644)
        temporary.rename(file)


def give_subordinate_ids(user: OrdinaryUser, first: int) -> None:
    """65,536 ids from `first` on, whether there are such or not."""
    with _taking_turns():
        _set_subordinate_ids(user.name, first)


@contextmanager
def _taking_turns() -> Iterator[None]:
    with open("/var/tmp/jsb-users.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
