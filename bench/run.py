"""`python -m bench.run [-n RUNS]`: start-to-exit of `true` beside bubblewrap, crun, runc and podman (Debian packages), and `exec`.

A peer that cannot run on this host is named with what it said, and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.harness import command, interleave, make_rootfs, scratch_engine, show
from sandbox.engine import Engine
from sandbox.options import RunOptions
from sandbox.runtime.init import syscalls as s

_LIMITS = {"memory": {"limit": 64 << 20}, "pids": {"limit": 64}}


class Peers:
    """The other engines, each with a root file system of its own below `scratch`."""

    def __init__(self, scratch: Path, rootfs: Path) -> None:
        self._scratch, self._rootfs = scratch, rootfs
        self._count = 0

    def cases(self) -> dict[str, Callable[[], object]]:
        """Those that work here."""
        wanted = {
            "bwrap --unshare-all": self._bwrap(),
            "crun run": self._bundled("crun"),
            "runc run": self._bundled("runc"),
            "podman run --rm --network none": self._podman(),
        }
        return {name: case for name, case in wanted.items() if case is not None and self._works(name, case)}

    def _works(self, name: str, case: Callable[[], object]) -> bool:
        try:
            case()
        except (subprocess.CalledProcessError, FileNotFoundError) as err:
            print(f"left out: {name}: {err}")
            return False
        return True

    def _bwrap(self) -> Callable[[], object]:
        return command("bwrap", "--unshare-all", "--bind", str(self._rootfs), "/", "--proc", "/proc", "--dev", "/dev", "/bin/true")

    def _bundled(self, program: str) -> Callable[[], object] | None:
        bundle = self._scratch / program
        bundle.mkdir()
        try:
            subprocess.run([program, "spec"], cwd=bundle, check=True)
        except (subprocess.CalledProcessError, FileNotFoundError) as err:
            print(f"left out: {program}: {err}")
            return None
        config = json.loads((bundle / "config.json").read_text())
        config["process"].update(terminal=False, args=["true"], rlimits=[])
        config["root"] = {"path": str(self._rootfs), "readonly": False}
        config["linux"]["resources"] = {**config["linux"].get("resources", {}), **_LIMITS}
        (bundle / "config.json").write_text(json.dumps(config))

        def once() -> None:
            self._count += 1
            command(program, "--root", str(self._scratch / f"{program}-state"), "run", "--bundle", str(bundle), f"bench{self._count}")()

        return once

    def _podman(self) -> Callable[[], object]:
        where = ["--root", str(self._scratch / "podman"), "--runroot", str(self._scratch / "podman-run"), "--storage-driver", "overlay"]
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limits = ["--ulimit", f"nofile={hard}:{hard}", "--ulimit", "nproc=32768:32768"]  # what it asks for by itself may be refused
        how = ["--rm", "--network", "none", "-m", "64m", "--pids-limit", "64", *limits]
        return command("podman", *where, "--cgroup-manager", "cgroupfs", "run", *how, "--rootfs", str(self._rootfs), "true")


def hide_cgroup2() -> None:
    """In a mount namespace of our own: crun refuses hosts that have controllers in both versions, and sees v1 alone then."""
    rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    places = {kind: [row[4] for row in rows if row[row.index("-") + 1] == kind] for kind in ("cgroup", "cgroup2")}
    if os.geteuid() != 0 or not places["cgroup"]:
        return
    s.unshare(s.CLONE_NEWNS)
    s.mount("", "/", "", s.MS_REC | s.MS_PRIVATE)
    for place in places["cgroup2"]:
        s.umount2(place, s.MNT_DETACH)


def bench_starts(engine: Engine, peers: Peers, runs: int) -> None:
    """Start-to-exit."""
    sandbox = str(Path(sys.executable).with_name("sandbox"))
    limits = ["-m", "64m", "--cpus", "1", "--pids-limit", "64", "--network", "none"]

    def run(network: str) -> None:
        engine.run("localhost/bench", ["true"], memory="64m", cpus=1, pids_limit=64, network=network)

    cases = {
        **peers.cases(),
        "API, warm": lambda: run("none"),
        "API, warm, --network bridge": lambda: run("bridge"),
        "sandbox run --rm": command(sandbox, "--root", str(engine.root), "run", "--rm", *limits, "localhost/bench", "true"),
    }
    show("start-to-exit of `true`", interleave(cases, runs), next(iter(cases)))


def bench_exec(engine: Engine, runs: int) -> None:
    """One more program in a running container."""
    container = engine.start("localhost/bench", ["sleep", "1000"], options=RunOptions(memory=64 << 20))
    try:
        cases = {"API, exec": lambda: container.exec(["true"])}
        show("exec of `true`", interleave(cases, runs), "API, exec")
    finally:
        container.remove(force=True)


def main() -> None:
    """Run everything in a directory of its own."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("-n", type=int, default=30, help="counted runs of each case")
    given = parser.parse_args()
    hide_cgroup2()
    with scratch_engine() as (scratch, engine):
        rootfs = make_rootfs(scratch / "rootfs")
        subprocess.run(["tar", "-C", str(rootfs), "-cf", str(scratch / "rootfs.tar"), "."], check=True)
        engine.import_image(scratch / "rootfs.tar", "localhost/bench")
        print(f"Linux {os.uname().release}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}")
        bench_starts(engine, Peers(scratch, rootfs), given.n)
        bench_exec(engine, given.n)
        subprocess.run(["umount", "--quiet", str(scratch / "podman/overlay")], check=False)  # podman leaves it mounted


if __name__ == "__main__":
    main()
