"""Containers that come and go by the hundred, and supervisors killed in the middle of attaching: no link, address, rule or name is left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from sandbox import Engine, RunOptions, SandboxError
from sandbox.network_options import parse_allow_net
from sandbox.runtime.network.networks import bridge_prefix
from sandbox.runtime.spec import Allowed, Endpoint
from tests.support.host import requires
from tests.support.killing import Killer, instrumented
from tests.support.networked import links, where_bridges_are

pytestmark = [requires("networks"), pytest.mark.anybody, pytest.mark.xdist_group("network")]

PROCESSES, ROUNDS = 4, 50
POINTS = 14
"""How many moments of a supervisor's life are tried."""
COME_AND_GO = f"""
import sys
from sandbox import Engine, RunOptions
from sandbox.network_options import parse_allow_net
listed = dict(allow_net=(parse_allow_net('a.example.test:80,10.0.0.0/8'),), network_rate=10**8)
with Engine(sys.argv[1]) as engine:
    for number in range({ROUNDS}):
        options = RunOptions(rm=True, network='lab', network_alias=('many',), **(listed if number % 4 == 0 else {{}}))
        done = engine.run('busybox', ['true'], options=options)
        assert done.exit_code == 0, done
        if number % 10 == 9:  # from one network into another
            moving = engine.start('busybox', ['sleep', '1000'], options=RunOptions(network='lab', rm=True, **listed))
            moving.connect('other')
            moving.disconnect('lab')
            moving.remove(force=True)
"""


def remains(root: Path) -> list[str]:
    """What is left of containers in the engine's networks: links, addresses with their names, senders, lists."""
    prefix = bridge_prefix(root)
    ports = "v" + prefix.removeprefix("sbx")
    ends = [name for name in links(root) if name.startswith(ports)]
    leases = [str(path) for path in (root / "networks").glob("*/*") if path.name != "network.json"]
    rules = where_bridges_are(root, "nft", "list", "ruleset")
    lists = re.compile(rf"table \w+ {prefix}\w*\.")
    own = [line for line in rules.splitlines() if (ports in line and "elements" in line) or lists.search(line)]
    return [*ends, *leases, *own]


def stays(root: Path) -> list[str]:
    """What remains: Linux takes a network namespace apart, and a supervisor its rules away, a moment after the end was told."""
    for _ in range(50):
        if not (found := remains(root)):
            break
        threading.Event().wait(0.1)
    return found


@pytest.fixture
def lab(engine: Engine, busybox_image: str) -> Iterator[Engine]:
    """An engine with busybox and a network."""
    assert busybox_image == "busybox"
    engine.networks.create("lab", ipv6=True)
    engine.networks.create("other", ipv6=True)
    yield engine
    engine.prune()


def test_what_is_there_meanwhile_is_seen(lab: Engine) -> None:
    """The twin: the oracle of the others finds what a running container has."""
    options = RunOptions(detach=True, network="lab", allow_net=(parse_allow_net("10.0.0.0/8"),))
    container = lab.create("busybox", ["sleep", "1000"], options=options)
    container.start()
    found = remains(lab.root)
    assert len([line for line in found if "table" in line]) == 2
    assert len(found) == 6, found  # a link, a lease, two senders, two lists
    container.remove(force=True)
    assert stays(lab.root) == []


def test_two_hundred_rounds_of_four_processes_leave_nothing(lab: Engine) -> None:
    argv = [sys.executable, "-c", COME_AND_GO, str(lab.root)]
    people = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    ended = [(person.communicate(timeout=300), person.returncode) for person in people]
    assert [code for _, code in ended] == [0] * PROCESSES, ended
    assert stays(lab.root) == []
    assert [lab.networks.members(lab.networks.find(name)) for name in ("lab", "other")] == [{}, {}]


def test_whoever_was_killed_while_connecting_leaves_nothing_when_the_container_has_ended(lab: Engine) -> None:
    container = lab.start("busybox", ["sleep", "1000"], options=RunOptions(network="lab"))
    listed = replace(container._record.spec, allow_net=(Allowed("", "10.0.0.0/8"),))
    lab.networks.join(lab.networks.find("other"), listed, Endpoint("other"), "eth1")  # and no word to the supervisor
    assert "other" in str(remains(lab.root))
    container.remove(force=True)
    assert lab.run("busybox", ["true"], options=RunOptions(rm=True, network="other")).ok
    assert stays(lab.root) == []


def test_a_next_run_is_not_taken_apart_by_the_one_before(lab: Engine) -> None:
    """As when somebody starts it again before its last supervisor has given its places back."""
    options = RunOptions(network="lab", allow_net=(parse_allow_net("10.0.0.0/8"),))
    container = lab.start("busybox", ["sleep", "1000"], options=options)
    (before,) = container._state.facts["network"]["places"]
    state = lab.root / "containers" / container.id / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "status": "exited"}))
    (again,) = [lab.networks.join(lab.networks.find("lab"), container._record.spec, Endpoint("lab"), "eth0", is_start=True)]
    assert again["address"] == before["address"]
    found = remains(lab.root)
    lab.networks.forget(before)
    assert remains(lab.root) == found
    lab.networks.forget(again)
    assert [line for line in remains(lab.root) if "table" in line or "elements" in line] == []
    state.write_text(json.dumps({**json.loads(state.read_text()), "status": "running"}))
    container.remove(force=True)
    assert stays(lab.root) == []


@pytest.fixture
def killer(tmp_path: Path) -> Iterator[Killer]:
    with instrumented(tmp_path / "page") as made:
        yield made


def test_a_supervisor_killed_at_any_moment_leaves_nothing_to_the_next(killer: Killer, lab: Engine) -> None:
    options = RunOptions(rm=True, network="lab", allow_net=(parse_allow_net("a.example.test"),), network_rate=10**8)
    lab.run("busybox", ["true"], options=options)
    killer.aim(None)
    lab.run("busybox", ["true"], options=options)
    total = killer.steps("supervisor")
    assert total > 100
    reached = set()
    for point in range(POINTS):
        killer.aim("supervisor", 1 + (total - 1) * point // (POINTS - 1))
        try:
            reached.add(lab.run("busybox", ["true"], options=options).why)
        except SandboxError as err:
            reached.add(type(err).__name__)
        killer.aim(None)
        for container in lab.containers(all=True):
            if container.status == "running":  # its init is about to follow its supervisor
                container.wait(timeout=30)
        assert lab.run("busybox", ["true"], options=RunOptions(rm=True, network="lab")).ok
        assert stays(lab.root) == [], (point, os.listdir(lab.root / "containers"))
    assert len(reached) > 1
