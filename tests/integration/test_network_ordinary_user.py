"""An ordinary user's networks: out through pasta or slirp4netns, in through published ports, one another by name; nothing left of them
however what holds them ends. What they have in common with root's is in the tests of networks that anybody runs."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any  # docker's JSON

import pytest

from sandbox.runtime.network.networks import bridge_prefix
from tests.support.host import requires
from tests.support.ordinary_user import OrdinaryUser, packages_of
from tests.support.ordinary_user import ordinary_user as ordinary_user_of

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
TALK = "import socket,sys; c=socket.create_connection((sys.argv[1], int(sys.argv[2])), 5); c.sendall(b'hi'); print(c.recv(9).decode())"
CALL = """import socket,sys
try:
    c=socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3); print(c.recv(99).decode())
except OSError as err:
    print(type(err).__name__)
"""


def _load(say: Say, user: OrdinaryUser, image: Path) -> None:
    archive = user.home / image.name
    shutil.copy(image, archive)
    archive.chmod(0o644)
    assert say("load", "-i", str(archive)).returncode == 0
    archive.unlink()


@pytest.fixture(scope="module")
def say(ordinary_user: OrdinaryUser, packages: Path, python_tar: Path) -> Iterator[Say]:
    """`sandbox WORDS…` as that user, with the captured Python as the image `python`; `only`: the one helper program that is installed."""
    root = ordinary_user.home / "network-state"
    programs = {name: _programs(ordinary_user, name) for name in (*HELPERS, "none")}

    def run(*words: str, only: str | None = None) -> subprocess.CompletedProcess[str]:
        env = {"PYTHONPATH": str(packages), "SANDBOX_ROOT": str(root), **({"PATH": str(programs[only])} if only else {})}
        return ordinary_user.run(["/usr/bin/python3", "-m", "sandbox", *words], env=env)

    _load(run, ordinary_user, python_tar)
    assert run("tag", "localhost/python", "python").returncode == 0
    yield run
    assert run("ps", "-aq").stdout == ""
    _gone(run, ordinary_user)


def _programs(user: OrdinaryUser, name: str) -> Path:
    """A PATH on which no other helper is."""
    place = user.home / f"bin-{name}"
    place.mkdir()
    for program in ("env", name) if name != "none" else ("env",):
        (place / program).symlink_to(str(shutil.which(program)))
    return place


def _processes(user: OrdinaryUser) -> dict[int, str]:
    """What that user runs, but for what has ended already."""
    listed = subprocess.run(["ps", "-U", str(user.uid), "-o", "stat=,pid=,comm="], capture_output=True, text=True, check=False).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return {int(pid): name for state, pid, name in rows if not state.startswith("Z")}


def _all_end(pids: Iterable[int]) -> None:
    """Wait until none is left of these processes."""
    for pid in pids:
        try:
            end = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        assert select.select([end], [], [], 20)[0], f"process {pid} is still there"
        os.close(end)


def _gone(say: Say, user: OrdinaryUser) -> None:
    """Nothing runs as that user any more, and no file says that it does."""
    assert say("prune", "-f").returncode == 0
    _all_end(_processes(user))
    assert {path.name for path in (_root(user) / "networks").glob("hub*")} <= {"hub.lock"}


@pytest.fixture(autouse=True)
def alone(say: Say, ordinary_user: OrdinaryUser) -> Iterator[None]:
    """Every test starts without a hub: its helper is what a test asks for."""
    yield
    if names := say("ps", "-aq").stdout.split():
        say("rm", "-f", *names)
    _gone(say, ordinary_user)


def _hub(user: OrdinaryUser) -> dict[str, int]:
    """The processes of the hub: keeper, holder and helper."""
    roles = {"sandbox-hub": "keeper", "sandbox-network": "holder"}
    return {roles.get(name, "helper"): pid for pid, name in _processes(user).items() if name in roles or name.startswith(("pa", "slirp"))}


def _serve(say: Say, user: OrdinaryUser, helper: str | None, *flags: str) -> dict[str, int]:
    """A container `web` that answers; the ports of this machine that lead to it."""
    ready, only = _listen(user), {"only": helper} if helper else {}
    started = say("run", "-d", "--name", "web", "-v", f"{user.home}/sync:/sync", *flags, "python", "python", "-c", ECHO, **only)
    assert started.returncode == 0, started.stderr
    _until(ready)
    lines = [line.split(" -> ") for line in say("port", "web").stdout.splitlines()]
    return {inside: int(outside.rpartition(":")[2]) for inside, outside in lines}


def _listen(user: OrdinaryUser) -> int:
    """What can be read once the next ECHO serves."""
    sync = user.home / "sync"
    if not sync.exists():
        user.run(["sh", "-c", f"mkdir {sync} && mkfifo {sync}/ready"])
    return os.open(sync / "ready", os.O_RDONLY | os.O_NONBLOCK)


def _until(ready: int) -> None:
    assert select.select([ready], [], [], 30)[0]
    os.close(ready)


@contextmanager
def _going(user: OrdinaryUser, packages: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`sandbox WORDS…` as this user while it runs; killed when it still does at the end."""
    env = {**os.environ, "PYTHONPATH": str(packages), "SANDBOX_ROOT": str(_root(user)), "HOME": str(user.home)}
    argv = ["/usr/bin/python3", "-m", "sandbox", *words]
    process = subprocess.Popen(
        argv, env=env, user=user.uid, group=user.gid, extra_groups=[], cwd=user.home, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _root(user: OrdinaryUser) -> Path:
    return user.home / "network-state"


def _state(user: OrdinaryUser) -> dict[str, Any]:
    """What the only container's state file says."""
    (state,) = (_root(user) / "containers").glob("*/state.json")
    found: dict[str, Any] = json.loads(state.read_text())
    return found


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
            for target in ("127.0.0.1", facts["Gateway"], "198.18.254.2", "198.18.254.100"):
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
def test_hub_and_ports_end_with_a_killed_supervisor(say: Say, ordinary_user: OrdinaryUser, helper: str) -> None:
    port = _serve(say, ordinary_user, helper, "-p", "80")["80/tcp"]
    family = _family(_state(ordinary_user)["supervisor"])
    assert len(family) == 4  # itself, init, its program and the proxy
    assert _hub(ordinary_user).keys() == {"keeper", "holder", "helper"}
    everything = [*family, *_hub(ordinary_user).values()]
    os.kill(family[0], signal.SIGKILL)
    _all_end(everything)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)


@pytest.mark.parametrize("victims", [("keeper",), ("holder",), ("helper",), ("keeper", "holder")])
def test_a_container_outlives_its_hub_and_is_back_after_a_restart(
    say: Say, ordinary_user: OrdinaryUser, packages: Path, victims: tuple[str, ...]
) -> None:
    old = _serve(say, ordinary_user, "pasta", "-p", "80")["80/tcp"]
    first = _hub(ordinary_user)
    for victim in victims:
        os.kill(first[victim], signal.SIGSTOP)
    for victim in victims:
        os.kill(first[victim], signal.SIGKILL)
    _all_end(first.values())
    with _going(ordinary_user, packages, "events", "--since", "1h") as events:
        assert events.stdout
        assert any("network_lost" in line for line in events.stdout)
    assert json.loads(say("network", "inspect", "bridge").stdout)[0]["Containers"] == {}
    assert [_state(ordinary_user)["network"][name] for name in ("places", "ports")] == [[], []]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", old), timeout=10)
    assert say("exec", "web", "echo", "alive").stdout == "alive\n"
    assert say("run", "--rm", "--network", "bridge", "python", "ls", "/sys/class/net").stdout == "eth0\nlo\n"  # with a hub of its own
    ready = _listen(ordinary_user)
    restarted = say("restart", "-t", "0", "web")
    assert restarted.returncode == 0, restarted.stderr
    _until(ready)
    heard = say("run", "--rm", "--network", "bridge", "python", "python", "-c", TALK, "web", "80").stdout
    assert heard == "HI\n"


def test_a_killed_engine_takes_what_was_attached_to_it_along(say: Say, ordinary_user: OrdinaryUser, packages: Path) -> None:
    ready = _listen(ordinary_user)
    flags = ("--rm", "--network", "bridge", "-v", f"{ordinary_user.home}/sync:/sync")
    with _going(ordinary_user, packages, "run", *flags, "python", "python", "-c", ECHO) as process:
        _until(ready)
        everything = _processes(ordinary_user)
        assert len(everything) >= 7  # the command, its spawner, supervisor, init and program, and the hub's three
        process.kill()
        _all_end(everything)


def test_engines_that_start_it_at_once_share_one_hub(say: Say, ordinary_user: OrdinaryUser, packages: Path) -> None:
    say("network", "create", "lab")
    words = ("run", "-d", "--network", "lab", "python", "sleep", "100")
    with ExitStack() as opened:
        started = [opened.enter_context(_going(ordinary_user, packages, *words)) for _ in range(4)]
        assert [each.wait(60) for each in started] == [0] * 4
    assert list(_processes(ordinary_user).values()).count("sandbox-hub") == 1
    assert len(json.loads(say("network", "inspect", "lab").stdout)[0]["Containers"]) == 4


def test_nothing_of_it_is_on_the_host(say: Say, ordinary_user: OrdinaryUser) -> None:
    say("network", "create", "lab")
    assert say("run", "-d", "--network", "lab", "python", "sleep", "100").returncode == 0
    prefix = bridge_prefix(_root(ordinary_user))
    assert prefix not in str(socket.if_nameindex())
    assert prefix not in subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    inside = ("nsenter", "-t", str(_hub(ordinary_user)["holder"]), "-U", "-n")
    for look in (("ip", "link"), ("nft", "list", "tables")):  # the twin
        assert prefix in subprocess.run([*inside, *look], capture_output=True, text=True, check=True).stdout


def test_offline_containers_reach_one_another_and_online_the_next_hub_leads_out(
    say: Say, ordinary_user: OrdinaryUser, packages: Path
) -> None:
    prefix = ordinary_user.prefix({"PYTHONPATH": str(packages), "SANDBOX_ROOT": str(_root(ordinary_user))})

    def offline(*words: str) -> subprocess.CompletedProcess[str]:
        argv = ["unshare", "--net", *prefix, "/usr/bin/python3", "-m", "sandbox", *words]
        return subprocess.run(argv, cwd=ordinary_user.home, capture_output=True, text=True, timeout=60, check=False)

    _serve(offline, ordinary_user, None, "--network", "bridge")
    call = ("run", "--rm", "--network", "bridge", "python", "python", "-c", TALK, "web", "80")
    assert offline(*call).stdout == "HI\n"
    assert _hub(ordinary_user).keys() == {"keeper", "holder"}
    assert say(*call).stdout == "HI\n"  # into the one that is in use
    assert say("rm", "-f", "web").returncode == 0
    assert say("run", "-d", "--network", "bridge", "python", "sleep", "100").returncode == 0
    assert _hub(ordinary_user).keys() == {"keeper", "holder", "helper"}


def test_root_of_a_container_has_no_power_over_the_hub(say: Say) -> None:
    say("network", "create", "lab")
    flags = ("--network", "lab", "--privileged")
    script = """import os
try: print(os.stat('/proc/self/ns/net').st_ino and open('/proc/sys/net/ipv4/ip_forward', 'w').write('0'))
except OSError as err: print(type(err).__name__)
"""
    assert say("run", "--rm", *flags, "python", "python", "-c", script).stdout == "1\n"  # its own
    kept = say("run", "--rm", "--network", "lab", "--network", "bridge", "python", "python", "-m", "pip", "download", "-q", "--no-deps",
               "-d", "/tmp", "six==1.16.0")  # fmt: skip
    assert kept.returncode == 0, kept.stderr  # the hub passes packets on still
    refused = say("run", "--rm", "--network", "lab", "--userns", "host", "python", "true")
    assert (refused.returncode, "not with --userns host" in refused.stderr) == (125, True), refused.stderr


def test_nothing_of_the_hub_is_open_in_a_container(say: Say, ordinary_user: OrdinaryUser) -> None:
    _serve(say, ordinary_user, None, "--network", "bridge", "-p", "80")
    holder = _hub(ordinary_user)["holder"]
    hubs = {os.readlink(f"/proc/{holder}/ns/{kind}") for kind in ("user", "net")}
    state = _state(ordinary_user)
    assert hubs <= _open_in(state["supervisor"])  # the twin
    for pid in _family(state["pid"]):
        kept = {os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("user", "net")} | _open_in(pid)
        assert not kept & hubs


def _open_in(pid: int) -> set[str]:
    """What its descriptors are open on."""
    return {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}


def test_builds_run_in_it(say: Say, ordinary_user: OrdinaryUser) -> None:
    context = ordinary_user.home / "network-context"
    ordinary_user.run(["mkdir", "-p", str(context)])
    (context / "Dockerfile").write_text("FROM python\nRUN python -m pip download -q --no-deps -d /wheels six==1.16.0\n")
    done = say("build", "-q", "--network", "bridge", "-t", "built", str(context))
    assert done.returncode == 0, done.stderr
    assert say("run", "--rm", "built", "ls", "/wheels").stdout == "six-1.16.0-py2.py3-none-any.whl\n"
    say("rmi", "built")


def test_a_user_without_subordinate_ids_has_networks_too(python_tar: Path) -> None:
    with ordinary_user_of(subordinate_ids=False) as user:
        env = {"PYTHONPATH": str(packages_of(user)), "SANDBOX_ROOT": str(_root(user))}

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            return user.run(["/usr/bin/python3", "-m", "sandbox", *words], env=env)

        _load(run, user, python_tar)
        assert run("tag", "localhost/python", "python").returncode == 0
        run("network", "create", "lab")
        _serve(run, user, None, "--network", "lab")
        assert run("run", "--rm", "--network", "lab", "python", "python", "-c", TALK, "web", "80").stdout == "HI\n"
        assert run("run", "--rm", "--network", "bridge", "python", "python", "-c", CALL, "web", "80").stdout == "gaierror\n"
        run("rm", "-f", "web")
        _gone(run, user)


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


@pytest.mark.parametrize(
    ("flags", "only", "words"),
    [
        (("--network", "bridge"), "none", "neither pasta nor slirp4netns is installed"),
        (("-p", "80"), "none", "apt-get install passt"),
    ],
)
def test_what_cannot_be_had_says_what_to_do(say: Say, flags: tuple[str, ...], only: str, words: str) -> None:
    done = say("run", "--rm", *flags, "python", "true", only=only)
    assert (done.returncode, words in done.stderr) == (125, True), done.stderr
    assert "hint: " in done.stderr
    assert say("ps", "-aq").stdout == ""


def test_without_a_helper_there_is_no_network(say: Say) -> None:
    done = say("run", "--rm", "python", "python", "-c", CALL, "192.0.2.1", "80", only="none")
    assert done.stdout == "OSError\n"
