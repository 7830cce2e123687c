"""A host played by a network namespace, with a world outside in another: what a test does to its routes and rules reaches no real one.

world (198.51.100.2, .3, …; a name server on .53)  ──veth──  host (198.51.100.1, `sandbox` runs here)  ──bridge──  containers
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tests.support.command_line import CommandLine

NAME_SERVER = "198.51.100.53"
HERE, HERE6 = "198.51.100.1", "2001:db8:1::1"
_WORLD = ("198.51.100.2", "198.51.100.3", NAME_SERVER)
_WORLD6 = ("2001:db8:1::2", "2001:db8:1::3", "2001:db8:1::53")

_SERVE = r"""
import json, select, socket, struct, sys
places, zone = json.loads(sys.argv[1]), json.loads(sys.argv[2])
TYPES = {"A": 1, "CNAME": 5, "TXT": 16, "AAAA": 28}
ends = {}
def listen(kind, address, port):
    end = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    end.bind((address, port))
    if kind == socket.SOCK_STREAM: end.listen(64)
    ends[end.fileno()] = (end, port)
for address, port in places:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM): listen(kind, address, port)
def encoded(name):
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".") if part) + b"\0"
def value(kind, text):
    if kind == "CNAME": return encoded(text)
    if kind == "TXT": return bytes([len(text)]) + text.encode()
    return socket.inet_pton(socket.AF_INET6 if kind == "AAAA" else socket.AF_INET, text)
def answer(data, is_stream):
    at, labels = 12, []
    while size := data[at]:
        labels.append(data[at+1:at+1+size].decode().lower()); at += 1 + size
    name, kind = ".".join(labels), struct.unpack_from(">H", data, at + 1)[0]
    print(json.dumps(["asked", name, kind]), flush=True)
    rows = [r for r in zone.get(name, []) if TYPES[r[1]] in (kind, 5)]
    if name == "large.example.test" and not is_stream:
        return data[:2] + b"\x83\x80\0\1\0\0\0\0\0\0" + data[12:at+5]
    if name == "large.example.test" and kind == 1:
        rows = [[name, "A", 60, f"203.0.113.{n}"] for n in range(1, 101)]
    code = 0 if name in zone or rows else 3
    body = b"".join(encoded(r[0]) + struct.pack(">HHIH", TYPES[r[1]], 1, r[2], len(v := value(r[1], r[3]))) + v for r in rows)
    return data[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(rows), 0, 0) + data[12:at+5] + body
print("ready", flush=True)
while True:
    for fd in select.select(list(ends), [], [])[0]:
        end, port = ends[fd]
        if end.type == socket.SOCK_DGRAM:
            data, sender = end.recvfrom(4096)
            end.sendto(answer(data, False) if port == 53 else b"from " + sender[0].encode() + b" " + data, sender)
            if port != 53: print(json.dumps(["datagram", end.getsockname()[0], data.decode("latin1")]), flush=True)
            continue
        client, sender = end.accept()
        client.settimeout(10)
        try:
            data = client.recv(4096)
            if port == 53:
                reply = answer(data[2:], True); client.sendall(struct.pack(">H", len(reply)) + reply)
            else:
                print(json.dumps(["connection", end.getsockname()[0], data.decode("latin1")]), flush=True)
                client.sendall(b"from " + sender[0].encode() + b" " + data)
        except OSError: pass
        client.close()
"""


@dataclass
class PlayedHost:
    """The namespaces of `host` and `world`: a process in each."""

    host: int
    world: int

    def command(self, where: int, *words: str) -> list[str]:
        """A command line that runs there."""
        return ["nsenter", "-t", str(where), "-n", *words]

    def run(self, *words: str, where: int | None = None) -> str:
        """Run a program there (else on the host) to its good end; what it printed."""
        done = subprocess.run(self.command(where or self.host, *words), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def rules(self, text: str) -> None:
        """Load nft(8)'s rules on the played host."""
        command = self.command(self.host, "nft", "-f", "-")
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    def sandbox(self, other: CommandLine) -> CommandLine:
        """The same engine, used on this host."""
        return replace(other, prefix=(*self.command(self.host), *other.prefix))


class Served:
    """What servers saw."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def seen(self) -> list[list[object]]:
        """Everything up to now; they are ended."""
        self._process.terminate()
        assert self._process.stdout
        return [json.loads(line) for line in self._process.stdout.read().splitlines()]


@contextmanager
def played_host(*, ip6: bool = False) -> Iterator[PlayedHost]:
    """Two namespaces for the time of the block; they go with their processes."""
    with _namespace() as host, _namespace() as world:
        made = PlayedHost(host, world)
        made.run("ip", "link", "add", "out0", "type", "veth", "peer", "name", "in0", "netns", str(world))
        made.run("ip", "address", "add", f"{HERE}/24", "dev", "out0")
        made.run("ip", "link", "set", "out0", "up")
        made.run("ip", "link", "set", "in0", "up", where=world)
        for address in _WORLD:
            made.run("ip", "address", "add", f"{address}/24", "dev", "in0", where=world)
        made.run("ip", "route", "add", "default", "via", _WORLD[0])
        if ip6:
            made.run("ip", "address", "add", f"{HERE6}/64", "dev", "out0", "nodad")
            for address in _WORLD6:
                made.run("ip", "address", "add", f"{address}/64", "dev", "in0", "nodad", where=world)
            made.run("ip", "-6", "route", "add", "default", "via", _WORLD6[0])
        yield made


@contextmanager
def _namespace() -> Iterator[int]:
    program = "import sys; print('ready', flush=True); sys.stdin.read()"
    argv = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$0" -c "$1"', sys.executable, program]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            process.kill()


@contextmanager
def serving(
    played: PlayedHost, where: int, places: Sequence[tuple[str, int]], zone: Mapping[str, Sequence[tuple[str, str, int, str]]] | None = None
) -> Iterator[Served]:
    """Servers on these addresses and ports for TCP and UDP, that answer with who asked and what; port 53 answers for the zone (name →
    records as (owner, type, seconds, value))."""
    argv = played.command(where, sys.executable, "-c", _SERVE, json.dumps(places), json.dumps(zone or {}))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield Served(process)
        finally:
            process.kill()
