"""Containers in several networks, into and out of them while they run, and in another's: as their user meets it. Real traffic."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.runtime.init import procs
from sandbox.runtime.network.networks import bridge_prefix
from tests.support.command_line import command_line
from tests.support.host import requires
from tests.support.networked import Site, links, where_bridges_are

pytestmark = [requires("networks"), pytest.mark.anybody, pytest.mark.xdist_group("network")]

LOOK = """import json, socket, sys
def ways(path): return [line.split()[0] for line in open(path).readlines()[1:] if line.split()[1] == '00000000']
def found(name):
    try: return sorted({each[4][0] for each in socket.getaddrinfo(name, 80, socket.AF_INET)})
    except OSError: return []
hosts = [line.split()[0] for line in open('/etc/hosts') if line.split()[1:] == [socket.gethostname()] and '.' in line]
links = sorted(name for _, name in socket.if_nameindex() if name != 'lo')
names = {name: found(name) for name in sys.argv[1:]}
print(json.dumps({'default': ways('/proc/net/route'), 'names': names, 'hosts': hosts, 'links': links}))
"""
REACH = """import socket, sys
for target in sys.argv[1:]:
    try: print(socket.create_connection((target, 80), timeout=2).close())
    except OSError as err: print(type(err).__name__)
"""


SERVERS = {"web-one": "one", "web-two": "two", "web-inner": "inner"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, python_tar: Path) -> Iterator[Site]:
    """With the networks one, two and inner (internal), and a server in each."""
    with command_line(tmp_path_factory.mktemp("network") / "engine") as sandbox:
        sandbox.ok("load", "-i", str(python_tar))
        sandbox.ok("tag", "localhost/python", "python")
        for name, *flags in (("one", "--ipv6"), ("two", "--ipv6"), ("inner", "--internal")):
            sandbox.ok("network", "create", *flags, name)
        made = Site(sandbox)
        for server, network in SERVERS.items():
            made.serve(server, "--network", network)
        yield made
        sandbox.ok("rm", "-f", *sandbox.ok("ps", "-aq").out.split())
        sandbox.ok("prune", "-f")


@pytest.fixture
def site(built: Site) -> Iterator[Site]:
    yield built
    if others := set(built.sandbox.ok("ps", "-a", "--format", "{{.Names}}").lines) - SERVERS.keys():
        built.sandbox.ok("rm", "-f", *others)


def look(site: Site, name: str, *names: str) -> dict[str, object]:
    """What a running container sees: its way out, others by their names, its own /etc/hosts, its links."""
    return dict(json.loads(site.sandbox.ok("exec", name, "python", "-c", LOOK, *names).out))


def reach(site: Site, name: str, *targets: str) -> list[bool]:
    """Which of them it can connect to."""
    return [line == "None" for line in site.sandbox.ok("exec", name, "python", "-c", REACH, *targets).lines]


def addresses(site: Site, name: str) -> dict[str, str]:
    """Network → address."""
    networks = site.facts(name)["Networks"]
    assert isinstance(networks, dict)
    return {network: facts["IPAddress"] for network, facts in networks.items()}


def test_one_in_several_networks_reaches_and_is_found_in_each(site: Site) -> None:
    flags = ("--network", "inner", "--network", "one", "--network", "name=two,alias=both,gw-priority=5")
    site.sandbox.ok("run", "-d", "--name", "me", *flags, "python", "sleep", "1000")
    own = addresses(site, "me")
    assert list(own) == ["inner", "one", "two"]
    seen = look(site, "me", "web-one", "web-two", "web-inner")
    assert (seen["links"], seen["default"], seen["hosts"]) == (["eth0", "eth1", "eth2"], ["eth2"], list(own.values()))
    assert seen["names"] == {f"web-{each}": [str(site.facts(f"web-{each}")["IPAddress"])] for each in ("one", "two", "inner")}
    assert reach(site, "me", "web-one", "web-two", "web-inner") == [True] * 3
    assert look(site, "web-two", "me", "both")["names"] == {"me": [own["two"]], "both": [own["two"]]}
    assert look(site, "web-one", "me", "both")["names"] == {"me": [own["one"]], "both": []}
    site.sandbox.ok("stop", "-t", "0", "me")
    assert list(addresses(site, "me").values()) == ["", "", ""]


def test_into_another_network_and_out_again_while_it_runs(site: Site) -> None:
    site.sandbox.ok("run", "-d", "--name", "me", "--network", "one", "python", "sleep", "1000")
    subnet = json.loads(site.sandbox.ok("network", "inspect", "two").out)[0]["IPAM"]["Config"][0]["Subnet"]
    wanted = subnet.replace(".0/24", ".77")
    assert reach(site, "me", "web-one", "web-two") == [True, False]
    site.sandbox.ok("network", "connect", "--alias", "also", "--ip", wanted, "--mac-address", "02:42:00:00:00:77", "two", "me")
    assert addresses(site, "me")["two"] == wanted
    assert reach(site, "me", "web-one", "web-two") == [True, True]
    assert look(site, "web-two", "me", "also")["names"] == {"me": [wanted], "also": [wanted]}
    seen = look(site, "me")
    assert (seen["links"], seen["default"], seen["hosts"]) == (["eth0", "eth1"], ["eth0"], list(addresses(site, "me").values()))
    assert site.sandbox.ok("exec", "me", "cat", "/sys/class/net/eth1/address").out == "02:42:00:00:00:77\n"
    first = addresses(site, "me")["one"]
    site.sandbox.ok("network", "disconnect", "one", "me")
    assert addresses(site, "me") == {"two": wanted}
    assert reach(site, "me", "web-two", "web-one", str(site.facts("web-one")["IPAddress"])) == [True, False, False]
    seen = look(site, "me")
    assert (seen["links"], seen["default"], seen["hosts"]) == (["eth1"], ["eth1"], [wanted])
    assert first not in traces(site)
    site.sandbox.ok("restart", "-t", "0", "me")
    assert addresses(site, "me") == {"two": wanted}
    assert reach(site, "me", "web-two") == [True]
    site.sandbox.ok("rm", "-f", "me")
    assert wanted not in traces(site)


def traces(site: Site) -> str:
    """All that this machine has of our networks' rules, and the leases of the engine."""
    rules = where_bridges_are(site.sandbox.root, "nft", "list", "ruleset")
    return f"{rules}\n{[str(path) for path in (site.sandbox.root / 'networks').glob('*/*')]}"


def members(site: Site) -> list[object]:
    """Who is in which network, and the links that lead to them."""
    shown = json.loads(site.sandbox.ok("network", "inspect", "one", "two", "inner").out)
    prefix = "v" + bridge_prefix(site.sandbox.root).removeprefix("sbx")
    ours = [name for name in links(site.sandbox.root) if name.startswith(prefix)]
    held = {container[:6] for network in shown for container in network["Containers"]}
    return [[network["Containers"] for network in shown], [name for name in ours if name[-6:] in held]]


def test_a_stopped_container_is_changed_for_its_next_start(site: Site) -> None:
    site.sandbox.ok("create", "--name", "me", "--network", "one", "python", "sleep", "1000")
    site.sandbox.ok("network", "connect", "--alias", "also", "two", "me")
    site.sandbox.ok("network", "disconnect", "one", "me")
    site.sandbox.ok("start", "me")
    assert list(addresses(site, "me")) == ["two"]
    assert look(site, "web-two", "also")["names"] == {"also": [addresses(site, "me")["two"]]}
    site.sandbox.ok("network", "disconnect", "two", "me")
    assert look(site, "me")["links"] == []
    site.sandbox.ok("network", "connect", "one", "me")  # it was started with a name server
    assert reach(site, "me", "web-one") == [True]


def test_ports_follow_to_the_network_it_is_left_in(site: Site) -> None:
    site.serve("me", "--network", "one", "-p", "80")
    port = int(site.sandbox.ok("port", "me", "80").out.rpartition(":")[2])
    site.sandbox.ok("network", "connect", "two", "me")
    site.sandbox.ok("network", "disconnect", "one", "me")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as end:
        end.sendall(b"hi")
        assert end.recv(99).endswith(b" hi")
    assert int(site.sandbox.ok("port", "me", "80").out.rpartition(":")[2]) == port


def test_a_list_holds_in_a_network_that_came_later(site: Site) -> None:
    allowed = str(site.facts("web-two")["IPAddress"])
    other = site.serve("other", "--network", "two")
    site.sandbox.ok("run", "-d", "--name", "me", "--network", "one", "--allow-net", f"{allowed}:80", "python", "sleep", "1000")
    site.sandbox.ok("network", "connect", "two", "me")
    assert reach(site, "me", allowed, other) == [True, False]
    site.sandbox.ok("network", "disconnect", "one", "me")
    assert reach(site, "me", allowed, other) == [True, False]


def test_a_new_name_is_found_at_once_and_after_a_restart(site: Site) -> None:
    site.sandbox.ok("run", "-d", "--name", "me", "--network", "one", "python", "sleep", "1000")
    site.sandbox.ok("rename", "me", "myself")
    own = addresses(site, "myself")["one"]
    assert look(site, "web-one", "me", "myself")["names"] == {"me": [], "myself": [own]}
    site.sandbox.ok("restart", "-t", "0", "myself")
    assert look(site, "web-one", "me", "myself")["names"] == {"me": [], "myself": [addresses(site, "myself")["one"]]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("connect", "nowhere", "web-one"), "network nowhere: there is none"),
        (("connect", "two", "nobody"), "nobody: no such container"),
        (("connect", "one", "web-one"), "is in network one already"),
        (("connect", "--ip", "10.0.0.1", "two", "web-one"), "--ip 10.0.0.1"),
        (("connect", "--mac-address", "x", "two", "web-one"), "--mac-address"),
        (("disconnect", "two", "web-one"), "is not connected to network two"),
        (("disconnect", "nowhere", "web-one"), "network nowhere: there is none"),
        (("connect", "two", "aside"), "has another container's network"),
        (("connect", "two", "alone"), "was started without a network"),
    ],
)
def test_changes_that_cannot_be_say_why(site: Site, words: tuple[str, ...], message: str) -> None:
    if words[-1] in ("aside", "alone"):
        network = {"aside": "container:web-one", "alone": "none"}[words[-1]]
        site.sandbox.ok("run", "-d", "--name", words[-1], "--network", network, "python", "sleep", "1000")
    before = members(site)
    done = site.sandbox("network", *words)
    assert (done.status, message in done.err) == (1, True), done.err
    assert members(site) == before


def test_another_containers_network_is_shared(site: Site) -> None:
    site.serve("me", "--network", "one")
    inside = ("--network", "container:me")
    script = "import os, socket; print(socket.gethostname(), open('/etc/hosts').read() + open('/etc/resolv.conf').read(), os.getuid())"
    own = site.sandbox.ok("exec", "me", "python", "-c", script).out
    assert site.sandbox.ok("run", "--rm", *inside, "python", "python", "-c", script).out == own
    assert site.call("127.0.0.1", 80, *inside) == "127.0.0.1 hi"
    site.serve("aside", *inside, port=81)
    assert site.call("me", 81, "--network", "one").endswith(" hi")
    processes = site.sandbox.ok("exec", "aside", "sh", "-c", "ls /proc | grep -c '^[0-9]'").out
    assert int(processes) < 6  # its processes, files and users stay its own
    site.sandbox.ok("network", "connect", "two", "me")
    assert reach(site, "aside", "web-two") == [True]
    site.sandbox.ok("stop", "-t", "0", "me")
    gone = site.sandbox("run", "--rm", *inside, "python", "true")
    assert (gone.status, "container that is not running" in gone.err) == (125, True)
    site.sandbox.ok("start", "me")  # the old network is still held by the other
    assert reach(site, "web-two", addresses(site, "me")["two"]) == [True]
    site.sandbox.ok("restart", "-t", "0", "aside")
    assert site.call("me", 81, "--network", "one").endswith(" hi")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-p", "80"), "conflicting options: port publishing and the container type network mode"),
        (("--hostname", "x"), "conflicting options: hostname and the network mode"),
        (("--dns", "192.0.2.1"), "conflicting options: dns and the network mode"),
        (("--add-host", "a:192.0.2.1"), "conflicting options: custom host-to-IP mapping and the network mode"),
        (("--allow-net", "192.0.2.1"), "conflicting options: allow-net"),
        (("--network", "two"), "cannot be combined"),
    ],
)
def test_what_belongs_to_the_other_is_refused(site: Site, flags: tuple[str, ...], message: str) -> None:
    done = site.sandbox("run", "--rm", "--network", "container:web-one", *flags, "python", "true")
    assert (done.status, message in done.err) == (125, True), done.err


def test_whoever_shares_a_network_is_nobody_on_this_machine(site: Site) -> None:
    """With every capability it is root of that network, and what it makes elsewhere is that container's."""
    flags = ("--network", "container:web-one", "--privileged")
    shown = site.sandbox.ok("run", "--rm", *flags, "python", "cat", "/proc/self/uid_map").out
    assert shown == site.sandbox.ok("exec", "web-one", "cat", "/proc/self/uid_map").out
    assert procs.root_of(site.sandbox.json("inspect", "web-one")[0]["State"]["Pid"]) != 0
    changed = "print(open('/proc/sys/net/ipv4/ip_forward', 'w').write('0'))"
    assert site.sandbox.ok("run", "--rm", *flags, "python", "python", "-c", changed).out == "1\n"
    assert where_bridges_are(site.sandbox.root, "cat", "/proc/sys/net/ipv4/ip_forward") == "1\n"
