"""--network-rate: what a container sends and receives keeps to it, also when it has taken its own queue away."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.host import requires
from tests.support.networked import WHOSE, command_line_of
from tests.support.ordinary_user import OrdinaryUser
from tests.support.played_host import PlayedHost, played_host

pytestmark = [requires("root", "tool:pasta", "tun"), WHOSE, pytest.mark.xdist_group("network")]

SIZE, RATE = 1 << 20, "6mbit"
SLOWEST = 0.75 * SIZE * 8 / 6_000_000
"""Seconds: a burst goes through at once."""
WORLD = f"""import socket
s = socket.create_server(('198.51.100.2', 80)); print('ready', flush=True)
while True:
    c, _ = s.accept()
    size = int.from_bytes(c.recv(8, socket.MSG_WAITALL), 'big')  # said, not shown by its end: pasta of 2023 stalls after a half-close
    while size: size -= len(c.recv(min(size, 65536)))
    c.sendall(bytes({SIZE})); c.close()
"""
MOVE = """import json, socket, sys, time
for line in sys.stdin:
    with socket.create_connection(('198.51.100.2', 80)) as end:
        begun = time.monotonic()
        end.sendall(int(line).to_bytes(8, 'big') + bytes(int(line)))
        size = len(end.recv(1)); sent = time.monotonic()
        while data := end.recv(65536): size += len(data)
        print(json.dumps([size, sent - begun, time.monotonic() - sent]), flush=True)
"""


@pytest.fixture(scope="module")
def loaded(whose: OrdinaryUser | None, tmp_path_factory: pytest.TempPathFactory, python_tar: Path) -> Iterator[CommandLine]:
    with command_line_of(whose, tmp_path_factory.mktemp("rate") / "engine", python_tar) as made:
        yield made
        made.ok("prune", "-f")


@contextmanager
def other_end(played: PlayedHost) -> Iterator[None]:
    """A server in the world that takes all there is, and then sends."""
    with subprocess.Popen(played.command(played.world, sys.executable, "-c", WORLD), stdout=subprocess.PIPE) as world:
        try:
            assert world.stdout
            assert world.stdout.readline() == b"ready\n"
            yield
        finally:
            world.kill()


@contextmanager
def mover(sandbox: CommandLine, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """A container that moves a megabyte each way whenever it is told."""
    argv = ("run", "-i", "--rm", "--name", "mover", "--network", "bridge", *flags, "python", "python", "-u", "-c", MOVE)
    with sandbox.going(*argv, stdin=-1) as going:
        yield going


def move(going: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Seconds it took out and in."""
    begin(going, SIZE)
    return finish(going)


def begin(going: subprocess.Popen[bytes], out_size: int) -> None:
    assert going.stdin
    going.stdin.write(b"%d\n" % out_size)
    going.stdin.flush()


def finish(going: subprocess.Popen[bytes]) -> tuple[float, float]:
    assert going.stdout
    size, out, back = json.loads(going.stdout.readline())
    assert size == SIZE
    return out, back


def queues(played: PlayedHost, pid: int) -> list[dict[str, object]]:
    return [each for each in json.loads(played.run("tc", "-j", "qdisc", "show", where=pid)) if each["kind"] == "tbf"]


def holder(user: OrdinaryUser) -> int:
    """The process in whose network namespace this user's bridges are."""
    found = subprocess.run(["pgrep", "-U", str(user.uid), "sandbox-network"], capture_output=True, text=True, check=True)
    return int(found.stdout)


def test_it_bites_both_ways_and_cannot_be_taken_off(loaded: CommandLine, whose: OrdinaryUser | None) -> None:
    with played_host() as played, other_end(played):
        there = played.sandbox(loaded)
        with mover(there) as going:
            free = move(going)
        with mover(there, "--network-rate", RATE) as going:
            limited = move(going)
            facts = there.json("inspect", "mover")[0]
            assert facts["HostConfig"]["NetworkRate"] == 6_000_000
            inside, outside = queues(played, facts["State"]["Pid"]), queues(played, holder(whose) if whose else played.host)
            assert [each["options"]["rate"] for each in (*inside, *outside)] == [750_000] * 2  # type: ignore[index]  # tc's JSON: bytes
            played.run("tc", "qdisc", "delete", "dev", "eth0", "root", where=facts["State"]["Pid"])
            begin(going, 3 * SIZE)  # the host lets a second's worth through at once
            assert not select.select([going.stdout], [], [], SLOWEST)[0]
            bare = finish(going) if whose is None else limited  # pasta of 2023 may stall for minutes where much is dropped
        assert min(*limited, *bare) > SLOWEST > max(free)
        there.ok("network", "prune", "-f")
        assert "sbx" not in played.run("nft", "list", "tables")


@pytest.mark.parametrize(("flags", "words"), [(("--network", "none"), "none"), ((), "must be from")])
def test_where_it_makes_no_sense_it_is_refused(loaded: CommandLine, flags: tuple[str, ...], words: str) -> None:
    done = loaded("run", "--rm", *flags, "--network-rate", "10mbit" if flags else "1bit", "python", "true")
    assert (done.status, "--network-rate" in done.err, words in done.err) == (125, True, True), done.err
