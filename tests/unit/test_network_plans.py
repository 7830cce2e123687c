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
from sandbox.runtime.network import networks
from sandbox.runtime.network.networks import Networks, bridge_prefix, host_routes
from sandbox.runtime.network.ports import owner_of

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0000B10A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
tun0\t00001EAC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""


@pytest.fixture
def made(tmp_path: Path) -> Networks:
    return Networks(tmp_path / "root", lambda _: False)


def test_routes_of_the_host_are_read_but_for_the_default_one(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(ROUTES)
    assert [str(each) for each in host_routes(tmp_path / "route")] == ["10.177.0.0/16", "172.30.0.0/16"]


def test_a_subnet_avoids_the_hosts_routes(made: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "host_routes", lambda: [ipaddress.IPv4Network("10.177.0.0/16"), ipaddress.IPv4Network("172.30.0.0/16")])
    assert made.create("lab").addresses.subnet_of(ipaddress.IPv4Network("192.168.0.0/16"))
    monkeypatch.setattr(networks, "host_routes", lambda: [ipaddress.IPv4Network("0.0.0.0/1"), ipaddress.IPv4Network("128.0.0.0/1")])
    with pytest.raises(NetworkError, match="every range"):
        made.create("other")


def test_networks_of_one_engine_and_of_two_differ(made: Networks, tmp_path: Path) -> None:
    one, two = made.create("one"), made.create("two")
    other = Networks(tmp_path / "another", lambda _: False).create("one")
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
    ("subnet", "gateway"),
    [("10.1.1.0/30", None), ("10.1.1.1/24", None), ("x", None), ("10.1.1.0/24", "10.1.2.1"), ("10.1.1.0/24", "10.1.1.255")],
)
def test_subnets_and_gateways_that_are_none(made: Networks, subnet: str, gateway: str | None) -> None:
    with pytest.raises(InvalidOption):
        made.create("lab", subnet=subnet, gateway=gateway)
    with pytest.raises(NetworkNotFound):
        made.find("lab")


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
