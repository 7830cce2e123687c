"""`python -m bench.net [-n ROUNDS]`: throughput and latency of containers in a bridge, and through a published port, beside podman's.

iperf3 (Debian package) measures bits; latency is a byte there and back between this machine and a container. Everything happens in a
network and mount namespace of its own, where "host" is that namespace: neither engine's bridges and rules touch this machine. Rounds are
interleaved, each case once a round in random order. A podman that cannot run here is named with what it said, and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import random
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.harness import make_rootfs, scratch_engine
from sandbox.engine import Engine
from sandbox.options import RunOptions, parse_publish

_IPERF, _ECHO = 5201, 7
_SERVE = "while true; do iperf3 -s -1 >/dev/null; done & exec nc -ll -p 7 -e cat"
_MOST = ((resource.RLIMIT_NOFILE, 1 << 20), (resource.RLIMIT_NPROC, 32768))
_SECONDS = "1"
_BYTES_THERE_AND_BACK = 2000
_CLONE_NEWNS, _CLONE_NEWNET, _MS_REC, _MS_PRIVATE = 0x20000, 0x40000000, 0x4000, 1 << 18


@dataclass(frozen=True)
class Pair:
    """Two running containers of one engine: `address` is the server's, `ports` lead to it from this machine's loopback, `gateway` is
    this machine as they see it; `ask` runs a program in the client and gives what it printed."""

    address: str
    gateway: str
    ports: dict[int, int]
    ask: Callable[[Sequence[str]], str]


def enter_pen() -> None:
    """Into namespaces of our own, with loopback."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET | _CLONE_NEWNS) or libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None):
        sys.exit(f"bench.net: needs root: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for line in Path("/proc/self/mounts").read_text().splitlines():
        place, kind = line.split()[1:3]
        if kind == "cgroup2" and place != "/sys/fs/cgroup":  # crun 1.8: "hybrid mode not supported"
            subprocess.run(["umount", place], check=False)


def add_iperf(rootfs: Path) -> None:
    """iperf3 and its libraries."""
    program = shutil.which("iperf3")
    if program is None:
        sys.exit("bench.net: needs iperf3 (Debian package)")
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for path in [program, *(word for word in said.split() if word.startswith("/"))]:
        target = rootfs / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for name in ("nc", "cat"):
        (rootfs / "bin" / name).symlink_to("busybox")


@contextlib.contextmanager
def ours(engine: Engine) -> Iterator[Pair]:
    """Two containers of ours."""
    publish = tuple(parse_publish(str(port)) for port in (_IPERF, _ECHO))
    server = engine.start("localhost/bench", ["sh", "-c", _SERVE], options=RunOptions(network="bridge", publish=publish))
    client = engine.start("localhost/bench", ["sleep", "10000"], options=RunOptions(network="bridge"))
    try:
        facts = server.inspect()["NetworkSettings"]
        ports = {port.container: port.host for port in server.ports}
        yield Pair(facts["IPAddress"], facts["Gateway"], ports, lambda argv: client.exec(argv).stdout.decode())
    finally:
        for each in (server, client):
            each.remove(force=True)


@contextlib.contextmanager
def podmans(scratch: Path, rootfs: Path) -> Iterator[Pair]:
    """Two of podman's."""
    where = ["podman", "--root", f"{scratch}/podman", "--runroot", f"{scratch}/podman-run", "--storage-driver", "overlay"]
    where += ["--cgroup-manager", "cgroupfs", "--tmpdir", f"{scratch}/podman-tmp", "--network-config-dir", f"{scratch}/podman-networks"]

    files, processes = (min(resource.getrlimit(each)[1], most) for each, most in _MOST)
    settings = scratch / "containers.conf"  # podman asks for more than a process without CAP_SYS_RESOURCE may have
    settings.write_text(f'[containers]\ndefault_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]\n')
    env = {**os.environ, "CONTAINERS_CONF": str(settings)}

    def podman(*words: str) -> str:
        return subprocess.run([*where, *words], check=True, capture_output=True, text=True, env=env).stdout

    ports = {_IPERF: 15201, _ECHO: 10007}
    published = [word for inside, here in ports.items() for word in ("-p", f"127.0.0.1:{here}:{inside}")]
    try:
        podman("run", "-d", "--name", "server", *published, "--rootfs", str(rootfs), "sh", "-c", _SERVE)
        podman("run", "-d", "--name", "client", "--rootfs", str(rootfs), "sleep", "10000")
        facts = json.loads(podman("inspect", "server"))[0]["NetworkSettings"]
        found = facts if facts.get("IPAddress") else next(iter(facts["Networks"].values()))
        yield Pair(found["IPAddress"], found["Gateway"], ports, lambda argv: podman("exec", "client", *argv))
    finally:
        subprocess.run([*where, "rm", "-f", "-t", "0", "-a"], check=False, capture_output=True)


def gigabits(argv: Sequence[str], ask: Callable[[Sequence[str]], str]) -> float:
    """What one iperf3 client received or sent, in Gbit/s."""
    for _ in range(50):
        report = json.loads(ask(argv))
        if "error" not in report:
            return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9
        time.sleep(0.05)  # its server is starting again
    sys.exit(f"iperf3: {report['error']}")


def microseconds(address: str, port: int) -> float:
    """One byte there and back, the median."""
    with socket.create_connection((address, port), timeout=10) as end:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        taken = []
        for _ in range(_BYTES_THERE_AND_BACK):
            start = time.perf_counter()
            end.sendall(b"x")
            end.recv(1)
            taken.append((time.perf_counter() - start) * 1e6)
    return statistics.median(taken)


def here(argv: Sequence[str]) -> str:
    """Run it on this machine."""
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def cases_of(pair: Pair) -> dict[str, Callable[[], float]]:
    """What is measured of one engine: by what it is called, with its unit."""
    client = ["iperf3", "-J", "-t", _SECONDS]
    return {
        "container → container, Gbit/s": lambda: gigabits([*client, "-c", pair.address], pair.ask),
        "host → container, Gbit/s": lambda: gigabits([*client, "-c", pair.address], here),
        "container → host, Gbit/s": lambda: gigabits([*client, "-R", "-c", pair.address], here),
        "host → published port, Gbit/s": lambda: gigabits([*client, "-c", "127.0.0.1", "-p", str(pair.ports[_IPERF])], here),
        "published port → host, Gbit/s": lambda: gigabits([*client, "-R", "-c", "127.0.0.1", "-p", str(pair.ports[_IPERF])], here),
        "byte host ⇄ container, µs": lambda: microseconds(pair.address, _ECHO),
        "byte host ⇄ published port, µs": lambda: microseconds("127.0.0.1", pair.ports[_ECHO]),
    }


def measure(pairs: dict[str, Pair], rounds: int) -> None:
    """A table: medians of each case for each engine."""
    todo = {(what, name): case for name, pair in pairs.items() for what, case in cases_of(pair).items()}
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in todo}
    order = list(todo)
    for number in range(-1, rounds):
        random.shuffle(order)
        for key in order:
            value = todo[key]()
            if number >= 0:
                samples[key].append(value)
    print(f"\n| median of {rounds} (lowest to highest) | {' | '.join(pairs)} |\n|---|{'--:|' * len(pairs)}")
    for what in dict.fromkeys(what for what, _ in todo):
        found = [samples[what, name] for name in pairs]
        print(f"| {what} | " + " | ".join(f"{statistics.median(v):.1f} ({min(v):.1f} to {max(v):.1f})" for v in found) + " |")


def main() -> None:
    """Everything in a directory, and in namespaces, of its own."""
    parser = argparse.ArgumentParser(prog="python -m bench.net", description=__doc__)
    parser.add_argument("-n", type=int, default=7, help="counted rounds")
    rounds = parser.parse_args().n
    enter_pen()
    with ExitStack() as opened:
        scratch, engine = opened.enter_context(scratch_engine())
        rootfs = make_rootfs(scratch / "rootfs")
        add_iperf(rootfs)
        subprocess.run(["tar", "-C", str(rootfs), "-cf", str(scratch / "rootfs.tar"), "."], check=True)
        engine.import_image(scratch / "rootfs.tar", "localhost/bench")
        print(f"Linux {os.uname().release}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}")
        pairs = {"sandbox": opened.enter_context(ours(engine))}
        try:
            pairs["podman"] = opened.enter_context(podmans(scratch, rootfs))
        except (subprocess.CalledProcessError, FileNotFoundError) as err:
            print(f"left out: podman: {err} {getattr(err, 'stderr', '')}")
        measure(pairs, rounds)
        opened.callback(lambda: subprocess.run(["umount", "--quiet", f"{scratch}/podman/overlay"], check=False))


if __name__ == "__main__":
    main()
