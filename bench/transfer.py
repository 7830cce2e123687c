"""`python -m bench.transfer [-n RUNS]`: pull and push beside podman and skopeo, against docker-registry on loopback, interleaved.

The image has ~200 MB in five layers of this machine's own files below /usr. Every pull goes into an empty store, every push to
an empty registry; both are made, and removed, outside of what is timed. All but `API` are whole processes, of which the peak
memory is told too. skopeo unpacks nothing (dir:) and compresses nothing: what it takes is what moving and hashing takes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.harness import Samples, show
from sandbox.engine import Engine
from tests.support.registry import RegistryServer, registry_server

_LAYERS, _LAYER_SIZE, _LARGEST = 5, 40_000_000, 10_000_000
_PULLED = "bench/image:1"


@dataclass(frozen=True)
class Case:
    """What is timed, after what makes it ready; `act` gets what `prepare` made and gives the peak memory in KiB (0: not known)."""

    prepare: Callable[[], str]
    act: Callable[[str], int]


def run(*argv: str) -> int:
    """A whole process; its peak memory in KiB."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(argv, stdout=told, stderr=told, stdin=subprocess.DEVNULL, cwd="/", env=environment)
        peak = 0
        while process.poll() is None:  # wait4's ru_maxrss would count what we had when it was forked
            peak = max(peak, _high_water(process.pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
        if process.returncode:
            told.seek(0)
            sys.exit(f"{' '.join(argv)}: exit {process.returncode}\n{told.read().decode()}")
    return peak


def _high_water(pid: int) -> int:
    """proc(5), status: VmHWM; 0 for a process that has just ended."""
    try:
        rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    except ProcessLookupError:
        return 0
    return next((int(row.split()[1]) for row in rows if row.startswith("VmHWM:")), 0)


def _processor_seconds() -> float:
    """Of this process and those it has waited for (the registries run on)."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(cases: Mapping[str, Case], runs: int) -> tuple[Samples, Samples, dict[str, int]]:
    """Milliseconds, processor milliseconds and peak memory of each; every round has each once in random order, after one that does not
    count. What a process takes of the processors says more than its time on a machine that others use, too."""
    samples: Samples = {name: [] for name in cases}
    used: Samples = {name: [] for name in cases}
    peaks = dict.fromkeys(cases, 0)
    for number in range(-1, runs):
        for name in random.sample(list(cases), len(cases)):
            ready = cases[name].prepare()
            os.sync()  # nobody pays for another's dirty pages
            start, before = time.perf_counter(), _processor_seconds()
            peak = cases[name].act(ready)
            if number >= 0:
                samples[name].append((time.perf_counter() - start) * 1e3)
                used[name].append((_processor_seconds() - before) * 1e3)
                peaks[name] = max(peaks[name], peak)
    return samples, used, peaks


class Site:
    """One scratch directory: the image in every engine's own store, and registries as they are needed."""

    def __init__(self, scratch: Path, undo: ExitStack) -> None:
        self.scratch, self._undo = scratch, undo
        self._count = itertools.count()
        self.engine = undo.enter_context(Engine(scratch / "sandbox"))
        self.archive = scratch / "image.tar"
        self.program = str(Path(sys.executable).with_name("sandbox"))
        self._build()
        self.server = self.registry()
        self._push_once()

    def _build(self) -> None:
        context = self.scratch / "context"
        lines = ["FROM scratch"]
        for number, files in enumerate(_dealt(Path("/usr"))):
            lines.append(f"COPY l{number} /l{number}")
            for file in files:
                target = context / f"l{number}" / file.relative_to("/usr")
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, target) if file.stat().st_dev == context.stat().st_dev else shutil.copy2(file, target)
        self.engine.build(context, dockerfile="\n".join(lines) + '\nCMD ["true"]\n', tags=["localhost/bench"])
        self.engine.save(["localhost/bench"], self.archive, format="docker", compression="none")
        run("podman", *self.storage("podman"), "load", "-q", "-i", str(self.archive))

    def _push_once(self) -> None:
        """Into the registry that is pulled from; as podman compresses it, and as skopeo keeps it."""
        name = self.server.name(_PULLED)
        run("podman", *self.storage("podman"), "push", "-q", "--tls-verify=false", "localhost/bench", name)
        run("skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", f"docker://{name}", f"dir:{self.scratch}/skopeo")
        self.engine.push("localhost/bench", self.registry().name("x"))

    def registry(self) -> RegistryServer:
        """A new one, empty."""
        return self._undo.enter_context(registry_server(self.scratch / f"registry{next(self._count)}"))

    def storage(self, name: str) -> list[str]:
        """A storage of podman's."""
        place = self.scratch / name
        return ["--root", f"{place}/root", "--runroot", f"{place}/run", "--storage-driver", "overlay"]

    def fresh(self) -> str:
        """A place that nothing has been in."""
        return str(self.scratch / f"fresh{next(self._count)}")

    def fresh_engine(self) -> str:
        """An engine that has the image and has compressed nothing yet."""
        root = self.fresh()
        with Engine(root) as engine:
            engine.load(self.archive)
        return root


def _dealt(root: Path) -> Iterator[list[Path]]:
    """Files below `root`, in layers of about one size."""
    files = (Path(place, name) for place, _, names in sorted(os.walk(root)) for name in sorted(names))
    regular = (path for path in files if path.is_file() and not path.is_symlink() and path.stat().st_size < _LARGEST)
    for _ in range(_LAYERS):
        layer, size = [], 0
        for path in regular:
            layer.append(path)
            size += path.stat().st_size
            if size > _LAYER_SIZE:
                break
        yield layer


def pulls(site: Site) -> dict[str, Case]:
    """Each into an empty store."""
    name = site.server.name(_PULLED)

    def api(root: str) -> int:
        with Engine(root) as engine:
            engine.pull(name)
        return 0

    return {
        "podman pull": Case(
            lambda: f"fresh{next(site._count)}", lambda place: run("podman", *site.storage(place), "pull", "-q", "--tls-verify=false", name)
        ),
        "skopeo copy (not unpacked)": Case(
            site.fresh,
            lambda place: run("skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", f"docker://{name}", f"dir:{place}"),
        ),
        "sandbox pull": Case(site.fresh, lambda root: run(site.program, "--root", root, "pull", "-q", name)),
        "API": Case(site.fresh, api),
    }


def pushes(site: Site) -> dict[str, Case]:
    """Each to an empty registry."""

    def target() -> str:
        return site.registry().name(_PULLED)

    def push(root: str, name: str) -> int:
        return run(site.program, "--root", root, "push", "-q", "localhost/bench", name)

    def first() -> str:
        return f"{site.fresh_engine()} {target()}"

    return {
        "podman push": Case(
            target, lambda name: run("podman", *site.storage("podman"), "push", "-q", "--tls-verify=false", "localhost/bench", name)
        ),
        "skopeo copy (compressed before)": Case(
            target,
            lambda name: run(
                "skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", f"dir:{site.scratch}/skopeo", f"docker://{name}"
            ),
        ),
        "sandbox push, first": Case(first, lambda both: push(*both.split())),
        "sandbox push, compressed before": Case(target, lambda name: push(str(site.engine.root), name)),
    }


def _bench(title: str, cases: dict[str, Case], runs: int, base: str) -> None:
    samples, used, peaks = measure(cases, runs)
    show(title, samples, base)
    show(f"{title}: processors", used, base)
    print("\npeak memory: " + ", ".join(f"{name} {peak >> 10} MiB" for name, peak in peaks.items() if peak))
    best = min((name for name in samples if name.startswith("sandbox")), key=lambda name: statistics.median(samples[name]))
    print(f"{base} / {best}: {statistics.median(samples[base]) / statistics.median(samples[best]):.1f}x")


def main() -> None:
    """Run everything in a directory of its own."""
    parser = argparse.ArgumentParser(prog="python -m bench.transfer", description=__doc__)
    parser.add_argument("-n", type=int, default=5, help="counted runs of each case")
    given = parser.parse_args()
    if gone := [name for name in ("podman", "skopeo", "docker-registry") if shutil.which(name) is None]:
        sys.exit(f"bench.transfer: needs {', '.join(gone)} (Debian packages)")
    with tempfile.TemporaryDirectory(prefix="sandbox-bench-", dir="/var/tmp") as scratch, ExitStack() as undo:
        print(f"Linux {os.uname().release}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}")
        site = Site(Path(scratch), undo)
        size, blobs = site.archive.stat().st_size, sum(path.stat().st_size for path in Path(scratch, "skopeo").iterdir())
        print(f"{_LAYERS} layers, {size / 1e6:.0f} MB, {blobs / 1e6:.0f} MB compressed")
        _bench("pull into an empty store", pulls(site), given.n, "podman pull")
        _bench("push to an empty registry", pushes(site), given.n, "podman push")


if __name__ == "__main__":
    main()
