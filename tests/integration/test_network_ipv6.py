"""IPv6 in networks, on a host that the test plays: out, names, what keeps containers apart, and a host that asks its router."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.host import requires
from tests.support.networked import WHOSE, command_line_of
from tests.support.ordinary_user import OrdinaryUser
from tests.support.played_host import HERE6, NAME_SERVER, PlayedHost, played_host, serving

pytestmark = [requires("root", "tool:pasta", "tun"), WHOSE, pytest.mark.xdist_group("network")]

GOOD, EVIL = "2001:db8:1::2", "2001:db8:1::3"
ZONE = {
    "good.example.test": [("good.example.test", "AAAA", 60, GOOD)],
    "evil.example.test": [("evil.example.test", "AAAA", 60, EVIL)],
}
TRY = """import json, socket, sys
def heard(target):
    try:
        with socket.create_connection((target, 80), timeout=10) as end:
            end.sendall(b'hi'); return end.recv(99).decode()
    except OSError as err: return type(err).__name__
print(json.dumps([heard(target) for target in sys.argv[1:]]))
"""
SERVE = """import socket
s=socket.create_server(('::', 80), family=socket.AF_INET6); print('ready', flush=True)
while True: c,a=s.accept(); c.sendall(b'from '+a[0].encode()); c.close()
"""


@pytest.fixture(scope="module")
def loaded(whose: OrdinaryUser | None, tmp_path_factory: pytest.TempPathFactory, python_tar: Path) -> Iterator[CommandLine]:
    with command_line_of(whose, tmp_path_factory.mktemp("ipv6") / "engine", python_tar) as made:
        yield made


@pytest.fixture
def played() -> Iterator[PlayedHost]:
    with played_host(ip6=True) as made, serving(made, made.world, [(GOOD, 80), (EVIL, 80), (NAME_SERVER, 53)], ZONE):
        yield made


@pytest.fixture
def there(loaded: CommandLine, played: PlayedHost) -> Iterator[CommandLine]:
    sandbox = played.sandbox(loaded)
    yield sandbox
    if names := sandbox.ok("ps", "-aq").out.split():
        sandbox.ok("rm", "-f", *names)
    for name in sandbox.ok("network", "ls", "-q").lines:
        sandbox.ok("network", "rm", name)
    sandbox.ok("network", "prune", "-f")
    assert "sbx" not in played.run("nft", "list", "tables")


def heard(sandbox: CommandLine, *targets: str, flags: tuple[str, ...] = ("--network", "bridge")) -> list[str]:
    """What a fresh container hears from each, or the class of its error."""
    done = sandbox.ok("run", "--rm", "--dns", NAME_SERVER, *flags, "python", "python", "-c", TRY, *targets)
    return [str(each) for each in json.loads(done.out)]


def serve(sandbox: CommandLine, name: str, *flags: str) -> str:
    """A server in the background; its IPv6 address."""
    sandbox.ok("run", "-d", "--name", name, *flags, "python", "python", "-c", SERVE)
    with sandbox.going("logs", "-f", name) as logs:
        assert logs.stdout
        assert logs.stdout.readline() == b"ready\n"
    return str(sandbox.json("inspect", name)[0]["NetworkSettings"]["GlobalIPv6Address"])


def test_out_by_ipv6_from_the_hosts_address_and_the_router_is_asked_still(
    there: CommandLine, played: PlayedHost, whose: OrdinaryUser | None
) -> None:
    asks = ("cat", "/proc/sys/net/ipv6/conf/out0/accept_ra")
    played.rules("table ip6 firewall { chain forward { type filter hook forward priority 10; policy drop; }; }")
    assert played.run(*asks) == "1\n"
    assert heard(there, GOOD, "good.example.test") == [f"from {HERE6} hi"] * 2
    assert played.run(*asks) == ("1\n" if whose else "2\n")  # for an ordinary user this machine passes nothing on
    assert played.run("cat", "/proc/sys/net/ipv6/conf/all/forwarding") == ("0\n" if whose else "1\n")
    assert heard(there, GOOD, flags=("--network", "none")) == ["OSError"]


def test_neighbours_are_found_by_name_and_networks_are_kept_apart(there: CommandLine) -> None:
    made = there.ok("network", "create", "--subnet", "fd77:1::/64", "--subnet", "10.213.77.0/24", "--gateway", "fd77:1::ff", "lab").out
    assert made == "lab\n"
    there.ok("network", "create", "--no-ipv6", "old")
    facts = json.loads(there.ok("network", "inspect", "lab").out)[0]
    assert facts["IPAM"]["Config"] == [
        {"Subnet": "10.213.77.0/24", "Gateway": "10.213.77.1"},
        {"Subnet": "fd77:1::/64", "Gateway": "fd77:1::ff"},
    ]
    address = serve(there, "web", "--network", "lab", "--ip6", "fd77:1::80", "-p", "[::1]:8080:80")
    assert address == "fd77:1::80"
    lookup = (
        "import socket; print(sorted(each[4][0] for each in socket.getaddrinfo('web', 80, type=1)), socket.gethostbyaddr('fd77:1::80')[0])"
    )
    ipv4 = there.json("inspect", "web")[0]["NetworkSettings"]["IPAddress"]
    assert there.ok("run", "--rm", "--network", "lab", "python", "python", "-c", lookup).out == f"['{ipv4}', '{address}'] web\n"
    assert heard(there, address, flags=("--network", "lab"))[0].startswith("from fd77:1::")
    assert heard(there, address)[0] == "TimeoutError"  # from another network
    assert heard(there, address, flags=("--network", "old"))[0] == "OSError"
    for flag, words in (("fd77:1::80", "fd77:1::80 is taken"), ("fd77:1::ff", "--ip6"), ("fd99::1", "--ip6")):
        done = there("run", "--rm", "--network", "lab", "--ip6", flag, "python", "true")
        assert (done.status, words in done.err) == (125, True), done.err
    done = there("run", "--rm", "--network", "old", "--ip6", "fd77:1::9", "python", "true")
    assert (done.status, "--ip6" in done.err) == (125, True), done.err


def test_an_allow_list_holds_for_ipv6_too(there: CommandLine) -> None:
    neighbour = serve(there, "web", "--network", "bridge")
    targets = ("good.example.test", "evil.example.test", EVIL, neighbour)
    assert [text[:4] for text in heard(there, *targets)] == ["from"] * 4  # the twin
    script = (*targets[:3], "web", neighbour)
    listed = heard(there, *script, flags=("--network", "bridge", "--allow-net", "good.example.test:80"))
    assert listed == [f"from {HERE6} hi", "gaierror", "ConnectionRefusedError", "gaierror", "ConnectionRefusedError"]
    listed = heard(there, *script, flags=("--network", "bridge", "--allow-net", f"[{EVIL}],web", "--privileged"))
    assert [text.split()[0] for text in listed] == ["gaierror", "gaierror", "from", "from", "from"]
