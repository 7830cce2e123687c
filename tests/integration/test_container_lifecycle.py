"""Restart policies, pause, rename, update, and what is true after a reboot."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from sandbox import ContainerError, Engine, InvalidOption, RunOptions, WrongState
from sandbox.containers import Container
from sandbox.options import parse_restart
from sandbox.runtime.spec import Limits
from tests.support.command_line import CommandLine
from tests.support.host import requires

pytestmark = [requires("userns", "overlay", "tool:busybox"), pytest.mark.anybody]
COUNTING = "echo x >> /runs; n=$(wc -l < /runs); echo run $n; "


@pytest.mark.parametrize(
    ("policy", "script", "runs"), [("on-failure:2", "exit 3", 3), ("on-failure", "test $n = 3", 3), ("no", "exit 1", 1)]
)
def test_restart_policy_decides_how_often_it_runs(engine: Engine, busybox_image: str, policy: str, script: str, runs: int) -> None:
    options = RunOptions(restart=parse_restart(policy))
    container = engine.start("busybox", ["sh", "-c", COUNTING + script], options=options)
    container.wait(timeout=60)
    assert [line.data for line in container.logs()] == [b"run %d\n" % n for n in range(1, runs + 1)]
    assert container.inspect()["RestartCount"] == runs - 1


@pytest.mark.parametrize("policy", ["always", "unless-stopped"])
def test_a_stopped_container_stays_stopped(engine: Engine, busybox_image: str, policy: str) -> None:
    options = RunOptions(restart=parse_restart(policy))
    container = engine.start("busybox", ["sh", "-c", COUNTING + "test $n = 1 && exit 0; exec sleep 1000"], options=options)
    next(line for line in container.logs(follow=True) if line.data == b"run 2\n")
    container.stop(timeout=0)
    assert container.status == "exited"
    assert len(list(container.logs())) == 2


def test_a_container_stopped_by_another_signal_stays_stopped_too(engine: Engine, busybox_image: str) -> None:
    script = COUNTING + "trap '' TERM; trap 'exit 3' USR1; echo up; while :; do sleep 1000 & wait; done"
    container = engine.start("busybox", ["sh", "-c", script], options=RunOptions(restart=parse_restart("always"), stop_timeout=1000))
    next(line for line in container.logs(follow=True) if line.data == b"up\n")
    container.stop(signal=signal.SIGUSR1)
    assert container.completed is not None
    assert (container.status, container.completed.exit_code) == ("exited", 3)
    assert [line.data for line in container.logs()] == [b"run 1\n", b"up\n"]


def test_stop_waits_as_long_as_the_container_was_made_with(engine: Engine, busybox_image: str) -> None:
    script = "trap 'echo asked' TERM; echo up; while :; do sleep 1000 & wait; done"
    container = engine.start("busybox", ["sh", "-c", script], options=RunOptions(stop_timeout=0))
    next(line for line in container.logs(follow=True) if line.data == b"up\n")
    container.stop()
    assert container.completed is not None
    assert container.completed.signal == signal.SIGKILL
    assert container.inspect()["Config"]["StopTimeout"] == 0


@pytest.mark.parametrize("ended_before", ["its stop signal", "SIGKILL"])
def test_stop_waits_for_a_supervisor_whose_program_has_just_ended(
    engine: Engine, busybox_image: str, monkeypatch: pytest.MonkeyPatch, ended_before: str
) -> None:
    container = engine.start(busybox_image, ["sleep", "1000"])
    send = Container._signal

    def late(self: Container, number: int, *, thaw: bool) -> bool:
        """Nobody is there any more for this signal: the program ended before it, its supervisor tidies up."""
        if ended_before == "its stop signal" or number == signal.SIGKILL:
            assert container.pid is not None
            send(self, signal.SIGKILL, thaw=thaw)
            return False
        return send(self, number, thaw=thaw)

    monkeypatch.setattr(Container, "_signal", late)
    container.stop(timeout=0)
    assert container.status == "exited"
    container.start()
    monkeypatch.undo()
    container.remove(force=True)


def test_a_container_that_waits_for_its_restart_can_be_stopped_and_removed(engine: Engine, busybox_image: str) -> None:
    options = RunOptions(restart=("always", 0))
    container = engine.start("busybox", ["sh", "-c", "echo x; exit 1"], options=options)
    lines = container.logs(follow=True)
    for _ in range(3):
        next(lines)
    container.stop()
    assert container.status == "exited"
    engine.start("busybox", ["false"], options=options).remove(force=True)


def test_restart_and_rm_contradict_each_other(engine: Engine, busybox_image: str) -> None:
    with pytest.raises(InvalidOption, match="contradict"):
        engine.start("busybox", ["true"], options=RunOptions(rm=True, restart=("always", 0)))


def test_after_a_reboot_containers_show_as_exited_and_restore_starts_what_should_run(engine: Engine, busybox_image: str) -> None:
    made = {
        policy: engine.start("busybox", ["sleep", "1000"], options=RunOptions(name=f"c-{policy}", restart=(policy, 0)))
        for policy in ("no", "always", "unless-stopped")
    }
    made["stopped"] = engine.start("busybox", ["sleep", "1000"], options=RunOptions(name="stopped", restart=("unless-stopped", 0)))
    made["stopped"].stop(timeout=0)
    for policy in ("no", "always", "unless-stopped"):  # the machine goes down: nobody cleans up
        container = made[policy]
        init = container.pid or 0
        os.kill(int(Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
        container.wait(timeout=30)
    assert {container.status for container in made.values()} == {"exited"}
    assert {container.name for container in engine.restore()} == {"c-always", "c-unless-stopped"}
    assert {name for name, container in made.items() if container.status == "running"} == {"always", "unless-stopped"}


def test_pause_stops_everything_and_unpause_lets_it_go_on(engine: Engine, busybox_image: str) -> None:
    container = engine.start("busybox", ["sh", "-c", "while :; do echo x; sleep 0.01; done"])
    lines = container.logs(follow=True)
    next(lines)
    container.pause()
    assert container.status == "paused"
    assert "(Paused)" in container.describe_status(container.created)
    with pytest.raises(WrongState, match="paused"):
        container.exec(["true"])
    with pytest.raises(WrongState):
        container.pause()
    before = container.stats().cpu_seconds
    assert container.stats().cpu_seconds == before
    container.unpause()
    assert container.status == "running"
    assert container.exec(["true"]).exit_code == 0
    lines.close()


def test_a_paused_container_can_be_stopped_and_removed(engine: Engine, busybox_image: str) -> None:
    container = engine.start("busybox", ["sleep", "1000"], options=RunOptions(init=True, stop_timeout=1000))
    container.pause()
    container.stop()
    assert container.status == "exited"
    container.start()
    container.pause()
    container.stop(signal=signal.SIGUSR1)
    assert container.status == "exited"
    container.start()
    container.pause()
    container.remove(force=True)


def test_rename_frees_the_old_name_and_refuses_a_taken_one(engine: Engine, busybox_image: str) -> None:
    first = engine.create("busybox", ["true"], options=RunOptions(name="first"))
    engine.create("busybox", ["true"], options=RunOptions(name="second"))
    with pytest.raises(ContainerError, match="already used"):
        first.rename("second")
    first.rename("third")
    assert engine.container("third").id == first.id
    engine.create("busybox", ["true"], options=RunOptions(name="first"))


@requires("memory", "pids")
def test_update_changes_the_limits_of_a_running_container_for_real(engine: Engine, busybox_image: str) -> None:
    container = engine.start("busybox", ["sleep", "1000"], options=RunOptions(memory=256 << 20, pids_limit=64))
    container.update(Limits(pids=5))
    done = container.exec(["sh", "-c", "sleep 1 & sleep 1 & sleep 1 & wait"])
    assert b"fork" in done.stderr
    container.update(Limits(memory=32 << 20), restart=("on-failure", 1))
    assert container.exec(["sh", "-c", "tail /dev/zero"]).exit_code == 137
    facts = engine.container(container.id).inspect()["HostConfig"]
    assert isinstance(facts, dict)
    assert (facts["Memory"], facts["PidsLimit"], facts["RestartPolicy"]["Name"]) == (32 << 20, 5, "on-failure")


@requires("memory", "cpus")
def test_update_changes_weights_and_reservations(engine: Engine, busybox_image: str) -> None:
    container = engine.start("busybox", ["sleep", "1000"], options=RunOptions(memory=256 << 20, cpu_shares=1024))
    CommandLine(engine.root).ok("update", "--cpu-shares", "512", "--memory-reservation", "32m", container.name)
    places = {name: Path(path) for name, _, path in container._cgroup.plan.places}
    files = {"cpu": ("cpu.shares", "cpu.weight"), "memory": ("memory.soft_limit_in_bytes", "memory.low")}
    found = {name: [places[name] / file for file in both if (places[name] / file).exists()] for name, both in files.items()}
    texts = {name: [file.read_text().strip() for file in there] for name, there in found.items()}
    assert texts["memory"] == [str(32 << 20)]
    assert texts["cpu"] in (["512"], ["20"])  # v1, v2


def test_the_verbs_are_dockers(engine: Engine, busybox_image: str) -> None:
    sandbox = CommandLine(engine.root)
    sandbox.ok("run", "-d", "--name", "web", "--restart", "on-failure:3", "busybox", "sleep", "1000")
    assert sandbox.ok("pause", "web").out == "web\n"
    assert "(Paused)" in sandbox.ok("ps", "--format", "{{.Status}}").out
    assert sandbox.ok("unpause", "web").out == "web\n"
    sandbox.ok("rename", "web", "shop")
    assert sandbox.ok("update", "--pids-limit", "50", "shop").out == "shop\n"
    assert sandbox.ok("inspect", "-f", "{{.HostConfig.PidsLimit}} {{.HostConfig.RestartPolicy.Name}}", "shop").out == "50 on-failure\n"
    assert sandbox.ok("system", "restore").out == ""
    assert sandbox("run", "-d", "--restart", "sometimes", "busybox", "true").status == 125
