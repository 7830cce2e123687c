"""The one process beside a container: makes its cgroups and namespaces, owns its log, its deadline and its end.

It lives on the host side, outside the container's namespaces and cgroups. While it lives it holds the lock of the
container's directory: that lock, not a row or a pid, is what "running" means. When it dies, init dies with it.
"""

from __future__ import annotations

import fcntl
import functools
import os
import select
import signal
import socket
import time

from sandbox.runtime.init import (
    attachment,
    cgroup,
    clients,
    files,
    ground,
    hostside,
    link,
    meter,
    output,
    pid1,
    places,
    program,
    report,
    restarts,
    title,
    usernet,
)
from sandbox.runtime.init.hostside import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from sandbox.runtime.init import health

_MUCH = 1 << 20
"""Bytes written from which on a container's files are deleted before its end is told."""
_HANDED = 3
"""/etc/hosts, and the two sockets of the name server."""
_AFTER_TERM = 2.0
"""Seconds between SIGTERM and SIGKILL when time is up."""


class Container:
    """One container while it runs."""

    def __init__(
        self, plan: dict[str, Any], client: socket.socket | None, stdio: Sequence[int], shown: title.Title, orders: int = -1
    ) -> None:
        self.plan = plan
        self.orders = orders
        self.title = shown
        self.stdio = list(stdio)
        self.output = output.Output(plan, stdio)
        self.clients: list[clients.Client] = []
        if client is not None:
            self.clients.append(clients.Client(client, stdio[:3], bytes.fromhex(plan["detach_keys"]), is_starter=True))
        self.door: clients.Door | None = None
        self.spare: ground.Spare | None = None
        self.pid = 0
        self.pidfd = -1
        self.link: socket.socket
        self.stubs: list[str] = []
        self.status: int | None = None
        self.started = 0.0
        self.ending = ""
        self.meter: tuple[int, int] | None = None
        self.reported: int | None = None
        self.told_io = ""
        self.account: dict[str, Any] = {}
        self.written = _MUCH
        self.grave = ""
        self.health: health.Health | None = None
        self.is_program = False
        self.is_over = False
        self.attachment = usernet.make(plan["network"], self._deny, self._lose_network) if plan.get("network") else None

    # set up ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Until the program runs; Refused when it does not come to that, and nothing is left then."""
        self._owners("restore")
        pid1.load_entry(self.plan["process"])
        outer = self._prepare_network()
        stands = (self.spare and self.spare.take(self.plan)) or ground.Ground(self.plan, self.title, outer)
        self.pid, self.pidfd, self.link = stands.pid, stands.pidfd, stands.link
        inside = self.output.wire()
        if self.plan["idmap"] and os.geteuid() == 0:
            root = self.plan["idmap"]["uid"][0][1]
            program.give_pipes(inside, root, root)
        self._attach_network(stands)
        self._send_in(stands, inside)
        self._let_go(set(inside))
        self._follow_setup()
        self._admit_starter()

    def _let_go(self, given: set[int]) -> None:
        """What init has now, and for a detached container all that its starter gave."""
        if self.plan["detach"]:
            given |= set(self.stdio)
        for fd in given:
            os.close(fd)
        for client in self.clients:
            client.let_go(given)

    def _admit_starter(self) -> None:
        if not self.plan["detach"]:
            for client in self.clients:
                self.output.admit(client)

    def _prepare_network(self) -> int:
        if self.attachment is None:
            return -1
        try:
            return self.attachment.prepare()
        except attachment.Failed as err:
            raise Refused({"event": "refused", "code": 125, **err.facts}) from err

    def _attach_network(self, stands: ground.Ground) -> None:
        if self.attachment is None:
            return
        try:
            self.attachment.connect(self.pid, stands.take_nested())
        except attachment.Failed as err:
            raise Refused({"event": "refused", "code": 125, **err.facts}) from err

    def _lose_network(self) -> None:
        """What carried its networks has ended."""
        report.note(self.plan, "network_lost")
        report.record(self.plan, report.running_state(self))

    def _deny(self, what: str) -> None:
        """It asked for what its allow-list has not."""
        report.note(self.plan, "network_deny", target=what)

    def _send_in(self, stands: ground.Ground, inside: Sequence[int]) -> None:
        """Give init its orders, and what only the host side can make: idmapped and bound host directories."""
        trees: dict[str, int] = {}
        try:
            for source in self.plan["host_mounts"]:
                trees[source["name"]] = hostside.detach_host_mount(source, stands.userns)
            stands.order(self.orders, inside, trees)
        except OSError as err:
            message = f"{err.filename or 'host mount'}: {err.strerror}"
            raise Refused({"event": "refused", "code": 125, "message": message, "step": "host_mounts", "errno": err.errno}) from err
        finally:
            for fd in (*trees.values(), *((stands.userns,) if stands.userns >= 0 else ())):
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
                if len(fds) == _HANDED and self.attachment:
                    self.attachment.serve_names(fds)
                else:  # it got no further: why comes next
                    for fd in fds:
                        os.close(fd)
                self.started = time.time()
                # While the program starts; should it not, its end is recorded over this.
                report.record(self.plan, report.running_state(self))
            elif message["event"] == "terminal":
                self.output.wire_terminal(fds[0])
            elif message["event"] == "started":
                self.started = time.time()
                return

    def _died_in_setup(self) -> dict[str, Any]:
        used = cgroup.read(dict(self.plan["cgroup"]["report"])) if self.plan["cgroup"] else {}
        what = "killed by the memory limit" if used.get("oom_kills") else "ended"
        return {"event": "refused", "code": 125, "message": f"init {what} while setting up", "step": "init", "errno": None}

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
        for client in self.clients:
            watched[client.end.fileno()] = functools.partial(self._serve_client, client)
        if self.meter is not None:
            watched[self.meter[1]] = self._is_full
        if self.health and self.health.fileno() >= 0:
            watched[self.health.fileno()] = self._take_health
        names: Iterable[tuple[int, int, Callable[[], object]]] = ()
        if self.attachment:
            names = ((fd, events, functools.partial(self.attachment.serve, fd)) for fd, events in self.attachment.interests())
        for fd in watched:
            poll.register(fd, select.POLLIN)
        at_the_door = self.door.interests(self._attach, self._change_network) if self.door else ()
        for fd, events, ready in (*self.output.interests(self._detach), *at_the_door, *names):
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
            self.told_io = message["io"]
            self._settle()

    def _serve_client(self, client: clients.Client) -> None:
        if client not in self.clients:  # gone in this very round
            return
        message, _ = link.receive(client.end)
        if message is None:
            self.dismiss(client)
        elif "signal" in message:
            self._signal(message["signal"])
        elif "size" in message:
            self.output.resize(*message["size"])
        elif "detach" in message:
            self._detach(client)

    def dismiss(self, client: clients.Client) -> None:
        """It is attached no more; a container that its starter was to stay attached to ends with it."""
        self.output.dismiss(client)
        self.clients.remove(client)
        client.close()
        if client.is_starter and not self.plan["detach"]:
            self.interrupt()

    def _attach(self, client: clients.Client, message: Mapping[str, Any]) -> None:
        """Somebody came through the door."""
        can_type = self.output.admit(client)
        if not can_type:
            client.close_keyboard()
        self.clients.append(client)
        if message["window"]:
            self.output.resize(*message["window"])
        if not client.tell({"event": "started", "pid": self.pid, "stdin": can_type}):
            self.dismiss(client)

    def _change_network(self, wish: Mapping[str, Any]) -> Mapping[str, Any]:
        """Somebody wants it in one more network, or out of one: what that came to."""
        if self.attachment is None:
            return {"event": "refused", "message": "was started without a network", "errno": None}
        before = list(self.attachment.places)
        try:
            self.attachment.change(wish, self.pid)
        except attachment.Failed as err:
            return {"event": "refused", **err.facts}
        hostname = self.plan["texts"]["hostname"].strip()
        renew = functools.partial(places.renew_hosts, before=before, now=self.attachment.places, hostname=hostname)
        self.plan.update(restarts.in_other_networks(self.plan, self.attachment.places, renew))
        os.close(self.orders)
        self.orders = link.write_plan(self.plan)
        try:
            self.attachment.rewrite_hosts(renew)
        except OSError as err:  # its memory is full: the rest has changed
            report.note(self.plan, "hosts", error=err.strerror)
        report.record(self.plan, report.running_state(self))
        return {"event": "changed"}

    def _detach(self, client: clients.Client) -> None:
        """It wants to leave: the program goes on without it."""
        client.tell({"event": "detached"})
        if client.is_starter:
            self.plan["detach"] = True
        self.dismiss(client)

    def interrupt(self) -> None:
        """Nobody is attached to it any more."""
        if self.pidfd >= 0 and not self.is_over:
            self._end("interrupted", signal.SIGKILL)

    def _limit_output(self) -> None:
        limit = self.plan.get("output_limit")
        if limit and not self.ending and self.output.printed > limit:
            self._end("output", signal.SIGKILL)

    def start_health(self) -> None:
        """Begin to check how it is, where somebody said how."""
        if self.plan["health"]:
            from sandbox.runtime.init import health  # it enters the container as an exec does, which builds on this module

            self.health = health.Health(self)
            report.record(self.plan, report.running_state(self))

    def _take_health(self) -> None:
        assert self.health is not None
        before = self.health.status
        self.health.take()
        if self.health.status != before:
            report.note(self.plan, f"health_status: {self.health.status}")
        report.record(self.plan, report.running_state(self))

    def start_meter(self) -> None:
        """Watch what it writes, where that is limited."""
        if self.plan.get("storage_size"):
            groups = self.plan["cgroup"]["groups"] if self.plan["cgroup"] else []
            self.meter = meter.start(self.plan["upper"], groups, self.pid, self.plan["storage_size"], self.plan["idmap"])

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
        self.output.drain()
        limits = {name: self.plan.get(name) for name in ("storage_size", "output_limit")}
        return {
            "event": "exited", "wait_status": self.status, "ending": self.ending, "started": self.started, **self.account, **limits,
        }  # fmt: skip

    def _settle(self) -> None:
        """Once the program has ended: what was used, before init is reaped; and nobody finds a container any more that is to be removed."""
        if self.account:
            return
        wall = time.time() - self.started
        moved, written = hostside.io_of(self.pid, self.told_io)
        self.written = _MUCH if written is None else written
        used = cgroup.read(dict(self.plan["cgroup"]["report"])) if self.plan["cgroup"] else {}
        self.account = {"wall": wall, "used": {**moved, **{name: value for name, value in used.items() if value is not None}}}
        if self.attachment and (denied := self.attachment.denied()):
            self.account["denied"] = denied
        if self.plan.get("remove"):
            self.grave = report.bury_container(self.plan)

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
        if not is_buried:
            self._owners("harvest")
        if self.stubs and not is_buried:
            files.remove_stubs(self.plan["upper"], self.stubs)

    def _owners(self, job: str) -> None:
        """An ordinary user's files are at rest all theirs: the owners in the image are given before a run, and noted after it."""
        if os.geteuid() == 0 or not self.plan.get("idmap") or not os.path.isdir(self.plan["upper"]):
            return
        from sandbox.runtime.init import owned

        wanted = os.listdir(self.plan["upper"]) if job == "restore" else owned.needs_harvest(self.plan["upper"])
        if wanted and not owned.perform(job, self.plan["upper"], idmap=self.plan["idmap"]):
            raise OSError(1, f"{job}: the owners of its files", self.plan["upper"])

    def close(self) -> None:
        """Let go of what belonged to this run, before the next."""
        self.link.close()
        if self.attachment:
            self.attachment.close()
        os.close(self.pidfd)
        self.output.close()

    def _kill_init(self) -> None:
        if self.pidfd >= 0:
            self._signal(signal.SIGKILL)
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            return


def run(orders: int, client: socket.socket, stdio: Sequence[int], shown: title.Title, spare: ground.Spare | None = None) -> None:
    """Supervise one container from its set-up to its last trace. Called in a fork of the spawner that then exits. `orders`: the memfd of
    the plan; `spare`: a ground that may suit."""
    plan = link.read_plan(orders, keep=True)
    lock = os.open(plan["directory"] + "/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    is_restarted = plan["restart"][0] != "no"
    has_door = is_restarted or (plan["record"] and (output.is_shared(plan) or plan.get("network")))
    door = clients.Door(plan["directory"]) if has_door else None
    again = restarts.Restarts(plan, door) if door and is_restarted else None
    container = Container(plan, client, stdio, shown, orders)
    container.door = door
    container.spare = spare
    result = _run_once(container)
    while again is not None and (delay := again.delay(result)) is not None:
        report.record(plan, {**result, "status": "restarting", "supervisor": os.getpid(), "restarts": again.count})
        tell(container, result)
        if again.is_stopped_within(delay):
            break
        again.count += 1
        container = _next_run(container)
        result = _run_once(container)
    facts = {"restarts": again.count, "stopped": again.is_stopped_within(0)} if again else {}
    grave = container.grave or (report.bury_container(plan) if plan["remove"] else "")
    if not plan["remove"]:
        report.record(plan, {**result, **facts, "status": "exited"})
    if grave:
        report.note(plan, "destroy")
    if grave and container.written >= _MUCH:  # whoever sees the end may need the space
        files.remove_tree(grave)
    tell(container, result)
    if grave:  # nobody needs to wait for this
        files.remove_tree(grave)
    if container.attachment:
        container.attachment.leave()


def _next_run(before: Container) -> Container:
    """The container of the next run: nobody is attached to it any more."""
    plan: dict[str, Any] = {**before.plan, "detach": True}
    for client in before.clients:
        client.close()
    before.close()
    again = Container(plan, None, [os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) for _ in range(3)], before.title, before.orders)
    again.door = before.door
    if again.attachment and before.attachment:
        again.attachment.follow(before.attachment)
    return again


def _run_once(container: Container) -> dict[str, Any]:
    """From the set-up to the last trace of one run; the report of its end."""
    plan = container.plan
    try:
        if plan["record"]:
            files.reserve(plan["directory"] + "/state.json")
        container.start()
        container.start_meter()
        container.start_health()
        report.note(plan, "start")  # before anybody can act on it, who writes that down
        tell_started(container)
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
    report.note_end(plan, result)
    return result


def tell_started(container: Container) -> None:
    """Whoever is attached may have been killed while it was set up: then it ends as it would later."""
    tell(container, {"event": "started", "pid": container.pid, "is_program": container.is_program})


def tell(container: Container, message: Mapping[str, Any]) -> None:
    """Tell all that are attached; those that are gone are so from now on."""
    for client in [client for client in container.clients if not client.tell(message)]:
        container.dismiss(client)
