"""The networks of one engine: a bridge each, addresses given out one a container, rules that keep them apart.

What there should be is in files below ROOT/networks; what Linux has is made from that whenever a container is attached, so a bridge
that somebody deleted, or rules that somebody flushed, come back. One lock orders all changes between processes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any  # an attachment is JSON

import msgspec
from msgspec.structs import asdict

from sandbox.errors import InvalidOption, NetworkError, NetworkNotFound, WrongState
from sandbox.hashing import sha256_hex
from sandbox.runtime.init import files, journal, places
from sandbox.runtime.init import netlink as n
from sandbox.runtime.network import confinement, rules, subnets
from sandbox.runtime.network.bridges import Where
from sandbox.runtime.network.leases import Lease, Leases, link_local_of, mac_of, new_lease
from sandbox.runtime.spec import ContainerSpec, Endpoint

DEFAULT = "bridge"
_RESERVED = ("none", "host", "default", "container")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """One network. `bridge`: its link on the host; `subnet` in CIDR form, `gateway` the bridge's own address, both also of IPv6 where it
    has that; an `internal` one has no way out; `created` in seconds since 1970."""

    name: str
    bridge: str
    subnet: str
    gateway: str
    subnet6: str = ""
    gateway6: str = ""
    internal: bool = False
    labels: dict[str, str] = {}
    created: float = 0.0

    @property
    def addresses(self) -> ipaddress.IPv4Network:
        """The subnet."""
        return ipaddress.IPv4Network(self.subnet)

    @property
    def subnets(self) -> dict[int, subnets.IPv4 | subnets.IPv6]:
        """By version of IP."""
        return {4: self.addresses, **({6: ipaddress.IPv6Network(self.subnet6)} if self.subnet6 else {})}

    @property
    def gateways(self) -> dict[int, str]:
        """The bridge's own addresses, by version of IP."""
        return {4: self.gateway, **({6: self.gateway6} if self.subnet6 else {})}


class Networks:
    """The networks below `root`. `is_supervised` says whether a container lives; `where` the bridges are."""

    def __init__(self, root: Path, is_supervised: Callable[[str], bool], where: Where) -> None:
        self._root = root
        self._where = where
        self._directory = root / "networks"
        self._is_supervised = is_supervised

    def close(self) -> None:
        """What held them for us need not do so any more; containers in them live on."""
        self._where.close()

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

    def members(self, network: Network) -> dict[str, tuple[str, Lease]]:
        """Container id → address and lease, of those that live."""
        return {lease.container: (address, lease) for address, lease in self._leases(network).held()}

    # changes

    def create(
        self,
        name: str,
        *,
        subnet: Sequence[str] = (),
        gateway: Sequence[str] = (),
        ipv6: bool | None = None,
        internal: bool = False,
        labels: dict[str, str] | None = None,
    ) -> Network:
        """A new network; nothing is made on the host before somebody joins. `subnet` and `gateway`: at most one of IPv4 and of IPv6 each;
        `ipv6` None: as far as this machine has it, or a subnet says so. NetworkError, InvalidOption."""
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise InvalidOption(f"network {name!r}: not a name for a network")
        with self._locked():
            if self._file(name).exists():
                raise NetworkError(f"network {name}: there is one already")
            ranges = self._ranges(name, subnet, ipv6)
            own = subnets.gateways(ranges.values(), gateway)
            network = Network(
                name=name,
                bridge=self._bridge_name(name),
                subnet=str(ranges[4]),
                gateway=own[4],
                subnet6=str(ranges.get(6, "")),
                gateway6=own.get(6, ""),
                internal=internal,
                labels=labels or {},
                created=time.time(),
            )
            self._place(name).mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = self._file(name).with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(network))
            fresh.rename(self._file(name))
        journal.note(str(self._root), "network", "create", name)
        return network

    def _ranges(self, name: str, texts: Sequence[str], ipv6: bool | None) -> dict[int, subnets.IPv4 | subnets.IPv6]:
        used = [subnet for network in self.all() for subnet in network.subnets.values()]
        given = subnets.chosen(texts, used)
        wants6 = (self._where.has_ipv6() and not given) if ipv6 is None else ipv6
        if ipv6 is False and 6 in given:
            raise InvalidOption(f"--subnet {given[6]}: contradicts --no-ipv6")
        if 4 not in given:
            given[4] = subnets.free(f"{self._root}\0{name}", (each for each in used if each.version == 4))
        if wants6 and 6 not in given:
            given[6] = subnets.free6(str(self._root), name, (each for each in used if each.version == 6))
        return given

    def remove(self, name: str) -> None:
        """Take a network away, from the host too; WrongState while containers are in it."""
        network = self.find(name)
        with self._where.use_if_there() as sockets, self._locked():
            if members := self.members(network):
                raise WrongState(f"network {name}: {len(members)} containers are in it", wanted="empty", actual="in use")
            self._take_down(sockets, network)
            for path in self._place(name).iterdir():
                path.unlink()
            self._place(name).rmdir()
        journal.note(str(self._root), "network", "destroy", name)

    def prune(self) -> list[str]:
        """Take what nobody uses off the host, and networks other than the default one away; the names of those."""
        removed = []
        for network in self.all():
            with self._where.use_if_there() as sockets, self._locked():
                if self.members(network):
                    continue
                self._take_down(sockets, network)
            if network.name != DEFAULT:
                self.remove(network.name)
                removed.append(network.name)
        self._where.rest()
        return removed

    @contextlib.contextmanager
    def attached(self, spec: ContainerSpec, servers: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Addresses for a container that is being started, and all its supervisor needs to know; given back if the block fails.
        `servers`: who is asked for names of elsewhere.

        NetworkNotFound; NetworkError when no address is left or Linux refuses the bridge; InvalidOption.
        """
        networks = [self.find(endpoint.network) for endpoint in spec.places]
        self._where.check(spec)
        with self._where.use() as sockets, contextlib.ExitStack() as undo:
            joined = []
            for number, (network, endpoint) in enumerate(zip(networks, spec.places, strict=True)):
                joined.append(self.join(network, spec, endpoint, f"eth{number}", is_start=True))
                undo.callback(places.forget, sockets, joined[-1])
            yield self._facts(spec, joined, servers)
            undo.pop_all()

    def _facts(self, spec: ContainerSpec, joined: Sequence[dict[str, Any]], servers: Sequence[str]) -> dict[str, Any]:
        """Its places, and what is the container's as a whole."""
        allow = {
            "tables": [place["table"] for place in joined],
            "names": [[each.name, each.port, each.protocols] for each in spec.allow_net if each.name],
            "subnets": [subnet for place in joined for subnet in place["subnets"]],
            "search": spec.dns_search,
        }
        return {
            "places": joined,
            "container": spec.id,
            "containers": str(self._root / "containers"),
            "servers": list(servers),
            "ports": [asdict(port) for port in spec.ports],
            "allow": allow if spec.allow_net else None,
            "hub": self._where.hub,
        }

    def join(self, network: Network, spec: ContainerSpec, endpoint: Endpoint, end: str, *, is_start: bool = False) -> dict[str, Any]:
        """A place in a network for the container's link `end`, with its rules; `places.forget` gives it back. At a start, what its last run
        may be about to give back is taken from it. NetworkError, InvalidOption."""
        names = tuple(dict.fromkeys((*endpoint.names, spec.hostname, spec.id[:12])))
        lease = new_lease(spec.id, names, end=end, allowed=spec.allow_net, rate=spec.network_rate)
        with self._where.use() as sockets, self._locked():
            try:
                self._set_up(sockets, network)
                self._sweep(sockets, network)
                self._check_former(sockets, network, spec.id, is_start=is_start)
                address, lease = self._leases(network).take(endpoint, lease)
                confined = self._confined(network, address, lease)
                if confined.rate or confined.allowed:
                    confinement.install(sockets, confined)
            except OSError as err:
                hint = "`sandbox doctor` says what is missing; --network none does without"
                raise NetworkError(f"network {network.name}: {err.strerror}", hint=hint) from err
        return {
            "name": network.name, "bridge": network.bridge, "link": confined.link, "end": end, "mac": lease.mac,
            "owner": lease.container, "since": lease.since,
            "address": address, "address6": lease.address6, "addresses6": confined.addresses[1:],
            "names": endpoint.names, "priority": endpoint.priority, "internal": network.internal,
            "rate": lease.rate or 0, "table": confined.table, "lease": str(self._leases(network).file(address)),
            "families": [*([n.INET] if lease.allowed else []), *([n.BRIDGE] if lease.allowed or lease.rate else [])],
            **_inside(network, address, lease),
        }  # fmt: skip

    def forget(self, place: dict[str, Any]) -> None:
        """Give back a place that `join` made."""
        with self._where.use_if_there() as sockets:
            places.forget(sockets, place)

    def check(self, network: Network, endpoint: Endpoint) -> None:
        """Whether there can be such a place at all, as far as that is known before a start. InvalidOption."""
        self._leases(network).check(endpoint)

    def rename(self, container_id: str, before: str, after: str) -> None:
        """A container that lives is called otherwise from now on, in all its networks."""
        with self._locked():
            for network in self.all():
                leases = self._leases(network)
                for address, lease in leases.held():
                    if lease.container == container_id:
                        names = tuple(after if name == before else name for name in lease.names)
                        leases.write(address, msgspec.structs.replace(lease, names=names))

    def _set_up(self, sockets: n.Sockets, network: Network) -> None:
        """The bridge with its addresses and rules, as far as they are not there."""
        with sockets(n.ROUTE) as net:
            try:
                n.index_of(net, network.bridge)
            except OSError as err:
                if err.errno != errno.ENODEV:
                    raise
                self._make_bridge(net, network)
        if not rules.are_installed(sockets, network.bridge):
            self._make_rules(sockets, network)
        if not network.internal:
            self._where.lead_out(network.bridge)
        for version in network.gateways:
            self._where.switch_on(version)

    def _make_bridge(self, net: n.Netlink, network: Network) -> None:
        """With those in it that were in the one before."""
        index = n.add_bridge(net, network.bridge, f"jupyter-sandbox {network.name}", mac_of(network.gateway))
        for version, gateway in network.gateways.items():
            n.add_address(net, index, gateway, network.subnets[version].prefixlen)
        for _, lease in self._leases(network).held():
            n.put_into(net, _link_name(network, lease), index)

    def _make_rules(self, sockets: n.Sockets, network: Network) -> None:
        """Of the network, and of those in it: the lists first, so that nobody is without one for a moment."""
        owners: dict[str, list[bytes]] = {}
        for address, lease in self._leases(network).held():
            confined = self._confined(network, address, lease)
            if lease.allowed or lease.rate:
                confinement.install(sockets, confined)
            for name, keys in n.owner_keys(confined.link, lease.mac, confined.addresses).items():
                owners.setdefault(name, []).extend(keys)
        rules.install(sockets, network.bridge, network.subnets.values(), internal=network.internal, owners=owners)

    def _confined(self, network: Network, address: str, lease: Lease) -> confinement.Confined:
        return confinement.Confined(
            table=confinement.table_name(network.bridge, lease.container),
            link=_link_name(network, lease),
            bridge=network.bridge,
            bridge_mac=mac_of(network.gateway),
            addresses=_own_addresses(address, lease),
            subnets=[str(subnet) for subnet in network.subnets.values()],
            allowed=lease.allowed,
            rate=lease.rate,
        )

    def _sweep(self, sockets: n.Sockets, network: Network) -> None:
        """What a killed supervisor left: its addresses, and the rules for them."""
        for address, lease in self._leases(network).stale():
            self._drop(sockets, network, address, lease)

    def _check_former(self, sockets: n.Sockets, network: Network, container_id: str, *, is_start: bool) -> None:
        for address, lease in self._leases(network).all():
            if lease.container == container_id:
                if not is_start:
                    raise NetworkError(f"network {network.name}: the container is in it already, as {address}")
                state = files.read_json(str(self._root / "containers" / container_id / "state.json")) or {}
                if state.get("status") != "running" or not self._is_supervised(container_id):
                    self._drop(sockets, network, address, lease)

    def _drop(self, sockets: n.Sockets, network: Network, address: str, lease: Lease) -> None:
        rules.drop_owner(sockets, network.bridge, _link_name(network, lease), lease.mac, _own_addresses(address, lease))
        confinement.remove(sockets, confinement.table_name(network.bridge, lease.container))
        self._leases(network).file(address).unlink(missing_ok=True)

    def _take_down(self, sockets: n.Sockets | None, network: Network) -> None:
        """`sockets` None: where it was is gone, and there are its files alone."""
        if sockets:
            with sockets(n.ROUTE) as net:
                n.remove_link(net, network.bridge)
            rules.remove(sockets, network.bridge)
            self._where.take_back(network.bridge)
        for address, lease in self._leases(network).all():
            if sockets:
                confinement.remove(sockets, confinement.table_name(network.bridge, lease.container))
            self._leases(network).file(address).unlink(missing_ok=True)

    # addresses

    def _leases(self, network: Network) -> Leases:
        return Leases(self._root, network.name, network.subnets, network.gateways, self._is_supervised)

    # files

    def _bridge_name(self, name: str) -> str:
        return bridge_prefix(self._root) + sha256_hex(name.encode())[:4]

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
    return "sbx" + sha256_hex(os.fsencode(root))[:4]


def _link_name(network: Network, lease: Lease) -> str:
    """The host's end of a container's link: fifteen letters at most."""
    return f"{rules.port_prefix(network.bridge)}{lease.container[:6]}"


def _own_addresses(address: str, lease: Lease) -> list[str]:
    """Whatever it may send from: with IPv6, also the address that Linux gives each link."""
    return [address, *((lease.address6, link_local_of(lease.mac)) if lease.address6 else ())]


def _inside(network: Network, address: str, lease: Lease) -> dict[str, Any]:
    """What its link gets inside. One with an allow-list has no neighbours: they are reached by the gateway, too."""
    own = {4: address, 6: lease.address6}
    is_listed = bool(lease.allowed)
    prefixes = {version: subnet.max_prefixlen if is_listed else subnet.prefixlen for version, subnet in network.subnets.items()}
    return {
        "prefix": network.addresses.prefixlen,
        "prefix6": network.subnets[6].prefixlen if lease.address6 else 0,
        "subnets": [str(subnet) for subnet in network.subnets.values()],
        "addresses": [[own[version], prefix] for version, prefix in prefixes.items()],
        "routes": [[network.gateways[version], str(subnet)] for version, subnet in network.subnets.items()] if is_listed else [],
        "gateways": [] if network.internal else list(network.gateways.values()),
        "router": is_listed,
    }
