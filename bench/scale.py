"""`python -m bench.scale [1 10 50 200]`: that many containers at once: to start, list and remove them, and the memory of our processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from bench.harness import make_rootfs, scratch_engine
from sandbox.engine import Engine


def pss(pid: int) -> float:
    """Proportional set size in KiB (proc(5), smaps_rollup)."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return float(next(line for line in rows if line.startswith("Pss:")).split()[1])


def bench(engine: Engine, count: int) -> str:
    """One row: milliseconds and KiB for each container."""
    begin = time.perf_counter()
    containers = [engine.start("localhost/bench", ["sleep", "10000"]) for _ in range(count)]
    started = time.perf_counter()
    assert len(engine.containers()) == count
    listed = time.perf_counter()
    pids = [container.pid or 0 for container in containers]
    parents = [int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in pids]
    memory = sum(pss(pid) for pid in (*pids, *parents))
    measured = time.perf_counter()
    for container in containers:
        container.remove(force=True)
    removed = time.perf_counter()
    starts, lists, removes = (1e3 * each / count for each in (started - begin, listed - started, removed - measured))
    return f"| {count} | {starts:.1f} | {lists:.2f} | {removes:.1f} | {memory / count:.0f} |"


def main() -> None:
    """Run everything in a directory of its own."""
    counts = [int(word) for word in sys.argv[1:]] or [1, 10, 50, 200]
    with scratch_engine() as (place, engine):
        rootfs = make_rootfs(place / "rootfs")
        subprocess.run(["tar", "-C", str(rootfs), "-cf", f"{place}/rootfs.tar", "."], check=True)
        engine.import_image(f"{place}/rootfs.tar", "localhost/bench")
        engine.run("localhost/bench", ["true"])
        print(f"Linux {os.uname().release}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}\n")
        print("| containers | start, ms each | list, ms each | remove, ms each | PSS, KiB each |\n|--:|--:|--:|--:|--:|")
        for count in counts:
            print(bench(engine, count), flush=True)


if __name__ == "__main__":
    main()
