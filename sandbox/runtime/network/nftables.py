"""nf_tables expressions, rules, chains and sets as bytes of netlink requests (linux/netfilter/nf_tables.h, `nft --debug=netlink`)."""

from __future__ import annotations

import errno
import ipaddress
import struct
from collections.abc import Sequence

from sandbox.runtime.init import netlink as n

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING, BRIDGE_PREROUTING = 0, 1, 2, 3, 4, 0
DROP, ACCEPT, JUMP = 0, 1, -3
EQUAL, NOT, AT_MOST, ABOVE = 0, 1, 3, 4
LINK, NETWORK, TRANSPORT = 0, 1, 2
IIFNAME, OIFNAME, NFPROTO, L4PROTO = 6, 7, 15, 16
REGISTER = 8
"""The first 32-bit register (NFT_REG32_00); each holds four bytes."""
ETHER_IP, ETHER_ARP, ETHER_IP6 = b"\x08\x00", b"\x08\x06", b"\x86\xdd"
TCP, UDP, ICMP6 = b"\x06", b"\x11", b"\x3a"

Request = tuple[int, bytes, int]
Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network


def number(kind: int, value: int) -> bytes:
    """An attribute that is a number."""
    return n.attribute(kind, struct.pack(">I", value & 0xFFFFFFFF))


# expressions


def expression(name: str, *data: bytes) -> bytes:
    """One expression of a rule."""
    return n.nested(1, n.text(1, name), n.nested(2, *data))


def meta(key: int, register: int = REGISTER) -> bytes:
    """Load what Linux knows of the packet."""
    return expression("meta", number(2, key), number(1, register))


def payload(base: int, offset: int, length: int, register: int = REGISTER) -> bytes:
    """Load bytes of the packet."""
    return expression("payload", number(1, register), number(2, base), number(3, offset), number(4, length))


def write_transport(offset: int, value: bytes, checksum: int) -> bytes:
    """Put the value into the transport header, and mend its checksum at that offset."""
    load = expression("immediate", number(1, REGISTER), n.nested(2, n.attribute(1, value)))
    place = (number(5, REGISTER), number(2, TRANSPORT), number(3, offset), number(4, len(value)))
    return load + expression("payload", *place, number(6, 1), number(7, checksum))  # NFT_PAYLOAD_CSUM_INET


def compare(value: bytes, operation: int = EQUAL) -> bytes:
    """Go on when the first register holds (or does not hold) this."""
    return expression("cmp", number(1, REGISTER), number(2, operation), n.nested(3, n.attribute(1, value)))


def mask(bits: bytes) -> bytes:
    """Keep these bits of the first register."""
    registers = number(1, REGISTER) + number(2, REGISTER) + number(3, len(bits))
    return expression("bitwise", registers, n.nested(4, n.attribute(1, bits)), n.nested(5, n.attribute(1, bytes(len(bits)))))


def verdict(code: int, chain: str = "") -> bytes:
    """ACCEPT, DROP, or JUMP to a `chain`."""
    where = n.text(2, chain) if chain else b""
    return expression("immediate", number(1, 0), n.nested(2, n.nested(2, number(1, code), where)))


def named(key: int, name: str, operation: int = EQUAL) -> bytes:
    """Go on when the packet comes from (or leaves by) this link."""
    return meta(key) + compare(name.encode().ljust(16, b"\0"), operation)


def established() -> bytes:
    """Go on when it belongs to a connection that was allowed before."""
    state = expression("ct", number(1, REGISTER), number(2, 0))
    return state + mask(struct.pack("I", 2 | 4)) + compare(bytes(4), NOT)


def invalid() -> bytes:
    """Go on when it is no part of any connection, and begins none."""
    state = expression("ct", number(1, REGISTER), number(2, 0))
    return state + mask(struct.pack("I", 1)) + compare(bytes(4), NOT)


def is_version(version: int) -> bytes:
    """Go on when it is IPv4, or IPv6 (in the inet family)."""
    return meta(NFPROTO) + compare(bytes([2 if version == 4 else 10]))


_SOURCE, _TARGET, _LENGTH = {4: 12, 6: 8}, {4: 16, 6: 24}, {4: 4, 6: 16}


def source(version: int, register: int = REGISTER) -> bytes:
    """Load the sender's address."""
    return payload(NETWORK, _SOURCE[version], _LENGTH[version], register)


def target(version: int, register: int = REGISTER) -> bytes:
    """Load the receiver's address."""
    return payload(NETWORK, _TARGET[version], _LENGTH[version], register)


def within(subnet: Subnet) -> bytes:
    """Go on when the address in the first register is one of these."""
    return mask(subnet.netmask.packed) + compare(subnet.network_address.packed)


def lookup(name: str, set_id: int) -> bytes:
    """Go on when what begins in the first register is in the set."""
    return expression("lookup", n.text(1, name), number(2, REGISTER), number(4, set_id))


def remember(name: str, set_id: int) -> bytes:
    """Put what begins in the first register into the set, as long as there is room."""
    return expression("dynset", n.text(1, name), number(2, set_id), number(3, 0), number(4, REGISTER))


def reject(kind: int, code: int = 0) -> bytes:
    """Answer with a TCP reset (1), or in any IP version with an ICMP code (2; 3: administratively prohibited)."""
    return expression("reject", number(1, kind), n.attribute(2, bytes([code])))


def above_rate(octets: int, burst: int) -> bytes:
    """Go on when more than so many bytes a second came, after `burst` bytes at once."""
    each, whole = n.attribute(1, struct.pack(">Q", octets)), n.attribute(2, struct.pack(">Q", 1))
    return expression("limit", each, whole, number(3, burst), number(4, 1), number(5, 1))


# what they are in


def rule(family: int, table: str, chain: str, *expressions: bytes) -> Request:
    """A rule at the end of a chain."""
    body = n.nft_body(family, n.text(1, table), n.text(2, chain), n.nested(4, *expressions))
    return n.NEW_RULE, body, n.CREATE | n.APPEND


def chain(family: int, table: str, name: str, kind: str = "", hook: int = 0, priority: int = 0) -> Request:
    """A chain at a hook; without `kind` one that others jump to."""
    where = n.nested(4, number(1, hook), n.attribute(2, struct.pack(">i", priority))) + n.text(7, kind) if kind else b""
    return n.NEW_CHAIN, n.nft_body(family, n.text(1, table), n.text(3, name), where), n.CREATE


def fresh_table(family: int, table: str) -> list[Request]:
    """Emptied, whether or not it was there."""
    body = n.nft_body(family, n.text(1, table))
    return [(n.NEW_TABLE, body, n.CREATE), (n.DEL_TABLE, body, 0), (n.NEW_TABLE, body, n.CREATE)]


TIMEOUT, EVALUATED = 0x10, 0x20
"""Flags of a set: its elements go when their time is over; rules put elements in."""
_INET_PROTO, _INET_SERVICE = 12, 13  # nft(8)'s numbers of types, for printing: six bits each
_ADDRESS = {4: 7, 6: 8}


def new_set(
    family: int, table: str, name: str, set_id: int, types: Sequence[int], length: int, *, flags: int = 0, size: int = 0
) -> Request:
    """A set whose keys are `length` bytes."""
    kind = 0
    for each in types:
        kind = kind << 6 | each
    names = n.text(1, table) + n.text(2, name)
    room = n.nested(9, number(1, size)) if size else b""
    return (
        n.NEW_SET,
        n.nft_body(family, names, number(3, flags), number(4, kind), number(5, length), number(10, set_id), room),
        n.CREATE,
    )


def address_types(version: int) -> tuple[tuple[int, ...], int]:
    """Keys that are an address: nft's types, and their bytes."""
    return (_ADDRESS[version],), _LENGTH[version]


def service_types(version: int) -> tuple[tuple[int, ...], int]:
    """Keys that are an address, a protocol and a port, each padded to four bytes."""
    return (_ADDRESS[version], _INET_PROTO, _INET_SERVICE), _LENGTH[version] + 8


def load_service(version: int) -> bytes:
    """Load the key of `service_types`."""
    at = REGISTER + _LENGTH[version] // 4
    return target(version) + meta(L4PROTO, at) + payload(TRANSPORT, 2, 2, at + 1)


def tables(net: n.Netlink, family: int) -> set[str]:
    """The names of all tables of a family."""
    rows = net.dump(n.NFT | n.GET_TABLE, n.nft_body(family))
    return {n.attributes(row[4:])[1].rstrip(b"\0").decode() for row in rows}


def remove_tables(sockets: n.Sockets, name: str) -> None:
    """Take away the tables of this name; none there is fine."""
    with sockets(n.NETFILTER) as net:
        for family in (n.INET, n.BRIDGE):
            try:
                net.transact([(n.DEL_TABLE, n.nft_body(family, n.text(1, name)), 0)])
            except OSError as err:
                if err.errno != errno.ENOENT:
                    raise
