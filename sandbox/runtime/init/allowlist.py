"""A container's allow-list, seen by its name server: which names it may ask for, whose addresses are then let through for a while.

The rules that hold it to that are in two nf_tables tables on the host's side (runtime/network/confinement.py made them).
"""

from __future__ import annotations

import errno
import socket
import struct
import time

from sandbox.runtime.init import netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

_SHORTEST, _LONGEST = 60, 86400
"""Seconds an address is let through at least, so that there is time to use an answer, and at most."""
_MOST_DENIED = 100
_PROTOCOLS = {"tcp": 6, "udp": 17}


class Names:
    """How the sets of one IP version are called: keys are addresses; addresses with protocol and port; what was refused."""

    def __init__(self, version: int) -> None:
        self.addresses, self.services, self.denied = f"addresses{version}", f"services{version}", f"denied{version}"


SETS = {4: Names(4), 6: Names(6)}


class AllowList:
    """`facts`: its `tables`, the `names` as [pattern, port, protocols], the network's `subnets`. `sockets` open where the tables are;
    `told` hears what is denied, once."""

    def __init__(self, facts: Mapping[str, Any], sockets: netlink.Sockets, told: Callable[[str], object]) -> None:
        self._sockets = sockets
        self._tables: list[str] = list(facts["tables"])
        self._names: Sequence[tuple[str, int, Sequence[str]]] = facts["names"]
        self._subnets: list[str] = list(facts["subnets"])
        self._domains: Sequence[str] = facts["search"]
        self._until: dict[tuple[str, bytes], float] = {}
        self._denied: dict[str, None] = {}
        self._told = told

    def enter(self, table: str, subnets: Sequence[str]) -> None:
        """One more network holds it to the list."""
        self._tables.append(table)
        self._subnets += subnets

    def leave(self, table: str, subnets: Sequence[str]) -> None:
        """It is in that network no more."""
        self._tables.remove(table)
        self._subnets = [each for each in self._subnets if each not in subnets]

    def has(self, name: str) -> bool:
        """Whether it may be asked for."""
        return any(_matches(pattern, name) for pattern, _, _ in self._names)

    def admit(self, name: str, addresses: Sequence[bytes], ttl: int) -> None:
        """Let what is allowed of this name through to its addresses. OSError when the rules are gone: then nothing may be answered."""
        seconds = max(_SHORTEST, min(ttl, _LONGEST)) + 5
        for address in addresses:
            names = SETS[4 if len(address) == 4 else 6]
            for pattern, port, protocols in self._names:
                if _matches(pattern, name):
                    for key in _service_keys(address, port, protocols) if port else [address]:
                        self._put(names.services if port else names.addresses, key, seconds)

    def _put(self, name: str, key: bytes, seconds: int) -> None:
        """Before Linux 6.12 an element's time is not renewed by adding it again."""
        now = time.monotonic()
        add, drop = [], []
        for table in self._tables:
            element = netlink.element(table, name, [key], family=netlink.INET, timeout=seconds)
            add.append((netlink.NEW_ELEMENT, element, netlink.CREATE))
            drop.append((netlink.DEL_ELEMENT, netlink.element(table, name, [key], family=netlink.INET), 0))
        with self._sockets(netlink.NETFILTER) as net:
            is_known = self._until.get((name, key), 0) > now
            try:
                net.transact([*drop, *add] if is_known else add)
            except OSError as err:
                if err.errno != errno.ENOENT or not is_known:
                    raise
                net.transact(add)  # its time was over just now
        self._until[name, key] = now + seconds
        if len(self._until) > 4096:
            self._until = {each: until for each, until in self._until.items() if until > now}

    def usable(self, addresses: Sequence[bytes]) -> list[bytes]:
        """Without those an answer from elsewhere must not lead to: this machine's loopback, link-local ones, and our own network."""
        import ipaddress  # few containers have a list

        subnets = [ipaddress.ip_network(each) for each in self._subnets]
        kept = []
        for packed in addresses:
            ip = ipaddress.ip_address(packed)
            mapped = getattr(ip, "ipv4_mapped", None) or ip
            is_here = any(ip.version == subnet.version and ip in subnet for subnet in subnets)
            if not (is_here or mapped.is_loopback or mapped.is_link_local or mapped.is_multicast or mapped.is_unspecified):
                kept.append(packed)
        return kept

    def deny(self, what: str) -> None:
        """Remember that it was asked for, and say so once. A name that is tried again below a search domain is the same."""
        if any(what == f"{each}.{domain}" for each in self._denied for domain in self._domains):
            return
        if what not in self._denied and len(self._denied) < _MOST_DENIED:
            self._denied[what] = None
            self._told(what)

    def denied(self) -> list[str]:
        """All that was: names, and what the rules refused."""
        for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            for table in self._tables:
                for key in sorted(self._refused(table, SETS[version].denied)):
                    self.deny(_service_text(key, family))
        return list(self._denied)

    def _refused(self, table: str, name: str) -> Iterator[bytes]:
        body = netlink.nft_body(netlink.INET, netlink.text(1, table), netlink.text(2, name))
        try:
            with self._sockets(netlink.NETFILTER) as net:
                rows = net.dump(netlink.NFT | netlink.GET_ELEMENT, body)
        except OSError as err:
            if err.errno != errno.ENOENT:  # no such IP version here, or somebody took all rules away
                raise
            return
        for row in rows:
            for element in netlink.each_attribute(netlink.attributes(row[4:]).get(3, b"")):
                yield netlink.attributes(netlink.attributes(element)[1])[1]


def _matches(pattern: str, name: str) -> bool:
    return name.endswith(pattern[1:]) if pattern.startswith("*.") else name == pattern


def _service_keys(address: bytes, port: int, protocols: Sequence[str]) -> list[bytes]:
    return [address + bytes([_PROTOCOLS[each], 0, 0, 0]) + struct.pack(">HH", port, 0) for each in protocols]


def _service_text(key: bytes, family: int) -> str:
    size = 4 if family == socket.AF_INET else 16
    address, protocol, port = socket.inet_ntop(family, key[:size]), key[size], int.from_bytes(key[size + 4 : size + 6], "big")
    if protocol not in _PROTOCOLS.values():
        return f"{address} ({'ICMP' if protocol in (1, 58) else f'protocol {protocol}'})"
    place = f"[{address}]" if family == socket.AF_INET6 else address
    return f"{place}:{port}{'/udp' if protocol == _PROTOCOLS['udp'] else ''}"
