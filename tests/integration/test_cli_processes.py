"""Several commands at once, and commands that outlive or are outlived: no daemon, one truth on disk."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine, read_until, wait_all
from tests.support.host import requires

pytestmark = [requires("userns", "overlay"), pytest.mark.anybody]


def started(sandbox: CommandLine, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(sandbox.argv(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_detached_container_outlives_its_command_and_its_session(sandbox: CommandLine) -> None:
    with sandbox.going("run", "-d", "--name", "web", "busybox", "sleep", "300") as process:
        assert process.wait(timeout=30) == 0
        group = process.pid
    with pytest.raises(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    assert sandbox.ok("ps", "--format", "{{.Names}} {{.State}}").out == "web running\n"
    assert sandbox.ok("exec", "web", "echo", "alive").out == "alive\n"


def test_two_processes_agree(sandbox: CommandLine) -> None:
    with sandbox.going("run", "--name", "web", "busybox", "sh", "-c", "echo ready; exec sleep 300") as process:
        assert process.stdout
        read_until(process.stdout.fileno(), b"ready\n")
        assert sandbox.ok("ps", "--format", "{{.Names}} {{.State}}").out == "web running\n"
        sandbox.ok("kill", "web")
        assert process.wait(timeout=30) == 137
    assert sandbox.ok("ps", "-a", "--format", "{{.Names}} {{.State}}").out == "web exited\n"


def test_ten_runs_at_once(sandbox: CommandLine) -> None:
    runs = [started(sandbox, "run", "--rm", "busybox", "sh", "-c", f"echo {n}; exit {n}") for n in range(10)]
    assert [(done.status, done.out, done.err) for done in wait_all(runs)] == [(n, f"{n}\n", "") for n in range(10)]
    assert sandbox.ok("ps", "-aq").out == ""


def test_one_name_is_given_once(sandbox: CommandLine) -> None:
    runs = wait_all([started(sandbox, "create", "--name", "only", "busybox", "true") for _ in range(6)])
    assert sorted(done.status for done in runs) == [0, 125, 125, 125, 125, 125]
    assert all("only" in done.err for done in runs if done.status)
    assert sandbox.ok("ps", "-a", "--format", "{{.Names}}").out == "only\n"


def test_builds_runs_and_prunes_at_once_do_not_hurt_each_other(sandbox: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo one > /one\nRUN echo two > /two\n")
    work = [started(sandbox, "build", "-q", "-t", f"app:{n}", str(tmp_path)) for n in range(2)]
    work += [started(sandbox, "run", "--rm", "busybox", "cat", "/etc/passwd") for _ in range(4)]
    work += [started(sandbox, "prune", "-f") for _ in range(2)]
    ended = wait_all(work)
    assert [done.status for done in ended] == [0] * 8, ended
    assert sandbox.ok("run", "--rm", "app:1", "cat", "/one", "/two").out == "one\ntwo\n"


def test_a_command_killed_while_it_runs_leaves_a_store_that_works(sandbox: CommandLine) -> None:
    with sandbox.going("run", "--rm", "busybox", "sh", "-c", "echo ready; exec sleep 300") as process:
        assert process.stdout
        read_until(process.stdout.fileno(), b"ready\n")
        process.kill()
        process.wait()
    assert sandbox.ok("run", "--rm", "busybox", "echo", "works").out == "works\n"
    sandbox.ok("prune", "-f")
    assert sandbox.ok("ps", "-aq").out == ""


def test_the_root_may_come_from_the_environment(sandbox: CommandLine) -> None:
    argv = [word for word in sandbox.argv("images", "-q") if word not in ("--root", str(sandbox.root))]
    shown = subprocess.run(argv, env={**os.environ, "SANDBOX_ROOT": str(sandbox.root)}, capture_output=True, text=True, check=True).stdout
    assert shown == sandbox.ok("images", "-q").out != ""


def test_a_closed_pipe_is_no_traceback(sandbox: CommandLine) -> None:
    process = started(sandbox, "images")
    assert process.stdout and process.stderr
    process.stdout.close()
    process.stdout = None
    assert process.stderr.read() == b""
    assert process.wait(timeout=30) in (1, 141)
    process.stderr.close()


def test_doctor_and_version_answer(sandbox: CommandLine) -> None:
    assert all(check["ok"] for check in sandbox.json("doctor", "--format", "json") if check["needed"])
    assert sandbox.ok("version", "--format", "{{.Client.Version}}").out.strip() == sandbox.ok("--version").out.split()[-1]
    assert sandbox.json("info", "--format", "json")["Root"] == str(sandbox.root)
