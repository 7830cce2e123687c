"""A network's nf_tables rules as one transaction: who may forward, what is masqueraded, and who may send from which address.

Every network has two tables of its own, named as its bridge: what is left of it goes with them, and another's rules are never touched.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from sandbox.runtime.init import netlink as n
from sandbox.runtime.network import nftables as t

_OWNER_TYPES, _OWNER_LENGTH, _OWNERS_ID = (41, 9, 7), 28, 1  # nft(8) prints it as ifname . ether_addr . ipv4_addr


def _routing(bridge: str, subnet: ipaddress.IPv4Network, *, internal: bool) -> list[t.Request]:
    """From outside come answers only (also from our other networks); outward it goes with the host's address."""
    forward = ("forward",)
    rules = [
        t.rule(n.INET, bridge, *forward, t.named(t.OIFNAME, bridge), t.established(), t.verdict(t.ACCEPT)),
        t.rule(n.INET, bridge, *forward, t.named(t.IIFNAME, bridge), t.named(t.OIFNAME, bridge), t.verdict(t.ACCEPT)),
        t.rule(n.INET, bridge, *forward, t.named(t.OIFNAME, bridge), t.verdict(t.DROP)),
    ]
    if internal:
        rules.append(t.rule(n.INET, bridge, *forward, t.named(t.IIFNAME, bridge), t.verdict(t.DROP)))
    else:
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


def _ip_sender(offset: int) -> bytes:
    return t.payload(t.NETWORK, offset, 4, t.REGISTER + 6)


def _honesty(bridge: str, owners: Iterable[bytes]) -> list[t.Request]:
    """What enters the bridge must come from the link, the MAC and the IPv4 address that belong together; nothing else passes."""
    lookup = t.lookup(n.OWNERS, _OWNERS_ID)
    sender = t.meta(t.IIFNAME) + t.payload(t.LINK, 6, 6, t.REGISTER + 4)
    protocol = t.payload(t.LINK, 12, 2)
    keys = list(owners)
    fill = [(n.NEW_ELEMENT, n.element(bridge, n.OWNERS, keys, family=n.BRIDGE), n.CREATE)] if keys else []
    return [
        *t.fresh_table(n.BRIDGE, bridge),
        t.new_set(n.BRIDGE, bridge, n.OWNERS, _OWNERS_ID, _OWNER_TYPES, _OWNER_LENGTH),
        *fill,
        t.chain(n.BRIDGE, bridge, "enter", "filter", t.BRIDGE_PREROUTING, -300),
        t.rule(n.BRIDGE, bridge, "enter", t.meta(t.IIFNAME), t.compare(port_prefix(bridge).encode(), t.NOT), t.verdict(t.ACCEPT)),
        t.rule(n.BRIDGE, bridge, "enter", protocol, t.compare(t.ETHER_IP), sender, _ip_sender(12), lookup, t.verdict(t.ACCEPT)),
        t.rule(n.BRIDGE, bridge, "enter", protocol, t.compare(t.ETHER_ARP), sender, _ip_sender(14), lookup, t.verdict(t.ACCEPT)),
        t.rule(n.BRIDGE, bridge, "enter", t.verdict(t.DROP)),
    ]


def install(bridge: str, subnet: ipaddress.IPv4Network, *, internal: bool, owners: Iterable[bytes]) -> None:
    """(Re)make all rules of a network at once; OSError when Linux refuses them."""
    with n.Netlink(n.NETFILTER) as net:
        net.transact([*_routing(bridge, subnet, internal=internal), *_honesty(bridge, owners)])


def remove(bridge: str) -> None:
    """Take a network's rules away; none there is fine."""
    t.remove_tables(bridge)


def are_installed(bridge: str) -> bool:
    """Whether both tables are there: a `flush ruleset` by somebody else takes ours too."""
    with n.Netlink(n.NETFILTER) as net:
        return all(bridge in t.tables(net, family) for family in (n.INET, n.BRIDGE))


def tables() -> set[str]:
    """The names of all tables."""
    with n.Netlink(n.NETFILTER) as net:
        return t.tables(net, n.INET) | t.tables(net, n.BRIDGE)


def drop_owner(bridge: str, link: str, mac: str, address: str) -> None:
    """Forget who a lease belonged to; already gone is fine."""
    key = n.owner_key(link, mac, address)
    with n.Netlink(n.NETFILTER) as net:
        try:
            net.transact([(n.DEL_ELEMENT, n.element(bridge, n.OWNERS, [key], family=n.BRIDGE), 0)])
        except OSError as err:
            if err.errno != 2:
                raise

