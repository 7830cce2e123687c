"""`python -m bench.kernel [-n RUNS] [--many 30]`: kernels in containers beside the same ipykernel on the host, in one run.

From the start to the first result, one round trip, memory; and that many at once."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

import psutil
import zmq
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from bench.harness import interleave, scratch_engine, show

_HOST = "host ipykernel"
_KERNELS = {_HOST: "python3", "ipykernel in a container": "contained", "Sandbox kernel": "bridged"}
_ROUND_TRIPS = 200
_CONTEXT = zmq.Context()
_CONTEXT.setsockopt(zmq.RECONNECT_IVL, 5)
"""ZeroMQ asks a kernel that does not listen yet again after 100 to 200 ms, by dice: here often enough to see when it does."""


class Started:
    """A kernel that has answered. `close` shuts it down."""

    def __init__(self, name: str, *, wait: bool = True) -> None:
        self.manager = KernelManager(kernel_name=name, context=_CONTEXT)
        self.manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.client: BlockingKernelClient = self.manager.client()
        self.client.start_channels()
        if wait:
            self.first()

    def first(self) -> None:
        """Until the first result is there."""
        self.client.wait_for_ready(timeout=120)
        self.execute("6 * 7")

    def execute(self, code: str) -> None:
        """One round trip, to `idle`."""
        self.client.execute_interactive(code, timeout=60, output_hook=lambda _: None)

    def close(self) -> None:
        """Shut it down, and wait for that."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def _start(name: str) -> float:
    began = time.perf_counter()
    kernel = Started(name)
    ended = time.perf_counter()
    kernel.close()
    return (ended - began) * 1e3


def bench_start(runs: int) -> None:
    """From start_kernel to the first result; the shutdown is not in it."""
    samples: dict[str, list[float]] = {name: [] for name in _KERNELS}
    for number in range(-1, runs):
        for label, name in _KERNELS.items():
            value = _start(name)
            if number >= 0:
                samples[label].append(value)
    show("start to first result", samples, _HOST)
    base = statistics.median(samples[_HOST])
    for label, values in samples.items():
        if label != _HOST:
            print(f"{label}: {statistics.median(values) - base:+.0f} ms")


def bench_round_trip() -> None:
    """One cell, in warm kernels that take turns."""
    kernels = {label: Started(name) for label, name in _KERNELS.items()}
    try:
        samples = interleave({label: lambda kernel=kernel: kernel.execute("6 * 7") for label, kernel in kernels.items()}, _ROUND_TRIPS)
        show("a round trip", samples, _HOST)
    finally:
        for kernel in kernels.values():
            kernel.close()


def _memory() -> dict[int, int]:
    """PSS of every process below this one."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            found[process.pid] = int(process.memory_full_info().pss)
        except psutil.Error:
            continue  # it has just ended
    return found


def bench_memory() -> None:
    """What one kernel adds, all its processes together."""
    print("\n### memory of one kernel\n\n| | processes | MiB (PSS) |\n|---|--:|--:|")
    for label, name in _KERNELS.items():
        before = set(_memory())
        kernel = Started(name)
        added = {pid: size for pid, size in _memory().items() if pid not in before}
        kernel.close()
        print(f"| {label} | {len(added)} | {sum(added.values()) / (1 << 20):.1f} |")


def bench_many(count: int) -> None:
    """That many containerised kernels started one after the other, then all of them waited for."""
    before = set(_memory())
    began = time.perf_counter()
    kernels = [Started("contained", wait=False) for _ in range(count)]
    for kernel in kernels:
        kernel.first()
    seconds = time.perf_counter() - began
    size = sum(size for pid, size in _memory().items() if pid not in before)
    for kernel in kernels:
        kernel.close()
    print(f"\n### {count} kernels at once\n\nall have answered after {seconds:.1f} s; {size / count / (1 << 20):.1f} MiB (PSS) each")


def main() -> None:
    """Run everything in a directory of its own."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernel")
    parser.add_argument("-n", type=int, default=10)
    parser.add_argument("--many", type=int, default=30)
    chosen = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with scratch_engine() as (place, engine):
        engine.capture("localhost/ipy", packages=["ipykernel"])
        os.environ.update(SANDBOX_ROOT=f"{place}/root", JUPYTER_PATH=f"{place}/prefix/share/jupyter", IPYTHONDIR=f"{place}/ipython")
        install = [sys.executable, "-m", "sandbox", "kernel", "install", "localhost/ipy", "--prefix", f"{place}/prefix"]
        for flags in (["--name", "contained"], ["--name", "bridged", "--language", "python"]):
            subprocess.run([*install, *flags, "--network", "none"], check=True, stdout=subprocess.DEVNULL)
        os.chdir(place)
        print(f"Linux {os.uname().release}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}")
        bench_start(chosen.n)
        bench_round_trip()
        bench_memory()
        if chosen.many:
            bench_many(chosen.many)
        os.chdir("/")


if __name__ == "__main__":
    main()
