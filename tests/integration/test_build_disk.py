"""A disk that is full in the middle of a build: a plain error, nothing half-written, and the next command works."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.errors import StepFailed
from sandbox.runtime.container import Runtime
from tests.support.building import GROUP, PASSWD, Workshop, fill_busybox
from tests.support.host import requires
from tests.support.small_disk import small_disk

pytestmark = requires("root", "overlay", "userns", "tool:busybox")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    with small_disk(tmp_path / "disk", 16) as made:
        yield made


@pytest.fixture
def workshop(tmp_path: Path, disk: Path) -> Iterator[Workshop]:
    runtime = Runtime(disk / "store")
    made = Workshop(disk, runtime)
    made.context = tmp_path / "context"
    made.context.mkdir()
    made.base("busybox", {"etc/passwd": PASSWD, "etc/group": GROUP}, fill=fill_busybox)
    yield made
    runtime.close()


@pytest.mark.parametrize(
    "line", ["COPY big /big", "ADD big.tar.gz /x", "RUN dd if=/dev/zero of=/big bs=1M count=30"], ids=["copy", "unpack", "run"]
)
def test_full_disk_fails_the_step_and_leaves_nothing(workshop: Workshop, line: str) -> None:
    (workshop.context / "big").write_bytes(os.urandom(30 << 20))
    subprocess.run(["tar", "-czf", "big.tar.gz", "big"], cwd=workshop.context, check=True)
    with pytest.raises(StepFailed) as caught:
        workshop.build(f"FROM busybox\nRUN echo good > /good\n{line}\n")
    assert "no space left" in f"{caught.value} {caught.value.output}".lower()
    assert list((workshop.root / "store/drafts").iterdir()) == []
    assert len(list((workshop.root / "store/snapshots").iterdir())) == 2
    image = workshop.build("FROM busybox\nRUN echo good > /good\nRUN echo small > /small\n")
    assert workshop.cached() == [True, False]
    assert workshop.tree(image).read("/small") == b"small\n"
