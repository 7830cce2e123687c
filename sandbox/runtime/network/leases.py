"""Who has which address of a network: a file an address, called by it, so that any process reads the same truth."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec

from sandbox.errors import InvalidOption, NetworkError
from sandbox.runtime.network.subnets import IPv4, IPv6, is_usable
from sandbox.runtime.spec import Allowed, Endpoint

_STARTING = 30.0
"""Seconds after which a container has a supervisor, or will never have one."""
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE | re.ASCII)


class Lease(msgspec.Struct, frozen=True):
    """Who has an address: the container with its names, from when on (seconds since 1970), and the process that started it; and what
    its rules are made from."""

    container: str
    since: float
    process: int
    names: tuple[str, ...] = ()
    mac: str = ""
    address6: str = ""
    end: str = "eth0"
    """What its link is called inside."""
    allowed: tuple[Allowed, ...] = ()
    rate: int | None = None


class Leases:
    """The leases of one network, below the engine's `root`; `own` are this machine's addresses in its `subnets`. `is_supervised` says
    whether a container lives."""

    def __init__(
        self, root: Path, name: str, subnets: Mapping[int, IPv4 | IPv6], own: Mapping[int, str], is_supervised: Callable[[str], bool]
    ) -> None:
        self._containers = root / "containers"
        self._name = name
        self._directory = root / "networks" / name
        self._subnets = subnets
        self._own = own
        self._is_supervised = is_supervised

    def all(self) -> list[tuple[str, Lease]]:
        """Every address that is written down, with its lease."""
        found = []
        for path in self._directory.iterdir():
            with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
                if path.name[0].isdigit():
                    found.append((path.name, msgspec.json.decode(path.read_bytes(), type=Lease)))
        return found

    def held(self) -> list[tuple[str, Lease]]:
        """Those of containers that live, or are being started."""
        return [(address, lease) for address, lease in self.all() if self._is_held(lease)]

    def stale(self) -> list[tuple[str, Lease]]:
        """Those whose supervisor was killed."""
        return [(address, lease) for address, lease in self.all() if not self._is_held(lease)]

    def file(self, address: str) -> Path:
        """Where the lease of an address is."""
        return self._directory / address

    def take(self, endpoint: Endpoint, lease: Lease) -> tuple[str, Lease]:
        """Addresses for a container, written down. NetworkError when there is none, or it (or the MAC address) is taken; InvalidOption."""
        held = dict(self.all())  # also of those that ended just now: who gives an address back looks whose it is
        address = self._choose(endpoint, held)
        mac = _checked_mac(endpoint.mac) if endpoint.mac else mac_of(address)
        if any(mac == other.mac for other in held.values()):
            raise NetworkError(f"network {self._name}: MAC address {mac} is taken")
        address6 = self._choose6(endpoint, address, {other.address6 for other in held.values()})
        lease = msgspec.structs.replace(lease, mac=mac, address6=address6)
        (self._containers / lease.container).mkdir(parents=True, exist_ok=True)
        self.write(address, lease)
        return address, lease

    def check(self, endpoint: Endpoint) -> None:
        """InvalidOption for an address that nobody in this network could have."""
        if endpoint.address:
            self._wanted("--ip", endpoint.address, 4)
        if endpoint.address6:
            self._wanted("--ip6", endpoint.address6, 6)
        if endpoint.mac:
            _checked_mac(endpoint.mac)

    def write(self, address: str, lease: Lease) -> None:
        """At once: whoever reads it reads all of it."""
        fresh = self._directory / f".{secrets.token_hex(8)}"
        fresh.write_bytes(msgspec.json.encode(lease))
        fresh.rename(self.file(address))

    def _choose(self, endpoint: Endpoint, held: Collection[str]) -> str:
        if endpoint.address:
            wanted = self._wanted("--ip", endpoint.address, 4)
            if wanted in held:
                raise self._full(f"address {wanted} is taken")
            return wanted
        for host in self._subnets[4].hosts():
            if str(host) != self._own[4] and str(host) not in held:
                return str(host)
        raise self._full(f"all {len(held)} addresses of {self._subnets[4]} are taken")

    def _choose6(self, endpoint: Endpoint, address: str, taken: Collection[str]) -> str:
        """At the same place in its subnet as the IPv4 address, as far as that can be."""
        if endpoint.address6:
            wanted = self._wanted("--ip6", endpoint.address6, 6)
            if wanted in taken:
                raise self._full(f"address {wanted} is taken")
            return wanted
        if 6 not in self._subnets:
            return ""
        subnet = self._subnets[6]
        place = int(ipaddress.IPv4Address(address)) - int(self._subnets[4].network_address)
        for number in (place, *range(1, 1 << 16)):
            host = subnet.network_address + number
            if is_usable(host, subnet) and str(host) not in taken and str(host) != self._own[6]:
                return str(host)
        raise self._full(f"all {len(taken)} addresses of {subnet} are taken")

    def _full(self, what: str) -> NetworkError:
        return NetworkError(f"network {self._name}: {what}", hint="remove containers, or create a network with a larger --subnet")

    def _wanted(self, flag: str, text: str, version: int) -> str:
        try:
            address = ipaddress.ip_address(text)
        except ValueError as err:
            raise InvalidOption(f"{flag} {text!r}: not an IPv{version} address") from err
        subnet = self._subnets.get(version)
        if subnet is None or not is_usable(address, subnet) or str(address) == self._own[version]:
            raise InvalidOption(f"{flag} {text}: not an address for a container in {subnet or f'network {self._name}'}")
        return str(address)

    def _is_held(self, lease: Lease) -> bool:
        return self._is_starting(lease) or self._is_supervised(lease.container)

    def _is_starting(self, lease: Lease) -> bool:
        """It has no supervisor yet, but somebody who starts it: a supervisor writes its state down as soon as it can."""
        if time.time() - lease.since > _STARTING or not Path(f"/proc/{lease.process}").exists():
            return False
        directory = self._containers / lease.container
        try:
            return (directory / "state.json").stat().st_mtime < lease.since
        except FileNotFoundError:
            return directory.is_dir()  # it is there from before the lease on, and goes when the container is over


def new_lease(container: str, names: tuple[str, ...], *, end: str, allowed: tuple[Allowed, ...], rate: int | None) -> Lease:
    """A lease of this moment and process."""
    return Lease(container, time.time(), os.getpid(), names, end=end, allowed=allowed, rate=rate)


def mac_of(address: str) -> str:
    """docker's: local, and as unique as the (IPv4) address."""
    return "02:42:" + ":".join(f"{each:02x}" for each in ipaddress.IPv4Address(address).packed)


def _checked_mac(text: str) -> str:
    """InvalidOption for what is none, or stands for several machines (its lowest bit, IEEE 802)."""
    if not _MAC.fullmatch(text) or int(text[:2], 16) & 1 or not int(text.replace(":", ""), 16):
        raise InvalidOption(f"--mac-address {text!r}: not a MAC address of one machine", hint="write 02:42:ac:11:00:02")
    return text.lower()


def link_local_of(mac: str) -> str:
    """The IPv6 address that Linux gives a link for its MAC address (EUI-64, RFC 4291)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    middle = bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + middle))
