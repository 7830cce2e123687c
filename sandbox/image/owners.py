"""Owners of a layer's files, also where Linux lets us give none.

Without privileges every file is ours and stands for the image's root (user_namespaces(7): one id is mapped). The owner that a layer
names is noted beside the file, so that the layer leaves as it came; inside a container the file is root's. Links and special files
can hold no note (xattr(7)): they become root's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

NOTE = "user.sandbox.owner"
"""`uid:gid` of a file that is not root's; never of an image: a layer's own attribute of this name is dropped."""


CAPABILITY_NOTE = "user.sandbox.capability"
"""As well, a program's `security.capability`: it needs CAP_SETFCAP to be given."""
CAPABILITY = "security.capability"


def give_xattr(place: str | int, name: str, value: bytes) -> None:
    """Set an attribute that a layer names; OSError."""
    os.setxattr(place, CAPABILITY_NOTE if name == CAPABILITY and os.geteuid() != 0 else name, value)


def xattr_meant(name: str) -> str:
    """The attribute of the image that one on disk stands for."""
    return CAPABILITY if name == CAPABILITY_NOTE and os.geteuid() != 0 else name


def give(place: str | int, uid: int, gid: int) -> None:
    """Give a file, by path (links not followed) or descriptor, to its owner in the image; OSError."""
    if os.geteuid() != 0:
        _note(place, uid, gid)
    elif isinstance(place, int):
        os.fchown(place, uid, gid)
    else:
        os.lchown(place, uid, gid)


def _note(place: str | int, uid: int, gid: int) -> None:
    status = os.fstat(place) if isinstance(place, int) else os.lstat(place)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return
    if (uid, gid) != (0, 0):
        os.setxattr(place, NOTE, f"{uid}:{gid}".encode())
    elif NOTE in os.listxattr(place):
        os.removexattr(place, NOTE)


def owner_of(place: bytes, status: os.stat_result) -> tuple[int, int]:
    """The owner in the image of what `place` is."""
    uid = os.geteuid()
    if uid == 0:
        return status.st_uid, status.st_gid
    if NOTE in os.listxattr(place, follow_symlinks=False):
        noted = os.getxattr(place, NOTE, follow_symlinks=False).decode("ascii").split(":")
        return int(noted[0]), int(noted[1])
    if (status.st_uid, status.st_gid) == (uid, os.getegid()):
        return 0, 0
    return inside(status.st_uid, status.st_gid)


def _root_is_us(uid: int, gid: int) -> tuple[int, int]:
    return 0 if uid == os.geteuid() else uid, 0 if gid == os.getegid() else gid


inside: Callable[[int, int], tuple[int, int]] = _root_is_us
"""The image's ids of a file that bears no note: a container that runs gives files to subordinate ids, of which this package knows
nothing: the engine puts the runtime's way here."""
