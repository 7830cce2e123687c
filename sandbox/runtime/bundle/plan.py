"""A bundle's config as a plan: the namespaces, the ordered steps of `init/bundle_steps.py`, the program. Pure."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any  # a plan is plain data

from sandbox.errors import InvalidBundle, Unsupported
from sandbox.runtime.bundle.config import Capabilities, Config, Device, Linux, Namespace, Process
from sandbox.runtime.bundle.mounts import PROPAGATION, Step, mount_step
from sandbox.runtime.bundle.resources import Groups
from sandbox.runtime.init import syscalls as s
from sandbox.runtime.init.names import CAPABILITIES

NAMESPACES = {
    "user": s.CLONE_NEWUSER, "mount": s.CLONE_NEWNS, "pid": s.CLONE_NEWPID, "network": s.CLONE_NEWNET, "ipc": s.CLONE_NEWIPC,
    "uts": s.CLONE_NEWUTS, "cgroup": s.CLONE_NEWCGROUP,
}  # fmt: skip
"""The specification's names, in the order in which existing ones are entered: the user namespace gives the right to the others."""
_DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
_LINKS = (
    ("/proc/self/fd", "/dev/fd"), ("/proc/self/fd/0", "/dev/stdin"), ("/proc/self/fd/1", "/dev/stdout"), ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
)  # fmt: skip
_KINDS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
_RLIMITS = {
    "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_DATA", "RLIMIT_STACK", "RLIMIT_CORE", "RLIMIT_RSS", "RLIMIT_NPROC", "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK", "RLIMIT_AS", "RLIMIT_SIGPENDING", "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_RTPRIO", "RLIMIT_RTTIME",
}  # fmt: skip
_REFUSED = ("intel_rdt", "personality", "time_offsets", "mount_label")


def make_plan(config: Config, bundle: Path, groups: Groups, *, seccomp: bytes | None, pivot: bool = True) -> dict[str, Any]:
    """Everything the container's first process does; InvalidBundle, Unsupported. `seccomp`: the compiled filter."""
    _check(config)
    assert config.root is not None
    new, enter = split_namespaces(config.linux)
    own_users = any(n.type == "user" for n in config.linux.namespaces)
    rootfs = str((bundle / config.root.path).resolve())
    joined_mounts = any(path for path, flag in enter if flag == s.CLONE_NEWNS)
    steps = [] if joined_mounts else _steps(config, bundle, groups, own_users=own_users)
    return {
        "flags": new & ~s.CLONE_NEWCGROUP,
        "cgroup_namespace": bool(new & s.CLONE_NEWCGROUP),
        "enter": enter,
        "into": None,
        "become_root": own_users,
        "idmap": _idmap(config.linux) if new & s.CLONE_NEWUSER else None,
        "first_steps": [] if joined_mounts else _first_steps(config, rootfs, steps),
        "steps": steps,
        "last_steps": _last_steps(config, rootfs, new, joined_mounts=joined_mounts, pivot=pivot),
        "hooks": _hooks(config),
        "process": process_plan(config.process, seccomp),
        "console": not joined_mounts,
    }


def split_namespaces(linux: Linux) -> tuple[int, list[tuple[str, int]]]:
    """The flags of the new namespaces, and (path, flag) of those to join."""
    given = {namespace.type: namespace for namespace in linux.namespaces}
    if len(given) != len(linux.namespaces):
        raise InvalidBundle("namespaces: one is given twice")
    for name in given:
        if name not in NAMESPACES:
            raise Unsupported(f"namespaces: {name} is not supported", feature=name)
    found = [(given.get(name, Namespace(name, "-")), flag) for name, flag in NAMESPACES.items()]
    new = sum(flag for namespace, flag in found if not namespace.path)
    return new, [(namespace.path, flag) for namespace, flag in found if namespace.path not in ("", "-")]


def _check(config: Config) -> None:
    if config.root is None:
        raise InvalidBundle("config.json: root is missing")
    if config.process is None:
        raise InvalidBundle("config.json: process is missing")
    if "mount" not in {namespace.type for namespace in config.linux.namespaces}:
        raise Unsupported("namespaces: a container without a mount namespace is not supported", feature="mount namespace")
    for name in _REFUSED:
        if getattr(config.linux, name):
            raise Unsupported(f"linux.{name} is not supported", feature=name)
    _check_owned(config)


def _check_owned(config: Config) -> None:
    """What would change the host when the namespace it belongs to is not the container's own."""
    names = {namespace.type for namespace in config.linux.namespaces}
    if (config.hostname or config.domainname) and "uts" not in names:
        raise InvalidBundle("hostname: needs a uts namespace")
    for name in config.linux.sysctl:
        if _sysctl_owner(name.replace("/", ".")) not in names:
            raise InvalidBundle(f"sysctl {name}: not of a namespace of the container")


def _sysctl_owner(name: str) -> str:
    """The namespace a sysctl belongs to; empty: it is the host's."""
    if name.startswith("net."):
        return "network"
    if name in ("kernel.domainname", "kernel.hostname"):
        return "uts"
    return "ipc" if name.startswith(("kernel.sem", "kernel.shm", "kernel.msg", "fs.mqueue.")) else ""


def _idmap(linux: Linux) -> dict[str, list[tuple[int, int, int]]]:
    if not linux.uid_mappings or not linux.gid_mappings:
        raise InvalidBundle("linux.uidMappings and gidMappings: a new user namespace needs both")
    return {
        "uid": [(m.container_id, m.host_id, m.size) for m in linux.uid_mappings],
        "gid": [(m.container_id, m.host_id, m.size) for m in linux.gid_mappings],
    }


def _first_steps(config: Config, rootfs: str, steps: list[Step]) -> list[Step]:
    """What is done with the caller's ids: paths of the host are looked up."""
    asked = config.linux.rootfs_propagation or "rslave"
    propagation = PROPAGATION.get(asked)
    if propagation is None:
        raise InvalidBundle(f"linux.rootfsPropagation {asked}: not one of {', '.join(PROPAGATION)}")
    first = propagation if propagation & (s.MS_PRIVATE | PROPAGATION["slave"]) else PROPAGATION["rslave"]
    sources = {a["source"]: ("open_source", {"path": a["source"], "recursive": a["recursive"]}) for name, a in steps if name == "bind"}
    ours: list[Step] = [("propagate", {"flags": first | s.MS_REC}), ("open_root", {"path": rootfs})]
    # A shared root's binds stay their sources' peers, so they are opened while those are shared; the tree itself never is: what init mounts
    # on its way would be mounted on the host.
    return [*sources.values(), *ours] if "shared" in asked else [*ours, *sources.values()]


def _steps(config: Config, bundle: Path, groups: Groups, *, own_users: bool) -> list[Step]:
    """Up to the point where the createContainer hooks look at it."""
    steps = [mount_step(mount, bundle, dict(groups.shown)) for mount in config.mounts]
    if not _brings_devices(config):
        steps += _device_steps(config.linux, own_users=own_users)
        steps += [("link", {"target": target, "path": path}) for target, path in _LINKS]
    return steps


def _brings_devices(config: Config) -> bool:
    """Whether /dev is the host's, bound: then its nodes are not ours to make."""
    return any(m.destination.rstrip("/") == "/dev" and {"bind", "rbind"} & set(m.options) for m in config.mounts)


def _device_steps(linux: Linux, *, own_users: bool) -> Iterator[Step]:
    defaults = (Device(f"/dev/{name}", "c", major, minor, 0o666, 0, 0) for name, major, minor in _DEVICES)
    for device in {d.path: d for d in (*defaults, *linux.devices)}.values():
        if device.type not in _KINDS:
            raise InvalidBundle(f"linux.devices: {device.path}: type {device.type}")
        yield "device", {
            "path": device.path, "kind": _KINDS[device.type], "major": device.major, "minor": device.minor,
            "mode": 0o666 if device.file_mode is None else device.file_mode & 0o777, "uid": device.uid or 0, "gid": device.gid or 0,
            "bind_from": device.path if own_users else "",
        }  # fmt: skip


def _last_steps(config: Config, rootfs: str, new: int, *, joined_mounts: bool, pivot: bool) -> list[Step]:
    linux = config.linux
    steps: list[Step] = []
    if config.hostname and new & s.CLONE_NEWUTS:
        steps.append(("set_hostname", {"name": config.hostname}))
    if config.domainname and new & s.CLONE_NEWUTS:
        steps.append(("set_domainname", {"name": config.domainname}))
    if joined_mounts:
        return [*steps, ("change_root", {"path": rootfs})]
    steps += [("write_sysctl", {"name": name, "value": value}) for name, value in linux.sysctl.items()]
    if config.root is not None and config.root.readonly:
        steps.append(("protect_root", {}))
    steps += [("protect", {"paths": list(linux.readonly_paths)}), ("mask", {"paths": list(linux.masked_paths)})]
    flags = PROPAGATION[linux.rootfs_propagation] if "shared" in linux.rootfs_propagation or "unbind" in linux.rootfs_propagation else 0
    return [*steps, ("enter_root", {"pivot": pivot, "flags": flags})]


def _hooks(config: Config) -> dict[str, list[dict[str, Any]]]:
    return {name: [hook_plan(hook) for hook in hooks] for name, hooks in hooks_of(config).items()}


def hooks_of(config: Config) -> Mapping[str, tuple[Any, ...]]:
    """The hooks by the specification's names."""
    h = config.hooks
    return {
        "prestart": h.prestart, "createRuntime": h.create_runtime, "createContainer": h.create_container,
        "startContainer": h.start_container, "poststart": h.poststart, "poststop": h.poststop,
    }  # fmt: skip


def hook_plan(hook: Any) -> dict[str, Any]:
    """One hook as `init/hooks.py` takes it."""
    if not hook.path.startswith("/"):
        raise InvalidBundle(f"hook {hook.path}: the path must be absolute")
    return {"path": hook.path, "args": list(hook.args), "env": list(hook.env), "timeout": hook.timeout}


def process_plan(process: Process | None, seccomp: bytes | None) -> dict[str, Any]:
    """The program's part; InvalidBundle."""
    if process is None or not process.args:
        raise InvalidBundle("process.args: at least one is needed")
    if not process.cwd.startswith("/"):
        raise InvalidBundle(f"process.cwd {process.cwd}: must be absolute")
    for name in ("apparmor_profile", "selinux_label", "scheduler", "io_priority"):
        if getattr(process, name):
            raise Unsupported(f"process.{name}: not supported here", feature=name)
    user = process.user
    return {
        "argv": list(process.args), "env": list(process.env), "cwd": process.cwd,
        "terminal": process.terminal, "size": [process.console_size.height, process.console_size.width] if process.console_size else None,
        "uid": user.uid, "gid": user.gid, "groups": list(user.additional_gids), "umask": 0o022 if user.umask is None else user.umask,
        "capabilities": _capabilities(process.capabilities), "rlimits": [_rlimit(r) for r in process.rlimits],
        "no_new_privileges": process.no_new_privileges, "seccomp": seccomp.hex() if seccomp else None,
        "oom_score_adj": process.oom_score_adj,
    }  # fmt: skip


def _rlimit(limit: Any) -> tuple[str, int, int]:
    if limit.type not in _RLIMITS:
        raise InvalidBundle(f"process.rlimits: {limit.type}: not a limit of setrlimit(2)")
    soft, hard = (-1 if value >= 2**63 else value for value in (limit.soft, limit.hard))
    return limit.type, soft, hard


def _capabilities(given: Capabilities | None) -> dict[str, list[str]]:
    """Each set's names without CAP_; a capability that this kernel's list does not have cannot be given and is left out,
    as runc does with a warning."""
    sets = given or Capabilities()
    found: dict[str, list[str]] = {}
    for name in Capabilities.__struct_fields__:
        words = (word.removeprefix("CAP_") for word in getattr(sets, name))
        found[name] = [word for word in words if word in CAPABILITIES]
    return found
