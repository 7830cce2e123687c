"""Which addresses a network gets: a range that neither this machine's routes nor our other networks have; IPv6 where the machine has it."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from sandbox.errors import InvalidOption, NetworkError
from sandbox.hashing import sha256_hex

IPv4: TypeAlias = ipaddress.IPv4Network
IPv6: TypeAlias = ipaddress.IPv6Network
Subnets: TypeAlias = Mapping[int, IPv4 | IPv6]
"""By version of IP."""
_POOLS = tuple(IPv4(text) for text in ("10.177.0.0/16", "172.30.0.0/16", "192.168.0.0/16"))
_PREFIX = 24
_LONGEST = {4: 29, 6: 120}
"""The smallest subnet we take."""
_LOCAL = tuple(IPv6(text) for text in ("fe80::/10", "ff00::/8"))
_ROUTES, _ROUTES6 = Path("/proc/net/route"), Path("/proc/net/ipv6_route")


def host_routes(table: Path = _ROUTES) -> list[IPv4]:
    """Where the host already sends packets to, but for everything else (proc_net(5))."""
    return [subnet for subnet in _rows4(table) if subnet.prefixlen]


def _rows4(table: Path) -> list[IPv4]:
    found = []
    for line in table.read_text().splitlines()[1:]:
        words = line.split()
        target, mask = (int.from_bytes(bytes.fromhex(words[each]), "little") for each in (1, 7))
        found.append(IPv4((target & mask, bin(mask).count("1"))))
    return found


def leads_out(table: Path = _ROUTES, table6: Path = _ROUTES6) -> bool:
    """Whether this machine gets out at all."""
    return any(not subnet.prefixlen for subnet in _rows4(table)) or leads_out6(table6)


def host_routes6(table: Path = _ROUTES6) -> list[IPv6]:
    """The same of IPv6; nothing where Linux has none."""
    found = [subnet for subnet, _ in _rows6(table) if subnet.prefixlen]
    return [subnet for subnet in found if not any(subnet.subnet_of(local) for local in _LOCAL)]


def leads_out6(table: Path = _ROUTES6) -> bool:
    """Whether this machine gets out by IPv6."""
    return any(not subnet.prefixlen and link != "lo" for subnet, link in _rows6(table))


def has_ipv6(table: Path = _ROUTES6, switch: Path = Path("/proc/sys/net/ipv6/conf/all/forwarding")) -> bool:
    """Whether this machine gets out by IPv6, and passes others' packets on, or may be told to."""
    return leads_out6(table) and (os.access(switch, os.W_OK) or switch.read_text().strip() != "0")


def _rows6(table: Path) -> list[tuple[IPv6, str]]:
    try:
        lines = table.read_text().splitlines()
    except FileNotFoundError:
        return []
    rows = (line.split() for line in lines)
    return [(IPv6((int(words[0], 16), int(words[1], 16)), strict=False), words[-1]) for words in rows]


def free(seed: str, used: Iterable[IPv4]) -> IPv4:
    """One of ours that is not `used`; different seeds begin at different ones. NetworkError."""
    taken = [*host_routes(), *used]
    for pool in _POOLS:
        subnets = list(pool.subnets(new_prefix=_PREFIX))
        start = int(_digest(seed), 16) % len(subnets)
        for subnet in (*subnets[start:], *subnets[:start]):
            if not any(subnet.overlaps(other) for other in taken):
                return subnet
    raise NetworkError("network: every range of private addresses is in use here", hint="give one: --subnet")


def free6(root: str, name: str, used: Iterable[IPv6]) -> IPv6:
    """A /64 of a unique local range that is this engine's (RFC 4193: fd, and 40 bits by chance)."""
    taken = [*host_routes6(), *used]
    prefix, first = _digest(root)[:10], int(_digest(f"{root}\0{name}")[:4], 16)
    for number in range(1 << 16):
        subnet = IPv6((int(f"fd{prefix}{(first + number) % (1 << 16):04x}{0:016x}", 16), 64))
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise NetworkError("network: every range of local IPv6 addresses is in use here", hint="give one: --subnet")


def chosen(texts: Sequence[str], used: Iterable[IPv4 | IPv6]) -> dict[int, IPv4 | IPv6]:
    """What --subnet says, by version of IP; InvalidOption for what is none, two of a kind, or one that is in use here."""
    taken = [*host_routes(), *host_routes6(), *used]
    found: dict[int, IPv4 | IPv6] = {}
    for text in texts:
        try:
            subnet = ipaddress.ip_network(text)
        except ValueError as err:
            raise InvalidOption(f"--subnet {text!r}: {err}") from err
        if subnet.prefixlen > _LONGEST[subnet.version]:
            raise InvalidOption(f"--subnet {text}: too small, at least /{_LONGEST[subnet.version]}")
        if subnet.version in found:
            raise InvalidOption(f"--subnet {text}: a network has one of IPv4 and one of IPv6")
        if clash := next((other for other in taken if other.version == subnet.version and subnet.overlaps(other)), None):
            raise InvalidOption(f"--subnet {text}: overlaps {clash}, which is in use here")
        found[subnet.version] = subnet
    return found


def gateways(subnets: Iterable[IPv4 | IPv6], texts: Sequence[str]) -> dict[int, str]:
    """This machine's own address in each subnet, by version: the first, or what --gateway says. InvalidOption."""
    given = {}
    for text in texts:
        try:
            address = ipaddress.ip_address(text)
        except ValueError as err:
            raise InvalidOption(f"--gateway {text!r}: not an IP address") from err
        given[address.version] = address
    found: dict[int, str] = {}
    for subnet in subnets:
        own = given.pop(subnet.version, subnet[1])
        if not is_usable(own, subnet):
            raise InvalidOption(f"--gateway {own}: not an address of {subnet}")
        found[subnet.version] = str(own)
    if given:
        raise InvalidOption(f"--gateway {next(iter(given.values()))}: the network has no such addresses", hint="give a --subnet, too")
    return found


def is_usable(address: ipaddress.IPv4Address | ipaddress.IPv6Address, subnet: IPv4 | IPv6) -> bool:
    """Whether a machine can have it: it is in the subnet, and none of its ends."""
    return address in subnet and address not in (subnet.network_address, subnet.broadcast_address)


def _digest(text: str) -> str:
    return sha256_hex(text.encode(errors="surrogateescape"))
