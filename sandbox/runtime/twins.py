"""Twins of layers for an ordinary user with subordinate ids: their files have the owners that the layer itself only notes.

A twin is made when a container first needs it, kept below ROOT/owned, and goes with its layer. What is root's in the image is the same
file in both (a hard link); what is not is there twice, unless the file system can share the bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec.structs import replace

from sandbox.errors import SetupFailed
from sandbox.runtime.init import files, owned, subids
from sandbox.runtime.spec import ContainerSpec, Mount

_PLACE = "owned"


def with_twins(root: Path, spec: ContainerSpec) -> ContainerSpec:
    """`spec` with twins for lower layers, where this user's containers can have other users than root; SetupFailed."""
    if os.geteuid() == 0 or spec.userns == "host" or (idmap := subids.find(os.geteuid(), os.getegid())) is None:
        return spec
    place = root / _PLACE / "-".join(str(number) for kind in ("uid", "gid") for number in idmap[kind][1][1:])
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    rootfs = replace(spec.rootfs, lowers=tuple(_twin(lower, place) for lower in spec.rootfs.lowers))
    return replace(spec, rootfs=rootfs, mounts=tuple(_with_twins(mount, place) for mount in spec.mounts))


def _with_twins(mount: Mount, place: Path) -> Mount:
    return replace(mount, lowers=tuple(_twin(lower, place) for lower in mount.lowers)) if mount.lowers else mount


def _twin(lower: str, place: Path) -> str:
    """The directory to use for `lower`: itself when all in it is root's."""
    made = place / Path(lower).name
    if not made.exists():
        draft = f"{made}.{os.urandom(4).hex()}"
        if not owned.spawn("twin", lower, draft):
            files.remove_tree(draft) if os.path.isdir(draft) else files.remove_file(draft)
            hint = "newuidmap or newgidmap refused: see /etc/subuid and /etc/subgid"
            raise SetupFailed(f"layer {made.name[:12]}: its owners could not be given", hint=hint)
        try:
            os.rename(draft, made)
        except OSError:  # another process was quicker
            files.remove_tree(draft)
    return str(made) if made.is_dir() else lower


def sweep(root: Path, layers: Iterable[str]) -> None:
    """Remove the twins of layers that are gone, and what a killed maker left; `layers`: the names of those that are there."""
    kept = set(layers)
    for twin in _twins(root):
        if twin.name not in kept:
            files.remove_tree(str(twin)) if twin.is_dir() else twin.unlink()


def _twins(root: Path) -> Iterator[Path]:
    for place in (root / _PLACE).iterdir() if (root / _PLACE).is_dir() else ():
        yield from place.iterdir()
