"""`python -m bench.build [-n RUNS]`: builds beside buildah (Debian package), in one interleaved run.

buildah runs with `--isolation chroot`, its quickest, and a storage of its own. `cp -a` of the same tree tells what the disk takes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.harness import command, interleave, make_rootfs, scratch_engine, show
from sandbox.build.settings import Settings
from sandbox.engine import Engine

_RUNS = "FROM localhost/bench\n" + "".join(f"RUN echo {n} > /f{n}\n" for n in range(1, 11))
_PARALLEL = (
    "FROM localhost/bench AS one\nRUN sleep 2; echo 1 > /1\nFROM localhost/bench AS two\nRUN sleep 2; echo 2 > /2\n"
    "FROM localhost/bench\nCOPY --from=one /1 /1\nCOPY --from=two /2 /2\n"
)
_FILES, _SIZE = 5000, 40_000
"""A tree of 200 MB."""


class Site:
    """One scratch directory with an engine, a buildah storage, and a context."""

    def __init__(self, scratch: Path, engine: Engine) -> None:
        self.scratch, self.engine = scratch, engine
        self.context = scratch / "context"
        self.context.mkdir()
        self._count = 0
        rootfs = make_rootfs(scratch / "rootfs")
        base = scratch / "base"
        base.mkdir()
        subprocess.run(["tar", "-C", str(rootfs), "-cf", str(base / "rootfs.tar"), "."], check=True)
        (base / "Dockerfile").write_text("FROM scratch\nADD rootfs.tar /\n")
        engine.import_image(base / "rootfs.tar", "localhost/bench")
        self.buildah(base / "Dockerfile", base, "localhost/bench")()

    def buildah(self, file: Path, context: Path, tag: str, *flags: str) -> Callable[[], object]:
        """A whole buildah process."""
        storage = ["--root", str(self.scratch / "storage"), "--runroot", str(self.scratch / "run"), "--storage-driver", "overlay"]
        how = ["--isolation", "chroot", "--layers", "-q", *flags]
        return command("buildah", *storage, "bud", *how, "-t", tag, "-f", str(file), str(context))

    def sandbox(self, file: Path, context: Path, *flags: str) -> Callable[[], object]:
        """A whole process of ours."""
        program = str(Path(sys.executable).with_name("sandbox"))
        return command(program, "--root", str(self.engine.root), "build", "-q", *flags, "-t", "bench", "-f", str(file), str(context))

    def api(self, text: str, context: Path | None = None, *, no_cache: bool = False, jobs: int | None = None) -> Callable[[], object]:
        """A build in this process."""
        settings = Settings(jobs=jobs) if jobs else None
        return lambda: self.engine.build(context, dockerfile=text, no_cache=no_cache, settings=settings)

    def file(self, name: str, text: str) -> Path:
        """A Dockerfile."""
        path = self.scratch / name
        path.write_text(text)
        return path

    def changed(self, build: Callable[[Path], Callable[[], object]], name: str) -> Callable[[], object]:
        """A build whose last line is another each time."""

        def once() -> None:
            self._count += 1
            build(self.file(name, f"{_RUNS}RUN echo {self._count}-{os.getpid()} > /last\n"))()

        return once


def bench_steps(site: Site, runs: int) -> None:
    """Ten RUN: anew, from the cache, with another last line."""
    file, empty = site.file("Dockerfile.runs", _RUNS), site.context
    anew = {
        "buildah": site.buildah(file, empty, "runs", "--no-cache"),
        "sandbox build": site.sandbox(file, empty, "--no-cache"),
        "API": site.api(_RUNS, no_cache=True),
    }
    show("10 x RUN, no cache", interleave(anew, runs), "buildah")
    cached = {"buildah": site.buildah(file, empty, "runs"), "sandbox build": site.sandbox(file, empty), "API": site.api(_RUNS)}
    show("10 x RUN, all cached", interleave(cached, runs), "buildah")
    changed = {
        "buildah": site.changed(lambda path: site.buildah(path, empty, "last"), "Dockerfile.a"),
        "sandbox build": site.changed(lambda path: site.sandbox(path, empty), "Dockerfile.b"),
        "API": site.changed(lambda path: site.api(path.read_text()), "Dockerfile.c"),
    }
    show("last line changed", interleave(changed, runs), "buildah")


def bench_copy(site: Site, runs: int) -> None:
    """COPY of a large tree: anew and unchanged."""
    tree = site.scratch / "large"
    for number in range(_FILES):
        place = tree / f"d{number % 50}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"f{number}").write_bytes(os.urandom(1000) * (_SIZE // 1000))
    text = "FROM localhost/bench\nCOPY . /tree\n"
    file = site.file("Dockerfile.copy", text)

    copies = itertools.count()

    def plain() -> None:
        subprocess.run(["cp", "-a", str(tree), str(site.scratch / f"plain{next(copies)}")], check=True)

    anew = {
        "buildah": site.buildah(file, tree, "copy", "--no-cache"),
        "API": site.api(text, tree, no_cache=True),
        "cp -a": plain,
    }
    show(f"COPY of {_FILES} files, {_FILES * _SIZE // 1_000_000} MB, no cache", interleave(anew, runs), "buildah")
    cached = {"buildah": site.buildah(file, tree, "copy"), "sandbox build": site.sandbox(file, tree), "API": site.api(text, tree)}
    show("COPY unchanged", interleave(cached, runs), "buildah")


def bench_parallel(site: Site, runs: int) -> None:
    """Two stages that sleep two seconds each."""
    file = site.file("Dockerfile.parallel", _PARALLEL)
    cases = {
        "buildah --jobs 2": site.buildah(file, site.context, "two", "--no-cache", "--jobs", "2"),
        "API": site.api(_PARALLEL, site.context, no_cache=True),
    }
    show("two stages of `sleep 2`", interleave(cases, runs), "buildah --jobs 2")


def main() -> None:
    """Run everything in a directory of its own."""
    parser = argparse.ArgumentParser(prog="python -m bench.build", description=__doc__)
    parser.add_argument("-n", type=int, default=7, help="counted runs of each case")
    given = parser.parse_args()
    if shutil.which("buildah") is None:
        sys.exit("bench.build: needs buildah (Debian package)")
    with scratch_engine() as (scratch, engine):
        site = Site(scratch, engine)
        print(f"Linux {os.uname().release}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}")
        bench_steps(site, given.n)
        bench_copy(site, max(3, given.n // 2))
        bench_parallel(site, 3)


if __name__ == "__main__":
    main()
