"""Which addresses networks get, what -p means, and who is named as the owner of a port: without a network."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path

import pytest

from sandbox.default_network import default_network
from sandbox.errors import InvalidOption, NetworkError, NetworkNotFound
from sandbox.options import RunOptions, parse_publish
from sandbox.runtime.init import places
from sandbox.runtime.network import subnets
from sandbox.runtime.network.bridges import OnHost
from sandbox.runtime.network.networks import Networks, bridge_prefix
from sandbox.runtime.network.ports import owner_of
from sandbox.runtime.network.subnets import has_ipv6, host_routes, host_routes6

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0000B10A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
tun0\t00001EAC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""


@pytest.fixture
def made(tmp_path: Path) -> Networks:
    return Networks(tmp_path / "root", lambda _: False, OnHost())


def test_routes_of_the_host_are_read_but_for_the_default_one(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(ROUTES)
    assert [str(each) for each in host_routes(tmp_path / "route")] == ["10.177.0.0/16", "172.30.0.0/16"]


def test_a_subnet_avoids_the_hosts_routes(made: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subnets, "host_routes", lambda: [ipaddress.IPv4Network("10.177.0.0/16"), ipaddress.IPv4Network("172.30.0.0/16")])
    assert made.create("lab").addresses.subnet_of(ipaddress.IPv4Network("192.168.0.0/16"))
    monkeypatch.setattr(subnets, "host_routes", lambda: [ipaddress.IPv4Network("0.0.0.0/1"), ipaddress.IPv4Network("128.0.0.0/1")])
    with pytest.raises(NetworkError, match="every range"):
        made.create("other")


def test_networks_of_one_engine_and_of_two_differ(made: Networks, tmp_path: Path) -> None:
    one, two = made.create("one"), made.create("two")
    other = Networks(tmp_path / "another", lambda _: False, OnHost()).create("one")
    assert not one.addresses.overlaps(two.addresses)
    assert len({one.bridge, two.bridge, other.bridge}) == 3
    assert one.bridge.startswith(bridge_prefix(tmp_path / "root"))
    assert len(one.bridge) <= 15
    assert [network.name for network in made.all()] == ["one", "two"]


@pytest.mark.parametrize("name", ["none", "host", "", "../x", "a/b", "-x", "x" * 64])
def test_names_that_are_none(made: Networks, name: str) -> None:
    with pytest.raises(InvalidOption):
        made.create(name)


@pytest.mark.parametrize(
    ("subnet", "gateway", "words"),
    [
        (("10.1.1.0/30",), (), "too small"),
        (("10.1.1.1/24",), (), "host bits"),
        (("x",), (), "does not appear"),
        (("10.1.1.0/24",), ("10.1.2.1",), "not an address of"),
        (("10.1.1.0/24",), ("10.1.1.255",), "not an address of"),
        (("10.1.1.0/24",), ("x",), "not an IP address"),
        (("10.1.1.0/24",), ("fd11::1",), "no such addresses"),
        (("10.1.1.0/24", "10.1.2.0/24"), (), "one of IPv4"),
        (("fd11::/121",), (), "too small"),
        (("fd22:1::/64",), (), "in use here"),
    ],
)
def test_subnets_and_gateways_that_are_none(
    made: Networks, monkeypatch: pytest.MonkeyPatch, subnet: tuple[str, ...], gateway: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr(subnets, "host_routes6", lambda: [ipaddress.IPv6Network("fd22::/16")])
    with pytest.raises(InvalidOption, match=words):
        made.create("lab", subnet=subnet, gateway=gateway)
    with pytest.raises(NetworkNotFound):
        made.find("lab")


ROUTES6 = """fd220000000000000000000000000000 40 {0} 00 {0} 00000100 00000001 00000000 00000001     eth0
fe800000000000000000000000000000 40 {0} 00 {0} 00000100 00000002 00000000 00000001     eth0
{0} 00 {0} 00 {0} ffffffff 00000001 00000000 00200200       lo
""".format("0" * 32)


def test_ipv6_is_there_when_the_machine_gets_out_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "ipv6_route"
    assert (has_ipv6(table), host_routes6(table)) == (False, [])  # a Linux without
    table.write_text(ROUTES6)
    assert (has_ipv6(table), [str(each) for each in host_routes6(table)]) == (False, ["fd22::/64"])
    table.write_text(ROUTES6 + f"{'0' * 32} 00 {'0' * 32} 00 fd22{'0' * 27}1 00000400 00000003 00000000 00000003     eth0\n")
    switch = tmp_path / "forwarding"
    switch.write_text("0\n")
    assert has_ipv6(table, switch)  # it may be told to
    switch.write_text("1\n")
    monkeypatch.setattr(os, "access", lambda *_: False)  # as on a read-only /proc
    assert has_ipv6(table, switch)
    switch.write_text("0\n")
    assert not has_ipv6(table, switch)


def test_ipv6_comes_by_itself_when_asked_for_or_with_its_subnet(made: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subnets, "has_ipv6", lambda: True)
    first, other = made.create("first"), made.create("other")
    assert ipaddress.IPv6Network(first.subnet6).subnet_of(ipaddress.IPv6Network("fd00::/8"))
    assert first.subnet6 != other.subnet6
    assert first.gateway6 == str(ipaddress.IPv6Network(first.subnet6)[1])
    assert made.create("without", ipv6=False).gateways.keys() == {4}
    assert made.create("given", subnet=["10.213.44.0/24"]).gateways.keys() == {4}
    monkeypatch.setattr(subnets, "has_ipv6", lambda: False)
    assert made.create("plain").gateways.keys() == {4}
    assert made.create("asked", subnet=["10.213.45.0/24"], ipv6=True).gateways.keys() == {4, 6}
    own = made.create("own", subnet=["fd33:1::/64"], gateway=["fd33:1::ff"])
    assert (own.subnet6, own.gateway6) == ("fd33:1::/64", "fd33:1::ff")


PLACES = [
    {"name": "inner", "end": "eth0", "gateways": [], "priority": 9},
    {"name": "one", "end": "eth1", "gateways": ["10.0.1.1"], "priority": 0},
    {"name": "two", "end": "eth2", "gateways": ["10.0.2.1", "fd02::1"], "priority": 0},
    {"name": "six", "end": "eth3", "gateways": ["fd03::1"], "priority": 0},
]


def test_the_first_of_the_highest_priority_leads_out() -> None:
    assert places.ways_out(PLACES) == [("eth1", "10.0.1.1"), ("eth2", "fd02::1")]
    preferred = [*PLACES[:2], {**PLACES[2], "priority": 1}, PLACES[3]]
    assert places.ways_out(preferred) == [("eth2", "10.0.2.1"), ("eth2", "fd02::1")]
    assert places.ways_out(PLACES[:1]) == []


def test_hosts_follow_the_networks_and_keep_what_others_wrote() -> None:
    def place(address: str, address6: str = "") -> dict[str, str]:
        return {"address": address, "address6": address6}

    before, now = [place("10.0.1.2", "fd01::2"), place("10.0.2.2")], [place("10.0.2.2"), place("10.0.3.2")]
    text = "127.0.0.1\tlocalhost\n::1\tlocalhost\n10.0.1.2\tme\nfd01::2\tme\n10.0.2.2\tme\n10.9.9.9\tmine\n"
    assert places.renew_hosts(text, before, now, "me").splitlines()[2:] == ["10.0.2.2\tme", "10.0.3.2\tme", "10.9.9.9\tmine"]


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", [(80, 0, "127.0.0.1", "tcp")]),
        ("8080:80", [(80, 8080, "127.0.0.1", "tcp")]),
        (":80/udp", [(80, 0, "127.0.0.1", "udp")]),
        ("0.0.0.0:8080:80/tcp", [(80, 8080, "0.0.0.0", "tcp")]),
        ("127.0.0.1::80", [(80, 0, "127.0.0.1", "tcp")]),
        ("[::1]:8080:80", [(80, 8080, "::1", "tcp")]),
        ("8000-8001:80-81", [(80, 8000, "127.0.0.1", "tcp"), (81, 8001, "127.0.0.1", "tcp")]),
        ("80-81", [(80, 0, "127.0.0.1", "tcp"), (81, 0, "127.0.0.1", "tcp")]),
    ],
)
def test_publish(text: str, ports: list[tuple[int, int, str, str]]) -> None:
    assert list(parse_publish(text)) == ports


@pytest.mark.parametrize(
    "text", ["", ":", "x", "0", "70000", "1:2:3:4", "8080:80/sctp", "1-2:3", "2-1", "1-", "-1", "300.0.0.1:1:1", "[x]:1:1", "80:", "٣"]
)
def test_publish_of_what_is_no_port(text: str) -> None:
    with pytest.raises(InvalidOption):
        parse_publish(text)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (RunOptions(), "none"),  # the tests' own SANDBOX_NETWORK
        (RunOptions(publish=(parse_publish("80"),)), "bridge"),
        (RunOptions(publish_all=True), "bridge"),
        (RunOptions(network="none", publish_all=True), "none"),
        (RunOptions(network="lab"), "lab"),
    ],
)
def test_a_container_that_publishes_has_a_network(options: RunOptions, name: str) -> None:
    assert options.network_name == name


@pytest.mark.parametrize(
    ("env", "publishes", "name"),
    [
        ({"SANDBOX_NETWORK": "none"}, False, "none"),
        ({"SANDBOX_NETWORK": "none"}, True, "bridge"),
        ({"SANDBOX_NETWORK": "host"}, False, "host"),
        ({"SANDBOX_NETWORK": "lab"}, True, "lab"),
        ({}, True, "bridge"),
    ],
)
def test_the_default_network_is_what_the_environment_says(env: dict[str, str], publishes: bool, name: str) -> None:
    assert default_network(env, publishes=publishes) == name


def test_the_default_network_of_root_is_a_bridge_and_of_others_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status = tmp_path / "status"
    for uid, held, name in ((0, "000001ffffffffff", "bridge"), (0, "0000000000000000", "none"), (1000, "000001ffffffffff", "none")):
        status.write_text(f"Name:\tx\nCapEff:\t{held}\n")
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        assert default_network({}, status=status) == name


@pytest.mark.parametrize("text", ["", "a b", " none"])
def test_a_default_that_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="SANDBOX_NETWORK"):
        default_network({"SANDBOX_NETWORK": text})


def test_the_owner_of_a_port_is_found_by_its_socket(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert owner_of(tmp_path, port, "tcp").startswith("process ")
        assert owner_of(tmp_path, port, "udp") == ""
    assert owner_of(tmp_path, port, "tcp") == ""
