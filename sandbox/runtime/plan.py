"""ContainerSpec → plan: the ordered, printable steps that init performs. Pure: no system call, no clock, no host state.

A plan is JSON: it travels to the spawner in a memfd and can be printed with SANDBOX_DEBUG=1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any  # a plan is JSON

import msgspec
from msgspec.structs import asdict, replace

from sandbox.errors import InvalidOption, Unsupported
from sandbox.runtime.init import subids
from sandbox.runtime.init import syscalls as s
from sandbox.runtime.init.names import CAPABILITIES, GROUND
from sandbox.runtime.security.capabilities import choose_capabilities
from sandbox.runtime.security.kernel_files import DEVICES, MASKED, PROTECTED, SYSCTLS, sysctl_file
from sandbox.runtime.spec import ContainerSpec, Mount, Process

Step = tuple[str, dict[str, Any]]
REMOVED = "removed"
"""Where a container's directory is moved when it is done with, below the engine's: to go at once, and to be deleted in peace."""
IDS = 65536
"""User ids of one container."""
GROUP_ID = 32
"""Digits of a container's id in the name of its cgroups."""

_DEV_LINKS = (
    ("/proc/self/fd", "dev/fd"), ("/proc/self/fd/0", "dev/stdin"), ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"), ("pts/ptmx", "dev/ptmx"), ("/proc/kcore", "dev/core"),
)  # fmt: skip
_QUIET = s.MOUNT_ATTR_NOSUID | s.MOUNT_ATTR_NODEV | s.MOUNT_ATTR_NOEXEC


class Site(msgspec.Struct, frozen=True):
    """Where and as whom a plan is made: facts of the host that the caller looked up.

    `store`: the engine's root; `record`: the container's own directory; `privileged`: we may map any ids and idmap mounts;
    `id_base`: first host id of the container's range; `uid`/`gid`: our own, mapped alone when not privileged;
    `resolv_conf`: the host's; `cgroup`: plain data of cgroups.Plan.
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
    seccomp: bytes = b""
    """The compiled filter; empty: none."""
    capabilities: tuple[str, ...] = ()
    """What its processes hold, as `capabilities` chose."""
    network: Mapping[str, Any] | None = None
    """How it is attached to networks: see Networks.attached."""
    shares: Mapping[str, Any] | None = None
    """Whose network it has, too: the `directory` of that container, and of its state `idmap` and `texts`."""
    subids: Mapping[str, Any] | None = None
    """The id map that an ordinary user's subordinate ids give: see init.subids.find."""


class LogFile(msgspec.Struct, frozen=True):
    """A json-file log: `max_size` bytes fill a file (0: no limit), `max_file` of them are kept."""

    path: str
    max_size: int = 0
    max_file: int = 1


class Handling(msgspec.Struct, frozen=True):
    """What the supervisor does around the container: `name` (the link: init.naming) is given up with the directory
    when `remove` is set; without `record` its state file stays as it is (a helper run in a stopped container)."""

    detach: bool = False
    record: bool = True
    remove: bool = True
    log: LogFile | None = None
    interactive: bool = False
    name: str = ""
    restart: tuple[str, int] = ("no", 0)
    """docker's policy and, for on-failure, how often (0: without end)."""
    told: Mapping[str, str] | None = None
    """What events of it say beside its id; None: there are none."""


def make_plan(spec: ContainerSpec, site: Site, handling: Handling = Handling()) -> dict[str, Any]:
    """Everything the spawner needs to run `spec`; raises InvalidOption for what contradicts itself."""
    texts = _texts(spec, site)
    return {
        "id": spec.id,
        "directory": site.record,
        "grave": f"{site.store}/{REMOVED}/{spec.id}",
        "upper": spec.rootfs.upper,
        "detach": handling.detach,
        "record": handling.record,
        "remove": handling.remove,
        "name": handling.name,
        "restart": list(handling.restart),
        "log": asdict(handling.log) if handling.log else None,
        "told": {"root": site.store, "attributes": dict(handling.told)} if handling.told is not None else None,
        "interactive": handling.interactive,
        "timeout": spec.timeout,
        "oom_score_adj": spec.oom_score_adj,
        "storage_size": spec.storage_size,
        "output_limit": spec.output_limit,
        "namespaces": namespaces(spec),
        "cgroup_namespace": site.cgroup is not None,
        "idmap": _idmap(spec, site),
        "ulimits": [list(ulimit) for ulimit in spec.ulimits],
        "ground_steps": _ground_steps(spec, site),
        "hub": site.network["hub"] if site.network else "",
        "network": site.network,
        "shares": site.shares["directory"] if site.shares else None,
        "texts": texts,
        "cgroup": site.cgroup,
        "host_mounts": _host_mounts(spec, site),
        "steps": _steps(spec, site, texts),
        "process": process_plan(spec.process, spec, site.seccomp, site.capabilities),
        "health": _health(spec, site),
    }


def encoded(plan: Mapping[str, Any]) -> bytes:
    """As JSON. msgspec is ten times as fast as json, and takes no names that are not UTF-8."""
    try:
        return msgspec.json.encode(plan)
    except UnicodeEncodeError:
        return json.dumps(plan).encode()


def has_left_host(plan: Mapping[str, Any]) -> bool:
    """Whether init, on its ground, has let go of the host's mounts."""
    return any(name == "enter_root" for name, _ in plan["ground_steps"])


def another_ground(plan: Mapping[str, Any], container_id: str, id_base: int | None) -> dict[str, Any]:
    """The ground (init/ground) of a container like this plan's, but called `container_id`. `id_base`: as in Site; None: no range of its
    own."""
    text = encoded({key: plan[key] for key in GROUND}).replace(plan["id"][:GROUP_ID].encode(), container_id[:GROUP_ID].encode())
    facts: dict[str, Any] = msgspec.json.decode(text)
    return facts if id_base is None else {**facts, "idmap": _range_of_its_own(id_base)}


def _health(spec: ContainerSpec, site: Site) -> dict[str, Any] | None:
    """The check, run as the program is; not for a helper of ours in its place."""
    if spec.health is None or spec.process.unpack or spec.process.pack:
        return None
    process = replace(spec.process, argv=spec.health.argv, tty=False)
    return {**asdict(spec.health), "process": process_plan(process, spec, site.seccomp, site.capabilities)}


def namespaces(spec: ContainerSpec) -> list[str]:
    """The namespaces init is cloned into; the cgroup namespace is made later, once init is in its groups."""
    return [
        *(["user"] if spec.userns == "private" else []),
        "mount", "pid", "uts", "ipc",
        *(["net"] if spec.network != "host" else []),
    ]  # fmt: skip


def process_plan(process: Process, spec: ContainerSpec, seccomp: bytes, held: Sequence[str]) -> dict[str, Any]:
    """The program's part of a plan, also for exec; `held`: its capabilities."""
    return {
        "argv": list(process.argv),
        "env": dict(process.env),
        "cwd": process.cwd or "/",
        "user": process.user,
        "tty": process.tty,
        "unpack": asdict(process.unpack) if process.unpack else None,
        "pack": asdict(process.pack) if process.pack else None,
        "hostname": spec.hostname,
        "ulimits": [list(ulimit) for ulimit in spec.ulimits],
        "capabilities": list(held),
        "no_new_privileges": spec.no_new_privileges and not spec.privileged,
        "seccomp": seccomp.hex(),
        "limits_suit_init": _limits_suit_init(process, spec, held),
    }


def _limits_suit_init(process: Process, spec: ContainerSpec, held: Sequence[str]) -> bool:
    """Whether init can take on itself what is set for the program, and still do its work: a policy of the user's may forbid it
    anything, and without KILL it could not pass a signal on to a program that became another user."""
    known_policy = spec.seccomp in ("default", "unconfined")
    return known_policy and "KILL" in held and spec.no_new_privileges and not (spec.privileged or spec.ulimits or process.tty)


def capabilities(spec: ContainerSpec, bounding: int) -> tuple[str, ...]:
    """What its processes hold. In the host's user namespace that is at most what we hold ourselves (`bounding`, a mask):
    Unsupported for a capability asked for by name; --privileged takes what there is."""
    chosen = choose_capabilities(spec.cap_add, spec.cap_drop, privileged=spec.privileged)
    if spec.userns == "private":
        return tuple(chosen)
    missing = [name for name in chosen if not bounding >> CAPABILITIES[name] & 1]
    if missing and not spec.privileged:
        raise Unsupported(
            f"capability {missing[0]}: this process may not hold it itself", feature=missing[0], hint="without --userns host it can be had"
        )
    return tuple(name for name in chosen if name not in missing)


def _idmap(spec: ContainerSpec, site: Site) -> dict[str, Any] | None:
    if site.shares:  # a network belongs to a user namespace: it has that, too
        return dict(site.shares["idmap"]) if site.shares["idmap"] else None
    if spec.userns == "host":
        return None
    if site.privileged:
        return _range_of_its_own(site.id_base)
    if site.subids:
        return dict(site.subids)
    return subids.own(site.uid, site.gid)


def _range_of_its_own(id_base: int) -> dict[str, Any]:
    ids = [[0, id_base, IDS]]
    return {"uid": ids, "gid": ids, "setgroups": True}


def _host_mounts(spec: ContainerSpec, site: Site) -> list[dict[str, Any]]:
    """What the supervisor prepares with the host's rights; without them init binds the same paths itself."""
    if not site.privileged:
        return []
    idmap = "must" if spec.userns == "private" else ""
    return [
        {"name": "store", "source": site.store, "idmap": idmap, "recursive": False, "read_only": False, "propagation": "private"},
        *(
            {
                "name": f"volume{n}",
                "source": m.source,
                "idmap": "try" if idmap else "",
                "recursive": True,
                "read_only": m.read_only,
                "propagation": m.options[0] if m.options else "rprivate",
            }
            for n, m in enumerate(spec.mounts)
            if m.kind == "bind"
        ),
    ]


def _ground_steps(spec: ContainerSpec, site: Site) -> list[Step]:
    """What does not depend on what runs: see init/ground."""
    own: list[Step] = [] if site.privileged else [("detach_bind", {"name": "store", "source": site.store})]
    return [("isolate_mounts", {}), *own, *([] if _own_binds(spec, site) else _staged(spec, site))]


def _steps(spec: ContainerSpec, site: Site, texts: Mapping[str, str]) -> list[Step]:
    binds = _own_binds(spec, site)
    return [
        *binds,
        *(_staged(spec, site) if binds else []),
        *_rootfs_steps(spec, site),
        *_file_steps(spec, site, texts),
        *_own_devices(spec, site),
        ("enter_root", {"target": "root"}),
        *(("attach", {"name": name, "target": f"/{name}"}) for name in _KERNEL_TREES),
        *(("attach", {"name": f"device{n}", "target": device.target}) for n, device in enumerate(spec.devices)),
        *_volume_steps(spec),
        *(("set_sysctl", {"path": sysctl_file(name), "text": value}) for name, value in spec.sysctls),
        *_redirect_steps(site.network),
        *([] if spec.privileged else [("protect", {"paths": [SYSCTLS]})]),
        *([("protect_root", {})] if spec.read_only else []),
        ("set_hostname", {"name": texts["hostname"].strip()}),
        *_network_steps(spec, site.network),
    ]


def _redirect_steps(network: Mapping[str, Any] | None) -> list[Step]:
    """See places.redirect_settings."""
    if not network or not any(place["router"] for place in network["places"]):
        return []
    from sandbox.runtime.init.places import redirect_settings  # with socket

    ends = ["all", *(place["end"] for place in network["places"])]
    return [("set_sysctl", {"path": path, "text": "0"}) for end in ends for path in redirect_settings(end)]


def _network_steps(spec: ContainerSpec, network: Mapping[str, Any] | None) -> list[Step]:
    if network is None:
        return []
    from sandbox.runtime.init.places import links  # with socket
    from sandbox.runtime.init.resolver import ADDRESS, PORT

    configured: list[Step] = [("configure_links", {"links": links(network["places"])})]
    if not spec.serves_names:
        return [*configured, ("open_resolver", {"address": ADDRESS, "port": PORT})]
    from sandbox.runtime.network import aside  # few do

    rules = [[kind, body.hex(), flags] for kind, body, flags in aside.requests(ADDRESS, PORT)]
    return [*configured, ("make_rules", {"requests": rules}), ("open_resolver", {"address": ADDRESS, "port": aside.PORT})]


def _inside(path: str, site: Site) -> str:
    """Where a path below the engine's directory is while init builds."""
    above = f"{site.store}/"
    if not path.startswith(above) or "/../" in f"{path}/":
        raise InvalidOption(f"{path}: not below the engine's directory")
    return f"store/{path[len(above) :]}"


def _rootfs_steps(spec: ContainerSpec, site: Site) -> list[Step]:
    rootfs = spec.rootfs
    lowers = [_inside(lower, site) for lower in rootfs.lowers] or ["empty"]  # overlayfs wants at least one
    return [
        ("attach_store", {"target": "store"}),
        ("make_directory", {"path": "empty"}),
        (
            "mount_overlay",
            {
                "lowers": lowers,
                "upper": _inside(rootfs.upper, site),
                "work": _inside(rootfs.work, site),
                "target": "root",
                "volatile": rootfs.volatile,
                "userxattr": True,
            },
        ),
        *(step for n, mount in enumerate(spec.mounts) if mount.kind == "layers" for step in _layers_steps(n, mount, site)),
    ]


def _layers_steps(number: int, mount: Mount, site: Site) -> list[Step]:
    """A part of another image: an overlay of its own, of which `source` is kept."""
    place = f"layers{number}"
    overlay = {
        "lowers": ["empty", *(_inside(lower, site) for lower in mount.lowers)],  # without an upper, overlayfs wants two
        "upper": _inside(mount.upper, site) if mount.upper else "",
        "work": _inside(mount.work, site) if mount.upper else "",
        "target": place,
        "volatile": bool(mount.upper),
        "userxattr": True,
    }
    kept = {"name": f"volume{number}", "source": place + mount.source.rstrip("/"), "read_only": mount.read_only}
    return [("mount_overlay", overlay), ("detach_bind", kept)]


def _texts(spec: ContainerSpec, site: Site) -> dict[str, str]:
    """The files of /etc that we write; with another container's network, that one's."""
    if site.shares:
        return dict(site.shares["texts"])
    return {"hostname": f"{spec.hostname}\n", "hosts": _hosts(spec, site), "resolv.conf": _resolv_conf(spec, site)}


def _file_steps(spec: ContainerSpec, site: Site, texts: Mapping[str, str]) -> list[Step]:
    also = {"read_only": True} if spec.read_only else {}  # as docker's
    return [
        *(
            ("write_file", {"path": f"etc/{name}", "text": text, "name": name, "is_handed": name == "hosts" and bool(site.network), **also})
            for name, text in texts.items()
        ),
        *(("write_file", _file(n, mount)) for n, mount in enumerate(spec.mounts) if mount.kind == "file"),
    ]


def _file(number: int, mount: Mount) -> dict[str, Any]:
    """A file of the user's, which only the container's memory holds."""
    options = dict(option.split("=", 1) for option in mount.options)
    return {
        "path": f"files/{number}",
        "text": mount.text,
        "name": f"volume{number}",
        "mode": int(options.get("mode", "0444"), 8),
        "owner": [int(options.get("uid", "0")), int(options.get("gid", "0"))],
        "read_only": mount.read_only,
    }


def _resolv_conf(spec: ContainerSpec, site: Site) -> str:
    """The host's; in a network our own name server, which asks the host's. --dns and --dns-search replace."""
    if spec.network == "none" and not spec.dns:
        return ""
    lines = [line for line in site.resolv_conf.splitlines() if line.strip() and not line.startswith(("#", ";"))]
    servers: Sequence[str] = spec.dns
    if site.network:
        from sandbox.runtime.init.resolver import ADDRESS  # with socket

        servers = [ADDRESS]
    if servers:
        lines = [*(line for line in lines if not line.startswith("nameserver")), *(f"nameserver {server}" for server in servers)]
    if spec.dns_search:
        lines = [*(line for line in lines if not line.startswith(("search", "domain"))), f"search {' '.join(spec.dns_search)}"]
    return "".join(f"{line}\n" for line in lines)


def _hosts(spec: ContainerSpec, site: Site) -> str:
    own = [f"127.0.1.1\t{spec.hostname}"]
    if site.network:
        from sandbox.runtime.init.places import hosts_lines  # with socket

        own = hosts_lines(site.network["places"], spec.hostname)
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback", *own]
    return "\n".join([*lines, *(f"{address}\t{name}" for name, address in spec.extra_hosts)]) + "\n"


_KERNEL_TREES = ("proc", "sys", "dev")


def _staged(spec: ContainerSpec, site: Site) -> list[Step]:
    """/proc, /sys and /dev as the container sees them, built on staging while the host is visible (proc and sysfs want a visible one
    beside them), each then kept as one detached tree. Then the host's mounts are let go: who waits must not keep them busy."""
    return [
        ("mount_staging", {}),
        *_dev_steps(spec),
        *_kernel_mounts(spec, site),
        *([] if spec.privileged else [("mask", {"paths": _staging(MASKED)}), ("protect", {"paths": _staging(PROTECTED)})]),
        *(("detach_bind", {"name": name, "source": name, "recursive": True}) for name in _KERNEL_TREES),
        ("enter_root", {"target": "."}),
        *([("loopback_up", {})] if spec.network != "host" and not site.shares else []),
    ]


def _staging(paths: Sequence[str]) -> list[str]:
    """Where they are on staging, which is the working directory; what is written to later is left out."""
    return [path.lstrip("/") for path in paths if path != SYSCTLS]


def _own_binds(spec: ContainerSpec, site: Site) -> list[Step]:
    """The user's mounts and devices that _host_mounts leaves to init, opened before staging hides the host's directories."""
    volumes = [] if site.privileged else [(f"volume{n}", m) for n, m in enumerate(spec.mounts) if m.kind == "bind"]
    devices = [] if _makes_devices(spec, site) else list(enumerate(spec.devices))
    return [
        *(("detach_bind", {"name": name, "source": m.source, "recursive": True, "read_only": m.read_only}) for name, m in volumes),
        *(("detach_bind", {"name": f"device{n}", "source": device.source}) for n, device in devices),
    ]


def _own_devices(spec: ContainerSpec, site: Site) -> list[Step]:
    """Nodes of the container's own, which the idmapped store shows as its root's: the host's would be nobody's."""
    numbers = range(len(spec.devices)) if _makes_devices(spec, site) else ()
    return [("detach_bind", {"name": f"device{n}", "source": _inside(f"{site.record}/devices/{n}", site)}) for n in numbers]


def _makes_devices(spec: ContainerSpec, site: Site) -> bool:
    return site.privileged and spec.userns == "private"


def _kernel_mounts(spec: ContainerSpec, site: Site) -> list[Step]:
    steps: list[Step] = [
        ("detach_new", {"name": "proc", "fstype": "proc", "attrs": _QUIET}),
        ("attach", {"name": "proc", "target": "proc"}),
    ]
    if spec.network != "host":
        steps.append(("detach_new", {"name": "sys", "fstype": "sysfs", "attrs": _QUIET | (0 if spec.privileged else s.MOUNT_ATTR_RDONLY)}))
    else:  # a new sysfs shows the network namespace it belongs to, which is not ours
        steps.append(("detach_bind", {"name": "sys", "source": "/sys", "recursive": True, "read_only": True}))
    steps.append(("attach", {"name": "sys", "target": "sys"}))
    if site.cgroup2_only and site.cgroup is not None:
        steps += [
            ("detach_new", {"name": "cgroup", "fstype": "cgroup2", "attrs": _QUIET | s.MOUNT_ATTR_RDONLY}),
            ("attach", {"name": "cgroup", "target": "sys/fs/cgroup"}),
        ]
    elif spec.network == "host":
        steps.append(("mask", {"paths": ["sys/fs/cgroup"]}))
    return steps


def _dev_steps(spec: ContainerSpec) -> list[Step]:
    tmpfs = s.MOUNT_ATTR_NOSUID | s.MOUNT_ATTR_NODEV
    shm = {"mode": "1777", "size": str(spec.shm_size)}
    return [
        *(("detach_bind", {"name": device, "source": f"/dev/{device}"}) for device in DEVICES),
        ("detach_new", {"name": "dev", "fstype": "tmpfs", "attrs": s.MOUNT_ATTR_NOSUID, "options": {"mode": "0755", "size": "64k"}}),
        ("attach", {"name": "dev", "target": "dev"}),
        *(("attach", {"name": device, "target": f"dev/{device}"}) for device in DEVICES),
        ("detach_new", {"name": "pts", "fstype": "devpts", "attrs": _PTS, "options": {"mode": "0620", "ptmxmode": "0666"}}),
        ("attach", {"name": "pts", "target": "dev/pts"}),
        ("detach_new", {"name": "shm", "fstype": "tmpfs", "attrs": tmpfs | s.MOUNT_ATTR_NOEXEC, "options": shm}),
        ("attach", {"name": "shm", "target": "dev/shm"}),
        ("detach_new", {"name": "mqueue", "fstype": "mqueue", "attrs": _QUIET}),
        ("attach", {"name": "mqueue", "target": "dev/mqueue"}),
        *(("symlink", {"target": target, "path": path}) for target, path in _DEV_LINKS),
    ]


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
