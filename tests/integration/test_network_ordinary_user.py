"""An ordinary user's containers on the network: out through pasta or slirp4netns, in through published ports, nothing left of either."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.host import requires
from tests.support.ordinary_user import OrdinaryUser

pytestmark = [
    requires("root", "userns", "overlay", "tool:pasta", "tool:slirp4netns", "tun"),
    pytest.mark.xdist_group("ordinary user"),
]

Say = Callable[..., "subprocess.CompletedProcess[str]"]
HELPERS = ("pasta", "slirp4netns")
ECHO = """import socket,sys; s=socket.create_server(('', 80)); u=socket.socket(type=socket.SOCK_DGRAM); u.bind(('', 7))
import select; open('/sync/ready', 'w').write('ready')
while True:
    for end in select.select([s, u], [], [])[0]:
        if end is s:
            c,a=s.accept(); c.sendall(c.recv(99).upper()); c.close()
        else:
            d,a=u.recvfrom(99); u.sendto(d[::-1], a)
"""
CALL = """import socket,sys
try:
    c=socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3); print(c.recv(99).decode())
except OSError as err:
    print(type(err).__name__)
"""


@pytest.fixture(scope="module")
def say(ordinary_user: OrdinaryUser, packages: Path, python_tar: Path) -> Iterator[Say]:
    """`sandbox WORDS…` as that user, with the captured Python as the image `python`; `only`: the one helper program that is installed."""
    root = ordinary_user.home / "network-state"
    programs = {name: _programs(ordinary_user, name) for name in (*HELPERS, "none")}

    def run(*words: str, only: str | None = None) -> subprocess.CompletedProcess[str]:
        env = {"PYTHONPATH": str(packages), "SANDBOX_ROOT": str(root), **({"PATH": str(programs[only])} if only else {})}
        return ordinary_user.run(["/usr/bin/python3", "-m", "sandbox", *words], env=env)

    archive = ordinary_user.home / "python.tar"
    shutil.copy(python_tar, archive)
    archive.chmod(0o644)
    assert run("load", "-i", str(archive)).returncode == 0
    assert run("tag", "localhost/python", "python").returncode == 0
    archive.unlink()
    yield run
    assert run("ps", "-aq").stdout == ""
    assert _processes(ordinary_user) == []


def _programs(user: OrdinaryUser, name: str) -> Path:
    """A PATH on which no other helper is."""
    place = user.home / f"bin-{name}"
    place.mkdir()
    for program in ("env", name) if name != "none" else ("env",):
        (place / program).symlink_to(str(shutil.which(program)))
    return place


def _processes(user: OrdinaryUser) -> list[str]:
    """What that user runs, but for what has ended already."""
    rows = subprocess.run(["ps", "-U", str(user.uid), "-o", "stat=,comm="], capture_output=True, text=True, check=False).stdout.splitlines()
    return [row for row in rows if not row.startswith("Z")]


def _serve(say: Say, user: OrdinaryUser, helper: str, *flags: str) -> dict[str, int]:
    """A container `web` that answers; the ports of this machine that lead to it."""
    sync = user.home / "sync"
    if not sync.exists():
        user.run(["sh", "-c", f"mkdir {sync} && mkfifo {sync}/ready"])
    ready = os.open(sync / "ready", os.O_RDONLY | os.O_NONBLOCK)
    started = say("run", "-d", "--name", "web", "-v", f"{sync}:/sync", *flags, "python", "python", "-c", ECHO, only=helper)
    assert started.returncode == 0, started.stderr
    assert select.select([ready], [], [], 30)[0]
    os.close(ready)
    lines = [line.split(" -> ") for line in say("port", "web").stdout.splitlines()]
    return {inside: int(outside.rpartition(":")[2]) for inside, outside in lines}


@pytest.mark.parametrize("helper", HELPERS)
def test_packages_come_from_the_index(say: Say, helper: str) -> None:
    script = "python -m pip download -q --no-deps -d /tmp six==1.16.0 >&2; ls /tmp; cat /etc/resolv.conf; cut -f 1 /proc/net/route"
    done = say("run", "--rm", "--network", "bridge", "python", "sh", "-c", script, only=helper)
    assert "six-1.16.0-py2.py3-none-any.whl" in done.stdout, done.stderr
    assert "nameserver 127.0.0.11" in done.stdout
    assert "eth0" in done.stdout


@pytest.mark.parametrize("helper", HELPERS)
def test_published_ports_lead_in_and_the_hosts_loopback_is_out_of_reach(say: Say, ordinary_user: OrdinaryUser, helper: str) -> None:
    ports = _serve(say, ordinary_user, helper, "-p", "80", "-p", "7/udp")
    try:
        with socket.create_connection(("127.0.0.1", ports["80/tcp"]), timeout=10) as end:
            end.sendall(b"hello")
            assert end.recv(99) == b"HELLO"
        with socket.socket(type=socket.SOCK_DGRAM) as end:
            end.settimeout(10)
            end.sendto(b"abc", ("127.0.0.1", ports["7/udp"]))
            assert end.recv(99) == b"cba"
        facts = json.loads(say("inspect", "web").stdout)[0]["NetworkSettings"]
        taken = say("run", "--rm", "-p", f"{ports['80/tcp']}:80", "python", "true", only=helper)
        assert (taken.returncode, "already in use by container web" in taken.stderr) == (125, True), taken.stderr
        with socket.create_server(("127.0.0.1", 0)) as canary:
            port = str(canary.getsockname()[1])
            for target in ("127.0.0.1", facts["Gateway"]):
                heard = say("run", "--rm", "--network", "bridge", "python", "python", "-c", CALL, target, port, only=helper).stdout.strip()
                assert heard in ("ConnectionRefusedError", "TimeoutError", "OSError"), target
            canary.settimeout(0.1)
            with pytest.raises(TimeoutError):
                canary.accept()
            there = say("run", "--rm", "--network", "host", "python", "python", "-c", CALL, "127.0.0.1", port, only=helper)
            canary.accept()[0].close()  # the twin: with the host's network it is reached
            assert there.returncode == 0
    finally:
        say("rm", "-f", "web")


@pytest.mark.parametrize("helper", HELPERS)
def test_several_share_the_network_of_one(say: Say, ordinary_user: OrdinaryUser, helper: str) -> None:
    port = _serve(say, ordinary_user, helper, "-p", "80")["80/tcp"]
    try:
        inside = ("run", "--rm", "--network", "container:web", "python", "python", "-c")
        talk = "import socket; c=socket.create_connection(('127.0.0.1', 80), 9); c.sendall(b'hi'); print(c.recv(9), socket.gethostname())"
        name = say("exec", "web", "hostname").stdout.strip() or json.loads(say("inspect", "web").stdout)[0]["Config"]["Hostname"]
        assert say(*inside, talk).stdout == f"b'HI' {name}\n"
        own = "import os; s=open('/proc/self/uid_map').read(); os.mkdir('/root/mine'); print(s.split()[:3], os.getuid())"
        mapped = say("exec", "web", "cat", "/proc/self/uid_map").stdout.split()[:3]
        assert say(*inside, own).stdout == f"{mapped} 0\n"
        away = say(*inside, "import socket; print(socket.create_connection(('127.0.0.1', 81), 3))")
        assert "ConnectionRefusedError" in away.stderr  # the twin
        refused = say("run", "--rm", "--network", "container:web", "-p", "81", "python", "true")
        assert (refused.returncode, "port publishing" in refused.stderr) == (125, True), refused.stderr
        with socket.create_connection(("127.0.0.1", port), timeout=10) as end:
            end.sendall(b"still")
            assert end.recv(99) == b"STILL"
        changed = say("network", "connect", "bridge", "web")
        assert (changed.returncode, "is in network bridge already" in changed.stderr) == (1, True), changed.stderr
    finally:
        say("rm", "-f", "web")


@pytest.mark.parametrize("helper", HELPERS)
def test_helper_and_ports_end_with_a_killed_supervisor(say: Say, ordinary_user: OrdinaryUser, helper: str) -> None:
    port = _serve(say, ordinary_user, helper, "-p", "80")["80/tcp"]
    try:
        state = next((ordinary_user.home / "network-state/containers").glob("*/state.json"))
        ends = [os.pidfd_open(pid) for pid in _family(json.loads(state.read_text())["supervisor"])]
        assert len(ends) >= 5  # itself, init, its program, the proxy, the guard and the helper
        signal.pidfd_send_signal(ends[0], signal.SIGKILL)
        for end in ends:
            assert select.select([end], [], [], 20)[0], "still there"
            os.close(end)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=10)
    finally:
        say("rm", "-f", "web")


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


@pytest.mark.parametrize(
    ("flags", "only", "words"),
    [
        (("--network", "bridge"), "none", "neither pasta nor slirp4netns is installed"),
        (("-p", "80"), "none", "apt-get install passt"),
        (("--network", "lab"), "pasta", "cannot share a network"),
        (("--network", "bridge", "--ip", "10.0.2.7"), "pasta", "--ip"),
    ],
)
def test_what_cannot_be_had_says_what_to_do(say: Say, flags: tuple[str, ...], only: str, words: str) -> None:
    done = say("run", "--rm", *flags, "python", "true", only=only)
    assert (done.returncode, words in done.stderr) == (125, True), done.stderr
    assert "hint: " in done.stderr
    assert say("ps", "-aq").stdout == ""


def test_a_network_that_could_not_be_shared_is_not_made(say: Say) -> None:
    made = say("network", "create", "lab")
    assert (made.returncode, "cannot share a network" in made.stderr) == (1, True), made.stderr


def test_without_a_helper_there_is_no_network(say: Say) -> None:
    done = say("run", "--rm", "python", "python", "-c", CALL, "192.0.2.1", "80", only="none")
    assert done.stdout == "OSError\n"
