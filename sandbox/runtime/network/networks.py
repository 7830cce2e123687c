"""The networks of one engine: a bridge each, addresses given out one a container, rules that keep them apart.

What there should be is in files below ROOT/networks; what Linux has is made from that whenever a container is attached, so a bridge
that somebody deleted, or rules that somebody flushed, come back. One lock orders all changes between processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import ipaddress
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any  # an attachment is JSON

import msgspec
from msgspec.structs import asdict

from sandbox.errors import InvalidOption, NetworkError, NetworkNotFound, WrongState
from sandbox.runtime.init import journal
from sandbox.runtime.init import netlink as n
from sandbox.runtime.network import rules
from sandbox.runtime.spec import ContainerSpec

DEFAULT = "bridge"
_RESERVED = ("none", "host", "default", "container")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_POOLS = tuple(ipaddress.IPv4Network(text) for text in ("10.177.0.0/16", "172.30.0.0/16", "192.168.0.0/16"))
_PREFIX = 24
_STARTING = 30.0
"""Seconds after which a container has a supervisor, or will never have one."""
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """One network. `bridge`: its link on the host; `subnet` in CIDR form, `gateway` the bridge's own address; an `internal` one has
    no way out; `created` in seconds since 1970."""

    name: str
    bridge: str
    subnet: str
    gateway: str
    internal: bool = False
    labels: dict[str, str] = {}
    created: float = 0.0

    @property
    def addresses(self) -> ipaddress.IPv4Network:
        """The subnet."""
        return ipaddress.IPv4Network(self.subnet)


class Lease(msgspec.Struct, frozen=True):
    """Who has an address: the container with its names, from when on (seconds since 1970), and the process that started it."""

    container: str
    since: float
    process: int
    names: tuple[str, ...] = ()


class Networks:
    """The networks below `root`. `is_supervised` says whether a container lives."""

    def __init__(self, root: Path, is_supervised: Callable[[str], bool]) -> None:
        self._root = root
        self._directory = root / "networks"
        self._is_supervised = is_supervised

    # what there is

    def all(self) -> list[Network]:
        """By name."""
        return sorted((msgspec.json.decode(path.read_bytes(), type=Network) for path in self._files()), key=lambda each: each.name)

    def find(self, name: str) -> Network:
        """NetworkNotFound; the default one is there as soon as somebody asks for it."""
        try:
            return msgspec.json.decode(self._file(name).read_bytes(), type=Network)
        except FileNotFoundError:
            if name != DEFAULT:
                raise NetworkNotFound(f"network {name}: there is none", hint="`sandbox network ls` lists what there is") from None
        with contextlib.suppress(NetworkError):  # another process was quicker
            self.create(DEFAULT)
        return msgspec.json.decode(self._file(name).read_bytes(), type=Network)

    def members(self, network: Network) -> dict[str, str]:
        """Container id → address, of those that live."""
        return {lease.container: address for address, lease in self._leases(network) if self._is_held(lease)}

    # changes

    def create(
        self,
        name: str,
        *,
        subnet: str | None = None,
        gateway: str | None = None,
        internal: bool = False,
        labels: dict[str, str] | None = None,
    ) -> Network:
        """A new network; nothing is made on the host before somebody joins. NetworkError, InvalidOption."""
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise InvalidOption(f"network {name!r}: not a name for a network")
        with self._locked():
            if self._file(name).exists():
                raise NetworkError(f"network {name}: there is one already")
            addresses = self._checked(subnet) if subnet else self._free_subnet(name)
            own = _gateway(addresses, gateway)
            network = Network(
                name=name,
                bridge=self._bridge_name(name),
                subnet=str(addresses),
                gateway=str(own),
                internal=internal,
                labels=labels or {},
                created=time.time(),
            )
            place = self._place(name)
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = self._file(name).with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(network))
            fresh.rename(self._file(name))
        journal.note(str(self._root), "network", "create", name)
        return network

    def remove(self, name: str) -> None:
        """Take a network away, from the host too; WrongState while containers are in it."""
        network = self.find(name)
        with self._locked():
            if members := self.members(network):
                raise WrongState(f"network {name}: {len(members)} containers are in it", wanted="empty", actual="in use")
            self._take_down(network)
            for path in self._place(name).iterdir():
                path.unlink()
            self._place(name).rmdir()
        journal.note(str(self._root), "network", "destroy", name)

    def prune(self) -> list[str]:
        """Take what nobody uses off the host, and networks other than the default one away; the names of those."""
        removed = []
        for network in self.all():
            with self._locked():
                if self.members(network):
                    continue
                self._take_down(network)
            if network.name != DEFAULT:
                self.remove(network.name)
                removed.append(network.name)
        return removed

    @contextlib.contextmanager
    def attached(self, spec: ContainerSpec, servers: Sequence[str]) -> Iterator[dict[str, Any]]:
        """An address for a container that is being started, and all its supervisor needs to know; given back if the block fails.
        `servers`: who is asked for names of elsewhere.

        NetworkNotFound; NetworkError when no address is left or Linux refuses the bridge.
        """
        name, container_id = spec.network, spec.id
        network = self.find(name)
        with self._locked():
            try:
                index = self._set_up(network)
            except OSError as err:
                raise NetworkError(f"network {name}: {err.strerror}", hint="`sandbox doctor` says what is missing") from err
            chosen = self._lease(network, spec)
        lease = self._place(name) / chosen
        link, mac = f"{rules.port_prefix(network.bridge)}{container_id[:7]}", _mac(chosen)
        try:
            yield {
                "name": name, "bridge": network.bridge, "index": index, "link": link, "mac": mac, "address": chosen,
                "prefix": network.addresses.prefixlen, "gateway": "" if network.internal else network.gateway, "lease": str(lease),
                "containers": str(self._root / "containers"), "servers": [] if network.internal else list(servers),
                "ports": [asdict(port) for port in spec.ports],
            }  # fmt: skip
        except BaseException:
            lease.unlink(missing_ok=True)
            raise

    def _set_up(self, network: Network) -> int:
        """The bridge with its address and rules, as far as they are not there; its index."""
        try:
            index = socket.if_nametoindex(network.bridge)
        except OSError:
            with n.Netlink() as net:
                index = n.add_bridge(net, network.bridge, f"jupyter-sandbox {network.name}", _mac(network.gateway))
                n.add_address(net, index, network.gateway, network.addresses.prefixlen)
        if not rules.are_installed(network.bridge):
            prefix = rules.port_prefix(network.bridge)
            owners = [
                n.owner_key(f"{prefix}{lease.container[:7]}", _mac(address), address)
                for address, lease in self._leases(network)
                if self._is_held(lease)
            ]
            rules.install(network.bridge, network.addresses, internal=network.internal, owners=owners)
        if not network.internal and _FORWARD.read_text().strip() == "0":
            _FORWARD.write_text("1\n")
        return index

    def _take_down(self, network: Network) -> None:
        with n.Netlink() as net:
            n.remove_link(net, network.bridge)
        rules.remove(network.bridge)
        for address, _ in self._leases(network):
            (self._place(network.name) / address).unlink(missing_ok=True)

    # addresses

    def _lease(self, network: Network, spec: ContainerSpec) -> str:
        wanted = spec.address
        taken = {address: lease for address, lease in self._leases(network) if self._is_held(lease)}
        free = (
            self._wanted(network, wanted) if wanted else (str(host) for host in network.addresses.hosts() if str(host) != network.gateway)
        )
        address = next((each for each in free if each not in taken), None)
        if address is None:
            full = f"address {wanted} is taken" if wanted else f"all {len(taken)} addresses of {network.subnet} are taken"
            raise NetworkError(f"network {network.name}: {full}", hint="remove containers, or create a network with a larger --subnet")
        names = tuple(dict.fromkeys((*spec.names, spec.hostname, spec.id[:12])))
        (self._place(network.name) / address).write_bytes(msgspec.json.encode(Lease(spec.id, time.time(), os.getpid(), names)))
        return address

    def _wanted(self, network: Network, text: str) -> Iterator[str]:
        try:
            address = ipaddress.IPv4Address(text)
        except ValueError as err:
            raise InvalidOption(f"--ip {text!r}: not an IPv4 address") from err
        if address not in network.addresses or text == network.gateway:
            raise InvalidOption(f"--ip {text}: not an address for a container in {network.subnet}")
        yield text

    def _leases(self, network: Network) -> list[tuple[str, Lease]]:
        found = []
        for path in self._place(network.name).iterdir():
            with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
                if path.name[0].isdigit():
                    found.append((path.name, msgspec.json.decode(path.read_bytes(), type=Lease)))
        return found

    def _is_held(self, lease: Lease) -> bool:
        """A container that is being started has no supervisor yet, but somebody who starts it."""
        is_starting = time.time() - lease.since < _STARTING and Path(f"/proc/{lease.process}").exists()
        return is_starting or self._is_supervised(lease.container)

    def _free_subnet(self, name: str) -> ipaddress.IPv4Network:
        """One that neither the host's routes nor our networks have; engines begin at different ones."""
        used = [*host_routes(), *(network.addresses for network in self.all())]
        for pool in _POOLS:
            subnets = list(pool.subnets(new_prefix=_PREFIX))
            start = int(hashlib.sha256(f"{self._root}\0{name}".encode()).hexdigest(), 16) % len(subnets)
            for subnet in (*subnets[start:], *subnets[:start]):
                if not any(subnet.overlaps(other) for other in used):
                    return subnet
        raise NetworkError("network: every range of private addresses is in use here", hint="give one: --subnet")

    def _checked(self, subnet: str) -> ipaddress.IPv4Network:
        try:
            addresses = ipaddress.IPv4Network(subnet)
        except ValueError as err:
            raise InvalidOption(f"--subnet {subnet!r}: {err}") from err
        if addresses.prefixlen > 29:
            raise InvalidOption(f"--subnet {subnet}: too small, at least /29")
        if clash := next(
            (other for other in (*host_routes(), *(each.addresses for each in self.all())) if addresses.overlaps(other)), None
        ):
            raise InvalidOption(f"--subnet {subnet}: overlaps {clash}, which is in use here")
        return addresses

    # files

    def _bridge_name(self, name: str) -> str:
        return bridge_prefix(self._root) + hashlib.sha256(name.encode()).hexdigest()[:4]

    def _place(self, name: str) -> Path:
        return self._directory / name

    def _file(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise InvalidOption(f"network {name!r}: not a name for a network")
        return self._place(name) / "network.json"

    def _files(self) -> Sequence[Path]:
        return sorted(self._directory.glob("*/network.json"))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def bridge_prefix(root: Path) -> str:
    """How the bridges of the engine with this root begin: two engines have different ones."""
    return "sbx" + hashlib.sha256(os.fsencode(root)).hexdigest()[:4]


def _gateway(addresses: ipaddress.IPv4Network, text: str | None) -> ipaddress.IPv4Address:
    if text is None:
        return next(addresses.hosts())
    try:
        gateway = ipaddress.IPv4Address(text)
    except ValueError as err:
        raise InvalidOption(f"--gateway {text!r}: not an IPv4 address") from err
    if gateway not in addresses or gateway in (addresses.network_address, addresses.broadcast_address):
        raise InvalidOption(f"--gateway {text}: not an address of {addresses}")
    return gateway


def _mac(address: str) -> str:
    """docker's: local, and as unique as the address."""
    return "02:42:" + ":".join(f"{each:02x}" for each in socket.inet_aton(address))


def host_routes(table: Path = Path("/proc/net/route")) -> list[ipaddress.IPv4Network]:
    """Where the host already sends packets to, but for everything else (proc_net(5))."""
    found = []
    for line in table.read_text().splitlines()[1:]:
        words = line.split()
        target, mask = (int.from_bytes(bytes.fromhex(words[each]), "little") for each in (1, 7))
        if mask:
            found.append(ipaddress.IPv4Network((target & mask, bin(mask).count("1"))))
    return found
