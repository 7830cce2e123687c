"""A layer of more than 1 GiB comes and goes in less than 150 MB of memory, counted over all processes that a command starts.

Each command runs in a memory cgroup of its own. What it has read and written counts there, too, but Linux gives that back first: only
memory that is in use ends a command at the limit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox.runtime import cgroups
from sandbox.runtime.spec import Limits
from tests.support.bad_registry import bad_registry
from tests.support.command_line import CommandLine
from tests.support.host import requires

pytestmark = [requires("root", "memory"), pytest.mark.timeout(300)]

MOST = 150_000_000
LAYER = (1 << 30) + (1 << 20)
BLOCK = os.urandom(1 << 10) + b"x" * (63 << 10)
"""Not all zeros, which would be a hole; a sixtieth of it remains when it is compressed."""
_JOIN = 'for file in $1; do echo 0 > "$file"; done; shift; exec "$@"'
_MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


class Meter:
    """Runs commands within MOST bytes: `run` gives what the largest of its processes took at most."""

    def __init__(self, group: cgroups.Cgroup) -> None:
        self._group = group

    def run(self, argv: Sequence[str], *, stdin: Iterator[bytes] | None = None) -> int:
        """Bytes; CalledProcessError, also when Linux ended it at the limit."""
        joined = ["sh", "-c", _JOIN, "sh", " ".join(self._group.plan.joins), sys.executable, "-c", _MEASURE, *argv]
        with subprocess.Popen(joined, stdin=subprocess.PIPE if stdin else subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            if stdin and process.stdin:
                with process.stdin:
                    for piece in stdin:
                        process.stdin.write(piece)
            assert process.stdout
            said = process.stdout.read().split()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, argv)
        return int(said[-1]) << 10

    @property
    def kills(self) -> int:
        """How many processes Linux ended for want of memory."""
        return self._group.usage().oom_kills or 0


@pytest.fixture
def meter() -> Iterator[Meter]:
    with metered() as made:
        yield made


@contextmanager
def metered() -> Iterator[Meter]:
    group = cgroups.create(cgroups.discover().plan(f"memory{os.getpid()}", Limits(memory=MOST)))
    try:
        yield Meter(group)
    finally:
        group.remove()
        cgroups.discover().remove_base()


def tar_of_a_large_file() -> Iterator[bytes]:
    """Never there as a whole."""
    member = tarfile.TarInfo("large")
    member.size = LAYER
    yield member.tobuf()
    for _ in range(LAYER // len(BLOCK)):
        yield BLOCK
    yield bytes(1024)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory that does not wait for pytest to be removed: it will have 4 GiB."""
    (tmp_path / "place").mkdir()
    yield tmp_path / "place"
    shutil.rmtree(tmp_path / "place")


def test_a_layer_of_a_gibibyte_travels_in_little_memory(meter: Meter, place: Path) -> None:
    one, two, three = (CommandLine(place / name) for name in ("one", "two", "three"))
    with bad_registry() as registry:
        name = f"{registry.host}/team/large:1"
        steps = {
            "import": meter.run(one.argv("import", "-", name), stdin=tar_of_a_large_file()),
            "push": meter.run(one.argv("push", "-q", name)),
            "save": meter.run(one.argv("save", "--compression", "zstd", "-o", str(place / "saved.tar"), name)),
            "pull": meter.run(two.argv("pull", "-q", name)),
        }
    steps["load"] = meter.run(three.argv("load", "-q", "-i", str(place / "saved.tar")))
    assert (meter.kills, {step: peak for step, peak in steps.items() if peak > MOST}) == (0, {})
    for taken in (one, two, three):
        assert [each.stat().st_size for each in (taken.root / "snapshots").glob("*/large")] == [LAYER]


def test_what_takes_more_is_ended_and_seen(meter: Meter) -> None:
    """The twin: of one process and of two, each of which takes less."""
    hold = "held = bytearray(b'x') * {size}"
    assert meter.run([sys.executable, "-c", hold.format(size=80_000_000)]) > 80_000_000
    assert meter.kills == 0
    both = f"import subprocess, sys; {hold.format(size=80_000_000)}; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"
    for argv in ([hold.format(size=MOST)], [both, hold.format(size=80_000_000)]):
        before = meter.kills
        with pytest.raises(subprocess.CalledProcessError):
            meter.run([sys.executable, "-c", *argv])
        assert meter.kills > before
