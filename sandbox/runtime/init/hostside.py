"""What only the host side can do for a container that is being made: its cgroups, its id maps, the host's directories it sees."""

from __future__ import annotations

import os
import resource

from sandbox.runtime.init import cgroup, files
from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


class Refused(Exception):
    """The container could not be set up or its program not started; the attributes are what the client is told."""

    def __init__(self, message: Mapping[str, Any]) -> None:
        super().__init__(message["message"])
        self.message = dict(message)


def make_groups(group: Mapping[str, Any]) -> None:
    """The container's cgroups with their limits; Refused names what Linux did not take."""
    try:
        cgroup.make(
            group["directories"], moves=group["moves"], copies=group["copies"], writes=group["writes"],
            optional=group["optional"], groups=group["groups"],
        )  # fmt: skip
    except OSError as err:
        message = f"cgroup {err.filename or ''}: {err.strerror}"
        raise Refused({"event": "refused", "code": 125, "message": message, "step": "cgroup", "errno": err.errno}) from err


def flags_of(namespaces: Sequence[str]) -> int:
    """The CLONE_NEW… flags of these namespaces."""
    flags = 0
    for name in namespaces:
        flags |= s.NAMESPACES[name]
    return flags


def set_before_it_may_not(pid: int, facts: Mapping[str, Any]) -> None:
    """What init could not give itself: an OOM score, and limits above ours where we hold CAP_SYS_RESOURCE."""
    if facts["oom_score_adj"] is not None:
        files.write_value(f"/proc/{pid}/oom_score_adj", str(facts["oom_score_adj"]))
    for name, soft, hard in facts["ulimits"]:
        number = getattr(resource, "RLIMIT_" + name.upper())
        _, allowed = resource.getrlimit(number)
        if allowed != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or hard > allowed):
            try:
                resource.prlimit(pid, number, (soft, hard))
            except (OSError, ValueError) as err:
                raise PermissionError(1, f"{hard} is above this host's hard limit {allowed}", f"ulimit {name}") from err


def open_namespace(pid: int, kind: str) -> int:
    """A namespace of a process, which we may look into: of init, as long as it is dumpable (ptrace(2))."""
    return os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def detach_host_mount(source: Mapping[str, Any], userns: int) -> int:
    """A host directory as detached mount; with idmap, ids on disk are the container's own."""
    flags = s.OPEN_TREE_CLONE | s.OPEN_TREE_CLOEXEC | (s.AT_RECURSIVE if source["recursive"] else 0)
    tree = s.open_tree(source["source"], flags)
    # A clone is its original's peer (mount_namespaces(7)): what the container mounts in it appears on the host.
    if (kind := source["propagation"].removeprefix("r")) != "shared":
        s.mount_setattr(tree, propagation=s.MS_SLAVE if kind == "slave" else s.MS_PRIVATE, recursive=source["recursive"])
    if source["idmap"] and userns >= 0:
        try:
            s.mount_setattr(tree, attr_set=s.MOUNT_ATTR_IDMAP, userns_fd=userns, recursive=source["recursive"])
        except OSError as err:
            if source["idmap"] == "must":
                err.filename = source["source"]
                raise
            # A file system without idmapped mounts (FUSE, NFS): its files show as nobody's, as without a mapping.
    if source["read_only"]:
        s.mount_setattr(tree, attr_set=s.MOUNT_ATTR_RDONLY, recursive=source["recursive"])
    return tree


def io_of(pid: int, told: str) -> tuple[dict[str, float], int | None]:
    """What init and all it has reaped read from and wrote to disks (proc(5), /proc/pid/io), before it is reaped itself; and the
    bytes they wrote to anything: a tmpfs is no disk. `told`: what init said of it, for an ordinary user cannot read it."""
    try:
        with open(f"/proc/{pid}/io", encoding="utf-8") as file:
            text = file.read()
    except OSError:
        text = told
    fields = dict(line.split(": ") for line in text.splitlines())
    if not fields:
        return {}, None
    return {"io_read": int(fields["read_bytes"]), "io_written": int(fields["write_bytes"])}, int(fields["wchar"])
