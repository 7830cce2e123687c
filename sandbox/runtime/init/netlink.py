"""Netlink (netlink(7), rtnetlink(7), nf_tables.h) spoken by hand: the few messages that a container's start needs.

A library for it takes 130 ms to import, a start 10 ms. Numbers in attributes are in the host's byte order in rtnetlink,
big-endian in nf_tables.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    Sockets: TypeAlias = Callable[[int], "Netlink"]
    """Opens a socket of a protocol where the bridges are: `Netlink` itself for this process' own network namespace, else a hub's
    (init/hub)."""

ROUTE, NETFILTER = 0, 12
NESTED = 0x8000
_REQUEST, _ACK, _DUMP, _REPLACE, _EXCLUSIVE, _CREATE, _APPEND = 1, 4, 0x300, 0x100, 0x200, 0x400, 0x800
_ERROR, _DONE = 2, 3
_NEWLINK, _DELLINK, _GETLINK, _NEWADDR, _NEWROUTE, _NEWQDISC = 16, 17, 18, 20, 24, 36
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_PID, _IFLA_IFALIAS = 1, 3, 10, 18, 19, 20
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_UP = 1
_MAIN, _BOOT, _UNICAST = 254, 3, 1
NFT = 10 << 8


class Netlink:
    """A netlink socket of the network namespace it was made in; `given`: one that somebody else opened there, ours from now on."""

    def __init__(self, protocol: int = ROUTE, *, given: socket.socket | None = None) -> None:
        self._socket = given or open_socket(protocol)
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def ask(self, kind: int, body: bytes, flags: int = 0) -> None:
        """One request; OSError when Linux refuses it."""
        self._sequence += 1
        self._socket.send(message(kind, flags | _REQUEST | _ACK, self._sequence, body))
        self._expect({self._sequence})

    def transact(self, requests: Sequence[tuple[int, bytes, int]]) -> None:
        """nf_tables requests as (kind, body, flags) that take place together or not at all; OSError of the first that is refused."""
        parts, wanted = [message(16, _REQUEST, 0, struct.pack(">BBH", 0, 0, 10))], set()
        for kind, body, flags in requests:
            self._sequence += 1
            wanted.add(self._sequence)
            parts.append(message(NFT | kind, flags | _REQUEST | _ACK, self._sequence, body))
        self._socket.send(b"".join([*parts, message(17, _REQUEST, 0, struct.pack(">BBH", 0, 0, 10))]))
        self._expect(wanted)

    def get(self, kind: int, body: bytes) -> bytes:
        """The body of the one answer; OSError when Linux refuses."""
        self._sequence += 1
        self._socket.send(message(kind, _REQUEST, self._sequence, body))
        ((answer, _, payload),) = _messages(self._socket.recv(1 << 18))
        if answer == _ERROR:
            _raise(payload)
        return payload

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of all answers to a dump."""
        self._sequence += 1
        self._socket.send(message(kind, _REQUEST | _DUMP, self._sequence, body))
        found: list[bytes] = []
        while True:
            for answer, sequence, payload in _messages(self._socket.recv(1 << 18)):
                if answer == _ERROR:
                    _raise(payload)
                if answer == _DONE:
                    return found
                if sequence == self._sequence:
                    found.append(payload)

    def _expect(self, wanted: set[int]) -> None:
        failure: OSError | None = None
        while wanted and failure is None:
            for kind, sequence, payload in _messages(self._socket.recv(1 << 18)):
                wanted.discard(sequence)
                if kind == _ERROR and (number := -struct.unpack_from("i", payload)[0]):
                    failure = failure or OSError(number, os.strerror(number))
        if failure is not None:
            self._drain()
            raise failure

    def _drain(self) -> None:
        """A refused transaction is answered more than once."""
        try:
            while self._socket.recv(1 << 18, socket.MSG_DONTWAIT):
                continue
        except BlockingIOError:
            return


def open_socket(protocol: int) -> socket.socket:
    """One that has its address; with the rights that this process has now (netlink(7))."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    opened.bind((0, 0))
    return opened


def _raise(payload: bytes) -> None:
    number = -struct.unpack_from("i", payload)[0]
    raise OSError(number, os.strerror(number))


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """One netlink message."""
    return struct.pack("IHHII", 16 + len(body), kind, flags, sequence, 0) + body + b"\0" * (-len(body) % 4)


def _messages(data: bytes) -> list[tuple[int, int, bytes]]:
    found, at = [], 0
    while at + 16 <= len(data):
        length, kind, _, sequence, _ = struct.unpack_from("IHHII", data, at)
        found.append((kind, sequence, data[at + 16 : at + length]))
        at += length + -length % 4
    return found


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in `data`, by their kind."""
    found, at = {}, 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("HH", data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += length + -length % 4
    return found


def each_attribute(data: bytes) -> list[bytes]:
    """The values of the attributes in `data`, in their order."""
    found, at = [], 0
    while at + 4 <= len(data) and (length := struct.unpack_from("H", data, at)[0]) >= 4:
        found.append(data[at + 4 : at + length])
        at += length + -length % 4
    return found


def text(kind: int, value: str) -> bytes:
    """A zero-terminated text attribute."""
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *inner: bytes) -> bytes:
    """An attribute of attributes."""
    return attribute(kind | NESTED, b"".join(inner))


# links, addresses, routes -------------------------------------------------------------------------------------------------


def _link(index: int = 0, *, up: bool = False) -> bytes:
    return struct.pack("BxHiII", 0, 0, index, _UP if up else 0, _UP if up else 0)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("I", value))


def mac_bytes(mac: str) -> bytes:
    """`02:42:…` as six bytes."""
    return bytes.fromhex(mac.replace(":", ""))


def index_of(net: Netlink, name: str) -> int:
    """The number of a link, in the network namespace of the socket; OSError (ENODEV) when there is none."""
    answer = net.get(_GETLINK, _link() + text(_IFLA_IFNAME, name))
    return int(struct.unpack_from("i", answer, 4)[0])


def add_bridge(net: Netlink, name: str, alias: str, mac: str) -> int:
    """Make a bridge that is up; its index. FileExistsError."""
    info = nested(_IFLA_LINKINFO, text(_INFO_KIND, "bridge"))
    net.ask(_NEWLINK, _link(up=True) + text(_IFLA_IFNAME, name) + attribute(_IFLA_ADDRESS, mac_bytes(mac)) + info, _CREATE | _EXCLUSIVE)
    index = index_of(net, name)
    net.ask(_NEWLINK, _link(index) + text(_IFLA_IFALIAS, alias))
    return index


def add_veth(net: Netlink, name: str, bridge: int, peer: str, pid: int, mac: str) -> None:
    """A veth pair: `name` here, up and in the bridge; `peer` in the network namespace of `pid`, still down."""
    inside = _link() + text(_IFLA_IFNAME, peer) + attribute(_IFLA_ADDRESS, mac_bytes(mac)) + _number(_IFLA_NET_NS_PID, pid)
    info = nested(_IFLA_LINKINFO, text(_INFO_KIND, "veth"), nested(_INFO_DATA, attribute(_VETH_PEER | NESTED, inside)))
    net.ask(_NEWLINK, _link(up=True) + text(_IFLA_IFNAME, name) + _number(_IFLA_MASTER, bridge) + info, _CREATE | _EXCLUSIVE)


def put_into(net: Netlink, name: str, bridge: int) -> None:
    """Make a link a port of the bridge; that there is no such link is fine."""
    try:
        net.ask(_NEWLINK, _link() + text(_IFLA_IFNAME, name) + _number(_IFLA_MASTER, bridge))
    except OSError as err:
        if err.errno != errno.ENODEV:
            raise


def remove_link(net: Netlink, name: str) -> None:
    """Remove a link, for a veth its peer too; already gone is fine."""
    try:
        net.ask(_DELLINK, _link() + text(_IFLA_IFNAME, name))
    except OSError as err:
        if err.errno != errno.ENODEV:
            raise


def set_up(net: Netlink, index: int) -> None:
    """Bring a link up."""
    net.ask(_NEWLINK, _link(index, up=True))


def add_address(net: Netlink, index: int, address: str, prefix: int) -> None:
    """Give a link an IPv4 or IPv6 address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    flags = 2 if family == socket.AF_INET6 else 0  # IFA_F_NODAD: it is ours, no need to ask around for a second
    net.ask(_NEWADDR, struct.pack("BBBBI", family, prefix, flags, 0, index) + attribute(2, packed) + attribute(1, packed), _CREATE)


def add_route(net: Netlink, index: int, gateway: str, target: str = "", *, replaces: bool = False) -> None:
    """What is for `target` (a subnet in CIDR form; else everything) goes to the gateway, which is on this link whatever its address.
    `replaces`: also where it went elsewhere."""
    family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
    address, _, prefix = target.partition("/")
    body = struct.pack("BBBBBBBBI", family, int(prefix or 0), 0, 0, _MAIN, _BOOT, 0, _UNICAST, 4)  # RTNH_F_ONLINK
    where = attribute(1, socket.inet_pton(family, address)) if address else b""
    way = attribute(5, socket.inet_pton(family, gateway)) + _number(4, index)
    net.ask(_NEWROUTE, body + where + way, _CREATE | (_REPLACE if replaces else 0))


def limit_rate(net: Netlink, index: int, bits: int) -> None:
    """What leaves the link: at most `bits` a second (tc-tbf(8)), in bursts of 10 ms, at least a large packet."""
    rate = max(1, bits // 8)
    burst = max(rate // 100, 65536)
    options = struct.pack("BBHhHI", 0, 1, 0, -1, 0, min(rate, 0xFFFFFFFF)) + bytes(12) + struct.pack("III", burst + rate // 4, 0, 0)
    inner = [attribute(1, options), _number(6, burst)]
    if rate > 0xFFFFFFFF:
        inner.append(attribute(4, struct.pack("Q", rate)))
    body = struct.pack("BxxxiIII", 0, index, 0, 0xFFFFFFFF, 0)  # TC_H_ROOT
    net.ask(_NEWQDISC, body + text(1, "tbf") + nested(2, *inner), _CREATE | _EXCLUSIVE)


def configure(net: Netlink, name: str, *, addresses: Sequence[tuple[str, int]], routes: Sequence[tuple[str, str]], rate: int) -> None:
    """A container's end of its link: addresses with the lengths of their prefixes, and routes as (gateway, subnet; empty: everything else).
    What leaves it keeps to the rate, in bits a second (0: none)."""
    index = index_of(net, name)
    for address, prefix in addresses:
        add_address(net, index, address, prefix)
    set_up(net, index)
    for gateway, target in routes:
        add_route(net, index, gateway, target)
    if rate:
        limit_rate(net, index, rate)


# nf_tables ----------------------------------------------------------------------------------------------------------------

BRIDGE, INET = 7, 1
OWNERS, OWNERS6 = "owners", "owners6"
"""The sets of the bridge family that hold `owner_keys`."""
NEW_TABLE, GET_TABLE, DEL_TABLE, NEW_CHAIN, GET_CHAIN, NEW_RULE, GET_RULE, DEL_RULE, NEW_SET, NEW_ELEMENT, GET_ELEMENT, DEL_ELEMENT = (
    0, 1, 2, 3, 4, 6, 7, 8, 9, 12, 13, 14,
)  # fmt: skip
CREATE, APPEND = _CREATE, _APPEND


def nft_body(family: int, *inner: bytes) -> bytes:
    """The body of an nf_tables request."""
    return struct.pack(">BBH", family, 0, 0) + b"".join(inner)


def element(table: str, name: str, keys: Sequence[bytes], *, family: int, timeout: int = 0) -> bytes:
    """The body that adds or removes elements of a set; `timeout` in seconds, 0: for ever."""
    life = attribute(4, struct.pack(">Q", timeout * 1000)) if timeout else b""
    each = [nested(1, nested(1, attribute(1, key)), life) for key in keys]
    return nft_body(family, text(1, table), text(2, name), nested(3, *each))


def owner_keys(link: str, mac: str, addresses: Sequence[str]) -> dict[str, list[bytes]]:
    """What the anti-spoofing sets hold, by their names: who may send from where."""
    found: dict[str, list[bytes]] = {}
    for address in addresses:
        name, family = (OWNERS6, socket.AF_INET6) if ":" in address else (OWNERS, socket.AF_INET)
        key = link.encode().ljust(16, b"\0") + mac_bytes(mac) + b"\0\0" + socket.inet_pton(family, address)
        found.setdefault(name, []).append(key)
    return found
