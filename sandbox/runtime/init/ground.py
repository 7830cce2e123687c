"""What a container stands on: its cgroups, its namespaces with the kernel's file systems in them, and an init that waits for its orders.

It says little of what will run, so a spare one can be made before anybody asks: who ran a container is likely to run another like it.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal

from sandbox.runtime.init import cgroup, files, hostside, hub, link, pid1, sharing, subids
from sandbox.runtime.init import syscalls as s
from sandbox.runtime.init.hostside import Refused
from sandbox.runtime.init.names import GROUND

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from sandbox.runtime.init.title import Title


class Ground:
    """`pid`: init, which waits; `link`: its orders go there, its reports come from there; `userns`: -1 when it is the host's."""

    def __init__(self, facts: Mapping[str, Any], shown: Title, outer: int = -1) -> None:
        """Make it; Refused when Linux did not let us, and nothing is left then. `outer`: the user namespace of a hub, for a container in
        its networks."""
        self.facts = {key: facts[key] for key in GROUND}
        self.pid, self.pidfd, self.userns, self.netns = 0, -1, -1, -1
        self._outer = outer
        self._joined: list[int] = []
        self.link: socket.socket
        group = self.facts["cgroup"]
        if group:
            hostside.make_groups(group)
        try:
            self._start_init(group, shown)
        except BaseException:
            self.discard()
            raise

    def _start_init(self, group: Mapping[str, Any] | None, shown: Title) -> None:
        joins = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in group["joins"] if path != group["slow_join"]] if group else []
        self.link, inner = link.pair()
        try:
            self.pid = self._clone(group["into"] if group else None, lambda: self._be_init(inner, joins, shown))
            self.pidfd = os.pidfd_open(self.pid)
        except OSError as err:
            raise _refused(f"clone: {err.strerror}", "clone", err) from err
        finally:
            inner.close()
            for fd in joins:
                os.close(fd)
            if not self.pid:
                self.link.close()
        try:
            hostside.set_before_it_may_not(self.pid, self.facts)
            if self._joined:
                self.userns = sharing.take_user_namespace(self._joined)
            elif self._outer >= 0:
                self.userns, self.netns = hostside.open_namespace(self.pid, "user"), hostside.open_namespace(self.pid, "net")
            elif self.facts["idmap"]:
                subids.write_maps(self.pid, self.facts["idmap"])
                self.userns = hostside.open_namespace(self.pid, "user")
            link.send(self.link, {"mapped": True})
        except OSError as err:
            raise _refused(f"{err.filename or 'user namespace'}: {err.strerror}", "host_mounts", err) from err

    def _clone(self, into: str | None, be_init: Callable[[], None]) -> int:
        """Init's pid: in namespaces of its own, but for those of the container whose network it has, too."""
        shared = sharing.KINDS if self.facts["shares"] else ()
        flags = hostside.flags_of([name for name in self.facts["namespaces"] if name not in shared])
        if self.facts["shares"]:
            self._joined = sharing.open_namespaces(self.facts["shares"])
            return sharing.clone_within(self._joined, flags, into, be_init)
        if self._outer >= 0:
            return sharing.clone_within([self._outer], flags, into, be_init, self.facts["idmap"])
        pid = s.clone(flags, into)
        if pid == 0:
            be_init()
        return pid

    def _be_init(self, inner: socket.socket, joins: Sequence[int], shown: Title) -> None:
        shown.set("sandbox-init")
        pid1.run(self.facts, inner, joins)

    def suits(self, plan: Mapping[str, Any]) -> bool:
        """Whether what `plan` says can stand on it, and it still is there. A program of ours in the place of the user's has to be imported
        before init is made."""
        is_users = not plan["process"]["unpack"] and not plan["process"]["pack"]
        return is_users and all(self.facts[key] == plan[key] for key in GROUND) and not self._has_ended()

    def _has_ended(self) -> bool:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def order(self, plan: int, stdio: Sequence[int], trees: Mapping[str, int]) -> None:
        """Have init go on: the memfd of the whole plan, the program's descriptors, detached mounts by name."""
        try:
            link.send(self.link, {"stdio": len(stdio), "mounts": list(trees)}, [plan, *stdio, *trees.values()])
        except (BrokenPipeError, ConnectionResetError):
            return  # it has ended, and its last report says why

    def discard(self) -> None:
        """Nothing is left of it."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)  # ours until it is waited for
            os.waitpid(self.pid, 0)
        if self.facts["cgroup"]:
            cgroup.remove(self.facts["cgroup"]["groups"])
        self.close()

    def take_nested(self) -> list[int]:
        """Its user and its network namespace, the caller's to close from now on, where they are nested in a hub's; else none."""
        if self.netns < 0:
            return []
        taken, self.netns = [os.dup(self.userns), self.netns], -1
        return taken

    def close(self) -> None:
        """Let go of its descriptors."""
        for fd in (self.pidfd, self.userns, self.netns, *self._joined):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.userns = self.netns = -1
        if self.pid:
            self.link.close()


class Spare:
    """The ground of a container that nobody has asked for yet. While it waits it holds the file `lock`, so that its groups are not taken
    for those of a dead container."""

    def __init__(self, facts: Mapping[str, Any], lock: str, shown: Title) -> None:
        self._path = lock
        place = os.path.dirname(lock)
        if not os.path.isdir(place):
            os.mkdir(place, 0o700)
        self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._ground: Ground | None = None
        self._hub: hub.Connection | None = None
        try:
            self._hub = hub.connect(facts["hub"]) if facts["hub"] else None
            self._ground = Ground(facts, shown, self._hub.user if self._hub else -1)
        except (Refused, OSError):
            self._release()  # whoever comes next tries the same, and hears why

    def take(self, plan: Mapping[str, Any]) -> Ground | None:
        """It, if it suits; then it is the caller's. Else nothing is left of it."""
        if self._ground is None or not self._ground.suits(plan) or (self._hub and self._hub.has_ended()):
            self.discard()
            return None
        ground, self._ground = self._ground, None
        self._release()
        return ground

    def discard(self) -> None:
        """Nobody needs it."""
        if self._ground is not None:
            self._ground.discard()
            self._ground = None
            self._release()

    def _release(self) -> None:
        files.remove_file(self._path)
        os.close(self._lock)
        if self._hub:
            self._hub.close()


def _refused(message: str, step: str, err: OSError) -> Refused:
    return Refused({"event": "refused", "code": 125, "message": message, "step": step, "errno": err.errno})
