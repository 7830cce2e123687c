"""`python -m bench [-n RUNS] [--json FILE]`: start-to-exit, cached rebuild, start-up and idle memory; medians of interleaved runs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.harness import Samples, command, interleave, make_rootfs, scratch_engine, show
from sandbox.engine import Engine

_TWELVE = "FROM localhost/bench\n" + "".join(f"RUN echo {n} > /f{n}\n" for n in range(1, 11)) + 'CMD ["true"]\n'


def bench_run(engine: Engine, rootfs: Path, runs: int) -> Samples:
    """Start-to-exit of `true`: warm API with user namespace, overlay, no network and limits; and bubblewrap."""
    bwrap = ["bwrap", "--unshare-all", "--bind", str(rootfs), "/", "--proc", "/proc", "--dev", "/dev", "/bin/true"]
    cases: dict[str, Callable[[], object]] = {
        "bwrap --unshare-all": command(*bwrap),
        "engine.run, limits": lambda: engine.run("localhost/bench", ["true"], memory="64m", cpus=1, pids_limit=64, network="none"),
    }
    samples = interleave(cases, runs)
    show("start-to-exit of `true`", samples, "bwrap --unshare-all")
    return samples


def bench_build(engine: Engine, runs: int) -> Samples:
    """A 12-step Dockerfile: from the cache, and every step anew."""
    engine.build(None, dockerfile=_TWELVE)
    samples = interleave(
        {
            "all cached": lambda: engine.build(None, dockerfile=_TWELVE),
            "10 x RUN, no cache": lambda: engine.build(None, dockerfile=_TWELVE, no_cache=True),
        },
        max(5, runs // 3),
    )
    show("build of 12 steps through the API", samples, "all cached")
    return samples


def bench_startup(runs: int) -> Samples:
    """Fresh processes."""
    sandbox = str(Path(sys.executable).with_name("sandbox"))
    samples = interleave(
        {
            "python -c pass": command(sys.executable, "-c", "pass"),
            "python -c 'import sandbox'": command(sys.executable, "-c", "import sandbox"),
            "import sandbox.engine": command(sys.executable, "-c", "import sandbox.engine"),
            "sandbox --help": command(sandbox, "--help"),
        },
        runs,
    )
    show("start-up", samples, "python -c pass")
    return samples


def bench_idle(engine: Engine) -> Samples:
    """Memory of an idle detached container's supervisor and init, with the spawner gone."""
    container = engine.start("localhost/bench", ["sleep", "1000"])
    try:
        engine.close()
        pid = container.pid or 0
        supervisor = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        sizes = {"supervisor": supervisor, "init": pid}
        print("\n### idle detached container (KiB)\n\n| | PSS | RSS |\n|---|--:|--:|")
        found: Samples = {}
        for name, process in sizes.items():
            rows = dict(line.split(":", 1) for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:])
            found[name] = [float(rows["Pss"].split()[0]), float(rows["Rss"].split()[0])]
            print(f"| {name} | {found[name][0]:.0f} | {found[name][1]:.0f} |")
        return found
    finally:
        container.remove(force=True)


def main() -> None:
    """Run everything in a state directory of its own."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("-n", type=int, default=30, help="counted runs of each case")
    parser.add_argument("--json", type=Path, help="write every sample here")
    given = parser.parse_args()
    with scratch_engine() as (scratch, engine):
        rootfs = make_rootfs(scratch / "rootfs")
        archive = scratch / "rootfs.tar"
        subprocess.run(["tar", "-C", str(rootfs), "-cf", str(archive), "."], check=True)
        engine.import_image(archive, "localhost/bench")
        print(f"Linux {os.uname().release}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}")
        samples = {
            "run": bench_run(engine, rootfs, given.n),
            "build": bench_build(engine, given.n),
            "startup": bench_startup(given.n),
            "idle": bench_idle(engine),
        }
    if given.json:
        given.json.write_text(json.dumps(samples, indent=1))


if __name__ == "__main__":
    main()
