"""SIGKILL (init: a fault) to any process of a run at any step: the store stays valid, the next command works, `prune`
leaves no mount, cgroup, process or directory, and the name can be used again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import Engine, RunOptions, SandboxError
from tests.support import leftovers
from tests.support.host import requires
from tests.support.image_verify import broken
from tests.support.killing import Killer, instrumented

pytestmark = [requires("userns", "overlay", "tool:busybox"), pytest.mark.anybody]
NAME = "victim"
POINTS = 48
"""How many moments of each role's life are tried; they are spread over all its steps."""
SCRIPT = ["sh", "-c", "echo x > /written; echo y"]
CLIENT = """
import os, signal, sys
from sandbox import Engine, RunOptions
count, at = 0, int(sys.argv[2])
def step(frame, event, argument):
    global count
    if event in ("call", "c_call"):
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
engine = Engine(sys.argv[1])
engine.warm()
sys.setprofile(step)
engine.run("busybox", sys.argv[3:], options=RunOptions(name="victim"))
sys.setprofile(None)
engine.close()
print(count)
"""


@pytest.fixture
def killer(tmp_path: Path) -> Iterator[Killer]:
    with instrumented(tmp_path / "page") as made:
        yield made


def run_once(engine: Engine) -> str:
    """How the run looked to its caller."""
    try:
        done = engine.run("busybox", SCRIPT, options=RunOptions(name=NAME))
    except SandboxError as err:
        return type(err).__name__
    return done.why


def check_afterwards(engine: Engine) -> None:
    """What must hold whoever was killed."""
    for container in engine.containers(all=True):
        if container.status == "running":  # its init is about to follow its supervisor, or its client died and it ends
            container.wait(timeout=30)
    assert all(container.status in ("created", "exited") for container in engine.containers(all=True))
    assert broken(engine.root) == []
    assert engine.run("busybox", ["echo", "works"]).stdout == b"works\n"
    for container in engine.containers(all=True):
        if container.status == "created":
            container.remove()
    engine.prune()
    assert engine.containers(all=True) == []
    assert os.listdir(engine.root / "containers") == []
    assert os.listdir(engine.root / "names") == []


def moments(total: int, points: int = POINTS) -> list[int]:
    """`points` steps out of all, the first and the last among them."""
    return sorted({1 + (total - 1) * n // (points - 1) for n in range(points)})


@pytest.mark.parametrize("role", ["spawner", "supervisor", "init"])
def test_helper_killed_at_any_step_leaves_nothing_and_the_next_run_works(
    engine: Engine, busybox_image: str, killer: Killer, role: str
) -> None:
    run_once(engine)
    engine.prune()
    killer.aim(None)
    if role == "spawner":  # with a supervisor to spare a run does not need it
        engine.close()
    assert run_once(engine) == "exited"
    total = killer.steps(role)
    engine.prune()
    seen = set()
    for at in moments(total):
        if role == "spawner":
            engine.close()
        killer.aim(role, at)
        seen.add(run_once(engine))
        killer.aim(None)
        check_afterwards(engine)
        leftovers.nothing_left(engine.root)
    assert seen - {"exited"}, "nobody was hurt: the test aims at nothing"


def test_client_killed_at_any_step_leaves_nothing_and_the_next_run_works(engine: Engine, busybox_image: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def client(at: int) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", CLIENT, str(engine.root), str(at), *SCRIPT]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)

    client(0)  # the first compiles and fills caches
    engine.prune()
    whole = client(0)
    assert whole.returncode == 0, whole.stderr
    engine.prune()
    total = int(whole.stdout.split()[-1])
    for at in moments(total * 8 // 10, 10):
        assert client(at).returncode == -signal.SIGKILL
        check_afterwards(engine)
        leftovers.nothing_left(engine.root)


@pytest.mark.parametrize("victim", ["supervisor", "init", "program"])
def test_killed_beneath_a_detached_container_ps_tells_the_truth(engine: Engine, busybox_image: str, victim: str) -> None:
    container = engine.start("busybox", ["sleep", "1000"], options=RunOptions(name=NAME))
    init = container.pid or 0
    supervisor = int(Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[1])
    program = int(Path(f"/proc/{init}/task/{init}/children").read_text().split()[0])
    os.kill({"supervisor": supervisor, "init": init, "program": program}[victim], signal.SIGKILL)
    done = container.wait(timeout=30)
    assert container.status == "exited"
    assert (done.exit_code, done.why) == (137, "lost" if victim == "supervisor" else "signal")
    engine.prune()
    leftovers.nothing_left(engine.root)
    engine.start("busybox", ["true"], options=RunOptions(name=NAME)).wait()
