"""ContainerSpec → plan: the ordered, printable steps that init performs. Pure: no system call, no clock, no host state.

A plan is JSON: it travels to the spawner in a memfd and can be printed with SANDBOX_DEBUG=1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # a plan is JSON

from sandbox.errors import InvalidOption
from sandbox.runtime.init import syscalls as s
from sandbox.runtime.init.program import CAPABILITIES
from sandbox.runtime.spec import ContainerSpec, Mount, Process

Step = tuple[str, dict[str, Any]]
IDS = 65536
"""User ids of one container."""

DEFAULT_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
    "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
)  # fmt: skip
"""docker's default set (moby, oci/caps/defaults.go)."""
MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
)  # fmt: skip
PROTECTED = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""docker's masked and read-only paths (moby, oci/defaults.go)."""
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEV_LINKS = (
    ("/proc/self/fd", "/dev/fd"), ("/proc/self/fd/0", "/dev/stdin"), ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"), ("pts/ptmx", "/dev/ptmx"), ("/proc/kcore", "/dev/core"),
)  # fmt: skip
_QUIET = s.MOUNT_ATTR_NOSUID | s.MOUNT_ATTR_NODEV | s.MOUNT_ATTR_NOEXEC


@dataclass(frozen=True)
class Site:
    """Where and as whom a plan is made: facts of the host that the caller looked up.

    `store`: the engine's root; `record`: the container's own directory; `privileged`: we may map any ids and idmap mounts;
    `id_base`: first host id of the container's range; `uid`/`gid`: our own, mapped alone when not privileged;
    `resolv_conf`: text for /etc/resolv.conf when the host's network is used; `cgroup`: plain data of cgroups.Plan.
    """

    store: str
    record: str
    privileged: bool
    id_base: int
    uid: int
    gid: int
    resolv_conf: str
    cgroup: Mapping[str, Any] | None
    cgroup2_only: bool = False


@dataclass(frozen=True)
class Handling:
    """What the supervisor does around the container: `names` are removed with the directory
    when `remove` is set; without `record` its state file stays as it is (a helper run in a stopped container)."""

    detach: bool = False
    record: bool = True
    remove: bool = True
    log: str | None = None
    interactive: bool = False
    names: tuple[str, ...] = ()


def make_plan(spec: ContainerSpec, site: Site, handling: Handling = Handling()) -> dict[str, Any]:
    """Everything the spawner needs to run `spec`; raises InvalidOption for what contradicts itself."""
    return {
        "id": spec.id,
        "directory": site.record,
        "upper": spec.rootfs.upper,
        "detach": handling.detach,
        "record": handling.record,
        "remove": handling.remove,
        "names": list(handling.names),
        "log": handling.log,
        "interactive": handling.interactive,
        "timeout": spec.timeout,
        "namespaces": namespaces(spec),
        "cgroup_namespace": site.cgroup is not None,
        "idmap": _idmap(spec, site),
        "cgroup": site.cgroup,
        "host_mounts": _host_mounts(spec, site),
        "steps": _steps(spec, site),
        "process": process_plan(spec.process, spec),
    }


def namespaces(spec: ContainerSpec) -> list[str]:
    """The namespaces init is cloned into; the cgroup namespace is made later, once init is in its groups."""
    return [
        *(["user"] if spec.userns == "private" else []),
        "mount", "pid", "uts", "ipc",
        *(["net"] if spec.network == "none" else []),
    ]  # fmt: skip


def process_plan(process: Process, spec: ContainerSpec) -> dict[str, Any]:
    """The program's part of a plan, also for exec."""
    return {
        "argv": list(process.argv),
        "env": dict(process.env),
        "cwd": process.cwd or "/",
        "user": process.user,
        "tty": process.tty,
        "unpack": process.unpack,
        "hostname": spec.hostname,
        "ulimits": [list(ulimit) for ulimit in spec.ulimits],
        "capabilities": capabilities(spec.cap_add, spec.cap_drop),
    }


def capabilities(add: Sequence[str], drop: Sequence[str]) -> list[str]:
    """docker's default set with --cap-add and --cap-drop applied (ALL is everything); raises InvalidOption."""
    added, dropped = ({_capability(name) for name in names} for names in (add, drop))
    kept = set() if "ALL" in dropped else set(CAPABILITIES) if "ALL" in added else set(DEFAULT_CAPABILITIES)
    return sorted((kept | (added - {"ALL"}) if "ALL" not in added else set(CAPABILITIES)) - (dropped - {"ALL"}))


def _capability(name: str) -> str:
    short = name.upper().removeprefix("CAP_")
    if short != "ALL" and short not in CAPABILITIES:
        raise InvalidOption(f"capability {name!r}: not known", hint="capabilities(7) lists them; write NET_ADMIN or CAP_NET_ADMIN")
    return short


def _idmap(spec: ContainerSpec, site: Site) -> dict[str, Any] | None:
    if spec.userns == "host":
        return None
    if site.privileged:
        ids = [[0, site.id_base, IDS]]
        return {"uid": ids, "gid": ids, "setgroups": True}
    return {"uid": [[0, site.uid, 1]], "gid": [[0, site.gid, 1]], "setgroups": False}


def _host_mounts(spec: ContainerSpec, site: Site) -> list[dict[str, Any]]:
    """What the supervisor prepares with the host's rights; without them init binds the same paths itself."""
    if not site.privileged:
        return []
    idmap = "must" if spec.userns == "private" else ""
    return [
        {"name": "store", "source": site.store, "idmap": idmap, "recursive": False, "read_only": False},
        *(
            {"name": f"volume{n}", "source": m.source, "idmap": "try" if idmap else "", "recursive": True, "read_only": m.read_only}
            for n, m in enumerate(spec.mounts)
            if m.kind == "bind"
        ),
    ]


def _steps(spec: ContainerSpec, site: Site) -> list[Step]:
    return [
        ("isolate_mounts", {}),
        ("mount_staging", {}),
        *_rootfs_steps(spec, site),
        *_file_steps(spec, site),
        *_detached_steps(spec, site),
        ("enter_root", {"target": "root"}),
        *_kernel_mounts(spec, site),
        *_dev_steps(spec),
        *_volume_steps(spec),
        ("mask", {"paths": list(MASKED)}),
        ("protect", {"paths": list(PROTECTED)}),
        *([("protect_root", {})] if spec.read_only else []),
        ("set_hostname", {"name": spec.hostname}),
        *([("loopback_up", {})] if spec.network == "none" else []),
    ]


def _rootfs_steps(spec: ContainerSpec, site: Site) -> list[Step]:
    def inside(path: str) -> str:
        relative = os.path.relpath(path, site.store)
        if relative.startswith(".."):
            raise InvalidOption(f"{path}: not below the engine's directory")
        return f"store/{relative}"

    rootfs = spec.rootfs
    lowers = [inside(lower) for lower in rootfs.lowers] or ["empty"]  # overlayfs wants at least one
    return [
        ("attach_store", {"target": "store"} if site.privileged else {"target": "store", "source": site.store}),
        ("make_directory", {"path": "empty"}),
        (
            "mount_overlay",
            {
                "lowers": lowers,
                "upper": inside(rootfs.upper),
                "work": inside(rootfs.work),
                "target": "root",
                "volatile": rootfs.volatile,
                "userxattr": True,
            },
        ),
    ]


def _file_steps(spec: ContainerSpec, site: Site) -> list[Step]:
    texts = (
        ("hostname", f"{spec.hostname}\n"),
        ("hosts", _hosts(spec)),
        ("resolv.conf", site.resolv_conf if spec.network == "host" else ""),
    )
    return [("write_file", {"path": f"etc/{name}", "text": text, "name": name}) for name, text in texts]


def _hosts(spec: ContainerSpec) -> str:
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback", f"127.0.1.1\t{spec.hostname}"]
    return "\n".join([*lines, *(f"{address}\t{name}" for name, address in spec.extra_hosts)]) + "\n"


def _detached_steps(spec: ContainerSpec, site: Site) -> list[Step]:
    """Everything that must be opened while the host is visible."""
    steps: list[Step] = [("detach_new", {"name": "proc", "fstype": "proc", "attrs": _QUIET})]
    if spec.network == "none":
        steps.append(("detach_new", {"name": "sys", "fstype": "sysfs", "attrs": _QUIET | s.MOUNT_ATTR_RDONLY}))
    else:  # a new sysfs shows the network namespace it belongs to, which is not ours
        steps.append(("detach_bind", {"name": "sys", "source": "/sys", "recursive": True, "read_only": True}))
    steps += [("detach_bind", {"name": device, "source": f"/dev/{device}"}) for device in DEVICES]
    if not site.privileged:
        steps += [
            ("detach_bind", {"name": f"volume{n}", "source": m.source, "recursive": True, "read_only": m.read_only})
            for n, m in enumerate(spec.mounts)
            if m.kind == "bind"
        ]
    return steps


def _kernel_mounts(spec: ContainerSpec, site: Site) -> list[Step]:
    steps: list[Step] = [("attach", {"name": "proc", "target": "/proc"}), ("attach", {"name": "sys", "target": "/sys"})]
    if site.cgroup2_only and site.cgroup is not None:
        steps += [
            ("detach_new", {"name": "cgroup", "fstype": "cgroup2", "attrs": _QUIET | s.MOUNT_ATTR_RDONLY}),
            ("attach", {"name": "cgroup", "target": "/sys/fs/cgroup"}),
        ]
    elif spec.network == "host":
        steps.append(("mask", {"paths": ["/sys/fs/cgroup"]}))
    return steps


def _dev_steps(spec: ContainerSpec) -> list[Step]:
    tmpfs = s.MOUNT_ATTR_NOSUID | s.MOUNT_ATTR_NODEV
    shm = {"mode": "1777", "size": str(spec.shm_size)}
    steps: list[Step] = [
        ("detach_new", {"name": "dev", "fstype": "tmpfs", "attrs": s.MOUNT_ATTR_NOSUID, "options": {"mode": "0755", "size": "64k"}}),
        ("attach", {"name": "dev", "target": "/dev"}),
        *(("attach", {"name": device, "target": f"/dev/{device}"}) for device in DEVICES),
        ("detach_new", {"name": "pts", "fstype": "devpts", "attrs": _PTS, "options": {"mode": "0620", "ptmxmode": "0666"}}),
        ("attach", {"name": "pts", "target": "/dev/pts"}),
        ("detach_new", {"name": "shm", "fstype": "tmpfs", "attrs": tmpfs | s.MOUNT_ATTR_NOEXEC, "options": shm}),
        ("attach", {"name": "shm", "target": "/dev/shm"}),
        ("detach_new", {"name": "mqueue", "fstype": "mqueue", "attrs": _QUIET}),
        ("attach", {"name": "mqueue", "target": "/dev/mqueue"}),
        *(("symlink", {"target": target, "path": path}) for target, path in _DEV_LINKS),
    ]
    return steps


_PTS = s.MOUNT_ATTR_NOSUID | s.MOUNT_ATTR_NOEXEC


def _volume_steps(spec: ContainerSpec) -> list[Step]:
    """The user's mounts, parents first, so that one inside another is not covered; then the generated /etc files."""
    steps: list[Step] = []
    for n, mount in sorted(enumerate(spec.mounts), key=lambda item: item[1].target.count("/")):
        if mount.kind == "tmpfs":
            steps.append(("detach_new", _tmpfs(n, mount)))
        steps.append(("attach", {"name": f"volume{n}", "target": mount.target}))
    taken = {mount.target for mount in spec.mounts}
    names = ("hostname", "hosts", "resolv.conf")
    return [*steps, *(("attach", {"name": name, "target": f"/etc/{name}"}) for name in names if f"/etc/{name}" not in taken)]


_TMPFS_FLAGS = {"ro": s.MOUNT_ATTR_RDONLY, "noexec": s.MOUNT_ATTR_NOEXEC, "nosuid": s.MOUNT_ATTR_NOSUID, "nodev": s.MOUNT_ATTR_NODEV}
_TMPFS_OFF = {"rw": "ro", "exec": "noexec", "suid": "nosuid", "dev": "nodev"}


def _tmpfs(number: int, mount: Mount) -> dict[str, Any]:
    """docker's --tmpfs: noexec, nosuid, nodev unless said otherwise; size, mode, uid, gid as in tmpfs(5)."""
    flags = {"noexec", "nosuid", "nodev"}
    options: dict[str, str] = {"mode": "1777"}
    for option in mount.options:
        key, equals, value = option.partition("=")
        if option in _TMPFS_FLAGS:
            flags.add(option)
        elif option in _TMPFS_OFF:
            flags.discard(_TMPFS_OFF[option])
        elif equals and key in ("size", "mode", "uid", "gid", "nr_inodes"):
            options[key] = value
        else:
            raise InvalidOption(f"--tmpfs {mount.target}: option {option!r} is not known")
    attrs = sum(_TMPFS_FLAGS[flag] for flag in flags)
    return {"name": f"volume{number}", "fstype": "tmpfs", "attrs": attrs, "options": options}
