"""A network's nf_tables rules as one transaction: who may forward, what is masqueraded, and who may send from which address.

Every network has two tables of its own, named as its bridge: what is left of it goes with them, and another's rules are never touched.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence

from sandbox.runtime.init import netlink as n
from sandbox.runtime.network import nftables as t

_OWNERS = {n.OWNERS: ((41, 9, 7), 28, 1), n.OWNERS6: ((41, 9, 8), 40, 2)}
"""Types, as nft(8) prints them (ifname . ether_addr . ipv4_addr or ipv6_addr), length and number of each set."""
_ROUTER_ADVERTISEMENT, _NEIGHBOUR_ADVERTISEMENT, _REDIRECT = b"\x86", b"\x88", b"\x89"  # RFC 4861


def _routing(bridge: str, subnets: Iterable[t.Subnet], *, internal: bool) -> list[t.Request]:
    """From outside come answers only (also from our other networks); outward it goes with the host's address."""
    forward = ("forward",)
    rules = [
        t.rule(n.INET, bridge, *forward, t.named(t.OIFNAME, bridge), t.established(), t.verdict(t.ACCEPT)),
        t.rule(n.INET, bridge, *forward, t.named(t.IIFNAME, bridge), t.named(t.OIFNAME, bridge), t.verdict(t.ACCEPT)),
        t.rule(n.INET, bridge, *forward, t.named(t.OIFNAME, bridge), t.verdict(t.DROP)),
    ]
    if internal:
        rules.append(t.rule(n.INET, bridge, *forward, t.named(t.IIFNAME, bridge), t.verdict(t.DROP)))
    for subnet in () if internal else subnets:
        outward = t.is_version(subnet.version) + t.source(subnet.version) + t.within(subnet) + t.named(t.OIFNAME, bridge, t.NOT)
        rules.append(t.rule(n.INET, bridge, "nat", outward, t.expression("masq")))
    return [
        *t.fresh_table(n.INET, bridge),
        t.chain(n.INET, bridge, "forward", "filter", t.FORWARD, 0),
        t.chain(n.INET, bridge, "nat", "nat", t.POSTROUTING, 100),
        *rules,
    ]


def port_prefix(bridge: str) -> str:
    """How the host's ends of a network's veth pairs begin: `meta ibrname` is not in every Linux, names are."""
    return "v" + bridge.removeprefix("sbx")[:8]


def _honesty(bridge: str, owners: Mapping[str, Sequence[bytes]]) -> list[t.Request]:
    """What enters the bridge must come from the link, the MAC and the IP address that belong together; nothing else passes. Nobody is a
    router but the bridge, and nobody is a neighbour by another's address."""
    sets = [t.new_set(n.BRIDGE, bridge, name, number, types, length) for name, (types, length, number) in _OWNERS.items()]
    fill = [(n.NEW_ELEMENT, n.element(bridge, name, keys, family=n.BRIDGE), n.CREATE) for name, keys in owners.items() if keys]
    protocol, icmp6 = t.payload(t.LINK, 12, 2), t.meta(t.L4PROTO) + t.compare(t.ICMP6) + t.payload(t.TRANSPORT, 0, 1)

    def owned(name: str, base: int, offset: int) -> bytes:
        sender = t.meta(t.IIFNAME) + t.payload(t.LINK, 6, 6, t.REGISTER + 4)
        address = t.payload(base, offset, 4 if name == n.OWNERS else 16, t.REGISTER + 6)
        return sender + address + t.lookup(name, _OWNERS[name][2])

    accept, drop = t.verdict(t.ACCEPT), t.verdict(t.DROP)
    ipv6 = protocol + t.compare(t.ETHER_IP6)
    rules = (
        (t.meta(t.IIFNAME) + t.compare(port_prefix(bridge).encode(), t.NOT), accept),
        (protocol + t.compare(t.ETHER_IP) + owned(n.OWNERS, t.NETWORK, 12), accept),
        (protocol + t.compare(t.ETHER_ARP) + owned(n.OWNERS, t.NETWORK, 14), accept),
        *((ipv6 + icmp6 + t.compare(kind), drop) for kind in (_ROUTER_ADVERTISEMENT, _REDIRECT)),
        (ipv6 + icmp6 + t.compare(_NEIGHBOUR_ADVERTISEMENT, t.NOT) + owned(n.OWNERS6, t.NETWORK, 8), accept),
        (ipv6 + icmp6 + owned(n.OWNERS6, t.NETWORK, 8) + owned(n.OWNERS6, t.TRANSPORT, 8), accept),  # it is what it says to be
        (ipv6 + t.meta(t.L4PROTO) + t.compare(t.ICMP6, t.NOT) + owned(n.OWNERS6, t.NETWORK, 8), accept),
        (b"", drop),
    )
    return [
        *t.fresh_table(n.BRIDGE, bridge),
        *sets,
        *fill,
        t.chain(n.BRIDGE, bridge, "enter", "filter", t.BRIDGE_PREROUTING, -300),
        *(t.rule(n.BRIDGE, bridge, "enter", *expressions) for expressions in rules),
    ]


def install(sockets: n.Sockets, bridge: str, subnets: Iterable[t.Subnet], *, internal: bool, owners: Mapping[str, Sequence[bytes]]) -> None:
    """(Re)make all rules of a network at once; `owners` as `netlink.owner_keys` gives them. OSError when Linux refuses them."""
    with sockets(n.NETFILTER) as net:
        net.transact([*_routing(bridge, subnets, internal=internal), *_honesty(bridge, owners)])


def remove(sockets: n.Sockets, bridge: str) -> None:
    """Take a network's rules away; none there is fine."""
    t.remove_tables(sockets, bridge)


def are_installed(sockets: n.Sockets, bridge: str) -> bool:
    """Whether both tables are there: a `flush ruleset` by somebody else takes ours too."""
    with sockets(n.NETFILTER) as net:
        return all(bridge in t.tables(net, family) for family in (n.INET, n.BRIDGE))


def tables(sockets: n.Sockets) -> set[str]:
    """The names of all tables."""
    with sockets(n.NETFILTER) as net:
        return t.tables(net, n.INET) | t.tables(net, n.BRIDGE)


def drop_owner(sockets: n.Sockets, bridge: str, link: str, mac: str, addresses: Sequence[str]) -> None:
    """Forget who a lease belonged to; already gone is fine."""
    with sockets(n.NETFILTER) as net:
        for name, keys in n.owner_keys(link, mac, addresses).items():
            try:
                net.transact([(n.DEL_ELEMENT, n.element(bridge, name, keys, family=n.BRIDGE), 0)])
            except OSError as err:
                if err.errno != errno.ENOENT:
                    raise
