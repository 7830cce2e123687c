"""A host whose FORWARD policy is DROP, as docker and firewalls leave it: an accept of ours cannot overrule it, since every table has a say.

So two rules of ours, marked as such, go to the end of each such chain: what its owner drops or rejects by a rule stays so, only the policy
is not reached. They lead to our bridge, whose own table still lets answers in alone. They go with the network.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from pathlib import Path

from sandbox.runtime.init import netlink as n
from sandbox.runtime.network import nftables as t

_IP, _IP6 = 2, 10
_FAMILIES = (n.INET, _IP, _IP6)
_TABLE, _CHAIN_NAME, _HOOK, _POLICY, _TYPE = 1, 3, 4, 5, 7
_RULE_CHAIN, _RULE_HANDLE, _RULE_DATA = 2, 3, 7
_COMMENT = 0
_OURS = "sbx"


_SETTINGS = Path("/proc/sys/net")


def switch_on(version: int) -> None:
    """Let this machine pass packets of this version of IP on. A machine that does so takes no router's word on its own IPv6 addresses any
    more, unless it is told to (accept_ra 2, ip-sysctl.rst): links that did still do. OSError."""
    switch = _SETTINGS / ("ipv4/ip_forward" if version == 4 else "ipv6/conf/all/forwarding")
    if switch.read_text().strip() != "0":
        return
    for accepts in (_SETTINGS / "ipv6/conf").glob("*/accept_ra") if version == 6 else ():
        if accepts.read_text().strip() == "1":
            accepts.write_text("2\n")
    switch.write_text("1\n")


def dropping() -> list[tuple[int, str, str]]:
    """The chains of others that drop what none of their rules decides on when it is forwarded: family, table, chain."""
    with n.Netlink(n.NETFILTER) as net:
        return [(family, *found) for family in _FAMILIES for found in _dropping(net, family)]


def _dropping(net: n.Netlink, family: int) -> Iterator[tuple[str, str]]:
    for row in net.dump(n.NFT | n.GET_CHAIN, n.nft_body(family)):
        facts = n.attributes(row[4:])
        hook = n.attributes(facts.get(_HOOK, b"")).get(1)
        is_forward = hook is not None and struct.unpack(">I", hook)[0] == t.FORWARD and _text(facts[_TYPE]) == "filter"
        if is_forward and struct.unpack(">I", facts[_POLICY])[0] == t.DROP and not _text(facts[_TABLE]).startswith(_OURS):
            yield _text(facts[_TABLE]), _text(facts[_CHAIN_NAME])


def let_through(bridge: str) -> None:
    """Add our rules to chains that have them not. OSError."""
    chains = dropping()
    if not chains:
        return
    with n.Netlink(n.NETFILTER) as net:
        for family, table, chain in chains:
            if not any(_chain_of(rule) == chain for rule in _ours(net, family, table, bridge)):
                net.transact([_accept(family, table, chain, bridge, key) for key in (t.IIFNAME, t.OIFNAME)])


def take_back(bridge: str) -> None:
    """Remove them, wherever they are; already gone is fine."""
    with n.Netlink(n.NETFILTER) as net:
        for family in _FAMILIES:
            for table in t.tables(net, family):
                for rule in _ours(net, family, table, bridge):
                    where = n.attribute(1, rule[_TABLE]) + n.attribute(2, rule[_RULE_CHAIN]) + n.attribute(3, rule[_RULE_HANDLE])
                    try:
                        net.transact([(n.DEL_RULE, n.nft_body(family, where), 0)])
                    except OSError as err:
                        if err.errno != errno.ENOENT:
                            raise


def _accept(family: int, table: str, chain: str, bridge: str, key: int) -> t.Request:
    kind, body, flags = t.rule(family, table, chain, t.named(key, bridge), t.expression("counter"), t.verdict(t.ACCEPT))
    return kind, body + n.attribute(_RULE_DATA, _comment(bridge)), flags


def _ours(net: n.Netlink, family: int, table: str, bridge: str) -> list[dict[int, bytes]]:
    rows = net.dump(n.NFT | n.GET_RULE, n.nft_body(family, n.text(1, table)))
    rules = [n.attributes(row[4:]) for row in rows]
    return [rule for rule in rules if rule.get(_RULE_DATA) == _comment(bridge) and _text(rule[_TABLE]) == table]


def _comment(bridge: str) -> bytes:
    """As nft(8) keeps and shows a rule's comment (libnftnl's udata)."""
    text = f"jupyter-sandbox {bridge}".encode() + b"\0"
    return bytes([_COMMENT, len(text)]) + text


def _chain_of(rule: dict[int, bytes]) -> str:
    return _text(rule[_RULE_CHAIN])


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode()
