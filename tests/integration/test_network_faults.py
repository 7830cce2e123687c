"""Containers that come and go by the hundred, and supervisors killed in the middle of attaching: no link, address, rule or name is left."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import Engine, RunOptions, SandboxError
from sandbox.network_options import parse_allow_net
from sandbox.runtime.network.networks import bridge_prefix
from tests.support.host import requires
from tests.support.killing import Killer, instrumented

pytestmark = [requires("root"), pytest.mark.xdist_group("network")]

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
"""


def remains(root: Path) -> list[str]:
    """What is left of containers in the engine's networks: links, addresses with their names, senders, lists."""
    prefix = bridge_prefix(root)
    ports = "v" + prefix.removeprefix("sbx")
    links = [name for _, name in socket.if_nameindex() if name.startswith(ports)]
    leases = [str(path) for path in (root / "networks").glob("*/*") if path.name != "network.json"]
    rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    lists = re.compile(rf"table \w+ {prefix}\w*\.")
    own = [line for line in rules.splitlines() if (ports in line and "elements" in line) or lists.search(line)]
    return [*links, *leases, *own]


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
    engine.networks.create("lab")
    yield engine
    engine.prune()


def test_what_is_there_meanwhile_is_seen(lab: Engine) -> None:
    """The twin: the oracle of the others finds what a running container has."""
    options = RunOptions(detach=True, network="lab", allow_net=(parse_allow_net("10.0.0.0/8"),))
    container = lab.create("busybox", ["sleep", "1000"], options=options)
    container.start()
    found = remains(lab.root)
    assert len([line for line in found if "table" in line]) == 2
    assert len(found) == 5, found
    container.remove(force=True)
    assert stays(lab.root) == []


def test_two_hundred_rounds_of_four_processes_leave_nothing(lab: Engine) -> None:
    argv = [sys.executable, "-c", COME_AND_GO, str(lab.root)]
    people = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    ended = [(person.communicate(timeout=300), person.returncode) for person in people]
    assert [code for _, code in ended] == [0] * PROCESSES, ended
    assert stays(lab.root) == []
    assert lab.networks.members(lab.networks.find("lab")) == {}


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
