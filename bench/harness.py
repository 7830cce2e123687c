"""What every bench is made of: interleaved runs, medians, a table; a small root file system."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sandbox.engine import Engine

Samples = dict[str, list[float]]


def interleave(cases: Mapping[str, Callable[[], object]], runs: int) -> Samples:
    """Milliseconds of each case; every round runs each once in random order, so that noise falls on all alike."""
    samples: Samples = {name: [] for name in cases}
    names = list(cases)
    for number in range(-2, runs):
        random.shuffle(names)
        for name in names:
            start = time.perf_counter()
            cases[name]()
            if number >= 0:
                samples[name].append((time.perf_counter() - start) * 1e3)
    return samples


@contextmanager
def scratch_engine() -> Iterator[tuple[Path, Engine]]:
    """A directory, and an engine in it; nothing of either is left, on the host neither."""
    with tempfile.TemporaryDirectory(prefix="sandbox-bench-", dir="/var/tmp") as place, Engine(Path(place) / "root") as engine:
        try:
            yield Path(place), engine
        finally:
            engine.prune()
            engine.networks.prune()


def show(title: str, samples: Samples, base: str) -> None:
    """A markdown table; ratio: of medians, to `base`."""
    print(f"\n### {title}\n\n| | n | min ms | median ms | max ms | ratio |\n|---|--:|--:|--:|--:|--:|")
    for name, values in samples.items():
        median = statistics.median(values)
        ratio = median / statistics.median(samples[base])
        print(f"| {name} | {len(values)} | {min(values):.1f} | {median:.1f} | {max(values):.1f} | {ratio:.2f} |")


def command(*argv: str) -> Callable[[], object]:
    """A whole process, in which Python keeps what it compiles, as at every user's."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return lambda: subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, cwd="/", env=environment)


def make_rootfs(directory: Path) -> Path:
    """busybox as a root file system (Debian's busybox-static)."""
    busybox = shutil.which("busybox")
    if busybox is None:
        sys.exit("bench: needs busybox (Debian: busybox-static) and bubblewrap")
    for name in ("bin", "proc", "dev", "sys", "tmp", "etc"):
        (directory / name).mkdir(parents=True)
    shutil.copy(busybox, directory / "bin/busybox")
    for name in ("sh", "true", "sleep", "echo"):
        (directory / "bin" / name).symlink_to("busybox")
    return directory
