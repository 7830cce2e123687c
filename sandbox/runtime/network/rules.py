"""A network's nf_tables rules as one transaction: who may forward, what is masqueraded, and who may send from which address.

Every network has two tables of its own, named as its bridge: what is left of it goes with them, and another's rules are never touched.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable

from sandbox.runtime.init import netlink as n

_FORWARD, _POSTROUTING, _BRIDGE_PREROUTING = 2, 4, 0
_ACCEPT, _DROP = 1, 0
_EQUAL, _NOT = 0, 1
_LINK, _NETWORK = 0, 1
_IIFNAME, _OIFNAME = 6, 7
_REGISTER = 8
"""The first 32-bit register (NFT_REG32_00); each holds four bytes."""
_ETHER_IP, _ETHER_ARP = b"\x08\x00", b"\x08\x06"
_KEY_LENGTH, _KEY_TYPE, _SET_ID = 28, 41 << 12 | 9 << 6 | 7, 1  # nft(8) prints it as ifname . ether_addr . ipv4_addr
_META_NFPROTO, _NFPROTO_IPV4 = 15, b"\x02"

Request = tuple[int, bytes, int]


def _number(kind: int, value: int) -> bytes:
    return n.attribute(kind, struct.pack(">I", value))


def _expression(name: str, *data: bytes) -> bytes:
    return n.nested(1, n.text(1, name), n.nested(2, *data))


def _meta(key: int, register: int = _REGISTER) -> bytes:
    return _expression("meta", _number(2, key), _number(1, register))


def _payload(base: int, offset: int, length: int, register: int = _REGISTER) -> bytes:
    return _expression("payload", _number(1, register), _number(2, base), _number(3, offset), _number(4, length))


def _compare(value: bytes, operation: int = _EQUAL) -> bytes:
    return _expression("cmp", _number(1, _REGISTER), _number(2, operation), n.nested(3, n.attribute(1, value)))


def _mask(mask: bytes) -> bytes:
    registers = _number(1, _REGISTER) + _number(2, _REGISTER) + _number(3, len(mask))
    return _expression("bitwise", registers, n.nested(4, n.attribute(1, mask)), n.nested(5, n.attribute(1, bytes(len(mask)))))


def _verdict(code: int) -> bytes:
    return _expression("immediate", _number(1, 0), n.nested(2, n.nested(2, _number(1, code))))


def _named(key: int, name: str, operation: int = _EQUAL) -> bytes:
    return _meta(key) + _compare(name.encode().ljust(16, b"\0"), operation)


def _in_subnet(subnet: ipaddress.IPv4Network) -> bytes:
    return _payload(_NETWORK, 12, 4) + _mask(subnet.netmask.packed) + _compare(subnet.network_address.packed)


def _established() -> bytes:
    state = _expression("ct", _number(1, _REGISTER), _number(2, 0))
    return state + _mask(struct.pack("I", 2 | 4)) + _compare(bytes(4), _NOT)


def _rule(family: int, table: str, chain: str, *expressions: bytes) -> Request:
    body = n.nft_body(family, n.text(1, table), n.text(2, chain), n.nested(4, *expressions))
    return n.NEW_RULE, body, n.CREATE | n.APPEND


def _chain(family: int, table: str, chain: str, kind: str, hook: int, priority: int) -> Request:
    where = n.nested(4, _number(1, hook), n.attribute(2, struct.pack(">i", priority)))
    return n.NEW_CHAIN, n.nft_body(family, n.text(1, table), n.text(3, chain), where, n.text(7, kind)), n.CREATE


def _fresh_table(family: int, table: str) -> list[Request]:
    """Emptied, whether or not it was there."""
    body = n.nft_body(family, n.text(1, table))
    return [(n.NEW_TABLE, body, n.CREATE), (n.DEL_TABLE, body, 0), (n.NEW_TABLE, body, n.CREATE)]


def _routing(bridge: str, subnet: ipaddress.IPv4Network, *, internal: bool) -> list[Request]:
    """From outside come answers only (also from our other networks); outward it goes with the host's address."""
    forward = ("forward",)
    rules = [
        _rule(n.INET, bridge, *forward, _named(_OIFNAME, bridge), _established(), _verdict(_ACCEPT)),
        _rule(n.INET, bridge, *forward, _named(_IIFNAME, bridge), _named(_OIFNAME, bridge), _verdict(_ACCEPT)),
        _rule(n.INET, bridge, *forward, _named(_OIFNAME, bridge), _verdict(_DROP)),
    ]
    if internal:
        rules.append(_rule(n.INET, bridge, *forward, _named(_IIFNAME, bridge), _verdict(_DROP)))
    else:
        is_ip = _meta(_META_NFPROTO) + _compare(_NFPROTO_IPV4)
        outward = is_ip + _in_subnet(subnet) + _named(_OIFNAME, bridge, _NOT)
        rules.append(_rule(n.INET, bridge, "nat", outward, _expression("masq")))
    return [
        *_fresh_table(n.INET, bridge),
        _chain(n.INET, bridge, "forward", "filter", _FORWARD, 0),
        _chain(n.INET, bridge, "nat", "nat", _POSTROUTING, 100),
        *rules,
    ]


def port_prefix(bridge: str) -> str:
    """How the host's ends of a network's veth pairs begin: `meta ibrname` is not in every Linux, names are."""
    return "v" + bridge.removeprefix("sbx")[:7]


def _ip_sender(offset: int) -> bytes:
    return _payload(_NETWORK, offset, 4, _REGISTER + 6)


def _honesty(bridge: str, owners: Iterable[bytes]) -> list[Request]:
    """What enters the bridge must come from the link, the MAC and the IPv4 address that belong together; nothing else passes."""
    lookup = _expression("lookup", n.text(1, n.OWNERS), _number(2, _REGISTER), _number(4, _SET_ID))
    sender = _meta(_IIFNAME) + _payload(_LINK, 6, 6, _REGISTER + 4)
    protocol = _payload(_LINK, 12, 2)
    keys = list(owners)
    fill = [(n.NEW_ELEMENT, n.element(bridge, n.OWNERS, keys, family=n.BRIDGE), n.CREATE)] if keys else []
    names = n.text(1, bridge) + n.text(2, n.OWNERS)
    members = n.nft_body(n.BRIDGE, names, _number(3, 0), _number(4, _KEY_TYPE), _number(5, _KEY_LENGTH), _number(10, _SET_ID))
    return [
        *_fresh_table(n.BRIDGE, bridge),
        (n.NEW_SET, members, n.CREATE),
        *fill,
        _chain(n.BRIDGE, bridge, "enter", "filter", _BRIDGE_PREROUTING, -300),
        _rule(n.BRIDGE, bridge, "enter", _meta(_IIFNAME), _compare(port_prefix(bridge).encode(), _NOT), _verdict(_ACCEPT)),
        _rule(n.BRIDGE, bridge, "enter", protocol, _compare(_ETHER_IP), sender, _ip_sender(12), lookup, _verdict(_ACCEPT)),
        _rule(n.BRIDGE, bridge, "enter", protocol, _compare(_ETHER_ARP), sender, _ip_sender(14), lookup, _verdict(_ACCEPT)),
        _rule(n.BRIDGE, bridge, "enter", _verdict(_DROP)),
    ]


def install(bridge: str, subnet: ipaddress.IPv4Network, *, internal: bool, owners: Iterable[bytes]) -> None:
    """(Re)make all rules of a network at once; OSError when Linux refuses them."""
    with n.Netlink(n.NETFILTER) as net:
        net.transact([*_routing(bridge, subnet, internal=internal), *_honesty(bridge, owners)])


def remove(bridge: str) -> None:
    """Take a network's rules away; none there is fine."""
    with n.Netlink(n.NETFILTER) as net:
        for family in (n.INET, n.BRIDGE):
            if bridge in _tables(net, family):
                net.transact([(n.DEL_TABLE, n.nft_body(family, n.text(1, bridge)), 0)])


def are_installed(bridge: str) -> bool:
    """Whether both tables are there: a `flush ruleset` by somebody else takes ours too."""
    with n.Netlink(n.NETFILTER) as net:
        return all(bridge in _tables(net, family) for family in (n.INET, n.BRIDGE))


def tables() -> set[str]:
    """The names of all tables."""
    with n.Netlink(n.NETFILTER) as net:
        return _tables(net, n.INET) | _tables(net, n.BRIDGE)


def _tables(net: n.Netlink, family: int) -> set[str]:
    rows = net.dump((10 << 8) | n.GET_TABLE, n.nft_body(family))
    return {n.attributes(row[4:])[1].rstrip(b"\0").decode() for row in rows}


def drop_owner(bridge: str, link: str, mac: str, address: str) -> None:
    """Forget who a lease belonged to; already gone is fine."""
    key = n.owner_key(link, mac, address)
    with n.Netlink(n.NETFILTER) as net:
        try:
            net.transact([(n.DEL_ELEMENT, n.element(bridge, n.OWNERS, [key], family=n.BRIDGE), 0)])
        except OSError as err:
            if err.errno != 2:
                raise

