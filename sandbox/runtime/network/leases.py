"""Who has which address of a network: a file an address, called by it, so that any process reads the same truth."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from sandbox.errors import InvalidOption, NetworkError
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
    end: str = "eth0"
    """What its link is called inside."""
    allowed: tuple[Allowed, ...] = ()
    rate: int | None = None


class Leases:
    """The leases of one network, below the engine's `root`; it has these addresses, its own is the `gateway`. `is_supervised` says
    whether a container lives."""

    def __init__(
        self, root: Path, name: str, addresses: ipaddress.IPv4Network, gateway: str, is_supervised: Callable[[str], bool]
    ) -> None:
        self._containers = root / "containers"
        self._name = name
        self._directory = root / "networks" / name
        self._addresses = addresses
        self._gateway = gateway
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
        """An address for a container, written down. NetworkError when there is none, or it (or the MAC address) is taken; InvalidOption."""
        held = dict(self.held())
        wanted = [self._wanted(endpoint.address)] if endpoint.address else self._free()
        address = next((each for each in wanted if each not in held), None)
        if address is None:
            everything = f"all {len(held)} addresses of {self._addresses} are taken"
            full = f"address {endpoint.address} is taken" if endpoint.address else everything
            raise NetworkError(f"network {self._name}: {full}", hint="remove containers, or create a network with a larger --subnet")
        mac = _checked_mac(endpoint.mac) if endpoint.mac else mac_of(address)
        if any(mac == other.mac for other in held.values()):
            raise NetworkError(f"network {self._name}: MAC address {mac} is taken")
        lease = msgspec.structs.replace(lease, mac=mac)
        (self._containers / lease.container).mkdir(parents=True, exist_ok=True)
        fresh = self._directory / f".{secrets.token_hex(8)}"
        fresh.write_bytes(msgspec.json.encode(lease))
        fresh.rename(self.file(address))  # whoever reads it reads all of it
        return address, lease

    def _free(self) -> Iterator[str]:
        return (text for host in self._addresses.hosts() if (text := str(host)) != self._gateway)

    def _wanted(self, text: str) -> str:
        try:
            address = ipaddress.IPv4Address(text)
        except ValueError as err:
            raise InvalidOption(f"--ip {text!r}: not an IPv4 address") from err
        ends = (self._addresses.network_address, self._addresses.broadcast_address)
        if address not in self._addresses or address in ends or str(address) == self._gateway:
            raise InvalidOption(f"--ip {text}: not an address for a container in {self._addresses}")
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
    """docker's: local, and as unique as the address."""
    return "02:42:" + ":".join(f"{each:02x}" for each in ipaddress.IPv4Address(address).packed)


def _checked_mac(text: str) -> str:
    """InvalidOption for what is none, or stands for several machines (its lowest bit, IEEE 802)."""
    if not _MAC.fullmatch(text) or int(text[:2], 16) & 1 or not int(text.replace(":", ""), 16):
        raise InvalidOption(f"--mac-address {text!r}: not a MAC address of one machine", hint="write 02:42:ac:11:00:02")
    return text.lower()
