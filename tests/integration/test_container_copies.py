"""`cp` and `export`: of paused containers, of large files, and while a hostile program swaps what they walk through."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from sandbox.engine import Container, Engine
from sandbox.errors import ContainerError
from sandbox.runtime.init import procs
from tests.support.command_line import CommandLine
from tests.support.host import requires
from tests.support.small_disk import small_disk

pytestmark = [requires("userns", "overlay"), pytest.mark.anybody]

LARGE = 160 << 20
MOST_MEMORY = 100 << 10
"""KiB; a command takes 50 MiB with all its imports."""
ROUNDS = 25
PATIENCE = 30.0


# Paused ------------------------------------------------------------------------------------------------------------------


def test_files_of_a_paused_container_go_in_and_out_and_it_stays_paused(sandbox: CommandLine, tmp_path: Path) -> None:
    sandbox.ok("run", "-d", "--name", "still", "-v", "data:/data", "busybox", "sh", "-c", "echo in > /data/f; echo up; sleep 1000")
    with sandbox.going("logs", "-f", "still") as logs:
        assert logs.stdout
        assert logs.stdout.readline() == b"up\n"
    sandbox.ok("pause", "still")
    (tmp_path / "given").write_text("given")
    sandbox.ok("cp", str(tmp_path / "given"), "still:/data/given")
    sandbox.ok("cp", "still:/data", str(tmp_path / "out"))
    assert ((tmp_path / "out/f").read_text(), (tmp_path / "out/given").read_text()) == ("in\n", "given")
    sandbox.ok("export", "-o", str(tmp_path / "whole.tar"), "still")
    with tarfile.open(tmp_path / "whole.tar") as tar:
        assert "bin/busybox" in tar.getnames()
    assert sandbox.ok("ps", "--format", "{{.State}}").lines == ["paused"]
    sandbox.ok("unpause", "still")
    assert sandbox.ok("exec", "still", "cat", "/data/given").out == "given"


# Large -------------------------------------------------------------------------------------------------------------------


MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""A small process in between: what a child takes at most begins with the size of its parent."""


def peak(argv: list[str], stdin: int | None = None) -> int:
    """KiB that a command took at most."""
    return int(subprocess.run([sys.executable, "-c", MEASURE, *argv], stdin=stdin, stdout=subprocess.PIPE, check=True).stdout)


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_a_large_file_goes_in_without_being_held_in_memory(sandbox: CommandLine, tmp_path: Path, source: str) -> None:
    sandbox.ok("create", "--name", "box", "busybox")
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(LARGE)
    if source == "file":
        assert peak(sandbox.argv("cp", str(large), "box:/tmp/large")) < MOST_MEMORY
    else:
        with subprocess.Popen(["tar", "-C", tmp_path, "-cf", "-", "large"], stdout=subprocess.PIPE) as tar:
            assert tar.stdout
            assert peak(sandbox.argv("cp", "-", "box:/tmp"), tar.stdout.fileno()) < MOST_MEMORY
    assert "A /tmp/large" in sandbox.ok("diff", "box").lines


@requires("root")
def test_a_full_directory_for_temporary_files_is_named_and_nothing_is_left(sandbox: CommandLine, tmp_path: Path) -> None:
    sandbox.ok("run", "--name", "box", "busybox", "dd", "if=/dev/zero", "of=/large", "bs=1M", "count=8")
    with small_disk(tmp_path / "small", 4) as small:
        refused = sandbox("cp", "box:/large", str(tmp_path / "copy"), env={"TMPDIR": str(small)})
        assert refused.status == 1
        assert "no space left on device" in refused.err.lower()
        assert "Traceback" not in refused.err
        assert list(small.iterdir()) == []
    assert not (tmp_path / "copy").exists()
    sandbox.ok("cp", "box:/large", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == bytes(8 << 20)


def test_the_measure_of_memory_would_tell() -> None:
    assert peak([sys.executable, "-c", f"held = b'x' * {LARGE}"]) > MOST_MEMORY


def test_a_source_that_cannot_be_read_is_named(sandbox: CommandLine, tmp_path: Path) -> None:
    sandbox.ok("create", "--name", "box", "busybox")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/link").symlink_to(tmp_path / "nowhere")
    done = sandbox("cp", "-L", str(tmp_path / "tree/link"), "box:/tmp")
    assert done.status == 1
    assert "nowhere" in done.err


# Hostile -----------------------------------------------------------------------------------------------------------------

SWAPPING = "echo up; while :; do mkdir /tmp/d; rm -rf /tmp/d; ln -s {outside} /tmp/d; rm /tmp/d; done"
"""What is asked for is a directory one moment, and a link to the host's the next."""


@pytest.fixture
def swapping(engine: Engine, busybox_image: str, tmp_path: Path) -> Container:
    """A container that swaps /tmp/d, with a canary on the host where the link leads."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/canary").write_text("alive")
    container = engine.start("busybox", ["sh", "-c", SWAPPING.format(outside=tmp_path / "outside")])
    assert next(container.logs(follow=True)).data == b"up\n"
    return container


def test_swapping_directories_and_links_does_not_lead_a_copy_to_the_host(swapping: Container, tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        member = tarfile.TarInfo("canary")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"dead"))
    refused = 0
    for _ in range(ROUNDS):
        for act in (lambda: swapping.copy_in("/tmp/d", data.getvalue()), lambda: swapping.copy_out("/tmp/d/canary")):
            try:
                assert b"alive" not in (act() or b"")
            except ContainerError:
                refused += 1
    assert refused  # a link into nothing, or nothing at all: it did swap
    assert (tmp_path / "outside/canary").read_text() == "alive"
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["canary"]


def test_the_same_swaps_lead_a_copy_astray_that_looks_first_and_acts_then(swapping: Container, tmp_path: Path) -> None:
    """The twin: what writes from the host's side, after a look whether it is a link, writes into the host's directory."""
    assert swapping.pid
    place, canary = Path(f"/proc/{procs.entered_through(swapping.pid)}/root/tmp/d"), tmp_path / "outside/canary"
    deadline = time.monotonic() + PATIENCE
    while canary.read_text() == "alive" and time.monotonic() < deadline:
        try:
            if not place.is_symlink():
                (place / "canary").write_text("dead")
        except OSError:  # between two states
            continue
    assert canary.read_text() == "dead"
