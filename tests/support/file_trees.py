"""Two file trees compared: names, kinds, modes, owners, links, times, attributes, contents."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

Facts = tuple[object, ...]


def facts_of(root: Path) -> dict[str, Facts]:
    """Every path below a directory and all that a layer keeps of it."""
    first: dict[int, str] = {}
    found: dict[str, Facts] = {}
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted([*names, *files]):
            path = os.path.join(directory, name)
            inside = os.path.relpath(path, root)
            found[inside] = _facts(path, inside, first)
    return found


def _facts(path: str, inside: str, first: dict[int, str]) -> Facts:
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    same = first.setdefault(status.st_ino, inside) if kind == stat.S_IFREG else inside
    content = hashlib.sha256(Path(path).read_bytes()).hexdigest() if kind == stat.S_IFREG else ""
    link = os.readlink(path) if kind == stat.S_IFLNK else ""
    names = [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.") or name == "security.capability"]
    kept = {name: os.getxattr(path, name, follow_symlinks=False) for name in sorted(names) if not _is_foreign(name)}
    device = status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
    return (oct(status.st_mode), status.st_uid, status.st_gid, same, device, link, int(status.st_mtime), content, tuple(kept.items()))


def _is_foreign(name: str) -> bool:
    """umoci's and overlayfs' own notes."""
    return name.startswith(("user.overlay.", "user.umoci", "user.rootlesscontainers"))


def differences(one: dict[str, Facts], other: dict[str, Facts]) -> list[str]:
    """What is in one only, or differs; a line each."""
    only = [f"only in one: {name}" for name in sorted(set(one) ^ set(other))]
    return only + [f"{name}: {one[name]} and {other[name]}" for name in sorted(set(one) & set(other)) if one[name] != other[name]]
