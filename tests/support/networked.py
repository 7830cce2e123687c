"""Containers that serve and call, for tests of networks; and a look at where the bridges are: here for root, in an ordinary user's hub."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from sandbox.runtime.init import hub
from sandbox.runtime.network.networks import bridge_prefix
from tests.support.command_line import CommandLine, command_line
from tests.support.ordinary_user import SYSTEM_PYTHON, OrdinaryUser, packages_of

SERVE = """import socket,sys; s=socket.create_server(('', int(sys.argv[1])))
while True:
    c,a=s.accept(); d=c.recv(99); c.sendall(a[0].encode()+b' '+d); c.close()
"""
UPPER = """import socket,sys,threading; s=socket.create_server(('', int(sys.argv[1])))
def go(c):
    while d:=c.recv(65536): c.sendall(d.upper())
    c.close()
while True: threading.Thread(target=go, args=(s.accept()[0],)).start()
"""
REVERSE = """import socket,sys; s=socket.socket(type=socket.SOCK_DGRAM); s.bind(('', int(sys.argv[1])))
while True:
    d,a=s.recvfrom(9999); s.sendto(d[::-1],a)
"""
CALL = """import socket,sys
try:
    c=socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])); c.sendall(b'hi'); print(c.recv(99).decode())
except OSError as err:
    print(type(err).__name__)
"""


WHOSE = pytest.mark.parametrize("whose", ["root's", "an ordinary user's"], scope="module", indirect=True)
"""Whose engine `command_line_of` runs; for tests that themselves are root, and play a host."""


@contextmanager
def command_line_of(user: OrdinaryUser | None, root: Path, python_tar: Path) -> Iterator[CommandLine]:
    """A command line with the captured Python as the image `python`: this user's, else root's, below `root`."""
    with command_line(root) if user is None else _command_line_as(user, user.home / root.parent.name) as made:
        made.ok("load", stdin=python_tar.read_bytes())
        made.ok("tag", "localhost/python", "python")
        yield made


def _command_line_as(user: OrdinaryUser, root: Path) -> AbstractContextManager[CommandLine]:
    env = {"PYTHONPATH": str(packages_of(user)), "SANDBOX_NETWORK": "none"}
    return command_line(root, prefix=(*user.prefix(env), "env", "-C", str(user.home)), python=SYSTEM_PYTHON)


def where_bridges_are(root: Path, *argv: str, is_hub: bool | None = None) -> str:
    """What a program says where the bridges of this engine are; nothing when there is no such place."""
    if not (os.geteuid() != 0 if is_hub is None else is_hub):
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    try:
        connection = hub.connect(str(root / "networks"))
    except (FileNotFoundError, ConnectionRefusedError):
        return ""
    with closing(connection):
        enter = ["nsenter", f"--user=/proc/self/fd/{connection.user}", f"--net=/proc/self/fd/{connection.net}"]
        kept = (connection.user, connection.net)
        return subprocess.run([*enter, *argv], check=True, capture_output=True, text=True, pass_fds=kept).stdout


def take_bridges_away(root: Path) -> None:
    """As by hand, or by a kill: root's bridges one by one, an ordinary user's with the hub."""
    if os.geteuid() == 0:
        for name in links(root):
            if name.startswith(bridge_prefix(root)):
                subprocess.run(["ip", "link", "delete", name], check=True)
        return
    listed = subprocess.run(["pgrep", "-U", str(os.geteuid()), "sandbox-network"], check=True, capture_output=True, text=True).stdout
    with closing(hub.connect(str(root / "networks"))) as connection:
        (holder,) = [pid for pid in map(int, listed.split()) if os.path.samefile(f"/proc/{pid}/ns/net", f"/proc/self/fd/{connection.net}")]
        end = os.pidfd_open(holder)
        os.kill(holder, signal.SIGKILL)
        select.select([end], [], [], 20)
        os.close(end)


def links(root: Path) -> list[str]:
    """The names of the links there."""
    shown = where_bridges_are(root, "ip", "-brief", "link")
    return sorted(line.split()[0].partition("@")[0] for line in shown.splitlines())


class Site:
    """`sandbox` with the captured Python, and what it has on the host."""

    def __init__(self, sandbox: CommandLine) -> None:
        self.sandbox = sandbox

    def serve(self, name: str, *flags: str, port: int = 80, program: str = SERVE) -> str:
        """A server in the background that answers with the caller's address; its own address."""
        ready = f"{program.partition(chr(10))[0]}; print('ready', flush=True)\n{program.partition(chr(10))[2]}"
        self.sandbox.ok("run", "-d", "--name", name, *flags, "python", "python", "-c", ready, str(port))
        with self.sandbox.going("logs", "-f", name) as logs:
            assert logs.stdout
            assert logs.stdout.readline() == b"ready\n"
        return str(self.facts(name)["IPAddress"])

    def facts(self, name: str) -> dict[str, object]:
        """Its NetworkSettings."""
        return dict(self.sandbox.json("inspect", name)[0]["NetworkSettings"])

    def call(self, target: str, port: int, *flags: str, patience: float = 5) -> str:
        """What a fresh container hears from there, or the class of its error."""
        return self.sandbox.ok("run", "--rm", *flags, "python", "python", "-c", CALL, target, str(port), str(patience)).out.strip()

    def on_host(self) -> list[str]:
        """Our bridges."""
        return [name for name in links(self.sandbox.root) if name.startswith(bridge_prefix(self.sandbox.root))]
