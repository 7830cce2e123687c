"""Health checks, with real containers: what a check says is what is shown, and a check outlives nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox.runtime.init import cgroup
from tests.support.command_line import CommandLine

pytestmark = pytest.mark.anybody

QUICK = ("--health-interval", "50ms")
EXISTS = ("--health-cmd", "test -e /well && echo fine || { echo missing; exit 3; }")


def health(sandbox: CommandLine, name: str = "web") -> dict[str, object]:
    return dict(sandbox.json("inspect", name)[0]["State"]["Health"])


def wait_for(sandbox: CommandLine, wanted: Callable[[dict[str, object]], bool], name: str = "web") -> dict[str, object]:
    deadline = time.monotonic() + 30
    while not wanted(found := health(sandbox, name)):
        assert time.monotonic() < deadline, found
        threading.Event().wait(0.05)
    return found


def start(sandbox: CommandLine, *flags: str, program: tuple[str, ...] = ("sleep", "1000")) -> None:
    sandbox.ok("run", "-d", "--name", "web", *flags, "busybox", *program)


def status(sandbox: CommandLine) -> str:
    return sandbox.ok("ps", "-a", "--format", "{{.Status}}").out.strip()


def test_it_becomes_unhealthy_after_the_retries_and_healthy_again(sandbox: CommandLine) -> None:
    start(sandbox, *QUICK, *EXISTS, "--health-retries", "2")
    found = wait_for(sandbox, lambda h: h["Status"] == "unhealthy")
    assert found["FailingStreak"] >= 2  # type: ignore[operator]
    assert {(each["ExitCode"], each["Output"]) for each in found["Log"]} == {(3, "missing\n")}  # type: ignore[attr-defined]
    assert status(sandbox).endswith("(unhealthy)")
    assert sandbox.ok("ps", "-q", "--filter", "health=unhealthy").out
    sandbox.ok("exec", "web", "touch", "/well")
    found = wait_for(sandbox, lambda h: h["Status"] == "healthy")
    assert found["FailingStreak"] == 0
    assert found["Log"][-1]["Output"] == "fine\n"  # type: ignore[index]
    assert status(sandbox).endswith("(healthy)")
    assert not sandbox.ok("ps", "-q", "--filter", "health=unhealthy").out
    wait_for(sandbox, lambda h: len(h["Log"]) == 5)  # type: ignore[arg-type]


def test_a_check_that_takes_too_long_failed(sandbox: CommandLine) -> None:
    start(sandbox, *QUICK, "--health-cmd", "echo on; exec sleep 999", "--health-timeout", "0.2", "--health-retries", "1")
    found = wait_for(sandbox, lambda h: h["Status"] == "unhealthy")
    assert found["Log"][0]["ExitCode"] == -1  # type: ignore[index]
    assert found["Log"][0]["Output"] == "on\nHealth check exceeded timeout (0.2s)"  # type: ignore[index]
    wait_for(sandbox, lambda h: len(h["Log"]) >= 2)  # type: ignore[arg-type]
    assert sandbox.ok("top", "web").out.count("sleep 999") <= 1


def test_failures_of_the_start_period_do_not_count(sandbox: CommandLine) -> None:
    slow = ("--health-interval", "1h", "--health-start-period", "1h", "--health-start-interval", "50ms")
    start(sandbox, *slow, *EXISTS, "--health-retries", "1")
    found = wait_for(sandbox, lambda h: len(h["Log"]) >= 3)  # type: ignore[arg-type]
    assert (found["Status"], found["FailingStreak"]) == ("starting", 0)
    assert status(sandbox).endswith("(health: starting)")
    sandbox.ok("exec", "web", "touch", "/well")
    wait_for(sandbox, lambda h: h["Status"] == "healthy")


def test_the_images_check_is_run_as_its_user_unless_it_is_refused(sandbox: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        'FROM busybox\nUSER 7\nENV WELL=yes\nHEALTHCHECK --interval=50ms --retries=1 CMD ["sh", "-c", "id -u; echo $WELL"]\n'
    )
    sandbox.ok("build", "-t", "checked", str(tmp_path))
    sandbox.ok("run", "-d", "--name", "web", "checked", "sleep", "1000")
    found = wait_for(sandbox, lambda h: h["Status"] == "healthy")
    assert found["Log"][0]["Output"] == "7\nyes\n"  # type: ignore[index]
    config = sandbox.json("inspect", "web")[0]["Config"]["Healthcheck"]
    assert (config["Test"], config["Interval"], config["Retries"]) == (["CMD", "sh", "-c", "id -u; echo $WELL"], 50_000_000, 1)
    sandbox.ok("run", "-d", "--name", "without", "--no-healthcheck", "checked", "sleep", "1000")
    assert "Health" not in sandbox.json("inspect", "without")[0]["State"]
    sandbox.ok("run", "-d", "--name", "other", *QUICK, "--health-cmd", "exit 1", "--health-retries", "1", "checked", "sleep", "1000")
    wait_for(sandbox, lambda h: h["Status"] == "unhealthy", "other")


def test_a_check_that_cannot_be_started_failed(sandbox: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text('FROM busybox\nHEALTHCHECK --interval=50ms --retries=1 CMD ["/no/such"]\n')
    sandbox.ok("build", "-t", "checked", str(tmp_path))
    sandbox.ok("run", "-d", "--name", "web", "checked", "sleep", "1000")
    found = wait_for(sandbox, lambda h: h["Status"] == "unhealthy")
    assert found["Log"][0]["ExitCode"] == 127  # type: ignore[index]
    assert "/no/such" in found["Log"][0]["Output"]  # type: ignore[index]


def test_a_paused_container_is_not_checked_and_then_is_again(sandbox: CommandLine) -> None:
    start(sandbox, *QUICK, "--health-cmd", "true")
    wait_for(sandbox, lambda h: h["Status"] == "healthy")
    sandbox.ok("pause", "web")
    last = health(sandbox)["Log"][-1]  # type: ignore[index]
    threading.Event().wait(0.3)  # several checks' time
    assert health(sandbox)["Log"][-1]["Start"] <= last["End"]  # type: ignore[index]
    sandbox.ok("unpause", "web")
    wait_for(sandbox, lambda h: h["Log"][-1]["Start"] > last["End"])  # type: ignore[index]


def test_the_end_of_the_container_ends_its_check(sandbox: CommandLine) -> None:
    start(sandbox, *QUICK, "--health-cmd", "touch /inside; exec sleep 999", program=("sh", "-c", "while ! test -e /inside; do :; done"))
    assert sandbox.ok("wait", "web").out == "0\n"
    groups = list(Path("/sys/fs/cgroup").glob(f"**/jupyter-sandbox/*{sandbox.ok('ps', '-aq', '--no-trunc').out.strip()[:12]}*"))
    assert cgroup.processes([str(group) for group in groups]) == []
    assert status(sandbox).startswith("Exited (0)")
    sandbox.ok("rm", "web")


@pytest.mark.parametrize("flags", [("--no-healthcheck", "--health-cmd", "true"), ("--health-cmd", "true", "--health-retries", "0")])
def test_what_makes_no_sense_is_refused(sandbox: CommandLine, flags: tuple[str, ...]) -> None:
    done = sandbox("run", *flags, "busybox", "true")
    assert (done.status, "health" in done.err) == (125, True)
