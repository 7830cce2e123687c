"""The one process beside a container: makes its cgroups and namespaces, owns its log, its deadline and its end.

It lives on the host side, outside the container's namespaces and cgroups. While it lives it holds the lock of the
container's directory: that lock, not a row or a pid, is what "running" means. When it dies, init dies with it.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import termios
import time

from sandbox.runtime.init import cgroup, files, link, pid1, streams, title
from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_STUCK_CLIENT = 1.0
"""Seconds a client may leave the last output unread before it is dropped."""
_AFTER_TERM = 2.0
"""Seconds between SIGTERM and SIGKILL when time is up."""


class Refused(Exception):
    """The container could not be set up or its program not started; the attributes are what the client is told."""

    def __init__(self, message: Mapping[str, Any]) -> None:
        super().__init__(message["message"])
        self.message = dict(message)


class Container:
    """One container while it runs."""

    def __init__(self, plan: dict[str, Any], client: socket.socket, stdio: Sequence[int], shown: title.Title) -> None:
        self.plan = plan
        self.title = shown
        self.client: socket.socket | None = client
        self.stdio = list(stdio)
        self.pid = 0
        self.pidfd = -1
        self.link: socket.socket
        self.stubs: list[str] = []
        self.status: int | None = None
        self.started = 0.0
        self.ending = ""
        self.pumps: list[streams.Pump] = []
        self.log: streams.Log | None = None
        self.terminal = -1

    # set up ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Until the program runs; Refused when it does not come to that, and nothing is left then."""
        group = self.plan["cgroup"]
        if group:
            _make_groups(group)
        joins = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in group["joins"] if path != group["slow_join"]] if group else []
        self.link, inner = link.pair()
        inside, self.pumps = self._wire_output()
        try:
            self.pid = s.clone(flags_of(self.plan["namespaces"]), group["into"] if group else None)
            if self.pid == 0:
                self.title.set("sandbox-init")
                pid1.run(self.plan, inner, inside, joins)
            self.pidfd = os.pidfd_open(self.pid)
        except OSError as err:
            raise Refused(
                {"event": "refused", "code": 125, "message": f"clone: {err.strerror}", "step": "clone", "errno": err.errno}
            ) from err
        inner.close()
        self._close_unused({*joins, *inside})
        self._hand_over_mounts()
        self._follow_setup()

    def _wire_output(self) -> tuple[list[int], list[streams.Pump]]:
        """What init gets as 0, 1, 2: the client's own descriptors, or pipes of ours when the output is logged."""
        if self.plan["log"]:
            self.log = streams.Log(self.plan["log"])
        if self.plan["process"]["tty"]:
            return [], []  # init opens the terminal inside
        if not self.log:
            return self.stdio, []
        inside, pumps = [self.stdio[0]], []
        for name, sink in zip(("stdout", "stderr"), self.stdio[1:], strict=True):
            source, write_end = os.pipe()
            inside.append(write_end)
            pumps.append(streams.Pump(name, source, None if self.plan["detach"] else sink, self.log))
        return inside, pumps

    def _close_unused(self, given: set[int]) -> None:
        """What init has now, and for a detached container all that is the client's."""
        if self.plan["detach"]:
            given |= set(self.stdio)
        for fd in given:
            os.close(fd)
        self.stdio = [-1 if fd in given else fd for fd in self.stdio]

    def _hand_over_mounts(self) -> None:
        """Write the id maps, then send init what only the host side can make: idmapped and bound host directories."""
        trees: dict[str, int] = {}
        try:
            userns = _map_ids(self.pid, self.plan["idmap"]) if self.plan["idmap"] else -1
            for source in self.plan["host_mounts"]:
                trees[source["name"]] = _detach_host_mount(source, userns)
            link.send(self.link, {"mounts": list(trees)}, list(trees.values()))
        except OSError as err:
            message = f"{err.filename or 'user namespace'}: {err.strerror}"
            raise Refused({"event": "refused", "code": 125, "message": message, "step": "host_mounts", "errno": err.errno}) from err
        finally:
            for fd in (*trees.values(), *((userns,) if userns >= 0 else ())):
                os.close(fd)

    def _follow_setup(self) -> None:
        """Read init's reports until the program runs."""
        while True:
            message, fds = link.receive(self.link)
            if message is None:
                raise Refused(self._died_in_setup())
            if message["event"] == "refused":
                raise Refused(message)
            if message["event"] == "ready":
                self.stubs = message["stubs"]
            elif message["event"] == "terminal":
                self._wire_terminal(fds[0])
            elif message["event"] == "started":
                self.started = time.time()
                return

    def _died_in_setup(self) -> dict[str, Any]:
        used = cgroup.read(dict(self.plan["cgroup"]["report"])) if self.plan["cgroup"] else {}
        what = "killed by the memory limit" if used.get("oom_kills") else "ended"
        return {"event": "refused", "code": 125, "message": f"init {what} while setting up", "step": "init", "errno": None}

    def _wire_terminal(self, master: int) -> None:
        """The program has a terminal: everything it prints comes from its master."""
        self.terminal = master
        sink = None if self.plan["detach"] else self.stdio[1]
        self.pumps = [streams.Pump("stdout", master, sink, self.log)]

    # run ------------------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Serve the client, the output and the deadline until init has ended."""
        deadline = time.monotonic() + self.plan["timeout"] if self.plan["timeout"] else None
        while True:
            poll = select.poll()
            watched = self._register(poll)
            ready = poll.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000)
            ended = False
            for fd, _ in ready:
                ended |= self._serve(watched[fd])
            if ended:
                return
            if deadline is not None and time.monotonic() >= deadline:
                deadline = self._time_is_up()

    def _register(self, poll: select.poll) -> dict[int, Any]:
        """What to wait for now; the table says whose each descriptor is."""
        watched: dict[int, Any] = {self.pidfd: "init"}
        if self.client is not None:
            watched[self.client.fileno()] = "client"
        for pump in self.pumps:
            if pump.wants_read:
                watched[pump.source] = pump
        for fd in watched:
            poll.register(fd, select.POLLIN)
        for pump in self.pumps:
            if pump.wants_write and pump.sink is not None:
                watched[pump.sink] = pump
                poll.register(pump.sink, select.POLLOUT)
        if self.terminal >= 0 and self.plan["interactive"] and self.stdio[0] >= 0:
            watched[self.stdio[0]] = "keyboard"
            poll.register(self.stdio[0], select.POLLIN)
        return watched

    def _serve(self, who: object) -> bool:
        """One ready descriptor; True when init has ended."""
        if who == "init":
            return True
        if who == "client":
            self._serve_client()
        elif who == "keyboard":
            self._serve_keyboard()
        elif isinstance(who, streams.Pump):
            who.write() if who.wants_write else who.read()
        return False

    def _serve_client(self) -> None:
        assert self.client is not None
        message, _ = link.receive(self.client)
        if message is None:
            self.client.close()
            self.client = None
            if not self.plan["detach"]:
                self._end("interrupted", signal.SIGKILL)
        elif "signal" in message:
            self._signal(message["signal"])
        elif "size" in message and self.terminal >= 0:
            rows, columns = message["size"]
            _set_window(self.terminal, rows, columns)

    def _serve_keyboard(self) -> None:
        data = os.read(self.stdio[0], 4096)
        if data:
            os.write(self.terminal, data)
        else:
            os.write(self.terminal, b"\x04")  # end of file, as a terminal says it
            os.close(self.stdio[0])
            self.stdio[0] = -1

    def _time_is_up(self) -> float | None:
        """SIGTERM first, SIGKILL later; the next deadline."""
        if not self.ending:
            self._end("timeout", signal.SIGTERM)
            return time.monotonic() + _AFTER_TERM
        self._signal(signal.SIGKILL)
        return None

    def _end(self, why: str, number: int) -> None:
        self.ending = self.ending or why
        self._signal(number)

    def _signal(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return

    # end ------------------------------------------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        """After init: the last output, what was used, why it ended."""
        wall = time.time() - self.started
        self.status = self._read_status()
        for pump in self.pumps:
            pump.drain(_wait_writable)
        if self.log:
            self.log.close()
        used = cgroup.read(dict(self.plan["cgroup"]["report"])) if self.plan["cgroup"] else {}
        return {"event": "exited", "wait_status": self.status, "ending": self.ending, "started": self.started, "wall": wall, "used": used}

    def _read_status(self) -> int:
        """The program's wait status as init reported it, else init's own (it was killed)."""
        _, own = os.waitpid(self.pid, 0)
        self.link.setblocking(False)
        try:
            while (message := link.receive(self.link)[0]) is not None:
                if message["event"] == "ended":
                    return int(message["status"])
        except BlockingIOError:
            pass  # nothing said
        return own

    def clean_up(self) -> None:
        """Kill what is left, remove the cgroups and the stubs. Safe to call at any point of the set-up."""
        if self.pid and self.status is None:
            self._kill_init()
        if self.plan["cgroup"]:
            cgroup.remove(self.plan["cgroup"]["groups"])
        if self.stubs:
            files.remove_stubs(self.plan["upper"], self.stubs)

    def _kill_init(self) -> None:
        if self.pidfd >= 0:
            self._signal(signal.SIGKILL)
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            return


def run(plan: dict[str, Any], client: socket.socket, stdio: Sequence[int], shown: title.Title) -> None:
    """Supervise one container from its set-up to its last trace. Called in a fork of the spawner that then exits."""
    lock = os.open(plan["directory"] + "/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    container = Container(plan, client, stdio, shown)
    try:
        container.start()
        _record(plan, running_state(container))
        tell(container, {"event": "started", "pid": container.pid})
        container.watch()
        result = container.finish()
    except Refused as err:
        result = err.message
    except OSError as err:
        result = {"event": "refused", "code": 125, "message": str(err), "step": "supervisor", "errno": err.errno}
    try:
        container.clean_up()
    except (OSError, TimeoutError) as err:
        result["left"] = str(err)
    result["finished"] = time.time()
    _record(plan, {**result, "status": "exited"})
    if plan["remove"]:
        remove_container(plan)
    tell(container, result)


def running_state(container: Container) -> dict[str, Any]:
    """What state.json says of a running container: enough to enter, measure and stop it without its supervisor."""
    group = container.plan["cgroup"]
    return {
        "status": "running",
        "pid": container.pid,
        "supervisor": os.getpid(),
        "started": container.started,
        "namespaces": [*container.plan["namespaces"], *(["cgroup"] if container.plan["cgroup_namespace"] else [])],
        "joins": [path for path in group["joins"] if path != group["slow_join"]] if group else [],
        "report": group["report"] if group else [],
        "groups": group["groups"] if group else [],
        "stubs": container.stubs,
        "into": group["into"] if group else None,
    }


def remove_container(plan: Mapping[str, Any]) -> None:
    """Remove the container's name and directory."""
    for name in plan["names"]:
        try:
            os.unlink(name)
        except FileNotFoundError:
            continue
    files.remove_tree(plan["directory"])


def _record(plan: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write state.json; that the directory is gone (`rm -f` by another process) ends the record, not the clean-up."""
    if not plan["record"]:
        return
    try:
        files.write_json(plan["directory"] + "/state.json", state)
    except FileNotFoundError:
        return


def tell(container: Container, message: Mapping[str, Any]) -> None:
    """Tell the client, if there is one."""
    if container.client is None:
        return
    try:
        link.send(container.client, message)
    except (BrokenPipeError, ConnectionResetError):
        container.client = None


def _make_groups(group: Mapping[str, Any]) -> None:
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


def _map_ids(pid: int, idmap: Mapping[str, Any]) -> int:
    """Write the maps of init's user namespace (user_namespaces(7)) and open it."""
    if not idmap["setgroups"]:
        cgroup.write(f"/proc/{pid}/setgroups", "deny")
    for kind in ("uid", "gid"):
        cgroup.write(f"/proc/{pid}/{kind}_map", "".join(f"{inner} {outer} {count}\n" for inner, outer, count in idmap[kind]))
    return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def _detach_host_mount(source: Mapping[str, Any], userns: int) -> int:
    """A host directory as detached mount; with idmap, ids on disk are the container's own."""
    flags = s.OPEN_TREE_CLONE | s.OPEN_TREE_CLOEXEC | (s.AT_RECURSIVE if source["recursive"] else 0)
    tree = s.open_tree(source["source"], flags)
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


def _set_window(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _wait_writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(_STUCK_CLIENT * 1000))
