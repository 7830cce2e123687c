"""The netlink that networks are made of, in a network namespace of the test's own: two neighbours on one bridge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_INSIDE = r"""
import ipaddress, json, os, signal, socket, sys
from sandbox.runtime.init import netlink as n, syscalls as s
from sandbox.runtime.network import rules

BRIDGE, LINKS = "sbxtest000", ("vtest0001", "vtest0002")
MACS, ADDRESSES = ("02:42:0a:63:63:02", "02:42:0a:63:63:03"), ("10.99.99.2", "10.99.99.3")

def neighbour(number):
    # a process in a network namespace of its own that waits for its link, then answers orders
    orders, answers = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        s.prctl(s.PR_SET_PDEATHSIG, signal.SIGKILL)
        s.unshare(s.NAMESPACES["net"])
        os.write(answers[1], b"\n")
        serve(number, os.fdopen(orders[0]), answers[1])
        os._exit(0)
    assert os.read(answers[0], 1)
    return pid, orders[1], os.fdopen(answers[0])

def serve(number, orders, answers):
    listener = None
    for line in orders:
        verb, *words = json.loads(line)
        result = True
        if verb == "configure":
            with n.Netlink() as net:
                index = socket.if_nametoindex("eth0")
                n.set_up(net, 1), n.set_up(net, index), n.add_address(net, index, words[0], 24)
                n.add_route(net, index, "10.99.99.1")
        elif verb == "listen":
            listener = socket.create_server(("0.0.0.0", 80))
        elif verb == "claim":
            with n.Netlink() as net:
                n.add_address(net, socket.if_nametoindex("eth0"), words[0], 24)
        elif verb == "connect":
            try:
                source, target = words
                socket.create_connection((target, 80), timeout=1.5, source_address=(source, 0)).close()
            except OSError as err:
                result = type(err).__name__
        os.write(answers, json.dumps(result).encode() + b"\n")

def order(who, *words):
    os.write(who[1], json.dumps(words).encode() + b"\n")
    return json.loads(who[2].readline())

def main():
    found = {}
    people = [neighbour(0), neighbour(1)]
    with n.Netlink() as net:
        n.set_up(net, 1)
        index = n.add_bridge(net, BRIDGE, "a test", "02:42:0a:63:63:01")
        n.add_address(net, index, "10.99.99.1", 24)
        owners = [n.owner_key(*each) for each in zip(LINKS, MACS, ADDRESSES)]
        rules.install(BRIDGE, ipaddress.IPv4Network("10.99.99.0/24"), internal=False, owners=owners)
        for link, person, mac in zip(LINKS, people, MACS):
            n.add_veth(net, link, index, "eth0", person[0], mac)
    for person, address in zip(people, ADDRESSES):
        order(person, "configure", address)
    order(people[1], "listen")
    found["honest"] = order(people[0], "connect", ADDRESSES[0], ADDRESSES[1])
    order(people[0], "claim", "10.99.99.77")
    found["spoofed"] = order(people[0], "connect", "10.99.99.77", ADDRESSES[1])
    with socket.create_server(("127.0.0.1", 80)):
        found["loopback"] = order(people[0], "connect", ADDRESSES[0], "127.0.0.1")
    rules.drop_owner(BRIDGE, LINKS[0], MACS[0], ADDRESSES[0])
    rules.drop_owner(BRIDGE, LINKS[0], MACS[0], ADDRESSES[0])
    found["forgotten"] = order(people[0], "connect", ADDRESSES[0], ADDRESSES[1])
    rules.remove(BRIDGE)
    found["removed"] = sorted(rules.tables())
    found["without rules"] = order(people[0], "connect", "10.99.99.77", ADDRESSES[1])
    rules.install(BRIDGE, ipaddress.IPv4Network("10.99.99.0/24"), internal=True, owners=owners)
    rules.install(BRIDGE, ipaddress.IPv4Network("10.99.99.0/24"), internal=True, owners=owners)
    found["again"] = order(people[0], "connect", ADDRESSES[0], ADDRESSES[1])
    found["installed"] = rules.are_installed(BRIDGE)
    try:
        rules.install("x" * 300, ipaddress.IPv4Network("10.99.99.0/24"), internal=False, owners=[])
    except OSError as err:
        found["refused"] = err.errno
    for person in people:
        os.kill(person[0], signal.SIGKILL)
    print(json.dumps(found))

main()
"""


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    """What the script in its own namespace saw."""
    checkout = str(Path(__file__).resolve().parents[2])
    command = ["unshare", "--net", sys.executable, "-c", _INSIDE]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


pytestmark = pytest.mark.requires("root")


def test_neighbours_on_one_bridge_reach_each_other(found: dict[str, object]) -> None:
    assert found["honest"] is True


def test_an_address_that_is_not_ones_own_is_dropped(found: dict[str, object]) -> None:
    assert found["spoofed"] != found["honest"]
    assert found["without rules"] is True  # it is our rules that drop it


def test_the_hosts_loopback_is_out_of_reach(found: dict[str, object]) -> None:
    assert found["loopback"] == "ConnectionRefusedError"  # it is the container's own, where nobody listens


def test_a_lease_that_is_over_sends_nothing_more(found: dict[str, object]) -> None:
    assert found["forgotten"] != found["honest"]


def test_rules_are_made_anew_and_taken_away_whole(found: dict[str, object]) -> None:
    assert (found["again"], found["installed"], found["removed"]) == (True, True, [])


def test_what_linux_refuses_is_an_error(found: dict[str, object]) -> None:
    assert found["refused"] == 22 or found["refused"] == 34 or found["refused"] == 36
