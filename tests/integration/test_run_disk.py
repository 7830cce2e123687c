"""A disk that is full while containers run: a plain error, nothing half-written is seen, and the next command works."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import Engine, RunOptions, SandboxError
from tests.support.host import requires
from tests.support.image_verify import broken
from tests.support.small_disk import fill, small_disk

pytestmark = requires("root", "userns", "overlay", "tool:busybox")


@pytest.fixture
def small(tmp_path: Path, busybox_tar: Path) -> Iterator[Engine]:
    """An engine on a disk of 12 MiB with a busybox in it."""
    with small_disk(tmp_path / "disk", 12) as place, Engine(place / "engine") as engine:
        engine.import_image(busybox_tar, "busybox")
        yield engine
        for container in engine.containers(all=True):
            container.remove(force=True)


def test_a_program_that_fills_the_disk_is_told_and_the_next_works(small: Engine) -> None:
    done = small.run("busybox", ["dd", "if=/dev/zero", "of=/big", "bs=1M", "count=30"])
    assert done.exit_code == 1
    assert b"No space left" in done.stderr
    assert small.run("busybox", ["echo", "works"]).stdout == b"works\n"


@pytest.mark.parametrize("verb", ["run", "create", "start"])
def test_no_space_for_a_new_container_is_an_error_and_nothing_is_left(small: Engine, verb: str) -> None:
    ballast = fill(small.root.parent)
    with pytest.raises((SandboxError, OSError), match=r"(?i)no space"):
        getattr(small, verb)("busybox", ["true"], options=RunOptions(name="one"))
    assert small.containers(all=True) == []
    ballast.unlink()
    assert small.run("busybox", ["true"], options=RunOptions(name="one", rm=True)).exit_code == 0
    assert os.listdir(small.root / "containers") == []


def test_a_log_without_space_costs_lines_but_not_the_container(small: Engine) -> None:
    script = "read go < /tmp/go; dd if=/dev/zero bs=64k count=400 2>/dev/null | tr '\\0' x; echo; echo last; exit 7"
    container = small.start("busybox", ["sh", "-c", "mkfifo /tmp/go; " + script])
    assert container.exec(["sh", "-c", "while ! test -p /tmp/go; do :; done; echo > /tmp/go"]).exit_code == 0
    assert container.wait(timeout=60).exit_code == 7
    container.remove()


def test_no_space_for_a_commit_leaves_no_image(small: Engine) -> None:
    done = small.run("busybox", ["sh", "-c", "head -c 3000000 /dev/urandom > /data"], options=RunOptions(name="job"))
    assert done.exit_code == 0
    ballast = fill(small.root.parent)
    before = [row.id for row in small.images()]
    with pytest.raises((SandboxError, OSError), match=r"(?i)no space|full"):
        small.container("job").commit("job:1")
    assert [row.id for row in small.images()] == before
    ballast.unlink()
    assert broken(small.root) == []
    small.prune()
    assert list((small.root / "drafts").iterdir()) == []
    (small.root.parent / "ballast").write_bytes(b"")
