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
from sandbox.runtime.init import attachment, journal
from sandbox.runtime.init import netlink as n
from sandbox.runtime.network import confinement, forwarding, rules
from sandbox.runtime.network.leases import Lease, Leases, mac_of, new_lease
from sandbox.runtime.spec import ContainerSpec, Endpoint

DEFAULT = "bridge"
_RESERVED = ("none", "host", "default", "container")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_POOLS = tuple(ipaddress.IPv4Network(text) for text in ("10.177.0.0/16", "172.30.0.0/16", "192.168.0.0/16"))
_PREFIX = 24
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
        return {lease.container: address for address, lease in self._leases(network).held()}

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
        """Addresses for a container that is being started, and all its supervisor needs to know; given back if the block fails.
        `servers`: who is asked for names of elsewhere.

        NetworkNotFound; NetworkError when no address is left or Linux refuses the bridge; InvalidOption.
        """
        endpoints = (Endpoint(spec.network, spec.address, spec.mac, spec.names), *spec.more_networks)
        networks = [self.find(endpoint.network) for endpoint in endpoints]
        with contextlib.ExitStack() as undo:
            places = []
            for number, (network, endpoint) in enumerate(zip(networks, endpoints, strict=True)):
                places.append(self.join(network, spec, endpoint, f"eth{number}", has_default=not number))
                undo.callback(attachment.forget, places[-1])
            yield self._facts(spec, networks, places, servers)
            undo.pop_all()

    def _facts(
        self, spec: ContainerSpec, networks: Sequence[Network], places: Sequence[dict[str, Any]], servers: Sequence[str]
    ) -> dict[str, Any]:
        """The first place, and what is the container's as a whole."""
        allow = {
            "tables": [place["table"] for place in places],
            "names": [[each.name, each.port, each.protocols] for each in spec.allow_net if each.name],
            "subnets": [network.subnet for network in networks],
            "search": spec.dns_search,
        }
        return {
            **places[0],
            "more": places[1:],
            "container": spec.id,
            "containers": str(self._root / "containers"),
            "servers": [] if all(network.internal for network in networks) else list(servers),
            "ports": [asdict(port) for port in spec.ports],
            "allow": allow if spec.allow_net else None,
        }

    def join(self, network: Network, spec: ContainerSpec, endpoint: Endpoint, end: str, *, has_default: bool) -> dict[str, Any]:
        """A place in a network for the container's link `end`, with its rules; `attachment.forget` gives it back. NetworkError,
        InvalidOption."""
        names = tuple(dict.fromkeys((*endpoint.names, spec.hostname, spec.id[:12])))
        lease = new_lease(spec.id, names, end=end, allowed=spec.allow_net, rate=spec.network_rate)
        with self._locked():
            try:
                index = self._set_up(network)
                self._sweep(network)
                address, lease = self._leases(network).take(endpoint, lease)
                confined = self._confined(network, address, lease)
                if confined.rate or confined.allowed:
                    confinement.install(confined)
            except OSError as err:
                hint = "`sandbox doctor` says what is missing; --network none does without"
                raise NetworkError(f"network {network.name}: {err.strerror}", hint=hint) from err
        is_listed = bool(lease.allowed)
        return {
            "name": network.name, "bridge": network.bridge, "index": index, "link": confined.link, "end": end, "mac": lease.mac,
            "owner": lease.container,
            "address": address, "prefix": network.addresses.prefixlen, "subnet": network.subnet,
            "gateway": network.gateway if has_default and not network.internal else "", "router": network.gateway if is_listed else "",
            "rate": lease.rate or 0, "table": confined.table, "lease": str(self._leases(network).file(address)),
            "families": [*([n.INET] if is_listed else []), *([n.BRIDGE] if is_listed or lease.rate else [])],
        }  # fmt: skip

    def _set_up(self, network: Network) -> int:
        """The bridge with its address and rules, as far as they are not there; its index."""
        try:
            index = socket.if_nametoindex(network.bridge)
        except OSError:
            with n.Netlink() as net:
                index = n.add_bridge(net, network.bridge, f"jupyter-sandbox {network.name}", mac_of(network.gateway))
                n.add_address(net, index, network.gateway, network.addresses.prefixlen)
        if not rules.are_installed(network.bridge):
            self._make_rules(network)
        if not network.internal:
            forwarding.let_through(network.bridge)
        if _FORWARD.read_text().strip() == "0":
            _FORWARD.write_text("1\n")
        return index

    def _make_rules(self, network: Network) -> None:
        """Of the network, and of those in it: the lists first, so that nobody is without one for a moment."""
        held = self._leases(network).held()
        for address, lease in held:
            if lease.allowed or lease.rate:
                confinement.install(self._confined(network, address, lease))
        owners = [n.owner_key(_link_name(network, lease), lease.mac, address) for address, lease in held]
        rules.install(network.bridge, network.addresses, internal=network.internal, owners=owners)

    def _confined(self, network: Network, address: str, lease: Lease) -> confinement.Confined:
        return confinement.Confined(
            table=confinement.table_name(network.bridge, lease.container),
            link=_link_name(network, lease),
            bridge=network.bridge,
            bridge_mac=mac_of(network.gateway),
            addresses=[address],
            subnets=[network.subnet],
            allowed=lease.allowed,
            rate=lease.rate,
        )

    def _sweep(self, network: Network) -> None:
        """What a killed supervisor left: its addresses, and the rules for them."""
        for address, lease in self._leases(network).stale():
            link = _link_name(network, lease)
            rules.drop_owner(network.bridge, link, lease.mac or mac_of(address), address)
            confinement.remove(confinement.table_name(network.bridge, lease.container))
            self._leases(network).file(address).unlink(missing_ok=True)

    def _take_down(self, network: Network) -> None:
        with n.Netlink() as net:
            n.remove_link(net, network.bridge)
        rules.remove(network.bridge)
        forwarding.take_back(network.bridge)
        for address, lease in self._leases(network).all():
            confinement.remove(confinement.table_name(network.bridge, lease.container))
            self._leases(network).file(address).unlink(missing_ok=True)

    # addresses

    def _leases(self, network: Network) -> Leases:
        return Leases(self._root, network.name, network.addresses, network.gateway, self._is_supervised)

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


def _link_name(network: Network, lease: Lease) -> str:
    """The host's end of a container's link: fifteen letters at most."""
    return f"{rules.port_prefix(network.bridge)}{lease.container[:6]}"


def host_routes(table: Path = Path("/proc/net/route")) -> list[ipaddress.IPv4Network]:
    """Where the host already sends packets to, but for everything else (proc_net(5))."""
    found = []
    for line in table.read_text().splitlines()[1:]:
        words = line.split()
        target, mask = (int.from_bytes(bytes.fromhex(words[each]), "little") for each in (1, 7))
        if mask:
            found.append(ipaddress.IPv4Network((target & mask, bin(mask).count("1"))))
    return found
