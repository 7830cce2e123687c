"""Containers that serve and call, for tests of networks."""

from __future__ import annotations

import socket

from sandbox.runtime.network.networks import bridge_prefix
from tests.support.command_line import CommandLine

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
        """Our bridges here."""
        return [name for _, name in socket.if_nameindex() if name.startswith(bridge_prefix(self.sandbox.root))]
