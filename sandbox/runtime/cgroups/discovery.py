"""Look at this host: which cgroup trees there are and whether groups can be made below our own. Reads, writes nothing."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from sandbox.runtime.cgroups.layout import BASE, ENGINE, Hierarchy, Layout
from sandbox.runtime.cgroups.limits import CONTROLLERS, Version


class _Mount(msgspec.Struct, frozen=True):
    version: Version
    root: str
    """The directory of the tree that is mounted here (a container often sees only its own)."""
    target: str
    options: frozenset[str]


def discover(proc: Path = Path("/proc"), who: str = "self") -> Layout:
    """The cgroup trees of this host as seen from the group of our own process, or of another, `who`. `proc` may be a made-up tree
    (tests). Cheap: call it often."""
    return _layout_of(*_texts(proc, who), proc, who)


class Discovery:
    """`discover` for one who asks at every start: looks again when our group or the mounts changed, or something was in the way."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._texts = ("", "")
        self._layout = Layout(())

    def layout(self, who: str = "self") -> Layout:
        """What `discover` would answer."""
        texts = _texts(self._proc, who)
        if texts != self._texts or any(h.obstacle or h.crowd or h.evacuate for h in self._layout.hierarchies):
            self._texts, self._layout = texts, _layout_of(*texts, self._proc, who)
        return self._layout


def _texts(proc: Path, who: str) -> tuple[str, str]:
    with open(f"{proc}/self/mountinfo") as mountinfo, open(f"{proc}/{who}/cgroup") as groups:
        return mountinfo.read(), groups.read()


def _layout_of(mountinfo: str, groups: str, proc: Path, who: str) -> Layout:
    mounts = tuple(_mounts(mountinfo))
    found = (_hierarchy(line, mounts, proc / who) for line in groups.splitlines())
    return Layout(tuple(h for h in found if h))


def _mounts(mountinfo: str) -> Iterator[_Mount]:
    """The cgroup lines of mountinfo (proc_pid_mountinfo(5)): … root target options … - type source super-options."""
    for line in mountinfo.splitlines():
        if " - cgroup" in line:
            left, _, right = line.partition(" - ")
            kind, _, super_options = right.split(" ", 2)
            _, _, _, root, target, *_ = left.split(" ")
            if kind in ("cgroup", "cgroup2"):
                version: Version = 2 if kind == "cgroup2" else 1
                yield _Mount(version, _unescaped(root), _unescaped(target), frozenset(super_options.split(",")))


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def _hierarchy(line: str, mounts: tuple[_Mount, ...], us: Path) -> Hierarchy | None:
    """One line of /proc/self/cgroup (`4:memory:/a/b`, v2: `0::/a/b`) with the mount that shows it; None: not mounted, not of use."""
    number, controllers, path = line.split(":", 2)
    version: Version = 2 if number == "0" and not controllers else 1
    names = frozenset(controllers.split(",")) & frozenset(CONTROLLERS)
    if version == 1 and not names:
        return None
    fitting = [m for m in mounts if m.version == version and names <= m.options] if version == 1 else [m for m in mounts if m.version == 2]
    for mount in fitting:
        if (below := _below(path, mount.root)) is not None:
            return _seen_from(Path(mount.target + below), Path(mount.target), version, names, us)
    if not fitting:
        return None
    outside = Path(fitting[0].target)
    return Hierarchy(version, names, outside, outside, outside, obstacle="our own cgroup is outside the mounted tree")


def _below(path: str, root: str) -> str | None:
    """`path` as seen from a mount of `root`: "" for root itself; None when it is not below, or outside our cgroup namespace."""
    prefix = root.rstrip("/")
    is_below = (path + "/").startswith(prefix + "/") and "/.." not in path
    return path[len(prefix) :].rstrip("/") if is_below else None


def _seen_from(own: Path, mount: Path, version: Version, names: frozenset[str], us: Path) -> Hierarchy:
    base = own.parent if version == 2 and own.name == ENGINE else own
    obstacle = _not_writable(base, version)
    if version == 1:
        swap = "memory" in names and os.path.exists(f"{base}/memory.memsw.limit_in_bytes")
        return Hierarchy(1, names, mount, own, base, swap=swap, obstacle=obstacle)
    offered = _words(f"{base}/cgroup.controllers") & frozenset(CONTROLLERS)
    crowd, evacuate = _crowd(base, own == mount, us) if offered and not obstacle else ("", False)
    return Hierarchy(2, offered, mount, own, base, swap=True, obstacle=obstacle, crowd=crowd, evacuate=evacuate)


def _words(path: str) -> frozenset[str]:
    try:
        with open(path, encoding="ascii") as file:
            return frozenset(file.read().split())
    except FileNotFoundError:
        return frozenset()


def _not_writable(base: Path, version: Version) -> str:
    """Why no group can be made below `base`; empty when one can. On v2 joining needs base's cgroup.procs as well."""
    needed = [str(base)] + ([f"{base}/cgroup.procs"] if version == 2 else [])
    needed += [ours] if os.path.isdir(ours := f"{base}/{BASE}") else []
    for path in needed:
        if not os.access(path, os.W_OK):
            return f"{path} is not writable by uid {os.geteuid()}" if os.path.exists(path) else f"{path} does not exist"
    return ""


def _crowd(base: Path, is_top: bool, us: Path) -> tuple[str, bool]:
    """v2's no-internal-processes rule for `base`: (why controllers cannot be handed down, whether moving its processes helps)."""
    if not os.path.exists(f"{base}/cgroup.events"):  # only the true root has none; it is exempt from the rule
        return "", False
    pids = _words(f"{base}/cgroup.procs")
    if not pids:
        return "", False
    if is_top or is_delegated(base) or _all_ours(pids, us):
        return "", True
    return f"others are in {base} and it was not delegated to us", False


def is_delegated(base: Path) -> bool:
    """systemd marks what it hands over (Delegate=yes): trusted.delegate for services, user.delegate since v251."""
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(base, name) == b"1":
                return True
        except OSError as err:
            if err.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
                raise
    return False


def _all_ours(pids: frozenset[str], us: Path) -> bool:
    """Whether every process is the one whose directory in /proc `us` is, or below it."""
    self_pid = (us / "stat").read_text().split(" ", 1)[0]
    return all(_descends(pid, self_pid, us.parent) for pid in pids)


def _descends(pid: str, ancestor: str, proc: Path) -> bool:
    while pid not in ("0", "1", ancestor):
        try:
            stat = (proc / pid / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True  # ended since: nobody to be moved
        pid = stat.rpartition(")")[2].split()[1]
    return pid == ancestor
