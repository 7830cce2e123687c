"""--network, --network-rate and --allow-net: what is understood, and what is refused."""

from __future__ import annotations

import re

import pytest

from sandbox.errors import ContainerNotFound, InvalidOption
from sandbox.network_options import parse_allow_net, parse_network_rate
from sandbox.networking import make_network, parse_network
from sandbox.options import RunOptions
from sandbox.records import Record
from sandbox.runtime.spec import Allowed, Endpoint


@pytest.mark.parametrize(
    ("text", "bits"),
    [("10mbit", 10_000_000), ("1.5gbit", 1_500_000_000), ("64kbit", 64_000), ("1MBPS", 8_000_000), ("1mibit", 1 << 20), ("9000bit", 9000)],
)
def test_rates_are_tcs(text: str, bits: int) -> None:
    assert parse_network_rate(text) == bits


@pytest.mark.parametrize("text", ["10", "10m", "10mb", "-1mbit", "0mbit", "1bit", "mbit", "9tbit0", "9999tbit", ""])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="--network-rate"):
        parse_network_rate(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("packages.Example.org:443", ["packages.example.org:443"]),
        ("*.example.org, a.b.", ["*.example.org", "a.b"]),
        ("10.0.0.0/8:53/udp,192.0.2.1", ["10.0.0.0/8:53/udp", "192.0.2.1/32"]),
        ("[2001:db8::]/32:443,2001:db8::1", None),
        ("[2001:db8::]/32:443/tcp", ["[2001:db8::]/32:443/tcp"]),
        ("_srv.host-1:1,localhost", ["_srv.host-1:1", "localhost"]),
    ],
)
def test_targets_are_names_and_subnets(text: str, shown: list[str] | None) -> None:
    if shown is None:
        with pytest.raises(InvalidOption):
            parse_allow_net(text)  # an IPv6 address is written in brackets
    else:
        assert [str(Allowed(*each)) for each in parse_allow_net(text)] == shown


@pytest.mark.parametrize(
    "text", ["http://x", "a b", "x:0", "x:http", "x:70000", "10.0.0.1/8", "x:80/sctp", "*", "*.*.x", "[::1", "300.1.1", "-x", "a..b", "x:"]
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="--allow-net"):
        parse_allow_net(text)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("lab", Endpoint("lab")),
        ("name=lab", Endpoint("lab")),
        ("name=lab,alias=a,alias=b,ip=10.0.0.2", Endpoint("lab", address="10.0.0.2", names=("a", "b"))),
        (
            "name=lab,ip6=fd00::2,mac-address=02:42:ac:11:00:02,gw-priority=-1",
            Endpoint("lab", None, "fd00::2", "02:42:ac:11:00:02", (), -1),
        ),
        ("alias=a", None),
        ("name=", None),
        ("name=lab,alias", None),
        ("name=lab,colour=red", None),
        ("name=lab,gw-priority=high", None),
    ],
)
def test_networks_are_names_or_in_dockers_long_form(text: str, endpoint: Endpoint | None) -> None:
    if endpoint is None:
        with pytest.raises(InvalidOption, match="not a network"):
            parse_network(text)
    else:
        assert parse_network(text) == endpoint


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (RunOptions(network=("lab", "none")), "--network none: cannot be combined"),
        (RunOptions(network=("container:a", "lab")), "--network container:a: cannot be combined"),
        (RunOptions(network=("lab", "name=lab,ip=10.0.0.2")), "--network lab: given twice"),
        (RunOptions(network="none", ip6="fd00::2"), "--ip6: --network none has no addresses"),
        (RunOptions(network="lab", dns=("x",)), "--dns"),
    ],
)
def test_networks_that_contradict_each_other_are_refused(options: RunOptions, words: str) -> None:
    with pytest.raises(InvalidOption, match=re.escape(words)):
        make_network(options, _nobody)


def _nobody(name: str) -> Record:
    raise ContainerNotFound(name)
