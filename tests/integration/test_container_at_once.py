"""One container, and several at once who start it, remove it or copy from it: one wins, the others are told or wait, nothing breaks."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sandbox import ContainerNotFound, Engine, RunOptions, WrongState
from sandbox.containers import Container
from sandbox.records import Records
from sandbox.runtime.container import Runtime
from sandbox.runtime.running import Running
from sandbox.runtime.spec import Limits
from tests.support.command_line import CommandLine, read_until, wait_all
from tests.support.host import requires

pytestmark = [requires("userns", "overlay", "tool:busybox"), pytest.mark.anybody]
COUNTING = "echo x >> /runs; echo run $(wc -l < /runs); exec sleep 1000"


def started(sandbox: CommandLine, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(sandbox.argv(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def members(tar: bytes) -> list[tuple[str, int]]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return [(member.name, member.size) for member in opened]


def wait_for_lines(container: Container, count: int) -> None:
    assert len(list(itertools.islice(container.logs(follow=True), count))) == count


def test_six_starts_at_once_are_one(sandbox: CommandLine) -> None:
    sandbox.ok("create", "--name", "web", "busybox", "sh", "-c", COUNTING)
    ended = wait_all([started(sandbox, "start", "web") for _ in range(6)])
    assert [(done.status, done.out, done.err) for done in ended] == [(0, "web\n", "")] * 6
    with sandbox.going("logs", "-f", "web") as logs:
        assert logs.stdout
        read_until(logs.stdout.fileno(), b"run 1\n")
    sandbox.ok("stop", "-t", "0", "web")
    assert sandbox.ok("logs", "web").out == "run 1\n"
    assert sandbox.ok("events", "--since", "1h", "--until", "0s", "-f", "event=start", "--format", "{{.Action}}").out == "start\n"


def test_copies_out_of_a_stopped_container_do_not_end_each_other(sandbox: CommandLine, tmp_path: Path) -> None:
    sandbox.ok("run", "--name", "web", "busybox", "sh", "-c", "head -c 3000000 /dev/zero > /big")
    places = [tmp_path / str(number) for number in range(5)]
    ended = wait_all([started(sandbox, "cp", "web:/big", str(place)) for place in places])
    assert [(done.status, done.err) for done in ended] == [(0, "")] * 5
    assert [place.stat().st_size for place in places] == [3000000] * 5


@requires("pids")
def test_a_copy_that_nobody_reads_does_not_keep_rm_f_waiting(sandbox: CommandLine) -> None:
    sandbox.ok("run", "--name", "web", "busybox", "sh", "-c", "head -c 30000000 /dev/zero > /big")
    with sandbox.going("cp", "web:/big", "-") as copying:
        assert copying.stdout
        assert copying.stdout.read(512).startswith(b"big\0")
        sandbox.ok("rm", "-f", "web")
        copying.stdout.read()
        assert copying.wait(timeout=30) == 1
    assert sandbox.ok("ps", "-aq").out == ""


# Somebody else comes in the worst moment ----------------------------------------------------------------------------


@pytest.fixture
def container(engine: Engine, busybox_image: str) -> Container:
    return engine.create("busybox", ["sh", "-c", COUNTING], options=RunOptions(name="web"))


@contextmanager
def meanwhile(
    monkeypatch: pytest.MonkeyPatch, place: type, method: str, container: Container, other: Callable[[], Any]
) -> Iterator[Future[Any]]:
    """Within the block the first call of `method` begins with `other` in another thread, and goes on once that waits for our lock, or
    has ended."""
    real, result = getattr(place, method), Future[Any]()
    directory = container._engine.root / "containers" / container.id

    def late(*args: Any, **more: Any) -> Any:
        monkeypatch.setattr(place, method, real)
        _settle(pool.submit(other), result)
        while not result.done() and not is_waited_for(directory):
            threading.Event().wait(0.002)
        return real(*args, **more)

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(place, method, late)
        yield result


def _settle(work: Future[Any], result: Future[Any]) -> None:
    def over(done: Future[Any]) -> None:
        error = done.exception()
        result.set_exception(error) if error else result.set_result(done.result())

    work.add_done_callback(over)


def is_waited_for(directory: Path) -> bool:
    """Whether somebody is blocked by a lock of this container (proc(5), /proc/locks)."""
    nodes = [f":{place.stat().st_ino} " for place in (directory, directory / "lock") if place.exists()]
    return any("->" in row and any(node in row for node in nodes) for row in Path("/proc/locks").read_text().splitlines())


def test_who_comes_while_it_is_started_finds_it_running(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    with meanwhile(monkeypatch, Runtime, "start", container, container.start) as other:
        container.start()
    with pytest.raises(WrongState, match="is running already"):
        other.result()
    wait_for_lines(container, 1)
    container.stop(timeout=0)
    assert [line.data for line in container.logs()] == [b"run 1\n"]


def test_who_removes_it_while_it_is_started_is_told_that_it_runs(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    with meanwhile(monkeypatch, Runtime, "start", container, container.remove) as other:
        container.start()
    with pytest.raises(WrongState, match="is running"):
        other.result()
    assert container.status == "running"


def test_who_starts_it_while_it_is_removed_finds_nothing(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    with meanwhile(monkeypatch, Records, "remove", container, container.start) as other:
        container.remove()
    with pytest.raises(ContainerNotFound):
        other.result()
    assert os.listdir(container._engine.root / "containers") == []
    assert os.listdir(container._engine.root / "names") == []


def test_who_starts_it_while_files_are_taken_out_waits(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    with meanwhile(monkeypatch, Running, "wait", container, container.start) as other:
        data = container.copy_out("/bin/busybox")
    other.result()
    assert members(data) == [("busybox", Path("/bin/busybox").stat().st_size)]
    assert container.status == "running"


@requires("pids")
def test_rm_f_ends_a_copy_and_the_start_that_waits_for_it(sandbox: CommandLine) -> None:
    sandbox.ok("run", "--name", "web", "busybox", "sh", "-c", "head -c 30000000 /dev/zero > /big")
    directory = next((sandbox.root / "containers").iterdir())
    with sandbox.going("cp", "web:/big", "-") as copying:
        assert copying.stdout
        assert copying.stdout.read(512).startswith(b"big\0")
        start = started(sandbox, "start", "web")
        while not is_waited_for(directory):
            threading.Event().wait(0.002)
        sandbox.ok("rm", "-f", "web")
        assert wait_all([start])[0].status == 0
        copying.stdout.read()
        assert copying.wait(timeout=30) == 1
    assert sandbox.ok("ps", "-aq").out == ""


def test_prune_passes_by_what_is_started_in_this_moment(engine: Engine, container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    container.start()
    container.stop(timeout=0)
    with meanwhile(monkeypatch, Runtime, "start", container, engine.prune) as other:
        container.start()
    assert other.result().containers == ()
    assert container.status == "running"


def test_a_restore_that_two_ask_for_starts_it_once(engine: Engine, busybox_image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = RunOptions(name="web", restart=("always", 0))
    container = engine.start("busybox", ["sh", "-c", COUNTING], options=options)
    wait_for_lines(container, 1)
    container.stop(timeout=0)
    with meanwhile(monkeypatch, Runtime, "start", container, engine.restore) as other:
        first = engine.restore()
    assert [each.id for each in first] == [container.id]
    assert other.result() == []
    wait_for_lines(container, 2)
    container.stop(timeout=0)
    assert [line.data for line in container.logs()] == [b"run 1\n", b"run 2\n"]


# Somebody else has changed it ---------------------------------------------------------------------------------------


def test_what_others_changed_counts_for_who_knew_it_before(engine: Engine, container: Container) -> None:
    other = engine.container("web")
    other.rename("site")
    other.update(Limits(pids=50))
    container.update(Limits(cpu_shares=100))
    assert container.name == "site"
    known = engine.container("site")
    assert (known._record.spec.limits.pids, known._record.spec.limits.cpu_shares) == (50, 100)
    container = Container(engine, container._record)
    other.update(Limits(pids=60))
    container.start()
    wait_for_lines(container, 1)
    assert engine.container("site").inspect()["Name"] == "/site"
    container.remove(force=True)
    assert os.listdir(engine.root / "names") == []


def test_a_stale_handle_removes_its_new_name_too(engine: Engine, container: Container) -> None:
    engine.container("web").rename("site")
    container.remove()
    assert os.listdir(engine.root / "names") == []


@requires("pids")
def test_a_stale_handle_starts_it_with_what_is_said_now(engine: Engine, container: Container) -> None:
    engine.container("web").update(Limits(pids=51))
    container.start()
    assert container.stats().pids_limit == 51


@pytest.mark.parametrize("rm", [True, False])
def test_an_interrupt_while_it_starts_leaves_nothing(engine: Engine, busybox_image: str, monkeypatch: pytest.MonkeyPatch, rm: bool) -> None:
    real = Running._wait_started

    def interrupted(self: Running) -> None:
        real(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Running, "_wait_started", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.run("busybox", ["sleep", "1000"], rm=rm)
    assert os.listdir(engine.root / "containers") == []
    assert os.listdir(engine.root / "names") == []
