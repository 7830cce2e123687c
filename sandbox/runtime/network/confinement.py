"""What holds one container to its allow-list and its rate: nf_tables rules on the host's side, where the container cannot change them.

Its link leads to the bridge's own MAC address alone, so that also what it sends to its neighbours is routed by this machine and meets
the list: names' addresses, which its name server puts into sets with time-outs before it answers, and subnets. The rest is refused at
once (a TCP reset, ICMP), and what it was is remembered in a set. Everything is in two tables that are called as the container.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

import msgspec

from sandbox.runtime.init import allowlist
from sandbox.runtime.init import netlink as n
from sandbox.runtime.network import nftables as t
from sandbox.runtime.spec import Allowed

_PROTOCOLS = {"tcp": t.TCP, "udp": t.UDP}
_BEFORE_OTHERS, _AFTER_HONESTY = -10, -290
_MOST_DENIED = 128
_ECHO_REPLY = b"\x81"
"""The last type of ICMPv6 before those of multicast listeners and of neighbour discovery (RFC 4861), which stay on the link."""
_SYN_ACK, _SYN = b"\x12", b"\x02"
_SLACK = 10
"""The container's own queue keeps to the rate; what is a tenth more than that comes from where somebody took the queue away."""


class Confined(msgspec.Struct, frozen=True):
    """A container's place: its `link` to the `bridge` with its MAC address, its own `addresses`, the network's `subnets`."""

    table: str
    link: str
    bridge: str
    bridge_mac: str
    addresses: Sequence[str]
    subnets: Sequence[str]
    allowed: Sequence[Allowed]
    rate: int | None


def table_name(bridge: str, container_id: str) -> str:
    """Both tables of a container in the network of this bridge."""
    return f"{bridge}.{container_id[:7]}"


def install(sockets: n.Sockets, confined: Confined) -> None:
    """(Re)make its rules; OSError when Linux refuses them."""
    requests = [*t.fresh_table(n.BRIDGE, confined.table), t.chain(n.BRIDGE, confined.table, "enter", "filter", 0, _AFTER_HONESTY)]
    if confined.rate:
        octets = confined.rate // 8
        above = t.above_rate(octets + octets // _SLACK, 1 << 18)
        requests.append(t.rule(n.BRIDGE, confined.table, "enter", t.named(t.IIFNAME, confined.link), above, t.verdict(t.DROP)))
    if confined.allowed:
        requests += [*_through_host(confined), *_list(confined)]
    with sockets(n.NETFILTER) as net:
        net.transact(requests)


def remove(sockets: n.Sockets, table: str) -> None:
    """Take its rules away; none there is fine."""
    t.remove_tables(sockets, table)


def _through_host(confined: Confined) -> Iterator[t.Request]:
    """ARP and neighbour discovery aside, its frames go to the bridge itself."""
    from_it = t.named(t.IIFNAME, confined.link)
    elsewhere = t.payload(t.LINK, 0, 6) + t.compare(n.mac_bytes(confined.bridge_mac), t.NOT)
    protocol, inner = t.payload(t.LINK, 12, 2), t.meta(t.L4PROTO)
    discovery = t.payload(t.TRANSPORT, 0, 1) + t.compare(_ECHO_REPLY, t.AT_MOST)  # what comes after it asks and tells who is where
    ipv4, ipv6 = protocol + t.compare(t.ETHER_IP), protocol + t.compare(t.ETHER_IP6)
    for kind in (ipv4, ipv6 + inner + t.compare(t.ICMP6, t.NOT), ipv6 + inner + t.compare(t.ICMP6) + discovery):
        yield t.rule(n.BRIDGE, confined.table, "enter", from_it, kind, elsewhere, t.verdict(t.DROP))


def _list(confined: Confined) -> Iterator[t.Request]:
    table = confined.table
    yield from t.fresh_table(n.INET, table)
    versions = sorted({ipaddress.ip_address(each).version for each in confined.addresses})
    for version in versions:
        names = allowlist.SETS[version]
        addresses, services = t.address_types(version), t.service_types(version)
        yield t.new_set(n.INET, table, names.addresses, 10 * version, *addresses, flags=t.TIMEOUT)
        yield t.new_set(n.INET, table, names.services, 10 * version + 1, *services, flags=t.TIMEOUT)
        yield t.new_set(n.INET, table, names.denied, 10 * version + 2, *services, flags=t.EVALUATED, size=_MOST_DENIED)
    yield t.chain(n.INET, table, "list")
    for hook, name in ((t.INPUT, "input"), (t.FORWARD, "forward")):
        yield t.chain(n.INET, table, name, "filter", hook, _BEFORE_OTHERS)
    if 6 in versions:  # to this machine alone: passed on it could carry anything
        discovery = t.payload(t.TRANSPORT, 0, 1) + t.compare(_ECHO_REPLY, t.ABOVE)
        yield t.rule(n.INET, table, "input", t.is_version(6), t.meta(t.L4PROTO), t.compare(t.ICMP6), discovery, t.verdict(t.ACCEPT))
    for address in confined.addresses:
        ip = ipaddress.ip_address(address)
        own = t.named(t.IIFNAME, confined.bridge) + t.is_version(ip.version) + t.source(ip.version) + t.compare(ip.packed)
        for name in ("input", "forward"):
            yield t.rule(n.INET, table, name, own, t.verdict(t.JUMP, "list"))
    yield t.rule(n.INET, table, "list", t.established(), t.verdict(t.ACCEPT))
    yield from _answers_to_neighbours(confined)
    for allowed in confined.allowed:
        yield from _subnet(table, allowed, versions)
    for version in versions:
        yield from _names(table, version)
    yield t.rule(n.INET, table, "list", t.meta(t.L4PROTO), t.compare(t.TCP), t.reject(1))
    yield t.rule(n.INET, table, "list", t.reject(2, 3))


def _answers_to_neighbours(confined: Confined) -> Iterator[t.Request]:
    """What a neighbour began did not come by here (it is bridged): TCP that opens nothing, to our own network, is an answer. The host
    is no neighbour: what it began is known."""
    for subnet in map(ipaddress.ip_network, confined.subnets):
        opens_nothing = t.payload(t.TRANSPORT, 13, 1) + t.mask(_SYN_ACK) + t.compare(_SYN, t.NOT)
        to_neighbour = t.named(t.OIFNAME, confined.bridge) + t.is_version(subnet.version) + t.target(subnet.version) + t.within(subnet)
        is_tcp = t.meta(t.L4PROTO) + t.compare(t.TCP)
        yield t.rule(n.INET, confined.table, "list", to_neighbour, is_tcp, opens_nothing, t.verdict(t.ACCEPT))


def _subnet(table: str, allowed: Allowed, versions: Sequence[int]) -> Iterator[t.Request]:
    subnet = ipaddress.ip_network(allowed.subnet) if allowed.subnet else None
    if subnet is None or subnet.version not in versions:
        return
    place = t.is_version(subnet.version) + t.target(subnet.version) + t.within(subnet)
    if not allowed.port:
        yield t.rule(n.INET, table, "list", place, t.verdict(t.ACCEPT))
        return
    for protocol in allowed.protocols:
        service = t.meta(t.L4PROTO) + t.compare(_PROTOCOLS[protocol])
        port = t.payload(t.TRANSPORT, 2, 2) + t.compare(allowed.port.to_bytes(2, "big"))
        yield t.rule(n.INET, table, "list", place, service, port, t.verdict(t.ACCEPT))


def _names(table: str, version: int) -> Iterator[t.Request]:
    """In the sets, or else remembered."""
    names, ours = allowlist.SETS[version], t.is_version(version)
    service = ours + t.load_service(version)
    known = t.lookup(names.addresses, 10 * version)
    yield t.rule(n.INET, table, "list", ours, t.target(version), known, t.verdict(t.ACCEPT))
    yield t.rule(n.INET, table, "list", service, t.lookup(names.services, 10 * version + 1), t.verdict(t.ACCEPT))
    yield t.rule(n.INET, table, "list", service, t.remember(names.denied, 10 * version + 2))
