"""Owners and modes of a layer's files, also where Linux lets us give none, or they would shut us out.

Without privileges every file is ours and stands for the image's root (user_namespaces(7): one id is mapped). The owner that a layer
names is noted beside the file, so that the layer leaves as it came; inside a container of a user without subordinate ids the file is
root's. Symbolic links and special files can hold no attribute (xattr(7)): their directory's holds their owners. What its owner may not
read (Fedora's /etc/shadow has mode 000, which hinders root as little as a container's) is readable at rest, and its mode is noted.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

Owner = tuple[int, int]
NOTE = "user.sandbox.owner"
"""`uid:gid` of a file that is not root's, and `uid:gid:mode` (octal) of one that its owner may not read; never of an image: a layer's own
attribute that begins so is dropped."""
LINKS_NOTE = "user.sandbox.owners"
"""Of a directory, whose its symbolic links and special files are: `uid:gid`, then those of other owners, each `NUL uid:gid name`."""
_LONGEST = 1024
"""A longer one is put anew, with what most of them are in front: ext4 has 4 KiB for all attributes of a file."""
_ROOT = (0, 0)
_NO_ID = (1 << 32) - 1
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


def give_mode(place: str | int, mode: int) -> None:
    """Give a file or directory (no link), after its owner, the permissions it has in the image; OSError."""
    if os.geteuid() != 0:
        status = os.stat(place)
        if hidden := hidden_bits(status, mode):
            os.setxattr(place, NOTE, b"%d:%d:%o" % (*_noted(place)[:2], mode))
            mode |= hidden
    os.chmod(place, mode)


def mode_of(place: bytes, status: os.stat_result) -> int:
    """The permissions in the image of what `place` is."""
    mode = stat.S_IMODE(status.st_mode)
    if os.geteuid() == 0 or not can_hold_note(status) or NOTE not in os.listxattr(place, follow_symlinks=False):
        return mode
    noted = _noted(place)[2]
    return mode if noted is None or noted | hidden_bits(status, noted) != mode else noted  # else a program has changed it since


def hidden_bits(status: os.stat_result, mode: int) -> int:
    """What the owner of such a file lacks to read it."""
    if stat.S_ISDIR(status.st_mode):
        return 0o700 & ~mode
    return 0o400 & ~mode if stat.S_ISREG(status.st_mode) else 0


def _noted(place: str | bytes | int) -> tuple[int, int, int | None]:
    try:
        return _parsed(os.getxattr(place, NOTE))
    except OSError as err:
        if err.errno != errno.ENODATA:
            raise
        return *_ROOT, None


def _parsed(note: bytes) -> tuple[int, int, int | None]:
    """What a note says; root where a program of a container has put something else there."""
    try:
        uid, gid, mode = [*note.split(b":", 2), b""][:3]
        found = int(uid), int(gid), int(mode, 8) & 0o7777 if mode else None
    except ValueError:
        return *_ROOT, None
    return found if 0 <= found[0] < _NO_ID and 0 <= found[1] < _NO_ID else (*_ROOT, None)


def keep_owner(place: str, name: str) -> None:
    """A second name of the same file has the same owner; only for links and special files that is not so by itself."""
    if os.geteuid() != 0 and not can_hold_note(status := os.lstat(place)):
        give(name, *owner_of(os.fsencode(place), status))


def _note(place: str | int, uid: int, gid: int) -> None:
    status = os.fstat(place) if isinstance(place, int) else os.lstat(place)
    if not can_hold_note(status):
        if isinstance(place, str):  # nobody opens these by descriptor
            _note_link(*os.path.split(place), (uid, gid))
        return
    if (uid, gid) != (0, 0):
        os.setxattr(place, NOTE, f"{uid}:{gid}".encode())
    elif NOTE in os.listxattr(place):
        os.removexattr(place, NOTE)


def owner_of(place: bytes, status: os.stat_result) -> Owner:
    """The owner in the image of what `place` is."""
    uid = os.geteuid()
    if uid == 0:
        return status.st_uid, status.st_gid
    if NOTE in os.listxattr(place, follow_symlinks=False):
        return _noted(place)[:2]
    if (status.st_uid, status.st_gid) != (uid, os.getegid()):
        return inside(status.st_uid, status.st_gid)
    return _ROOT if can_hold_note(status) else _links_owner(*os.path.split(place))


def can_hold_note(status: os.stat_result) -> bool:
    """Whether Linux lets such a file have attributes of a user."""
    return stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)


def _links_owner(directory: bytes, name: bytes) -> Owner:
    most, others = links_noted(directory)
    return others.get(name, most)


def links_noted(directory: str | bytes) -> tuple[Owner, dict[bytes, Owner]]:
    """Whose a directory's links and special files are: those of most, and of the others by name."""
    if LINKS_NOTE not in os.listxattr(directory):
        return _ROOT, {}
    most, *rows = os.getxattr(directory, LINKS_NOTE).split(b"\0")
    return _numbers(most), {name: _numbers(owner) for owner, _, name in (row.partition(b" ") for row in rows)}


def of_links(layers: Sequence[str]) -> dict[str, Owner]:
    """Whose the links and special files of an overlay are, by path, where an ordinary user's notes say that they are not root's.
    `layers`: lowest first. Those in a directory that a container shut us out of (no permission for anybody) are taken for root's."""
    found: dict[str, Owner] = {}
    for layer in layers:
        for directory, names, files in os.walk(layer):
            most, others = links_noted(directory)
            for name in (*names, *files) if found or others or most != _ROOT else ():
                path = os.path.join(directory, name)
                owner = _ROOT if can_hold_note(os.lstat(path)) else others.get(os.fsencode(name), most)
                found[path[len(layer) :]] = owner
    return {path: owner for path, owner in found.items() if owner != _ROOT}


def _numbers(owner: bytes) -> Owner:
    return _parsed(owner)[:2]


def _note_link(directory: str, name: str, owner: Owner) -> None:
    most, others = links_noted(directory)
    key = os.fsencode(name)
    if others.get(key, most) == owner:
        return
    others[key] = owner
    note = _written(most, others)
    if len(note) > _LONGEST:
        note = _summed_up(directory, most, others)
    try:
        os.setxattr(directory, LINKS_NOTE, note)
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.E2BIG, errno.ERANGE):
            raise
        import logging  # commands start without

        log = logging.getLogger(__name__)
        log.warning("%s: too many links of different owners in one directory; it is %d:%d's", name, *most)


def _written(most: Owner, others: Mapping[bytes, Owner]) -> bytes:
    rows = [b"%d:%d %b" % (*owner, name) for name, owner in sorted(others.items()) if owner != most]
    return b"\0".join((b"%d:%d" % most, *rows))


def _summed_up(directory: str, most: Owner, others: Mapping[bytes, Owner]) -> bytes:
    with os.scandir(os.fsencode(directory)) as entries:
        owners = {each.name: others.get(each.name, most) for each in entries if not can_hold_note(each.stat(follow_symlinks=False))}
    return _written(Counter(owners.values()).most_common(1)[0][0], owners)


def _root_is_us(uid: int, gid: int) -> Owner:
    return 0 if uid == os.geteuid() else uid, 0 if gid == os.getegid() else gid


inside: Callable[[int, int], Owner] = _root_is_us
"""The image's ids of a file that bears no note: a container that runs gives files to subordinate ids, of which this package knows
nothing: the engine puts the runtime's way here."""
