"""An ordinary user's subordinate ids (subuid(5)): what their containers' other users are on this host.

Linux lets them map their own id alone; newuidmap(1) and newgidmap(1), which are setuid, map what /etc/subuid and /etc/subgid grant.
"""

from __future__ import annotations

import os

from sandbox.runtime.init import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_PLACES = ("/usr/bin", "/bin", "/usr/sbin", "/usr/local/bin")
IDS = 65536
"""User ids of one container."""


def find(uid: int, gid: int, *, etc: str = "/etc") -> dict[str, Any] | None:
    """The id map of this user's containers, as a plan holds it: root inside is the user, the others are subordinate ids. None when the
    user has none, or the programs that map them are missing."""
    helpers = [_program(name) for name in ("newuidmap", "newgidmap")]
    uids, gids = (_range(f"{etc}/{name}", uid) for name in ("subuid", "subgid"))
    if uids is None or gids is None or not all(helpers):
        return None
    return {"uid": [[0, uid, 1], [1, *uids]], "gid": [[0, gid, 1], [1, *gids]], "setgroups": True, "helpers": helpers}


def own(uid: int, gid: int) -> dict[str, Any]:
    """The id map that Linux lets anybody have: root inside is the user, and nobody else is there."""
    return {"uid": [[0, uid, 1]], "gid": [[0, gid, 1]], "setgroups": False}


def _program(name: str) -> str:
    return next((path for place in _PLACES if os.access(path := f"{place}/{name}", os.X_OK)), "")


def _range(path: str, uid: int) -> tuple[int, int] | None:
    """The user's largest range: its first id, and how many a container takes of it."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = [line.strip().split(":") for line in file]
    except OSError:
        return None
    names = {str(uid), *_names(uid)} if rows else set()
    found = [(int(row[1]), int(row[2])) for row in rows if len(row) == 3 and row[0] in names and row[1].isdigit() and row[2].isdigit()]
    largest = max(found, key=lambda each: each[1], default=(0, 0))
    return (largest[0], min(largest[1], IDS - 1)) if largest[1] else None


def _names(uid: int) -> list[str]:
    import pwd  # asks the name service: only where there are subordinate ids at all

    try:
        return [pwd.getpwuid(uid).pw_name]
    except KeyError:
        return []


def inside(uid: int, gid: int) -> tuple[int, int]:
    """What these ids of the host are in this ordinary user's containers; themselves, when they are nobody's there."""
    idmap = find(os.geteuid(), os.getegid()) or own(os.geteuid(), os.getegid())
    return _inner(uid, idmap["uid"]), _inner(gid, idmap["gid"])


def _inner(number: int, rows: list[list[int]]) -> int:
    return next((inner + number - outer for inner, outer, count in rows if outer <= number < outer + count), number)


def write_maps(pid: int, idmap: Mapping[str, Any]) -> None:
    """Map the ids of the user namespace of `pid` (user_namespaces(7)), through the helpers where a plan has some; PermissionError says
    what those did not take."""
    if not idmap.get("helpers"):
        _write_own(pid, idmap)
        return
    for kind, helper in zip(("uid", "gid"), idmap["helpers"], strict=True):
        words = [str(number) for row in idmap[kind] for number in row]
        child = os.posix_spawn(helper, [helper, str(pid), *words], {})
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise PermissionError(1, f"{helper} refused (see /etc/sub{kind})", f"{kind} map")


def write_within(pid: int, idmap: Mapping[str, Any]) -> None:
    """Map the ids of a user namespace that is nested in one with this map as they are there; from within that one."""
    for kind in ("uid", "gid"):  # row by row: Linux takes none that spans two of the outer one's
        files.write_value(f"/proc/{pid}/{kind}_map", "".join(f"{inner} {inner} {count}\n" for inner, _, count in idmap[kind]))


def _write_own(pid: int, idmap: Mapping[str, Any]) -> None:
    """What Linux lets us map ourselves: anything for root, else our own id."""
    if not idmap["setgroups"]:
        files.write_value(f"/proc/{pid}/setgroups", "deny")
    for kind in ("uid", "gid"):
        files.write_value(f"/proc/{pid}/{kind}_map", "".join(f"{inner} {outer} {count}\n" for inner, outer, count in idmap[kind]))
