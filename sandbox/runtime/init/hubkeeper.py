"""The hub of an ordinary user's networks: one for an engine, where root has the host. It is there while somebody is connected to it.

Two processes and a helper. The **holder** is root of a user namespace with the ids that containers get, and in a network namespace of its
own: the bridges, rules and veths of all networks are made there by whoever is connected, with the sockets it hands out (init/hub). The
**helper** (pasta, else slirp4netns) leads from there to the outside. The **keeper**, outside, made both and ends them with one another;
should it be killed itself, the holder ends the helper. So nothing is left however any one of them ends, and what was in the network
namespace goes with it.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import time

from sandbox.runtime.init import control, files, helper, hub, link, netlink, pid1, subids
from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, NoReturn

    from sandbox.runtime.init import ground
    from sandbox.runtime.init.title import Title

LOCK = "hub.lock"
"""Held by whoever starts a hub, and by one that ends while it takes its socket away."""
_GRACE = 5.0
"""Seconds that a hub waits for the next when nobody is connected: containers run one after the other, each by a command of its own."""
_SETTINGS = {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/default/accept_ra": "2"}
"""Pass packets on, and take the helper's word on IPv6 nevertheless (ip-sysctl.rst)."""


def run(orders: int, client: socket.socket, stdio: Sequence[int], shown: Title, spare: ground.Spare | None = None) -> None:
    """Be the keeper, in a fork of the spawner. `orders`: a memfd with the `directory` of the networks, the `idmap`, the `helper` (None:
    where nothing leads out) and the `rules` as userspace.py made them. `client` is told `ready` or what was refused, and not heard."""
    del stdio
    if spare is not None:
        spare.discard()
    plan = link.read_plan(orders)
    shown.set("sandbox-hub")
    s.prctl(s.PR_SET_CHILD_SUBREAPER, 1)  # pasta goes into the background: then it is our child still
    pid1.close_others({0, 1, 2, client.fileno()})
    keeper = _Keeper()
    try:
        keeper.start(plan, shown)
        link.send(client, {"event": "ready"})
    except BrokenPipeError:
        pass  # whoever wanted it was killed: it ends by itself, unless another comes
    except (OSError, helper.Failed) as err:
        keeper.end()
        files.remove_file(f"{plan['directory']}/{hub.NAME}")
        message = f"{err.filename or 'namespaces'}: {err.strerror}" if isinstance(err, OSError) else str(err)
        link.send(client, {"event": "refused", "message": message})
        return
    client.close()
    keeper.stand()


class _Keeper:
    def __init__(self) -> None:
        self._processes: list[int] = []
        self._link: socket.socket | None = None

    def start(self, plan: Mapping[str, Any], shown: Title) -> None:
        """Until it serves. OSError, helper.Failed."""
        listener = control.listen(plan["directory"], hub.NAME)
        self._link, theirs = link.pair()
        pid = s.clone(s.CLONE_NEWUSER | s.CLONE_NEWNET)
        if pid == 0:
            _hold(listener, theirs, plan, shown)
        theirs.close()
        listener.close()
        self._processes.append(os.pidfd_open(pid))
        subids.write_maps(pid, plan["idmap"])
        link.send(self._link, {"mapped": True})
        message, _ = link.receive(self._link)
        if message is None or "problem" in message:
            raise OSError(*(message["problem"] if message else (1, "its holder ended")))
        if plan["helper"]:
            self._processes.append(helper.start(plan["helper"], pid))
        link.send(self._link, {"serve": True}, self._processes[1:])

    def stand(self) -> None:
        """Until one of them has ended."""
        helper.wait_any(self._processes)
        self.end()

    def end(self) -> None:
        for pidfd in self._processes:
            helper.kill(pidfd)
            helper.wait_any([pidfd])


def _hold(listener: socket.socket, keeper: socket.socket, plan: Mapping[str, Any], shown: Title) -> NoReturn:
    """In the holder."""
    try:
        shown.set("sandbox-network")
        pid1.close_others({0, 1, 2, listener.fileno(), keeper.fileno()})
        if link.receive(keeper)[0] is None:
            os._exit(0)
        try:
            _set_up(plan)
        except OSError as err:
            link.send(keeper, {"problem": [err.errno, err.strerror, err.filename]})
            os._exit(0)
        link.send(keeper, {"event": "up"})
        message, fds = link.receive(keeper)
        if message is not None:
            _Holder(listener, keeper, fds, plan["directory"]).serve()
    finally:
        os._exit(0)


def _set_up(plan: Mapping[str, Any]) -> None:
    """Root of the namespaces, which pass packets on."""
    if plan["idmap"]["setgroups"]:
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    with netlink.Netlink() as net:
        netlink.set_up(net, netlink.index_of(net, "lo"))
    for name, value in _SETTINGS.items():
        if os.path.exists(f"/proc/sys/net/{name}"):
            with open(f"/proc/sys/net/{name}", "w", encoding="ascii") as file:
                file.write(value)
    with netlink.Netlink(netlink.NETFILTER) as net:
        net.transact([(kind, bytes.fromhex(body), flags) for kind, body, flags in plan["rules"]])


class _Holder:
    def __init__(self, listener: socket.socket, keeper: socket.socket, helpers: Sequence[int], directory: str) -> None:
        self._listener = listener
        self._keeper = keeper
        self._helpers = list(helpers)
        self._directory = directory
        self._users: dict[int, socket.socket] = {}
        self._grace = _GRACE
        self._is_over = False

    def serve(self) -> None:
        """Until nobody needs it, or the keeper or the helper has ended."""
        until = time.monotonic() + self._grace
        while not self._is_over:
            poll = select.poll()
            for fd in (self._listener.fileno(), self._keeper.fileno(), *self._helpers, *self._users):
                poll.register(fd, select.POLLIN)
            ready = poll.poll(None if self._users else max(0.0, until - time.monotonic()) * 1000)
            for fd, _ in ready:
                self._take(fd)
            if not ready and not self._users:
                self._is_over = True
            elif ready:
                until = time.monotonic() + self._grace
        self._end()

    def _take(self, fd: int) -> None:
        if fd == self._listener.fileno():
            self._admit()
        elif fd in self._users:
            self._hear(fd)
        else:
            self._is_over = True

    def _admit(self) -> None:
        try:
            user, _ = self._listener.accept()
        except BlockingIOError:
            return  # gone again
        namespaces = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("user", "net")]
        sockets = [netlink.open_socket(protocol) for protocol in (netlink.ROUTE, netlink.NETFILTER)]
        self._grace = _GRACE
        try:
            link.send(user, {"event": "connected"}, [*namespaces, *(each.fileno() for each in sockets), *self._helpers])
            self._users[user.fileno()] = user
        except (BrokenPipeError, ConnectionResetError):
            user.close()
        finally:
            for each in sockets:
                each.close()
            for fd in namespaces:
                os.close(fd)

    def _hear(self, fd: int) -> None:
        """It needs us no more, or wants us to end: now if it is the last, else as soon as the others have gone, unless one comes."""
        message, _ = link.receive(self._users[fd])
        if message is None:
            self._users.pop(fd).close()
        elif len(self._users) == 1:
            self._is_over = True
        else:
            self._grace = 0.0
            try:
                link.send(self._users[fd], {"event": "in use"})
            except (BrokenPipeError, ConnectionResetError):
                pass  # it did not wait

    def _end(self) -> None:
        """Its socket is taken away unless somebody is about to start the next hub, and then replaces it."""
        lock = os.open(f"{self._directory}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(f"{self._directory}/{hub.NAME}")
        except (BlockingIOError, FileNotFoundError):
            pass  # or the whole directory was removed
        for pidfd in self._helpers:
            helper.kill(pidfd)
            helper.wait_any([pidfd])
