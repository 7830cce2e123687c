"""The netlink that networks are made of, in a network namespace of the test's own: two neighbours on one bridge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_INSIDE = r"""
import ipaddress, json, os, signal, socket, subprocess, sys
from sandbox.runtime.init import netlink as n, syscalls as s
from sandbox.runtime.network import rules
from sandbox.runtime.network.leases import link_local_of

BRIDGE, LINKS = "sbxtest000", ("vtest0001", "vtest0002")
MACS, ADDRESSES = ("02:42:0a:63:63:02", "02:42:0a:63:63:03"), ("10.99.99.2", "10.99.99.3")

ADDRESSES6 = ("fd99::2", "fd99::3")

def icmp6(source, target, body):
    # with its checksum (RFC 4443)
    packed = [socket.inet_pton(socket.AF_INET6, each) for each in (source, target)]
    total = b"".join(packed) + len(body).to_bytes(4, "big") + b"\0\0\0\x3a" + body
    number = sum(int.from_bytes(total[i:i + 2], "big") for i in range(0, len(total), 2))
    while number >> 16:
        number = (number & 0xFFFF) + (number >> 16)
    body = body[:2] + (~number & 0xFFFF).to_bytes(2, "big") + body[4:]
    return b"\x60\0\0\0" + len(body).to_bytes(2, "big") + b"\x3a\xff" + b"".join(packed) + body

def send(mac, packet):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as end:
        end.bind(("eth0", 0))
        end.send(bytes.fromhex("333300000001") + n.mac_bytes(mac) + b"\x86\xdd" + packet)

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
    listener = listener6 = None
    for line in orders:
        verb, *words = json.loads(line)
        result = True
        if verb == "configure":
            with n.Netlink() as net:
                index = socket.if_nametoindex("eth0")
                n.set_up(net, 1), n.set_up(net, index), n.add_address(net, index, words[0], 24)
                n.add_route(net, index, "10.99.99.1")
                n.add_address(net, index, words[1], 64)
        elif verb == "listen":
            listener = socket.create_server(("0.0.0.0", 80))
        elif verb == "claim":
            with n.Netlink() as net:
                n.add_address(net, socket.if_nametoindex("eth0"), words[0], 64 if ":" in words[0] else 24)
        elif verb == "advertise":  # another's address is at ours (RFC 4861, 4.4), for all nodes
            source, target, mac = words
            own = socket.inet_pton(socket.AF_INET6, target) + b"\2\1" + n.mac_bytes(mac)
            send(mac, icmp6(source, "ff02::1", b"\x88\0\0\0\x20\0\0\0" + own))
        elif verb == "route":  # we are a router (4.2)
            send(words[1], icmp6(words[0], "ff02::1", b"\x86\0\0\0\x40\0\x07\x08" + bytes(8)))
        elif verb == "neighbours":
            rows = subprocess.run(["ip", "-6", "-j", "neigh"], capture_output=True, text=True).stdout
            result = {each["dst"]: each.get("lladdr") for each in json.loads(rows)}
        elif verb == "routers":
            result = [line.split()[-1] for line in open("/proc/net/ipv6_route") if line.split()[1] == "00" and line.split()[-1] == "eth0"]
        elif verb == "listen6":
            listener6 = socket.create_server(("::", 80), family=socket.AF_INET6)
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

def six(people, locals6):
    # whether the neighbour is reached, by a borrowed address too; who it takes this machine for, and whom for a router
    honest = order(people[0], "connect", ADDRESSES6[0], ADDRESSES6[1])
    borrowed = order(people[0], "connect", "fd99::77", ADDRESSES6[1])
    order(people[1], "connect", ADDRESSES6[1], "fd99::1")  # now it knows this machine
    for source in (ADDRESSES6[0], locals6[0]):
        order(people[0], "advertise", source, "fd99::1", MACS[0])
        order(people[0], "route", source, MACS[0])
    order(people[0], "connect", ADDRESSES6[0], ADDRESSES6[1])  # what was sent before has come
    return [honest, borrowed, order(people[1], "neighbours").get("fd99::1"), order(people[1], "routers")]

def main():
    found = {}
    people = [neighbour(0), neighbour(1)]
    with n.Netlink() as net:
        n.set_up(net, 1)
        index = n.add_bridge(net, BRIDGE, "a test", "02:42:0a:63:63:01")
        n.add_address(net, index, "10.99.99.1", 24)
        n.add_address(net, index, "fd99::1", 64)
        locals6 = [link_local_of(mac) for mac in MACS]
        each = [n.owner_keys(*both[:2], both[2:]) for both in zip(LINKS, MACS, ADDRESSES, ADDRESSES6, locals6)]
        owners = {name: [key for keys in each for key in keys[name]] for name in (n.OWNERS, n.OWNERS6)}
        rules.install(n.Netlink, BRIDGE, [ipaddress.IPv4Network("10.99.99.0/24")], internal=False, owners=owners)
        for link, person, mac in zip(LINKS, people, MACS):
            n.add_veth(net, link, index, "eth0", person[0], mac)
    for person, address, address6 in zip(people, ADDRESSES, ADDRESSES6):
        order(person, "configure", address, address6)
    order(people[1], "listen")
    found["honest"] = order(people[0], "connect", ADDRESSES[0], ADDRESSES[1])
    order(people[0], "claim", "10.99.99.77"), order(people[0], "claim", "fd99::77")
    order(people[1], "listen6")
    found["spoofed"] = order(people[0], "connect", "10.99.99.77", ADDRESSES[1])
    with socket.create_server(("127.0.0.1", 80)):
        found["loopback"] = order(people[0], "connect", ADDRESSES[0], "127.0.0.1")
    found["version 6"] = six(people, locals6)
    rules.drop_owner(n.Netlink, BRIDGE, LINKS[0], MACS[0], [ADDRESSES[0]])
    rules.drop_owner(n.Netlink, BRIDGE, LINKS[0], MACS[0], [ADDRESSES[0]])
    found["forgotten"] = order(people[0], "connect", ADDRESSES[0], ADDRESSES[1])
    rules.remove(n.Netlink, BRIDGE)
    found["removed"] = sorted(rules.tables(n.Netlink))
    found["version 6 without rules"] = six(people, locals6)
    found["without rules"] = order(people[0], "connect", "10.99.99.77", ADDRESSES[1])
    rules.install(n.Netlink, BRIDGE, [ipaddress.IPv4Network("10.99.99.0/24")], internal=True, owners=owners)
    rules.install(n.Netlink, BRIDGE, [ipaddress.IPv4Network("10.99.99.0/24")], internal=True, owners=owners)
    found["again"] = order(people[0], "connect", ADDRESSES[0], ADDRESSES[1])
    found["installed"] = rules.are_installed(n.Netlink, BRIDGE)
    try:
        rules.install(n.Netlink, "x" * 300, [ipaddress.IPv4Network("10.99.99.0/24")], internal=False, owners={})
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


def test_nobody_is_another_or_a_router_by_ipv6(found: dict[str, object]) -> None:
    assert found["version 6"] == [True, "TimeoutError", "02:42:0a:63:63:01", []]
    assert found["version 6 without rules"] == [True, True, "02:42:0a:63:63:02", ["eth0"]]  # the twin


def test_the_hosts_loopback_is_out_of_reach(found: dict[str, object]) -> None:
    assert found["loopback"] == "ConnectionRefusedError"  # it is the container's own, where nobody listens


def test_a_lease_that_is_over_sends_nothing_more(found: dict[str, object]) -> None:
    assert found["forgotten"] != found["honest"]


def test_rules_are_made_anew_and_taken_away_whole(found: dict[str, object]) -> None:
    assert (found["again"], found["installed"], found["removed"]) == (True, True, [])


def test_what_linux_refuses_is_an_error(found: dict[str, object]) -> None:
    assert found["refused"] == 22 or found["refused"] == 34 or found["refused"] == 36
