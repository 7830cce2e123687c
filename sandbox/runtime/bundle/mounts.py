"""Mounts of a bundle as steps: what mount(8)'s words mean to the new mount interface (mount_setattr(2), fsconfig(2))."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from sandbox.errors import InvalidBundle
from sandbox.runtime.bundle.config import Mount
from sandbox.runtime.init import syscalls as s

Step = tuple[str, dict[str, Any]]

_ATIME = 0x70  # MOUNT_ATTR__ATIME: the three below exclude each other
_RELATIME, _NOATIME, _STRICTATIME, _NODIRATIME, _NOSYMFOLLOW = 0x00, 0x10, 0x20, 0x80, 0x200000
_NO_CHANGE = (0, 0)

ATTRIBUTES: dict[str, tuple[int, int]] = {
    "ro": (s.MOUNT_ATTR_RDONLY, 0), "rw": (0, s.MOUNT_ATTR_RDONLY),
    "nosuid": (s.MOUNT_ATTR_NOSUID, 0), "suid": (0, s.MOUNT_ATTR_NOSUID),
    "nodev": (s.MOUNT_ATTR_NODEV, 0), "dev": (0, s.MOUNT_ATTR_NODEV),
    "noexec": (s.MOUNT_ATTR_NOEXEC, 0), "exec": (0, s.MOUNT_ATTR_NOEXEC),
    "nodiratime": (_NODIRATIME, 0), "diratime": (0, _NODIRATIME),
    "nosymfollow": (_NOSYMFOLLOW, 0), "symfollow": (0, _NOSYMFOLLOW),
    "relatime": (_RELATIME, _ATIME), "norelatime": (_RELATIME, _ATIME),
    "noatime": (_NOATIME, _ATIME), "atime": (_RELATIME, _ATIME),
    "strictatime": (_STRICTATIME, _ATIME), "nostrictatime": (_RELATIME, _ATIME),
    "defaults": _NO_CHANGE, "silent": _NO_CHANGE, "loud": _NO_CHANGE, "nolazytime": _NO_CHANGE, "async": _NO_CHANGE, "nomand": _NO_CHANGE,
}  # fmt: skip
"""Option → attributes it sets, attributes it clears. With an r before it (`rro`) the whole tree is meant."""
PROPAGATION = {
    "private": s.MS_PRIVATE, "shared": 1 << 20, "slave": 1 << 19, "unbindable": 1 << 17,
    "rprivate": s.MS_PRIVATE | s.MS_REC, "rshared": 1 << 20 | s.MS_REC, "rslave": 1 << 19 | s.MS_REC, "runbindable": 1 << 17 | s.MS_REC,
}  # fmt: skip
_REFUSED = {"remount": "a new mount cannot be remounted", "idmap": "needs uidMappings", "ridmap": "needs uidMappings"}


class _Read(msgspec.Struct):
    """A mount's options, sorted."""

    attr_set: int = 0
    attr_clear: int = 0
    tree_set: int = 0
    tree_clear: int = 0
    propagation: list[int] = msgspec.field(default_factory=list)
    bind: str = ""
    copy_up: bool = False
    data: list[tuple[str, str | None]] = msgspec.field(default_factory=list)


def mount_step(mount: Mount, bundle: Path, cgroups: dict[str, str]) -> Step:
    """The step that makes `mount`. `cgroups`: name below /sys/fs/cgroup → the container's own group, for type cgroup."""
    read = _read_options(mount)
    target = _target(mount)
    common = {"target": target, "propagation": read.propagation}
    attrs = {"attr_set": read.attr_set, "attr_clear": read.attr_clear}
    if read.bind or mount.type == "bind":
        return "bind", {
            **common, **attrs, "source": str(bundle / mount.source), "recursive": read.bind == "rbind",
            "tree_set": read.tree_set, "tree_clear": read.tree_clear,
        }  # fmt: skip
    if mount.type in ("cgroup", "cgroup2"):
        return "cgroup_tree", {**common, "attr_set": read.attr_set, "groups": cgroups}
    if not mount.type:
        raise InvalidBundle(f"mount {mount.destination}: has no type and is no bind mount")
    return "new_mount", {
        **common, **attrs, "fstype": mount.type, "source": mount.source, "data": read.data, "copy_up": read.copy_up,
    }  # fmt: skip


def _target(mount: Mount) -> str:
    if not mount.destination.startswith("/"):
        return "/" + mount.destination  # 1.0 engines wrote such; the specification says: must be absolute
    return mount.destination


def _read_options(mount: Mount) -> _Read:
    read = _Read()
    if mount.uid_mappings or mount.gid_mappings:
        raise InvalidBundle(f"mount {mount.destination}: uidMappings of a mount are not supported")
    for option in mount.options:
        _take(option, mount, read)
    return read


def _take(option: str, mount: Mount, read: _Read) -> None:
    if option in ATTRIBUTES:
        on, off = ATTRIBUTES[option]
        read.attr_set = read.attr_set & ~off | on
        read.attr_clear = read.attr_clear & ~on | off
    elif option in ("bind", "rbind"):
        read.bind = option
    elif option in PROPAGATION:
        read.propagation.append(PROPAGATION[option])
    elif option[:1] == "r" and option[1:] in ATTRIBUTES:
        on, off = ATTRIBUTES[option[1:]]
        read.tree_set |= on
        read.tree_clear |= off
    elif option == "tmpcopyup":
        read.copy_up = True
    elif option in _REFUSED:
        raise InvalidBundle(f"mount {mount.destination}: option {option}: {_REFUSED[option]}")
    else:
        read.data.append(_data(option))


def _data(option: str) -> tuple[str, str | None]:
    """An option of the file system itself: `size=64m`, or a word."""
    name, equals, value = option.partition("=")
    return (name, value) if equals else (name, None)
