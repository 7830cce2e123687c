"""--allow-net: what is on the list is reached, and nothing else by any of the ways a program has. On a host that the test plays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine, Done
from tests.support.host import requires
from tests.support.networked import WHOSE, command_line_of, where_bridges_are
from tests.support.ordinary_user import OrdinaryUser
from tests.support.played_host import HERE, NAME_SERVER, PlayedHost, Served, played_host, serving

pytestmark = [requires("root", "tool:pasta", "tun"), WHOSE, pytest.mark.xdist_group("network")]

GOOD, EVIL = "198.51.100.2", "198.51.100.3"
ZONE = {
    "good.example.test": [("good.example.test", "A", 1, GOOD)],
    "evil.example.test": [("evil.example.test", "A", 60, EVIL)],
    "a.wild.example.test": [("a.wild.example.test", "A", 60, GOOD)],
    "wild.example.test": [("wild.example.test", "A", 60, EVIL)],
    "alias.example.test": [("alias.example.test", "CNAME", 60, "target.example.test"), ("target.example.test", "A", 60, GOOD)],
    # an answer may not bring addresses of names that were not asked for, nor lead to this machine
    "more.example.test": [("more.example.test", "A", 60, GOOD), ("other.example.test", "A", 60, EVIL)],
    "rebound.example.test": [("rebound.example.test", "A", 60, "127.0.0.1"), ("rebound.example.test", "A", 60, "169.254.169.254")],
    "good.example.test.corp.test": [("good.example.test.corp.test", "A", 60, EVIL)],
    "text.example.test": [("text.example.test", "TXT", 60, "secret")],
}
TRY = """import json, socket, sys, time
found = {}
def connect(target, port):
    return socket.create_connection((target, port), timeout=8)
def tcp(target, port):
    with connect(target, port) as end:
        end.sendall(b'hi'); return end.recv(99).decode()
def udp(target, port):
    with socket.socket(type=socket.SOCK_DGRAM) as end:
        end.settimeout(8); end.connect((target, port)); end.send(b'hi'); return end.recv(99).decode()
def ask(server, name, kind=1):
    labels = b''.join(bytes([len(x)]) + x.encode() for x in name.split('.'))
    question = b'\\x12\\x34\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0' + labels + b'\\0' + bytes([0, kind, 0, 1])
    with socket.socket(type=socket.SOCK_DGRAM) as end:
        end.settimeout(8); end.connect((server, 53)); end.send(question); data = end.recv(4096)
        return [data[3] & 15, data[7]]
def look(name): return sorted({each[4][0] for each in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)})
for what in json.loads(sys.argv[1]):
    begun = time.monotonic()
    try: result = globals()[what[0]](*what[1:])
    except OSError as err: result = type(err).__name__
    found[' '.join(map(str, what))] = result
    assert time.monotonic() - begun < 7, f'{what} took so long'
print(json.dumps(found))
"""


SERVE = """import socket
s=socket.create_server(('',80)); print('ready',flush=True)
while True: c,a=s.accept(); c.sendall(b'from '+a[0].encode()); c.close()
"""


class Class:
    """A room of students: containers that try things, on a played host."""

    def __init__(self, sandbox: CommandLine, played: PlayedHost, world: Served, *, is_roots: bool) -> None:
        self.sandbox, self.played, self.world, self.is_roots = sandbox, played, world, is_roots

    def run(self, flags: tuple[str, ...], *tries: tuple[object, ...], status: int = 0) -> tuple[dict[str, object], Done]:
        """What came of each try, by its words."""
        words = ("run", "--rm", "--dns", NAME_SERVER, *flags, "python", "python", "-c", TRY, json.dumps(tries))
        done = self.sandbox(*words)
        assert done.status == status, done
        return json.loads(done.out), done


@pytest.fixture(scope="module")
def loaded(whose: OrdinaryUser | None, tmp_path_factory: pytest.TempPathFactory, python_tar: Path) -> Iterator[CommandLine]:
    with command_line_of(whose, tmp_path_factory.mktemp("allow") / "engine", python_tar) as made:
        yield made
        made.ok("prune", "-f")


@pytest.fixture
def room(loaded: CommandLine, whose: OrdinaryUser | None) -> Iterator[Class]:
    with played_host() as played:
        places = [(GOOD, 80), (GOOD, 81), (EVIL, 80), (EVIL, 443), (NAME_SERVER, 53), (EVIL, 53)]
        with serving(played, played.world, places, ZONE) as world:
            there = played.sandbox(loaded)
            yield Class(there, played, world, is_roots=whose is None)
            if names := there.ok("ps", "-aq").out.split():
                there.ok("rm", "-f", *names)
            there.ok("network", "prune", "-f")
            assert "sbx" not in played.run("nft", "list", "tables")


def reached(text: object) -> bool:
    return str(text).startswith("from ")


def test_names_subnets_and_ports_on_the_list_are_reached(room: Class) -> None:
    found, done = room.run(
        ("--allow-net", f"good.example.test:80,{EVIL}:443/tcp", "--allow-net", "*.wild.example.test"),
        ("tcp", "good.example.test", 80), ("udp", "good.example.test", 80), ("tcp", EVIL, 443), ("tcp", "a.wild.example.test", 81),
    )  # fmt: skip
    assert all(reached(each) for each in found.values()), found
    assert "denied" not in done.err


ESCAPES: tuple[tuple[object, ...], ...] = (
    ("tcp", "evil.example.test", 80),
    ("tcp", EVIL, 80),
    ("udp", EVIL, 443),
    ("tcp", GOOD, 81),
    ("ask", NAME_SERVER, "evil.example.test"),
    ("ask", EVIL, "evil.example.test"),
    ("tcp", HERE, 80),
)


def test_nothing_else_is_reached_and_each_way_is_open_without_the_list(room: Class) -> None:
    gateway = room.sandbox.json("network", "inspect", "bridge")[0]["IPAM"]["Config"][0]["Gateway"]
    to_gateway = (("tcp", gateway, 80), ("udp", gateway, 80)) if room.is_roots else ()  # an ordinary user's is not this machine
    ways = (*ESCAPES, *to_gateway, ("tcp", gateway, 53))
    with serving(room.played, room.played.host, [("0.0.0.0", 80)]) as canary:
        flags = ("--network", "bridge", "--allow-net", "good.example.test:80")
        found, done = room.run(flags, ("tcp", "good.example.test", 80), *ways)
        assert reached(found.pop("tcp good.example.test 80"))
        assert set(found.values()) <= {"gaierror", "ConnectionRefusedError", "OSError", "PermissionError"}, found
        assert canary.seen() == []
    for name in ("evil.example.test", f"{EVIL}:80", f"{EVIL}:443/udp", f"{GOOD}:81", f"{NAME_SERVER}:53/udp", f"{gateway}:53"):
        assert name in done.err, done.err
    with serving(room.played, room.played.host, [("0.0.0.0", 80)]):  # the twin
        found, _ = room.run(("--network", "bridge"), *ways[:-1])
    assert all(reached(each) or each == [0, 1] for each in found.values()), found


def test_the_list_holds_also_whoever_has_every_capability(room: Class) -> None:
    room.sandbox.ok("network", "prune", "-f")
    script = (
        "import subprocess,socket; from ctypes import CDLL\n"
        "for c in (['nft','flush','ruleset'],['ip','route','add','198.51.100.3','dev','eth0']):\n"
        "    try: subprocess.run(c, capture_output=True)\n"
        "    except OSError: pass\n"
        f"print(socket.socket().connect_ex(('{EVIL}', 80)))\n"
    )
    flags = ("--privileged", "--allow-net", "good.example.test")
    assert room.sandbox.ok("run", "--rm", *flags, "python", "python", "-c", script).out != "0\n"
    assert room.sandbox.ok("run", "--rm", "--privileged", "--network", "bridge", "python", "python", "-c", script).out == "0\n"


def test_answers_bring_no_more_than_was_asked_for(room: Class) -> None:
    names = "alias.example.test,more.example.test,rebound.example.test,text.example.test"
    found, done = room.run(
        ("--allow-net", names, "--dns-search", "corp.test"),
        ("look", "alias.example.test"), ("tcp", "alias.example.test", 80), ("look", "more.example.test"), ("tcp", "more.example.test", 81),
        ("tcp", EVIL, 80),
        ("look", "rebound.example.test"), ("look", "target.example.test"), ("ask", "127.0.0.11", "text.example.test", 16),
        ("look", "good.example.test"),
    )  # fmt: skip
    assert found["look alias.example.test"] == found["look more.example.test"] == [GOOD]
    assert reached(found["tcp alias.example.test 80"])
    assert reached(found["tcp more.example.test 81"])
    assert found[f"tcp {EVIL} 80"] == "ConnectionRefusedError"
    assert found["look rebound.example.test"] == found["look target.example.test"] == found["look good.example.test"] == "gaierror"
    assert found["ask 127.0.0.11 text.example.test 16"] == [0, 0]
    assert "rebound.example.test at 169.254.169.254" in done.err
    asked = {name for kind, name, *_ in room.world.seen() if kind == "asked"}
    assert asked == {"alias.example.test", "more.example.test", "rebound.example.test"}  # a name may carry a secret out


def test_neighbours_are_reached_when_they_are_on_the_list(room: Class) -> None:
    room.sandbox.ok("network", "create", "lab")
    room.sandbox.ok("run", "-d", "--name", "web", "--network", "lab", "python", "python", "-c", SERVE)
    with room.sandbox.going("logs", "-f", "web") as logs:
        assert logs.stdout
        assert logs.stdout.readline() == b"ready\n"
    address = room.sandbox.json("inspect", "web")[0]["NetworkSettings"]["IPAddress"]
    tries = (("tcp", "web", 80), ("tcp", address, 80))
    open_to_all, _ = room.run(("--network", "lab"), *tries)
    listed, _ = room.run(("--network", "lab", "--allow-net", "web:80"), *tries)
    closed, done = room.run(("--network", "lab", "--allow-net", "good.example.test"), *tries)
    assert all(reached(each) for each in (*open_to_all.values(), *listed.values())), (open_to_all, listed)
    assert closed == {"tcp web 80": "gaierror", f"tcp {address} 80": "ConnectionRefusedError"}
    assert "denied: web, " in done.err
    # a confined one still answers its neighbours, and what is published
    flags = ("--network", "lab", "-p", "80", "--allow-net", "10.9.9.9")
    room.sandbox.ok("run", "-d", "--name", "inner", *flags, "python", "python", "-c", SERVE)
    with room.sandbox.going("logs", "-f", "inner") as logs:
        assert logs.stdout
        assert logs.stdout.readline() == b"ready\n"
    assert reached(room.run(("--network", "lab"), ("tcp", "inner", 80))[0]["tcp inner 80"])
    host, _, port = room.sandbox.ok("port", "inner", "80").out.strip().rpartition(":")
    call = f"import socket; print(socket.create_connection(('{host}', {port}), 8).recv(9))"
    assert "from" in room.played.run("python3", "-c", call)


def test_a_list_comes_back_with_the_rules(room: Class) -> None:
    hold = "import sys,time,socket\nfor line in sys.stdin: print(socket.socket().connect_ex(('198.51.100.3', 80)), flush=True)"
    flags = ("-i", "--rm", "--allow-net", "good.example.test")
    with room.sandbox.going("run", *flags, "python", "python", "-u", "-c", hold, stdin=-1) as held:
        assert held.stdin
        assert held.stdout
        held.stdin.write(b"\n")
        held.stdin.flush()
        assert held.stdout.readline() == b"111\n"
        if room.is_roots:
            room.played.run("nft", "flush", "ruleset")
        else:
            where_bridges_are(room.sandbox.root, "nft", "flush", "ruleset", is_hub=True)
        room.sandbox.ok("run", "--rm", "--network", "bridge", "python", "true")
        held.stdin.write(b"\n")
        held.stdin.flush()
        assert held.stdout.readline() == b"111\n"


def test_what_was_denied_is_an_event_and_is_inspected(room: Class) -> None:
    look = "import socket\ntry: socket.getaddrinfo('evil.example.test', 80)\nexcept OSError as err: print(err)"
    flags = ("--name", "cell", "--dns", NAME_SERVER, "--allow-net", "good.example.test:443,[2001:db8::]/32:53/udp")
    done = room.sandbox.ok("run", *flags, "python", "python", "-c", look)
    assert "evil.example.test" in done.err
    assert "target=evil.example.test" in room.sandbox.ok("events", "--since", "1h", "--until", "0s", "--filter", "event=network_deny").out
    facts = room.sandbox.json("inspect", "cell")[0]
    assert facts["HostConfig"]["AllowNet"] == ["good.example.test:443", "[2001:db8::]/32:53/udp"]
    assert facts["State"]["NetworkDenied"] == ["evil.example.test"]


@pytest.mark.parametrize("text", ["http://x", "a b", "x:0", "x:http", "10.0.0.1/8", "x:80/sctp", "*", "*.*.x", "[::1", "300.1.1.1", "-x"])
def test_what_is_no_target_is_refused(loaded: CommandLine, text: str) -> None:
    done = loaded("run", "--rm", f"--allow-net={text}", "python", "true")
    assert (done.status, "--allow-net" in done.err) == (125, True), done.err
    done = loaded("run", "--rm", "--network", "none", "--allow-net", "x.example.test", "python", "true")
    assert (done.status, "--allow-net" in done.err) == (125, True), done.err
