"""Containers in networks, as their user meets them: out, each other, published ports; and what keeps them apart. Real traffic."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine, command_line
from tests.support.host import requires
from tests.support.networked import REVERSE, UPPER, Site, where_bridges_are

pytestmark = [requires("networks"), pytest.mark.anybody, pytest.mark.xdist_group("network")]

@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, python_tar: Path) -> Iterator[CommandLine]:
    with command_line(tmp_path_factory.mktemp("network") / "engine") as made:
        made.ok("load", "-i", str(python_tar))
        made.ok("tag", "localhost/python", "python")
        yield made
        made.ok("prune", "-f")


@pytest.fixture
def site(sandbox: CommandLine) -> Iterator[Site]:
    yield Site(sandbox)
    if names := sandbox.ok("ps", "-aq").out.split():
        sandbox.ok("rm", "-f", *names)
    sandbox.ok("network", "prune", "-f")


def call(port: int, address: str = "127.0.0.1", data: bytes = b"hi") -> bytes:
    with socket.create_connection((address, port), timeout=10) as end:
        end.sendall(data)
        return b"".join(iter(lambda: end.recv(1 << 16), b""))


def test_a_container_reaches_the_package_index_and_knows_itself(site: Site) -> None:
    script = "python -m pip download -q --no-deps -d /tmp six==1.16.0 >&2; ls /tmp; cat /etc/hosts"
    done = site.sandbox.ok("run", "--rm", "--network", "bridge", "--hostname", "me", "python", "sh", "-c", script)
    assert "six-1.16.0-py2.py3-none-any.whl" in done.lines
    assert any(line.endswith("\tme") and line.startswith("10.") for line in done.lines)


def test_where_nothing_is_said_it_is_in_the_network_of_the_environment(site: Site) -> None:
    def links(**env: str) -> str:
        return site.sandbox.ok("run", "--rm", "python", "ls", "/sys/class/net", env=env).out

    assert "eth0" in links(SANDBOX_NETWORK="bridge").split()
    assert "eth0" not in links(SANDBOX_NETWORK="none").split()
    done = site.sandbox("run", "--rm", "python", "true", env={"SANDBOX_NETWORK": "nowhere"})
    assert (done.status, "network nowhere: there is none" in done.err) == (125, True)


def test_without_a_network_nobody_is_reached(site: Site) -> None:
    address = site.serve("web", "--network", "bridge")
    assert site.call(address, 80) == "OSError"  # the twin of all that follow: no route
    assert site.call(address, 80, "--network", "bridge").endswith(" hi")


def test_names_follow_who_comes_and_goes(site: Site) -> None:
    site.sandbox.ok("network", "create", "lab")
    first = site.serve("web", "--network", "lab", "--network-alias", "www")
    inside = ("--network", "lab")
    for name in ("web", "WWW", first):
        assert site.call(name, 80, *inside).endswith(" hi"), name
    lookup = "import socket; print(socket.gethostbyname('web'), socket.gethostbyaddr(socket.gethostbyname('web'))[0])"
    assert site.sandbox.ok("run", "--rm", *inside, "python", "python", "-c", lookup).out == f"{first} web\n"
    site.sandbox.ok("rm", "-f", "web")
    assert site.call("web", 80, *inside) == "gaierror"
    site.serve("other", *inside)
    site.serve("web", *inside, port=81)
    assert site.call("web", 81, *inside).endswith(" hi")


NAME_SERVER = """import socket, sys
def ask(kind, server):
    end = socket.socket(type=kind); end.settimeout(5); end.connect((server, 53))
    question = b'\\1\\2\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\3web\\0\\0\\1\\0\\1'
    end.send(question if kind == socket.SOCK_DGRAM else len(question).to_bytes(2, 'big') + question)
    return socket.inet_ntoa(end.recv(999)[-4:])
print([ask(kind, '127.0.0.11') for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)], socket.gethostbyname('web'))
try:
    own = socket.socket(type=socket.SOCK_DGRAM); own.bind(('', 53)); stream = socket.create_server(('', 53))
    print([ask(kind, '127.0.0.11') for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)])
    end = socket.create_connection(('127.0.0.1', 53), 5); stream.accept()[0].send(b'own'); print(end.recv(9).decode())
except OSError as err:
    print(err.strerror)
"""


def test_names_are_told_by_datagram_and_connection_and_a_name_server_has_its_port(site: Site) -> None:
    web = str(site.serve("web", "--network", "bridge"))
    run = ("run", "--rm", "--network", "bridge")
    heard = f"['{web}', '{web}']"
    assert site.sandbox.ok(*run, "-p", "53/udp", "python", "python", "-c", NAME_SERVER).lines == [f"{heard} {web}", heard, "own"]
    # the twin: whoever does not say that it is one finds ours there
    assert site.sandbox.ok(*run, "python", "python", "-c", NAME_SERVER).lines == [f"{heard} {web}", "Address already in use"]


def test_a_mac_address_is_its_own_and_nobody_elses(site: Site) -> None:
    mac = "02:42:00:00:be:ef"
    flags = ("--network", "bridge", "--mac-address", mac.upper())
    site.sandbox.ok("run", "-d", "--name", "web", *flags, "python", "sleep", "1000")
    assert site.sandbox.ok("exec", "web", "cat", "/sys/class/net/eth0/address").out == f"{mac}\n"
    assert site.facts("web")["MacAddress"] == mac
    own = str(site.facts("web")["IPAddress"])
    assert site.call(own, 9, "--network", "bridge") == "ConnectionRefusedError"  # it is reached by it
    for text, words in ((mac, "is taken"), ("01:00:5e:00:00:01", "not a MAC address of one"), ("x", "--mac-address")):
        done = site.sandbox("run", "--rm", "--network", "bridge", "--mac-address", text, "python", "true")
        assert (done.status, words in done.err) == (125, True), done.err


@requires("root")  # whose port 53 is
def test_names_of_elsewhere_are_asked_of_the_hosts_servers(site: Site) -> None:
    ask = "import socket; print(socket.gethostbyname('far.example'))"
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.2", 53))
        server.settimeout(30)
        with site.sandbox.going("run", "--rm", "--network", "bridge", "--dns", "127.0.0.2", "python", "python", "-c", ask) as going:
            question, sender = server.recvfrom(4096)
            name = question[12 : question.index(b"\0", 12) + 5]
            answer = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton("192.0.2.7")
            server.sendto(question[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + name + answer, sender)
            assert going.stdout
            assert going.stdout.read() == b"192.0.2.7\n"


def test_networks_do_not_reach_each_other_nor_the_hosts_loopback(site: Site) -> None:
    site.sandbox.ok("network", "create", "one")
    site.sandbox.ok("network", "create", "two")
    address = site.serve("web", "--network", "one")
    assert site.call(address, 80, "--network", "two", patience=2) == "TimeoutError"
    assert site.call("web", 80, "--network", "two", patience=2) == "gaierror"
    with socket.create_server(("127.0.0.1", 0)) as canary:
        port = canary.getsockname()[1]
        assert call_refused(site, port)
        canary.settimeout(0.1)
        with pytest.raises(TimeoutError):
            canary.accept()


def call_refused(site: Site, port: int) -> bool:
    gateway = json.loads(site.sandbox.ok("network", "inspect", "one").out)[0]["IPAM"]["Config"][0]["Gateway"]
    heard = {site.call(target, port, "--network", "one", patience=2) for target in ("127.0.0.1", gateway)}
    return heard <= {"ConnectionRefusedError", "TimeoutError"}


def test_an_internal_network_has_no_way_out(site: Site) -> None:
    site.sandbox.ok("network", "create", "--internal", "inner")
    site.serve("web", "--network", "inner")
    assert site.call("web", 80, "--network", "inner").endswith(" hi")
    script = "import socket; print(socket.socket().connect_ex(('192.0.2.1', 80)))"
    done = site.sandbox.ok("run", "--rm", "--network", "inner", "python", "python", "-c", script)
    assert done.out == f"{errno.ENETUNREACH}\n"


def test_published_ports_lead_in_from_here(site: Site) -> None:
    address = site.serve("web", "-p", "80", "-p", "0.0.0.0::80", "-p", "[::1]::80")
    ports = site.sandbox.ok("port", "web").lines
    assert [line.split(" -> ")[0] for line in ports] == ["80/tcp"] * 3
    places = [line.split(" -> ")[1].rpartition(":") for line in ports]
    for place, _, port in places:
        host = {"0.0.0.0": "127.0.0.1"}.get(place, place.strip("[]"))
        assert call(int(port), host).endswith(b" hi"), place
    own = int(next(port for place, _, port in places if place == "127.0.0.1"))
    assert f"127.0.0.1:{own}->80/tcp" in site.sandbox.ok("ps", "--format", "{{.Ports}}").out
    assert site.sandbox.ok("port", "web", "80").lines[0] == f"127.0.0.1:{own}"
    assert site.sandbox("port", "web", "81").status == 1
    assert address.startswith("10.")
    site.sandbox.ok("stop", "-t", "0", "web")
    with pytest.raises(ConnectionRefusedError):
        call(own)


@requires("root")  # whose gateway is this machine
def test_published_ports_lead_in_from_other_containers_unless_they_are_on_loopback_alone(site: Site) -> None:
    site.serve("web", "-p", "80", "-p", "0.0.0.0::80")
    own, everybodys = (int(line.rpartition(":")[2]) for line in site.sandbox.ok("port", "web").lines)
    gateway = str(site.facts("web")["Gateway"])
    assert site.call(gateway, everybodys, "--network", "bridge").endswith(" hi")
    with pytest.raises(ConnectionRefusedError):
        call(own, gateway)


def test_large_and_many_connections_pass_whole(site: Site) -> None:
    site.serve("upper", "-p", "80", program=UPPER)
    port = int(site.sandbox.ok("port", "upper", "80").out.rpartition(":")[2])
    data = os.urandom(1 << 20).hex().encode()

    def send(end: socket.socket) -> None:
        end.sendall(data)
        end.shutdown(socket.SHUT_WR)

    def receive(end: socket.socket) -> bytes:
        return b"".join(iter(lambda: end.recv(1 << 16), b""))

    with ExitStack() as opened:
        ends = [opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)) for _ in range(20)]
        threads = [threading.Thread(target=send, args=(end,)) for end in ends]
        for thread in threads:
            thread.start()
        assert all(receive(end) == data.upper() for end in ends)
        for thread in threads:
            thread.join()


def test_datagrams_come_back(site: Site) -> None:
    site.serve("echo", "-p", "7/udp", port=7, program=REVERSE)
    port = int(site.sandbox.ok("port", "echo", "7/udp").out.rpartition(":")[2])
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as two:
        for end, text in ((one, b"abc"), (two, b"xyz"), (one, b"again")):
            end.settimeout(10)
            end.sendto(text, ("127.0.0.1", port))
            assert end.recv(100) == text[::-1]


def test_a_taken_port_names_its_owner(site: Site) -> None:
    site.serve("web", "-p", "80")
    port = site.sandbox.ok("port", "web", "80").out.rpartition(":")[2].strip()
    done = site.sandbox("run", "--rm", "-p", f"{port}:80", "python", "true")
    assert (done.status, "address already in use by container web" in done.err) == (125, True)
    with socket.create_server(("127.0.0.1", 0)) as own:
        done = site.sandbox("run", "--rm", "-p", f"{own.getsockname()[1]}:80", "python", "true")
    assert (done.status, f"({os.getpid()})" in done.err) == (125, True)
    assert site.sandbox.ok("ps", "-aq").out.count("\n") == 1


def test_publish_all_takes_the_images_ports(site: Site, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python\nEXPOSE 80 53/udp\n")
    site.sandbox.ok("build", "-t", "exposes", str(tmp_path))
    site.sandbox.ok("run", "-d", "--name", "web", "-P", "exposes", "sleep", "1000")
    assert [line.split(" -> ")[0] for line in site.sandbox.ok("port", "web").lines] == ["53/udp", "80/tcp"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--network", "none", "-p", "80"), "--publish"),
        (("--network", "host", "-p", "80"), "--publish"),
        (("--network", "nowhere"), "nowhere"),
        (("-p", "http"), "http"),
        (("-p", "80-82:80-81"), "80-82"),
        (("-p", "0:70000"), "70000"),
        (("-p", "1.2.3:80:80"), "1.2.3"),
        (("--network", "bridge", "--ip", "10.0.0.1"), "--ip"),
        (("--network", "bridge", "--ip", "x"), "--ip"),
        (("--network", "bridge", "--dns", "x"), "--dns"),
    ],
)
def test_what_makes_no_sense_is_refused(site: Site, flags: tuple[str, ...], words: str) -> None:
    done = site.sandbox("run", "--rm", *flags, "python", "true")
    assert (done.status, words in done.err) == (125, True), done.err
    assert site.sandbox.ok("ps", "-aq").out == ""


def test_networks_are_listed_kept_while_in_use_and_removed(site: Site) -> None:
    made = site.sandbox.ok("network", "create", "--subnet", "10.213.7.0/24", "--gateway", "10.213.7.254", "--label", "a=b", "lab")
    assert made.out == "lab\n"
    assert "lab" in site.sandbox.ok("network", "ls", "-q").lines
    assert site.sandbox("network", "create", "lab").status == 1
    assert site.sandbox("network", "create", "--subnet", "10.213.7.128/25", "other").status == 1
    assert site.sandbox("network", "create", "--subnet", "10.213.8.1/24", "other").status == 1
    assert site.serve("web", "--network", "lab", "--ip", "10.213.7.9") == "10.213.7.9"
    taken = site.sandbox("run", "--rm", "--network", "lab", "--ip", "10.213.7.9", "python", "true")
    assert (taken.status, "10.213.7.9 is taken" in taken.err) == (125, True)
    facts = site.sandbox.json("network", "inspect", "lab")[0]
    assert facts["IPAM"]["Config"] == [{"Subnet": "10.213.7.0/24", "Gateway": "10.213.7.254"}]
    assert [each["Name"] for each in facts["Containers"].values()] == ["web"]
    busy = site.sandbox("network", "rm", "lab")
    assert (busy.status, "1 containers are in it" in busy.err) == (1, True)
    site.sandbox.ok("rm", "-f", "web")
    site.sandbox.ok("network", "rm", "lab")
    assert site.sandbox("network", "inspect", "lab").status == 1


def test_a_full_network_says_so_and_an_address_is_given_again(site: Site) -> None:
    site.sandbox.ok("network", "create", "--subnet", "10.213.9.0/29", "small")
    for number in range(5):
        site.sandbox.ok("run", "-d", "--name", f"n{number}", "--network", "small", "python", "sleep", "1000")
    full = site.sandbox("run", "--rm", "--network", "small", "python", "true")
    assert (full.status, "all 5 addresses of 10.213.9.0/29 are taken" in full.err) == (125, True)
    address = site.facts("n2")["IPAddress"]
    site.sandbox.ok("rm", "-f", "n2")
    site.sandbox.ok("run", "-d", "--name", "n5", "--network", "small", "python", "sleep", "1000")
    assert site.facts("n5")["IPAddress"] == address


def test_what_is_taken_away_by_hand_comes_back(site: Site) -> None:
    site.sandbox.ok("run", "--rm", "--network", "bridge", "python", "true")
    (bridge,) = site.on_host()
    where_bridges_are(site.sandbox.root, "ip", "link", "delete", bridge)
    site.serve("web", "--network", "bridge")
    where_bridges_are(site.sandbox.root, "nft", "delete", "table", "inet", bridge)
    assert site.call("web", 80, "--network", "bridge").endswith(" hi")
    where_bridges_are(site.sandbox.root, "ip", "link", "delete", bridge)
    assert site.call("web", 80, "--network", "bridge").endswith(" hi")  # who was in it is again
    up = "echo up; exec sleep 1000"
    site.sandbox.ok("run", "-d", "--name", "again", "--network", "bridge", "--restart", "always", "python", "sh", "-c", up)
    where_bridges_are(site.sandbox.root, "ip", "link", "delete", bridge)
    assert site.call("web", 80, "--network", "bridge").endswith(" hi")
    with site.sandbox.going("logs", "-f", "again") as logs:
        assert logs.stdout
        assert logs.stdout.readline() == b"up\n"
        os.kill(site.sandbox.json("inspect", "again")[0]["State"]["Pid"], signal.SIGKILL)
        assert logs.stdout.readline() == b"up\n"  # into the bridge that is there now


def test_a_killed_supervisor_leaves_no_address_and_no_port(site: Site) -> None:
    address = site.serve("web", "-p", "80")
    port = int(site.sandbox.ok("port", "web", "80").out.rpartition(":")[2])
    facts = json.loads(
        (site.sandbox.root / "containers" / site.sandbox.ok("ps", "-q", "--no-trunc").out.strip() / "state.json").read_text()
    )
    end = os.pidfd_open(facts["supervisor"])
    os.kill(facts["supervisor"], signal.SIGKILL)
    os.close(end)
    site.sandbox.ok("wait", "web")
    with pytest.raises(ConnectionRefusedError):
        call(port)
    site.sandbox.ok("rm", "web")
    members = site.sandbox.json("network", "inspect", "bridge")[0]["Containers"]
    assert address not in str(members)


def test_prune_takes_networks_off_the_host(site: Site) -> None:
    site.sandbox.ok("run", "--rm", "--network", "bridge", "python", "true")
    assert len(site.on_host()) == 1
    site.sandbox.ok("prune", "-f")
    assert site.on_host() == []


def test_a_restarted_container_is_in_its_network_again(site: Site) -> None:
    site.serve("web", "-p", "80")
    site.sandbox.ok("restart", "-t", "0", "web")
    port = int(site.sandbox.ok("port", "web", "80").out.rpartition(":")[2])
    with site.sandbox.going("logs", "-f", "web") as logs:
        assert logs.stdout
        assert [logs.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
    assert call(port).endswith(b" hi")
