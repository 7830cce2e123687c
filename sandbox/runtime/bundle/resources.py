"""`linux.resources` and `linux.cgroupsPath` of a bundle as cgroup directories and writes, one row a field.

Each row says which file takes the field, and how, in cgroup v1 and in v2; what a version does not have is refused. The
conversions are runc's (libcontainer/cgroups) and the kernel's documentation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal  # resources are JSON, read by the rows

import msgspec

from sandbox.errors import InvalidBundle, Unsupported

Version = Literal[1, 2]
_DEVICE_LETTERS = {"c": "c", "u": "c", "b": "b", "a": "a"}
_DEFAULT_DEVICES = (
    "c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:2 rwm", "c 136:* rwm",
)  # fmt: skip
"""What every container may use besides what the bundle says: runc's list (mknod of anything, the standard devices, terminals)."""


class Groups(msgspec.Struct, frozen=True):
    """A container's cgroups: `places` is controller (v2: "") → directory, `writes` are (file, text) in order."""

    places: Mapping[str, str]
    version: Version
    writes: tuple[tuple[str, str], ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    shown: Mapping[str, str] = msgspec.field(default_factory=dict)
    """What the container sees below /sys/fs/cgroup: name → its group there."""

    @property
    def directories(self) -> tuple[str, ...]:
        """Each once: one v1 hierarchy may hold several controllers."""
        return tuple(dict.fromkeys(self.places.values()))

    @property
    def joins(self) -> tuple[str, ...]:
        """The files to write 0 to from inside (cgroup.join of init)."""
        name = "tasks" if self.version == 1 else "cgroup.procs"
        return tuple(f"{directory}/{name}" for directory in self.directories)


class Hierarchy(msgspec.Struct, frozen=True):
    """A mounted cgroup tree: its directory, the controllers (v2: none are listed here), our own group in it."""

    target: str
    version: Version
    controllers: tuple[str, ...]
    own: str


def _number(value: Any) -> str:
    return str(int(value))


def _max(value: Any) -> str:
    return "max" if int(value) < 0 else str(int(value))


def _weight(shares: Any) -> str:
    return str(1 + (int(shares) - 2) * 9999 // 262142)


def _throttles(key: str) -> Callable[[Any], str]:
    return lambda devices: "\n".join(f"{d['major']}:{d['minor']} {key}{'=' if key else ''}{d['rate']}" for d in devices)


class Row(msgspec.Struct, frozen=True):
    """One field: where it stands in `resources`, and for each version the controller, its file and the value's text."""

    path: tuple[str, str]
    controller: str
    v1: str
    v2: str
    v1_text: Callable[[Any], str] = _number
    v2_text: Callable[[Any], str] = _number
    zero_counts: bool = False


ROWS = (
    Row(("memory", "reservation"), "memory", "memory.soft_limit_in_bytes", "memory.low", _number, _max),
    Row(("memory", "limit"), "memory", "memory.limit_in_bytes", "memory.max", _number, _max),
    Row(("memory", "swap"), "memory", "memory.memsw.limit_in_bytes", "memory.swap.max", _number, _max),
    Row(("memory", "swappiness"), "memory", "memory.swappiness", "", zero_counts=True),
    Row(("memory", "disableOOMKiller"), "memory", "memory.oom_control", ""),
    Row(("cpu", "shares"), "cpu", "cpu.shares", "cpu.weight", _number, _weight),
    Row(("cpu", "idle"), "cpu", "cpu.idle", "cpu.idle", zero_counts=True),
    Row(("cpu", "burst"), "cpu", "cpu.cfs_burst_us", "cpu.max.burst"),
    Row(("cpu", "period"), "cpu", "cpu.cfs_period_us", "cpu.max"),
    Row(("cpu", "quota"), "cpu", "cpu.cfs_quota_us", "cpu.max"),
    Row(("cpu", "realtimePeriod"), "cpu", "cpu.rt_period_us", ""),
    Row(("cpu", "realtimeRuntime"), "cpu", "cpu.rt_runtime_us", ""),
    Row(("cpu", "cpus"), "cpuset", "cpuset.cpus", "cpuset.cpus", str, str),
    Row(("cpu", "mems"), "cpuset", "cpuset.mems", "cpuset.mems", str, str),
    Row(("pids", "limit"), "pids", "pids.max", "pids.max", _max, _max),
    Row(("blockIO", "weight"), "blkio", "blkio.bfq.weight", "io.bfq.weight"),
    Row(("blockIO", "throttleReadBpsDevice"), "blkio", "blkio.throttle.read_bps_device", "io.max", _throttles(""), _throttles("rbps")),
    Row(("blockIO", "throttleWriteBpsDevice"), "blkio", "blkio.throttle.write_bps_device", "io.max", _throttles(""), _throttles("wbps")),
    Row(("blockIO", "throttleReadIOPSDevice"), "blkio", "blkio.throttle.read_iops_device", "io.max", _throttles(""), _throttles("riops")),
    Row(("blockIO", "throttleWriteIOPSDevice"), "blkio", "blkio.throttle.write_iops_device", "io.max", _throttles(""), _throttles("wiops")),
    Row(("network", "classID"), "net_cls", "net_cls.classid", ""),
)  # fmt: skip
_KNOWN = {path for row in ROWS for path in [row.path]}
_NO_EFFECT = {("memory", "kernel"), ("memory", "kernelTCP"), ("memory", "useHierarchy"), ("memory", "checkBeforeUpdate")}
"""Fields that Linux has dropped, or that only say how to set another."""
BASE = "sandbox-oci"
"""The directory below our own group that groups without an absolute path go into."""
_LISTS = ("devices", "hugepageLimits", "unified", "rdma")


def hierarchies(mountinfo: str, own: str) -> tuple[Hierarchy, ...]:
    """The cgroup trees of /proc/self/mountinfo, with our own groups from /proc/self/cgroup: v1 ones, else the v2 one."""
    groups = {}
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        groups[controllers] = path.rstrip("/")
    found = [hierarchy for line in mountinfo.splitlines() if (hierarchy := _hierarchy(line, groups))]
    v1 = tuple(h for h in found if h.version == 1)
    return v1 or tuple(h for h in found if h.version == 2)


def _hierarchy(line: str, groups: Mapping[str, str]) -> Hierarchy | None:
    left, _, right = line.partition(" - ")
    kind, _, super_options = right.partition(" ")
    _, _, _, _, target, *_ = left.split(" ")
    if kind == "cgroup2":
        return Hierarchy(target, 2, (), groups.get("", ""))
    if kind != "cgroup":
        return None
    options = set(super_options.split(" ")[-1].split(","))
    for names, path in groups.items():
        if names and set(names.split(",")) <= options:
            return Hierarchy(target, 1, tuple(names.split(",")), path)
    return None


def plan_groups(
    name: str, cgroups_path: str, resources: Mapping[str, Any], trees: tuple[Hierarchy, ...], devices: tuple[str, ...] = ()
) -> Groups:
    """The groups of a container and what to write for its resources; InvalidBundle, Unsupported. `name`: where no path is given.

    An absolute `cgroups_path` counts from the trees' roots, a relative one from our own group (config-linux.md, Cgroups
    Path). `devices`: more rules for the v1 devices controller, as `linux.devices` asks for them.
    """
    if ".." in cgroups_path.split("/"):
        raise InvalidBundle(f"cgroupsPath {cgroups_path}: leads outside")
    if ":" in cgroups_path and "/" not in cgroups_path:
        message = f"cgroupsPath {cgroups_path}: systemd's groups are not supported"
        raise Unsupported(message, feature="systemd-cgroup", hint="use the cgroupfs manager")
    if not trees:
        if _asked(resources):
            raise Unsupported("resources: no cgroup file system is mounted here", feature="cgroup")
        return Groups({}, 1)
    places = {controller: f"{tree.target}{_below(tree, cgroups_path, name)}" for tree in trees for controller in tree.controllers or ("",)}
    version = trees[0].version
    writes = (*(_device_writes(places, resources, devices) if version == 1 else ()), *limit_writes(places, version, resources))
    shown = {os.path.basename(tree.target): places[tree.controllers[0]] for tree in trees} if version == 1 else places
    return Groups(places, version, tuple(writes), tuple(_cpuset_copies(places, trees)), shown)


def _below(tree: Hierarchy, path: str, name: str) -> str:
    return path if path.startswith("/") else f"{tree.own}/{BASE}/{path or name}"


def _asked(resources: Mapping[str, Any]) -> bool:
    return any(value for name, value in resources.items() if name != "devices")


def limit_writes(places: Mapping[str, str], version: Version, resources: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The writes for every field of `resources` that is given; Unsupported names the first that cannot be enforced."""
    _refuse_unknown(resources)
    written: list[tuple[str, str]] = []
    for row in ROWS:
        value = (resources.get(row.path[0]) or {}).get(row.path[1])
        if value is None or (not value and not row.zero_counts):
            continue  # runc, too, takes 0 for not given
        written.append(_write(row, value, places, version, resources))
    written += _unified(places, version, resources)
    written += _huge_pages(places, version, resources)
    return tuple(dict.fromkeys(written))


def _refuse_unknown(resources: Mapping[str, Any]) -> None:
    for group, fields in resources.items():
        if group in _LISTS or not isinstance(fields, Mapping):
            continue
        for name, value in fields.items():
            if (group, name) not in _KNOWN | _NO_EFFECT and value not in (None, 0, "", [], False):
                raise Unsupported(f"resources: {group}.{name} is not supported", feature=f"{group}.{name}")
    if resources.get("rdma"):
        raise Unsupported("resources: rdma is not supported", feature="rdma")


def _write(row: Row, value: Any, places: Mapping[str, str], version: Version, resources: Mapping[str, Any]) -> tuple[str, str]:
    name = ".".join(row.path)
    file, text = (row.v1, row.v1_text) if version == 1 else (row.v2, row.v2_text)
    directory = places.get(row.controller) if version == 1 else places.get("")
    if not file:
        raise Unsupported(f"resources: {name} does not exist in cgroup v{version}", feature=name)
    if directory is None:
        raise Unsupported(f"resources: {name}: no {row.controller} controller here", feature=name)
    if file == "cpu.max":
        cpu = resources["cpu"]
        quota = cpu.get("quota") or -1
        return f"{directory}/{file}", f"{_max(quota)} {cpu.get('period') or 100000}"
    if version == 2 and row.path == ("memory", "swap"):
        value = value if value < 0 else value - (resources["memory"].get("limit") or 0)
    return f"{directory}/{file}", text(value)


def _unified(places: Mapping[str, str], version: Version, resources: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, text in (resources.get("unified") or {}).items():
        if version == 1:
            raise Unsupported("resources: unified needs cgroup v2", feature="unified")
        if "/" in name:
            raise InvalidBundle(f"resources: unified: {name} is no file name")
        yield f"{places['']}/{name}", text


def _huge_pages(places: Mapping[str, str], version: Version, resources: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for limit in resources.get("hugepageLimits") or ():
        directory = places.get("hugetlb" if version == 1 else "")
        if directory is None:
            raise Unsupported("resources: hugepageLimits: no hugetlb controller here", feature="hugepageLimits")
        yield f"{directory}/hugetlb.{limit['pageSize']}.{'limit_in_bytes' if version == 1 else 'max'}", str(limit["limit"])


def _device_writes(places: Mapping[str, str], resources: Mapping[str, Any], devices: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """v1's devices controller. (v2 has a BPF program there; without one nothing is denied, so the node itself is not made.)"""
    rules = resources.get("devices") or ()
    directory = places.get("devices")
    if not rules or directory is None:
        return
    for rule in rules:
        kind = _DEVICE_LETTERS.get(rule.get("type") or "a")
        if kind is None:
            raise InvalidBundle(f"resources: devices: type {rule['type']}")
        major, minor = (("*" if rule.get(part) in (None, -1) else str(rule[part])) for part in ("major", "minor"))
        text = "a" if kind == "a" and rule.get("access", "rwm") == "rwm" else f"{kind} {major}:{minor} {rule.get('access') or 'rwm'}"
        yield f"{directory}/devices.{'allow' if rule['allow'] else 'deny'}", text
    for text in (*_DEFAULT_DEVICES, *devices):
        yield f"{directory}/devices.allow", text


def _cpuset_copies(places: Mapping[str, str], trees: tuple[Hierarchy, ...]) -> Iterator[tuple[str, str]]:
    """A new v1 cpuset group is empty and takes nobody in: hand the values down from the tree's root, level by level."""
    for tree in trees:
        if "cpuset" not in tree.controllers:
            continue
        above = tree.target
        for part in places["cpuset"][len(tree.target) :].strip("/").split("/"):
            below = f"{above}/{part}"
            for file in ("cpuset.cpus", "cpuset.mems"):
                yield f"{above}/{file}", f"{below}/{file}"
            above = below
