"""An ordinary user's networks: their bridges are in a network namespace of the user's own, held by a hub (init/hubkeeper), from where
pasta, else slirp4netns, carries packets out as sockets of that user (pasta(1), slirp4netns(1)). Nothing of the host is changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any  # a helper's command is JSON

from sandbox.errors import NetworkError, SetupFailed, Unsupported
from sandbox.runtime.init import hubkeeper, link, subids
from sandbox.runtime.init import netlink as n
from sandbox.runtime.init.helper import PID, PID_FILE, READY
from sandbox.runtime.init.hub import Connection, connect
from sandbox.runtime.network import nftables as t
from sandbox.runtime.network.subnets import host_routes, leads_out, leads_out6
from sandbox.runtime.spawner import Spawner, hand_over

if TYPE_CHECKING:
    from sandbox.runtime.spec import ContainerSpec

PROGRAMS = ("pasta", "slirp4netns")
"""In this order: pasta needs no second TCP stack."""
_SUBNETS = ("198.18.254.0/24", "198.19.254.0/24", "10.0.2.0/24", "172.31.253.0/24")
"""For the way out, which no container sees; the first two are for benchmarks (RFC 2544), so that nobody wants to go there."""
_GATEWAY, _OWN = 2, 100  # slirp4netns's; pasta is told them
_LINK = "uplink"
_TUN = Path("/dev/net/tun")
_HINT = "install passt or slirp4netns (Debian: apt-get install passt); or use --network host or --network none"


class InHub:
    """The bridges of an ordinary user's engine below `root`: see bridges.OnHost. A hub that was used once stays as long as we do;
    `spawner` forks it. Thread-safe."""

    def __init__(self, root: Path, spawner: Spawner) -> None:
        self._directory = root / "networks"
        self._spawner = spawner
        self._lock = threading.Lock()
        self._kept: Connection | None = None

    @property
    def hub(self) -> str:
        """Where supervisors find it."""
        return str(self._directory)

    @contextlib.contextmanager
    def use(self) -> Iterator[n.Sockets]:
        """Sockets where the bridges are; the hub is started if there is none. Unsupported, NetworkError, SetupFailed."""
        with contextlib.closing(self._connect()) as connection:
            yield connection.sockets

    @contextlib.contextmanager
    def use_if_there(self) -> Iterator[n.Sockets | None]:
        """As `use`; None when there is no hub, and so nothing but files."""
        try:
            connection = connect(self.hub)
        except (FileNotFoundError, ConnectionRefusedError):
            yield None
            return
        with contextlib.closing(connection):
            yield connection.sockets

    def check(self, spec: ContainerSpec) -> None:
        """Unsupported for a container that would have power over what keeps others apart."""
        if spec.userns == "host":
            hint = "leave --userns host out, or use --network host or --network none"
            raise Unsupported(f"network {spec.network}: not with --userns host", feature="network", hint=hint)

    def lead_out(self, bridge: str) -> None:
        """It leads out: nobody else's rules are there."""

    def switch_on(self, version: int) -> None:
        """It does, from its start."""

    def take_back(self, bridge: str) -> None:
        """Nothing but the bridge and its own rules was made."""

    def has_ipv6(self) -> bool:
        """Whether this machine gets out by IPv6."""
        return leads_out6()

    def rest(self) -> None:
        """End the hub, with the last that is connected to it."""
        self._spawner.dismiss_spares()
        self.close()
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError), contextlib.closing(connect(self.hub)) as connection:
            connection.dismiss()

    def close(self) -> None:
        """We need the hub no more."""
        with self._lock:
            if self._kept is not None:
                self._kept.close()
                self._kept = None

    def _connect(self) -> Connection:
        with self._lock:
            if self._kept is not None and (self._kept.has_ended() or _is_outdated(self._kept)):
                self._kept.close()
                self._kept = None
            if self._kept is None:
                self._kept = self._connect_or_start()
        return self._connect_or_start()

    def _connect_or_start(self) -> Connection:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            found = connect(self.hub)
            if not _is_outdated(found):
                return found
            found.dismiss()
            if not found.has_ended():  # containers are in it
                return found
            found.close()
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._directory / hubkeeper.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):  # another was quicker
                return connect(self.hub)
            self._start()
            return connect(self.hub)
        finally:
            os.close(lock)

    def _start(self) -> None:
        uid, gid = os.geteuid(), os.getegid()
        plan = {
            "directory": self.hub,
            "idmap": subids.find(uid, gid) or subids.own(uid, gid),
            "helper": _helper(self._directory) if leads_out() else None,
            "rules": [[kind, body.hex(), flags] for kind, body, flags in _rules()],
        }
        with self._spawner.reserve() as keeper:
            hand_over(keeper, "hub", plan, ())
            message, _ = link.receive(keeper)
        if message is None:
            raise SetupFailed("hub of the networks: ended before it was ready")
        if message["event"] == "refused":
            raise NetworkError(f"hub of the networks: {message['message']}", hint="`sandbox doctor` says what is missing")


def _is_outdated(connection: Connection) -> bool:
    """A hub that was started where nothing led out, but now something does."""
    return not connection.has_way_out and leads_out()


def _helper(directory: Path) -> Mapping[str, Any]:
    """The command of the helper program. Unsupported where it is missing, or may not make its link."""
    program = next((found for found in map(shutil.which, PROGRAMS) if found), None)
    if program is None:
        raise Unsupported("networks: neither pasta nor slirp4netns is installed", feature="network", hint=_HINT)
    if not os.access(_TUN, os.R_OK | os.W_OK):
        hint = f"as root: modprobe tun; chmod 0666 {_TUN}; or use --network host or --network none"
        raise Unsupported(f"networks: {_TUN} is not usable by uid {os.geteuid()}", feature="network", hint=hint)
    argv = _COMMANDS[Path(program).name](program, _free_subnet())
    return {"argv": argv, "pid_file": str(directory / "hub.pid") if PID_FILE in argv else ""}


def _rules() -> list[t.Request]:
    """pasta of 2023 sends TCP segments without a flag. Those are no part of a connection, so nobody translates their address, and the hub
    itself would answer with a reset."""
    drop = t.rule(n.INET, _LINK, "input", t.named(t.IIFNAME, _LINK), t.invalid(), t.verdict(t.DROP))
    return [*t.fresh_table(n.INET, _LINK), t.chain(n.INET, _LINK, "input", "filter", t.INPUT, 0), drop]


def _free_subnet() -> ipaddress.IPv4Network:
    """One that the host does not reach otherwise, else the first: then some of the host's own network is out of reach."""
    used = host_routes()
    subnets = [ipaddress.IPv4Network(text) for text in _SUBNETS]
    return next((subnet for subnet in subnets if not any(subnet.overlaps(other) for other in used)), subnets[0])


def _pasta(program: str, subnet: ipaddress.IPv4Network) -> list[str]:
    """Ports are our own proxy's, and the gateway's address does not lead to the host's loopback."""
    addresses = ["--address", str(subnet[_OWN]), "--netmask", str(subnet.prefixlen), "--gateway", str(subnet[_GATEWAY])]
    ports = ["--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none", "--no-map-gw"]
    return [program, "--quiet", "--config-net", "--ns-ifname", _LINK, *addresses, *ports, "--pid", PID_FILE, PID]


def _slirp4netns(program: str, subnet: ipaddress.IPv4Network) -> list[str]:
    version6 = ["--enable-ipv6"] if leads_out6() else []
    ways = ["--configure", "--mtu", "65520", "--cidr", str(subnet), *version6, "--disable-host-loopback", "--disable-dns"]
    return [program, *ways, "--ready-fd", READY, PID, _LINK]


_COMMANDS = {"pasta": _pasta, "slirp4netns": _slirp4netns}
