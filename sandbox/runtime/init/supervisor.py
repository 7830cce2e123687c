"""The one process beside a container: makes its cgroups and namespaces, owns its log, its deadline and its end.

It lives on the host side, outside the container's namespaces and cgroups. While it lives it holds the lock of the
container's directory: that lock, not a row or a pid, is what "running" means. When it dies, init dies with it.
"""

from __future__ import annotations

import fcntl
import functools
import os
import resource
import select
import signal
import socket
import struct
import termios
import time

from sandbox.runtime.init import attachment, cgroup, control, files, journal, link, logfile, meter, pid1, program, streams, title
from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from sandbox.runtime.init import health

_STUCK_CLIENT = 1.0
"""Seconds a client may leave the last output unread before it is dropped."""
_MUCH = 1 << 20
"""Bytes written from which on a container's files are deleted before its end is told."""
_AFTER_TERM = 2.0
"""Seconds between SIGTERM and SIGKILL when time is up."""


class Refused(Exception):
    """The container could not be set up or its program not started; the attributes are what the client is told."""

    def __init__(self, message: Mapping[str, Any]) -> None:
        super().__init__(message["message"])
        self.message = dict(message)


class Container:
    """One container while it runs."""

    def __init__(self, plan: dict[str, Any], client: socket.socket | None, stdio: Sequence[int], shown: title.Title) -> None:
        self.plan = plan
        self.title = shown
        self.client = client
        self.stdio = list(stdio)
        self.pid = 0
        self.pidfd = -1
        self.link: socket.socket
        self.stubs: list[str] = []
        self.status: int | None = None
        self.started = 0.0
        self.ending = ""
        self.pumps: list[streams.Pump] = []
        self.log: logfile.Log | None = None
        self.terminal = -1
        self.meter: tuple[int, int] | None = None
        self.reported: int | None = None
        self.account: dict[str, Any] = {}
        self.written = _MUCH
        self.grave = ""
        self.health: health.Health | None = None
        self.is_again = False
        self.is_over = False
        self.attachment = attachment.Attachment(plan["network"]) if plan.get("network") else None

    # set up ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Until the program runs; Refused when it does not come to that, and nothing is left then."""
        group = self.plan["cgroup"]
        if group:
            _make_groups(group)
        joins = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in group["joins"] if path != group["slow_join"]] if group else []
        pid1.load_entry(self.plan["process"])
        self.link, inner = link.pair()
        inside, self.pumps = self._wire_output()
        if self.plan["idmap"] and os.geteuid() == 0:
            root = self.plan["idmap"]["uid"][0][1]
            program.give_pipes(inside, root, root)
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
        self._attach_network()
        self._hand_over_mounts()
        self._follow_setup()

    def _wire_output(self) -> tuple[list[int], list[streams.Pump]]:
        """What init gets as 0, 1, 2: the client's own descriptors, or pipes of ours when the output is logged."""
        if self.plan["log"]:
            self.log = logfile.Log(**self.plan["log"])
        if self.plan["process"]["tty"]:
            return [], []  # init opens the terminal inside
        if not self.log and not self.plan.get("output_limit"):
            return self.stdio, []
        inside, pumps = [self.stdio[0]], []
        for name, sink in zip(("stdout", "stderr"), self.stdio[1:3], strict=True):
            source, write_end = os.pipe()
            inside.append(write_end)
            pumps.append(streams.Pump(name, source, [] if self.plan["detach"] else [sink], self.log))
        return [*inside, *self.stdio[3:]], pumps

    def _close_unused(self, given: set[int]) -> None:
        """What init has now, and for a detached container all that is the client's."""
        if self.plan["detach"]:
            given |= set(self.stdio)
        for fd in given:
            os.close(fd)
        self.stdio = [-1 if fd in given else fd for fd in self.stdio]

    def _attach_network(self) -> None:
        if self.attachment is None:
            return
        try:
            self.attachment.connect(self.pid, again=self.is_again)
        except attachment.Failed as err:
            raise Refused({"event": "refused", "code": 125, **err.facts}) from err

    def _hand_over_mounts(self) -> None:
        """Write the id maps, then send init what only the host side can make: idmapped and bound host directories."""
        trees: dict[str, int] = {}
        userns = -1
        try:
            _set_before_it_may_not(self.pid, self.plan)
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
                if fds and self.attachment:
                    self.attachment.serve_names(fds[0])
                self.started = time.time()
                _record(self.plan, running_state(self))  # while the program starts; should it not, its end is recorded over this
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
        sinks = [] if self.plan["detach"] else [self.stdio[1]]
        self.pumps = [streams.Pump("stdout", master, sinks, self.log)]

    # run ------------------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Serve the client, the output and the deadline until init has ended."""
        deadline = time.monotonic() + self.plan["timeout"] if self.plan["timeout"] else None
        while True:
            poll = select.poll()
            watched = self._register(poll)
            moments = [each for each in (deadline, self.health.due if self.health else None) if each is not None]
            ready = poll.poll(max(0.0, min(moments) - time.monotonic()) * 1000 if moments else None)
            for fd, _ in ready:
                watched[fd]()
            self._limit_output()
            if self.is_over:
                return
            if deadline is not None and time.monotonic() >= deadline:
                deadline = self._time_is_up()
            if self.health and self.health.due is not None and time.monotonic() >= self.health.due:
                self.health.begin()

    def _register(self, poll: select.poll) -> dict[int, Callable[[], object]]:
        """What to wait for now: descriptor → what to do when it is ready."""
        watched: dict[int, Callable[[], object]] = {self.pidfd: self._init_ended}
        if self.reported is None:
            watched[self.link.fileno()] = self._serve_link
        if self.client is not None:
            watched[self.client.fileno()] = self._serve_client
        if self.meter is not None:
            watched[self.meter[1]] = self._is_full
        if self.health and self.health.fileno() >= 0:
            watched[self.health.fileno()] = self._take_health
        if self.attachment:
            for fd in self.attachment.fds():
                watched[fd] = functools.partial(self.attachment.serve, fd)
        if self.terminal >= 0 and self.plan["interactive"] and self.stdio[0] >= 0:
            watched[self.stdio[0]] = self._serve_keyboard
        for fd in watched:
            poll.register(fd, select.POLLIN)
        for pump in self.pumps:
            for fd, events, ready in pump.interests():
                watched[fd] = ready
                poll.register(fd, events)
        return watched

    def _init_ended(self) -> None:
        self.is_over = True

    def _is_full(self) -> None:
        """It has written more than it may."""
        self._stop_meter()
        self._end("disk", signal.SIGKILL)

    def _serve_link(self) -> None:
        """Init says how its program ended, or its end is closed. What can be settled is, while Linux takes init apart."""
        message, _ = link.receive(self.link)
        self.reported = -1 if message is None else int(message["status"])  # -1: nothing
        if message is not None:
            self._settle()

    def _serve_client(self) -> None:
        assert self.client is not None
        message, _ = link.receive(self.client)
        if message is None:
            self.client.close()
            self.client = None
            if not self.plan["detach"]:
                self.interrupt()
        elif "signal" in message:
            self._signal(message["signal"])
        elif "size" in message and self.terminal >= 0:
            rows, columns = message["size"]
            _set_window(self.terminal, rows, columns)

    def interrupt(self) -> None:
        """Nobody is attached to it any more."""
        self._end("interrupted", signal.SIGKILL)

    def _serve_keyboard(self) -> None:
        data = os.read(self.stdio[0], 4096)
        if data:
            os.write(self.terminal, data)
        else:
            os.write(self.terminal, b"\x04")  # end of file, as a terminal says it
            os.close(self.stdio[0])
            self.stdio[0] = -1

    def _limit_output(self) -> None:
        limit = self.plan.get("output_limit")
        if limit and not self.ending and sum(pump.printed for pump in self.pumps) > limit:
            self._end("output", signal.SIGKILL)

    def start_health(self) -> None:
        """Begin to check how it is, where somebody said how."""
        if self.plan["health"]:
            from sandbox.runtime.init import health  # it enters the container as an exec does, which builds on this module

            self.health = health.Health(self)
            _record(self.plan, running_state(self))

    def _take_health(self) -> None:
        assert self.health is not None
        before = self.health.status
        self.health.take()
        if self.health.status != before:
            _note(self.plan, f"health_status: {self.health.status}")
        _record(self.plan, running_state(self))

    def start_meter(self) -> None:
        """Watch what it writes, where that is limited."""
        if self.plan.get("storage_size"):
            groups = self.plan["cgroup"]["groups"] if self.plan["cgroup"] else []
            self.meter = meter.start(self.plan["upper"], groups, self.pid, self.plan["storage_size"])

    def _stop_meter(self) -> None:
        if self.meter is not None:
            meter.stop(*self.meter)
            self.meter = None

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
        self._settle()
        self._stop_meter()
        if self.health:
            self.health.end()
            self.account["health"] = self.health.state
        self.status = self._read_status()
        for pump in self.pumps:
            pump.drain(_wait_writable)
        if self.log:
            self.log.close()
        limits = {name: self.plan.get(name) for name in ("storage_size", "output_limit")}
        return {
            "event": "exited", "wait_status": self.status, "ending": self.ending, "started": self.started, **self.account, **limits,
        }  # fmt: skip

    def _settle(self) -> None:
        """Once the program has ended: what was used, before init is reaped; and nobody finds a container any more that is to be removed."""
        if self.account:
            return
        wall = time.time() - self.started
        moved, self.written = _io_of(self.pid)
        used = cgroup.read(dict(self.plan["cgroup"]["report"])) if self.plan["cgroup"] else {}
        self.account = {"wall": wall, "used": {**moved, **{name: value for name, value in used.items() if value is not None}}}
        if self.plan.get("remove"):
            self.grave = bury_container(self.plan)

    def _read_status(self) -> int:
        """The program's wait status as init reported it, else init's own (it was killed)."""
        _, own = os.waitpid(self.pid, 0)
        if self.reported is None:
            self.link.setblocking(False)
            try:
                self._serve_link()
            except BlockingIOError:
                pass  # nothing said
        return own if self.reported in (None, -1) else self.reported

    def clean_up(self) -> None:
        """Kill what is left, remove the cgroups and the stubs. Safe to call at any point of the set-up."""
        if self.pid and self.status is None:
            self._kill_init()
        if self.attachment:
            self.attachment.unpublish()
        if self.plan["cgroup"]:
            cgroup.remove(self.plan["cgroup"]["groups"])
        is_buried = self.grave and self.plan["upper"].startswith(self.plan["directory"] + "/")
        if self.stubs and not is_buried:
            files.remove_stubs(self.plan["upper"], self.stubs)

    def close(self) -> None:
        """Let go of what belonged to this run, before the next."""
        self.link.close()
        if self.attachment:
            self.attachment.close()
        os.close(self.pidfd)
        for pump in self.pumps:
            pump.close()

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
    again = Restarts(plan) if plan["restart"][0] != "no" else None
    container = Container(plan, client, stdio, shown)
    result = _run_once(container)
    while again is not None and (delay := again.delay(result)) is not None:
        _record(plan, {**result, "status": "restarting", "supervisor": os.getpid(), "restarts": again.count})
        tell(container, result)
        if again.is_stopped_within(delay):
            break
        container = again.next(container)
        result = _run_once(container)
    facts = {"restarts": again.count, "stopped": again.stopped} if again else {}
    grave = container.grave or (bury_container(plan) if plan["remove"] else "")
    if not plan["remove"]:
        _record(plan, {**result, **facts, "status": "exited"})
    if grave:
        _note(plan, "destroy")
    if grave and container.written >= _MUCH:  # whoever sees the end may need the space
        files.remove_tree(grave)
    tell(container, result)
    if grave:  # nobody needs to wait for this
        files.remove_tree(grave)
    if container.attachment:
        container.attachment.leave()


def _note(plan: Mapping[str, Any], action: str, **more: object) -> None:
    """An event of this container."""
    if plan["told"]:
        attributes = {**plan["told"]["attributes"], **{name: str(each) for name, each in more.items()}}
        journal.note(plan["told"]["root"], "container", action, plan["id"], attributes)


def _note_end(plan: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    if result["event"] != "exited":
        return
    if result["used"].get("oom_kills"):
        _note(plan, "oom")
    code = os.waitstatus_to_exitcode(result["wait_status"])
    _note(plan, "die", exitCode=code if code >= 0 else 128 - code)


def _run_once(container: Container) -> dict[str, Any]:
    """From the set-up to the last trace of one run; the report of its end."""
    plan = container.plan
    try:
        if plan["record"]:
            files.reserve(plan["directory"] + "/state.json")
        container.start()
        container.start_meter()
        container.start_health()
        tell_started(container)
        _note(plan, "start")
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
    _note_end(plan, result)
    return result


_FIRST_DELAY, _LONGEST_DELAY, _RAN_WELL = 0.1, 60.0, 10.0
"""docker's back-off: 100 ms, doubled up to a minute, from the beginning again after a run of ten seconds."""


class Restarts:
    """--restart: whether and when a container that ended runs again. `stop` and `kill` say so at its door: then it does not."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        self._policy, self._most = plan["restart"]
        self._door = control.listen(plan["directory"])
        self._delay = _FIRST_DELAY
        self.count = 0
        self.stopped = False

    def delay(self, result: Mapping[str, Any]) -> float | None:
        """Seconds until the next run; None: there is none."""
        self.is_stopped_within(0)
        if self.stopped or result["event"] == "refused" or result["ending"] == "interrupted":
            return None
        if self._policy == "on-failure" and (result["wait_status"] == 0 or 0 < self._most <= self.count):
            return None
        self._delay = _FIRST_DELAY if result["wall"] >= _RAN_WELL or not self.count else min(2 * self._delay, _LONGEST_DELAY)
        return self._delay

    def is_stopped_within(self, seconds: float) -> bool:
        """Wait so long for somebody who wants it stopped; whether somebody does."""
        poll = select.poll()
        poll.register(self._door, select.POLLIN)
        if poll.poll(seconds * 1000):
            visitor, _ = self._door.accept()
            visitor.close()
            self.stopped = True
        return self.stopped

    def next(self, before: Container) -> Container:
        """The container of the next run: nobody is attached to it any more."""
        self.count += 1
        plan = {**before.plan, "detach": True, "interactive": False}
        if before.client is not None:
            before.client.close()
        for fd in before.stdio:
            if fd >= 0:
                os.close(fd)
        before.close()
        again = Container(plan, None, [os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) for _ in range(3)], before.title)
        again.is_again = True
        return again


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
        "cgroup": group,
        "health": container.health.state if container.health else None,
        "network": container.plan["network"],
    }


def bury_container(plan: Mapping[str, Any]) -> str:
    """From now on the container is gone, and its name free; the directory to delete. Our lock in it says that we are at it."""
    for name in plan["names"]:
        try:
            os.unlink(name)
        except FileNotFoundError:
            continue
    try:
        os.makedirs(os.path.dirname(plan["grave"]), 0o700, exist_ok=True)
        os.rename(plan["directory"], plan["grave"])
    except FileNotFoundError:
        return ""  # `rm -f` by another process was quicker
    return str(plan["grave"])


def _record(plan: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write state.json; that the directory is gone (`rm -f` by another process) ends the record, not the clean-up."""
    if not plan["record"]:
        return
    try:
        files.write_json(plan["directory"] + "/state.json", state)
    except FileNotFoundError:
        return


def tell_started(container: Container) -> None:
    """Whoever is attached may have been killed while it was set up: then it ends as it would later."""
    tell(container, {"event": "started", "pid": container.pid})
    if container.client is None and not container.plan["detach"]:
        container.interrupt()


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


def _set_before_it_may_not(pid: int, plan: Mapping[str, Any]) -> None:
    """What init could not give itself: an OOM score, and limits above ours where we hold CAP_SYS_RESOURCE."""
    if plan.get("oom_score_adj") is not None:
        cgroup.write(f"/proc/{pid}/oom_score_adj", str(plan["oom_score_adj"]))
    for name, soft, hard in plan["process"]["ulimits"]:
        number = getattr(resource, "RLIMIT_" + name.upper())
        _, allowed = resource.getrlimit(number)
        if allowed != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or hard > allowed):
            try:
                resource.prlimit(pid, number, (soft, hard))
            except (OSError, ValueError) as err:
                raise PermissionError(1, f"{hard} is above this host's hard limit {allowed}", f"ulimit {name}") from err


def _io_of(pid: int) -> tuple[dict[str, float], int]:
    """What init and all it has reaped read from and wrote to disks (proc(5), /proc/pid/io), before it is reaped itself; and the
    bytes they wrote to anything: a tmpfs is no disk."""
    try:
        with open(f"/proc/{pid}/io", encoding="ascii") as file:
            fields = dict(line.split(": ") for line in file.read().splitlines())
    except (OSError, ValueError):
        return {}, _MUCH
    return {"io_read": int(fields["read_bytes"]), "io_written": int(fields["write_bytes"])}, int(fields["wchar"])


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
    # A clone is its original's peer (mount_namespaces(7)): what the container mounts in it would appear on the host.
    s.mount_setattr(tree, propagation=s.MS_PRIVATE, recursive=source["recursive"])
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
