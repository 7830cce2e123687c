"""Containers that are made within namespaces of others.

`--network container:NAME`: in the network namespace of another, and in the user namespace that one belongs to: only there can it be root
of both. Its other namespaces are its own. And an ordinary user's in the networks of a hub: its user namespace is nested in the hub's,
whose root may thus put links into its network namespace, while its own root has no power over the hub's.
"""

from __future__ import annotations

import os

from sandbox.runtime.init import files, hostside, procs, subids
from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

KINDS = ("user", "net")


def open_namespaces(directory: str) -> list[int]:
    """Those of the container of this directory that are shared. Refused when it does not run."""
    state = files.read_json(f"{directory}/state.json") or {}
    if state.get("status") != "running" or not files.is_locked(directory):
        raise hostside.Refused(
            {"event": "refused", "code": 125, "message": "the container whose network it has does not run", "step": "net"}
        )
    opened: list[int] = []
    try:
        pid = procs.entered_through(state["pid"])
        opened += [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in KINDS]
    except OSError as err:
        for fd in opened:
            os.close(fd)
        message = f"the container whose network it has: {err.strerror}"
        raise hostside.Refused({"event": "refused", "code": 125, "message": message, "step": "net", "errno": err.errno}) from err
    return opened


def clone_within(
    namespaces: Sequence[int], flags: int, into: str | None, act: Callable[[], None], idmap: Mapping[str, Any] | None = None
) -> int:
    """The pid of a child of ours that runs `act` in these namespaces (of `KINDS`, in their order), and in new ones as `flags` say. `idmap`:
    the user namespace's, which a new one within it has, too. OSError."""
    said, say = os.pipe()
    between = os.fork()  # whoever enters a user namespace cannot come back
    if between == 0:
        try:
            os.write(say, b"%d" % _clone(namespaces, flags, into, act, idmap))
        except OSError as err:
            os.write(say, b"%d" % -(err.errno or 1))
        finally:
            os._exit(0)
    os.close(say)
    with os.fdopen(said, "rb") as file:
        result = int(file.read() or b"-1")
    os.waitpid(between, 0)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def _clone(namespaces: Sequence[int], flags: int, into: str | None, act: Callable[[], None], idmap: Mapping[str, Any] | None) -> int:
    for fd, kind in zip(namespaces, (s.CLONE_NEWUSER, s.CLONE_NEWNET), strict=False):
        if not _is_ours(fd, kind):
            s.setns(fd, kind)
    pid = s.clone(flags, into, parent=True)
    if pid == 0:
        act()
    if idmap:
        subids.write_within(pid, idmap)
    return pid


def _is_ours(fd: int, kind: int) -> bool:
    """--userns host: one cannot enter the user namespace one is in."""
    own = os.stat("/proc/self/ns/user")
    return kind == s.CLONE_NEWUSER and os.fstat(fd).st_ino == own.st_ino


def take_user_namespace(namespaces: list[int]) -> int:
    """Their first, which is the caller's to close from now on; the rest is closed."""
    user, *rest = namespaces
    for fd in rest:
        os.close(fd)
    namespaces.clear()
    return user
