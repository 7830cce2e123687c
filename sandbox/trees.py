"""A container's files seen from the host: what changed, an image's directory copied into a volume."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sandbox.errors import SetupFailed
from sandbox.image.owners import give, give_mode, mode_of, owner_of
from sandbox.image.tree import Tree, is_whiteout
from sandbox.runtime.init import owned

if TYPE_CHECKING:
    from sandbox.runtime.spec import ContainerSpec


def changes(upper: Path, lower: Tree) -> Iterator[tuple[Literal["A", "C", "D"], str]]:
    """docker diff: every path of the upper directory, and what it means above the image."""
    for path, is_removed in sorted(_below(upper), key=lambda row: row[0].rpartition("/")[::2]):
        yield "D" if is_removed else "C" if lower.lookup(path) else "A", path


def _below(upper: Path) -> list[tuple[str, bool]]:
    """Every path below, and whether it is a whiteout."""
    if os.geteuid() == 0 or not owned.needs_harvest(str(upper)):
        found = ((directory, name) for directory, *names in os.walk(upper) for name in (*names[0], *names[1]))
        paths = (os.path.join(directory, name) for directory, name in found)
        return [(path[len(str(upper)) :], is_whiteout(os.lstat(path))) for path in paths]
    import tempfile  # with shutil, and so bz2 and lzma

    with tempfile.NamedTemporaryFile() as names:  # while it runs, its other users' files are out of our reach
        if not owned.spawn("names", str(upper), names.name):
            raise SetupFailed("the files of its users could not be listed", hint="stop the container first")
        rows = names.read().split(b"\0")[:-1]
    return [(os.fsdecode(row[1:]), row[:1] == b"D") for row in rows]


def is_there(path: str, spec: ContainerSpec) -> bool:
    """Whether a container has something at this absolute path: in its layers, or in what is mounted over them and is not its own memory."""
    if "\0" in path:
        return False
    over = [each for each in spec.mounts if path == each.target or path.startswith(each.target.rstrip("/") + "/")]
    if not over:
        return Tree((*spec.rootfs.lowers, spec.rootfs.upper)).lookup(path, follow=True) is not None
    mount = max(over, key=lambda each: len(each.target))
    return mount.kind == "bind" and os.path.exists(mount.source + path[len(mount.target) :])


def populate(tree: Tree, path: str, target: Path) -> None:
    """Copy the image's directory `path` into a new volume, with owners and modes, as docker does."""
    entry = tree.lookup(path, follow=True)
    if entry is None or not entry.is_dir:
        return
    for item in tree.walk(path):
        relative = item.path[len(entry.path.rstrip("/")) :].lstrip("/")
        copy = target / relative
        if item.is_symlink:
            copy.symlink_to(os.readlink(item.source))
        elif item.is_dir:
            copy.mkdir(exist_ok=True)
        elif item.is_file:
            with tree.open(item.path) as source, copy.open("xb") as out:
                while data := source.read(1 << 20):
                    out.write(data)
        else:
            continue
        give(str(copy), *owner_of(os.fsencode(item.source), item.stat))
        if not item.is_symlink:
            give_mode(str(copy), mode_of(os.fsencode(item.source), item.stat))
