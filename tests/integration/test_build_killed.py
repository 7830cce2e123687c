"""A build killed with SIGKILL at any moment leaves a valid store; what it was making is swept by the next prune."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.image.store import Store
from sandbox.runtime.container import Runtime
from tests.support.building import GROUP, PASSWD, Workshop, fill_busybox
from tests.support.host import requires
from tests.support.image_verify import broken, verify_store

pytestmark = [requires("overlay", "userns", "tool:busybox", "image-schemas"), pytest.mark.anybody]

DOCKERFILE = """FROM busybox
RUN echo begun > /one; cat /one
COPY f /f
ENV A=1
WORKDIR /w
RUN echo 2 > /two; cat /two
"""
BUILDER = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from sandbox.build.builder import Builder, BuildRequest
from sandbox.image.store import Store
from sandbox.runtime.container import Runtime

root, left = Path(sys.argv[1]), int(sys.argv[2])

def on_event(event):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

request = BuildRequest(dockerfile=sys.argv[3], now=datetime.now(UTC), context=root / "context", tags=("app",), no_cache=True)
Builder(Store(root / "store"), Runtime(root / "store"), on_event).build(request)
"""
EVENTS = 16
"""BuildStarted, then StepStarted and StepDone of six steps, the output of two, BuildDone."""


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    runtime = Runtime(tmp_path / "store")
    made = Workshop(tmp_path, runtime)
    made.base("busybox", {"etc/passwd": PASSWD, "etc/group": GROUP}, fill=fill_busybox)
    made.file("f", "content")
    yield made
    runtime.close()


def killed_build(root: Path, after: int) -> int:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", BUILDER, str(root), str(after), DOCKERFILE]
    return subprocess.run(argv, env=environment, capture_output=True, check=False, timeout=60).returncode


@pytest.mark.parametrize("after", range(1, EVENTS + 1))
def test_build_killed_at_this_event_leaves_a_valid_store(workshop: Workshop, after: int) -> None:
    assert killed_build(workshop.root, after) == -signal.SIGKILL
    store = Store(workshop.root / "store")
    assert broken(store.root) == []
    assert str(workshop.root) not in Path("/proc/self/mountinfo").read_text()
    image = workshop.build(DOCKERFILE)
    assert workshop.tree(image).read("/two") == b"2\n"
    store.prune_snapshots()
    assert list((workshop.root / "store/drafts").iterdir()) == []
    verify_store(store.root)
    assert workshop.build(DOCKERFILE).id == image.id


def test_a_build_that_is_not_killed_ends(workshop: Workshop) -> None:
    """The oracle: one event more than there are, and the build comes to its end."""
    assert killed_build(workshop.root, EVENTS + 1) == 0
    assert workshop.store.find("app")
