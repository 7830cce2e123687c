"""A host whose FORWARD policy is DROP: containers get out all the same, its owner's rules hold, and `doctor` says how it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine, command_line
from tests.support.host import requires
from tests.support.played_host import PlayedHost, played_host, serving

pytestmark = [requires("root"), pytest.mark.xdist_group("network")]

WORLD, OTHER = "198.51.100.2", "198.51.100.3"
DOCKERS = ["iptables -P FORWARD DROP", f"iptables -A FORWARD -d {OTHER} -j DROP"]
FIREWALLS = f"""table inet firewall {{
  chain forward {{
    type filter hook forward priority 10; policy drop;
    ip daddr {OTHER} drop
  }}
}}
"""
CALL = """import socket,sys
for target in sys.argv[1:]:
    try: socket.create_connection((target, 80), timeout=2).close(); print('open')
    except OSError as err: print(type(err).__name__)
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, python_tar: Path) -> Iterator[CommandLine]:
    with command_line(tmp_path_factory.mktemp("firewall") / "engine") as made:
        made.ok("load", "-i", str(python_tar))
        made.ok("tag", "localhost/python", "python")
        yield made


@pytest.fixture
def played() -> Iterator[PlayedHost]:
    with played_host() as made, serving(made, made.world, [(WORLD, 80), (OTHER, 80)]):
        yield made


def close_with_iptables(played: PlayedHost) -> None:
    for line in DOCKERS:
        played.run(*line.split())


def close_with_nft(played: PlayedHost) -> None:
    played.rules(FIREWALLS)


def call(sandbox: CommandLine) -> list[str]:
    return sandbox.ok("run", "--rm", "--network", "bridge", "python", "python", "-c", CALL, WORLD, OTHER).lines


@pytest.mark.parametrize("close", [close_with_iptables, close_with_nft])
def test_containers_get_out_and_the_owners_rules_hold(loaded: CommandLine, played: PlayedHost, close: Callable[[PlayedHost], None]) -> None:
    there = played.sandbox(loaded)
    assert call(there) == ["open", "open"]
    close(played)
    before = played.run("nft", "list", "ruleset")
    assert call(there) == ["open", "TimeoutError"]
    assert call(there) == ["open", "TimeoutError"]
    added = [line for line in played.run("nft", "list", "ruleset").splitlines() if "comment" in line]
    assert len(added) == 2, added  # once, however many containers there are
    there.ok("network", "prune", "-f")
    after = played.run("nft", "list", "ruleset")
    assert "jupyter-sandbox" not in after
    assert "policy drop" in after
    assert OTHER in before


def test_iptables_still_understands_its_own_chain(loaded: CommandLine, played: PlayedHost) -> None:
    close_with_iptables(played)
    there = played.sandbox(loaded)
    assert call(there) == ["open", "TimeoutError"]
    shown = played.run("iptables", "-S", "FORWARD").splitlines()
    assert shown[:2] == ["-P FORWARD DROP", f"-A FORWARD -d {OTHER}/32 -j DROP"]
    there.ok("network", "prune", "-f")
    assert played.run("iptables", "-S", "FORWARD").splitlines() == shown[:2]


def test_the_policy_does_bite_whoever_has_no_rule(loaded: CommandLine, played: PlayedHost) -> None:
    """The twin: closed while a container runs, and nothing of ours has noticed yet."""
    there = played.sandbox(loaded)
    wait = f"import sys; print('up', flush=True); sys.stdin.readline()\n{CALL}"
    with there.going("run", "-i", "--rm", "--network", "bridge", "python", "python", "-uc", wait, WORLD, stdin=-1) as held:
        assert held.stdin
        assert held.stdout
        assert held.stdout.readline() == b"up\n"
        close_with_nft(played)
        held.stdin.write(b"\n")
        held.stdin.flush()
        assert held.stdout.readline() == b"TimeoutError\n"


def test_doctor_names_what_stands_in_the_way(loaded: CommandLine, played: PlayedHost) -> None:
    there = played.sandbox(loaded)
    report = there.ok("doctor").out
    assert "✓ network bridge" in report
    assert "✓ allow-list" in report
    assert "✓ forwarding firewall" in report
    close_with_nft(played)
    report = there.ok("doctor").out
    assert "inet firewall forward" in report
