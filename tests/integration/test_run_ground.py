"""A container's ground made ahead (runtime/init/ground): the next container like the last stands on it, another does not; killed, pruned,
closed: nothing is left of it, and the next run works."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandbox import Engine
from sandbox.options import RunOptions
from sandbox.runtime import cgroups
from sandbox.runtime.container import SPARES, engine_mark
from sandbox.runtime.init import syscalls as s
from sandbox.runtime.running import Streams
from tests.support import leftovers
from tests.support.host import requires
from tests.support.networked import take_bridges_away

pytestmark = [requires("userns", "overlay", "tool:busybox"), pytest.mark.anybody]


def waiting(engine: Engine) -> str:
    """The id of the container whose ground is made; waits for it."""
    return until(lambda: next((lock.name for lock in (engine.root / SPARES).glob("*") if init_of(lock)), ""))


def until(found: Callable[[], str]) -> str:
    """The first answer that is not empty."""
    deadline = time.monotonic() + 30
    while not (answer := found()):
        assert time.monotonic() < deadline, "no ground was made"
        threading.Event().wait(0.02)
    return answer


def init_of(lock: Path) -> int:
    """The init that waits: the child of who holds the lock."""
    held = f"{os.stat(lock).st_ino} 0 EOF"
    holder = next((line.split()[4] for line in Path("/proc/locks").read_text().splitlines() if line.endswith(held)), "")
    children = Path(f"/proc/{holder}/task/{holder}/children").read_text().split() if holder else []
    return next((int(pid) for pid in children if is_init(pid)), 0)


def is_init(pid: str) -> bool:
    return Path(f"/proc/{pid}/comm").read_text() == "sandbox-init\n"


def run_like_the_last(engine: Engine, image: str, **options: Any) -> int:  # Any: of RunOptions
    """The pid of its init."""
    with engine.launch(image, ["true"], options=RunOptions(rm=True, **options))[0] as running:
        assert running.wait().exit_code == 0
        return running.pid


@pytest.fixture
def spare(engine: Engine, busybox_image: str) -> int:
    """The init that waits after a first run."""
    run_like_the_last(engine, busybox_image)
    return init_of(engine.root / SPARES / waiting(engine))


def test_the_next_container_stands_on_it_and_is_called_as_it_was_made(engine: Engine, busybox_image: str, spare: int) -> None:
    container_id = waiting(engine)
    with engine.launch(busybox_image, ["sh", "-c", "hostname; echo $$; id -u"], options=RunOptions(rm=True))[0] as running:
        done = running.wait()
    assert running.pid == spare
    assert done.stdout.decode().split() == [container_id[:12], "2", "0"]
    assert not (engine.root / SPARES / container_id).exists()


def test_another_kind_of_container_does_not_and_nothing_is_left_of_it(engine: Engine, busybox_image: str, spare: int) -> None:
    end = os.pidfd_open(spare)
    assert run_like_the_last(engine, busybox_image, shm_size=1 << 20) != spare
    assert select.select([end], [], [], 10)[0]
    os.close(end)


def test_its_limits_are_those_of_the_new_container(engine: Engine, busybox_image: str, spare: int) -> None:
    done = engine.run(busybox_image, ["sh", "-c", "df -k /dev/shm | tail -1"], options=RunOptions(rm=True, shm_size=1 << 20))
    assert done.stdout.split()[1] == b"1024"


@pytest.mark.parametrize("who", ["init", "supervisor"])
def test_one_that_was_killed_is_not_missed(engine: Engine, busybox_image: str, spare: int, who: str) -> None:
    end = os.pidfd_open(spare)
    supervisor = int(Path(f"/proc/{spare}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(spare if who == "init" else supervisor, signal.SIGKILL)
    assert select.select([end], [], [], 10)[0]
    os.close(end)
    assert engine.run(busybox_image, ["echo", "works"]).stdout == b"works\n"
    engine.prune()
    leftovers.nothing_left(engine.root)
    assert os.listdir(engine.root / SPARES) == []


@requires("networks")
def test_one_in_a_network_serves_the_next_there_unless_that_is_gone(engine: Engine, busybox_image: str) -> None:
    run_like_the_last(engine, busybox_image, network="bridge")
    spare = init_of(engine.root / SPARES / waiting(engine))
    assert run_like_the_last(engine, busybox_image, network="bridge") == spare
    spare = init_of(engine.root / SPARES / waiting(engine))
    take_bridges_away(engine.root)
    with engine.launch(busybox_image, ["ip", "route"], options=RunOptions(rm=True, network="bridge"))[0] as running:
        assert b"default via 10." in running.wait().stdout
    assert (running.pid == spare) == (os.geteuid() == 0)  # an ordinary user's is nested in what is gone
    engine.prune()
    leftovers.nothing_left(engine.root)


def test_a_neighbours_sweep_leaves_one_that_waits_and_takes_one_that_is_lost(engine: Engine, busybox_image: str, spare: int) -> None:
    with Engine(engine.root) as neighbour:
        container = neighbour.start(busybox_image, ["true"])  # sweeps
        container.wait(timeout=30)
        container.remove()
        assert run_like_the_last(engine, busybox_image) == spare
    lost = waiting(engine)
    init = init_of(engine.root / SPARES / lost)
    supervisor = int(Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[1])
    end = os.pidfd_open(init)  # it goes with its supervisor, and until it has closed what it inherited it has the lock, too
    os.kill(supervisor, signal.SIGKILL)
    assert select.select([end], [], [], 10)[0]
    os.close(end)
    with Engine(engine.root) as neighbour:
        neighbour.prune()
    assert f"{engine_mark(engine.root)}.{lost[:32]}" not in cgroups.discover().existing()
    assert not (engine.root / SPARES / lost).exists()


def test_closing_and_pruning_leave_nothing_of_it(engine: Engine, busybox_image: str, spare: int) -> None:
    with Engine(engine.root) as other:
        run_like_the_last(other, busybox_image)
    end = os.pidfd_open(spare)
    engine.prune()
    assert select.select([end], [], [], 0)[0]  # it had ended before prune came back
    os.close(end)
    leftovers.nothing_left(engine.root)


@requires("root")  # what waits is not dumpable
def test_it_keeps_none_of_the_hosts_mounts_busy(engine: Engine, busybox_image: str, tmp_path: Path) -> None:
    """What the host unmounts meanwhile must be gone."""
    canary = tmp_path / "canary"
    canary.mkdir()
    s.mount("canary", str(canary), "tmpfs")
    try:
        run_like_the_last(engine, busybox_image)
        waits = init_of(engine.root / SPARES / waiting(engine))
        until(lambda: "built" if {place.split("/")[1] for place in mounts_of(waits)} == {"", "dev", "proc", "sys"} else "")
        assert str(canary) in mounts_of(os.getpid())
        assert {"/dev/shm", "/proc", "/sys"} <= mounts_of(waits)
    finally:
        s.umount2(str(canary))


def mounts_of(pid: int) -> set[str]:
    return {line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()}


def test_volumes_and_a_tty_stand_on_it_too(engine: Engine, busybox_image: str, spare: int, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("from outside\n")
    with engine.launch(
        busybox_image, ["cat", "/given"], options=RunOptions(rm=True, volume=(f"{tmp_path}/given:/given",)), streams=Streams()
    )[0] as running:
        done = running.wait()
    assert done.stdout == b"from outside\n"
    assert (running.pid == spare) == (os.geteuid() == 0)  # an ordinary user's must be opened before
