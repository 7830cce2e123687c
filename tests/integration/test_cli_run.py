"""run and exec for real: output, exit codes, reasons, streams, signals, terminals."""

from __future__ import annotations

import signal
import subprocess
import termios
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine, read_until
from tests.support.host import requires
from tests.support.terminal import Terminal

pytestmark = [requires("userns", "overlay"), pytest.mark.anybody]


def test_stdout_stderr_and_the_exit_code_are_the_programs(sandbox: CommandLine) -> None:
    done = sandbox("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.status, done.out, done.err) == (3, "out\n", "err\n")


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["busybox", "nope"], 127, "nope: not found"),
        (["busybox", "/etc/passwd"], 126, "/etc/passwd: permission denied"),
        (["busybox", "sh", "-c", "kill -9 $$"], 137, "killed by SIGKILL"),
        (["busybox", "sh", "-c", "kill -TERM $$"], 143, "killed by SIGTERM"),
        (["nosuch", "true"], 125, "nosuch: no such image"),
        (["-v", "relative", "busybox", "true"], 125, "--volume"),
        pytest.param(["--network", "nowhere", "busybox", "true"], 125, "network nowhere: there is none", marks=requires("root")),
        (["--no-such-flag", "busybox", "true"], 125, "no such option"),
    ],
)
def test_dockers_exit_codes_and_a_reason(sandbox: CommandLine, argv: list[str], status: int, message: str) -> None:
    done = sandbox("run", "--rm", *argv)
    assert (done.status, done.out) == (status, "")
    assert message in done.err
    assert sandbox.ok("ps", "-aq").out == ""


@requires("memory")
def test_the_memory_limit_is_named_as_the_reason(sandbox: CommandLine) -> None:
    done = sandbox("run", "--rm", "-m", "32m", "--memory-swap", "32m", "busybox", "sh", "-c", "x=$(tail -c 60m /dev/zero)")
    assert done.status == 137
    assert done.err.endswith("sandbox: out of memory: killed at the 32 MiB limit\n")


def test_the_time_limit_is_named_as_the_reason(sandbox: CommandLine) -> None:
    done = sandbox("run", "--rm", "--timeout", "500ms", "busybox", "sleep", "60")
    assert (done.status, done.err) == (124, "sandbox: stopped: ran longer than --timeout 0.5s\n")


@requires("pids")
def test_the_process_limit_is_named_as_the_reason(sandbox: CommandLine) -> None:
    done = sandbox("run", "--rm", "--pids-limit", "5", "busybox", "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 9 & done; wait")
    assert done.status != 0
    assert "process limit reached (--pids-limit 5)" in done.err


def test_the_programs_own_flags_are_its_own(sandbox: CommandLine) -> None:
    assert sandbox.ok("run", "--rm", "busybox", "echo", "--rm", "-d", "--name", "x").out == "--rm -d --name x\n"


def test_the_images_command_runs_when_none_is_given(sandbox: CommandLine) -> None:
    assert sandbox.ok("run", "--rm", "-i", "busybox", stdin=b"echo from the shell\n").out == "from the shell\n"


def test_stdin_reaches_the_program_only_with_i(sandbox: CommandLine) -> None:
    assert sandbox.ok("run", "--rm", "-i", "busybox", "wc", "-c", stdin=b"\x00\xff bytes").out == "8\n"
    assert sandbox.ok("run", "--rm", "busybox", "wc", "-c", stdin=b"ignored").out == "0\n"


def test_bytes_pass_unchanged_and_whole(sandbox: CommandLine) -> None:
    script = "head -c 3000000 /dev/zero | tr '\\0' '\\377'; printf end"
    process = subprocess.run(sandbox.argv("run", "--rm", "busybox", "sh", "-c", script), capture_output=True, check=True)
    assert process.stdout == b"\xff" * 3_000_000 + b"end"


def test_output_comes_while_the_program_still_runs(sandbox: CommandLine) -> None:
    with sandbox.going("run", "--rm", "-i", "busybox", "sh", "-c", "echo first; read x; echo got $x", stdin=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        assert read_until(process.stdout.fileno(), b"first\n") == b"first\n"
        process.stdin.write(b"line\n")
        process.stdin.close()
        process.stdin = None
        assert read_until(process.stdout.fileno(), b"\n") == b"got line\n"
        assert process.wait() == 0


def test_environment_comes_from_flags_files_and_here(sandbox: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# comment\nFILE=file # kept\nBOTH=file\nHERE\n")
    flags = ["--env-file", str(tmp_path / "env"), "-e", "BOTH=flag", "-e", "ALSO_HERE", "-e", "NOT_HERE"]
    done = sandbox.ok("run", "--rm", *flags, "busybox", "env", env={"HERE": "1", "ALSO_HERE": "2"})
    assert {"FILE=file # kept", "BOTH=flag", "HERE=1", "ALSO_HERE=2"} <= set(done.lines)
    assert not any(line.startswith("NOT_HERE") for line in done.lines)


def test_flags_reach_the_container(sandbox: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/file").write_text("from here")
    flags = ["-h", "box", "-w", "/tmp", "-u", "nobody", "-v", f"{tmp_path}/shared:/data:ro", "--read-only", "--tmpfs", "/scratch"]
    script = "hostname; pwd; id -u; cat /data/file; echo; touch /data/x /x 2>/dev/null || echo read-only; touch /scratch/x && echo scratch"
    done = sandbox.ok("run", "--rm", *flags, "busybox", "sh", "-c", script)
    assert done.lines == ["box", "/tmp", "65534", "from here", "read-only", "scratch"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_the_program(sandbox: CommandLine, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo caught {name}; exit 9' {name}; echo ready; while :; do sleep 0.05; done"
    with sandbox.going("run", "--rm", "busybox", "sh", "-c", script) as process:
        assert process.stdout
        read_until(process.stdout.fileno(), b"ready\n")
        process.send_signal(number)
        assert process.wait(timeout=30) == 9
        assert process.stdout.read() == f"caught {name}\n".encode()


def test_ctrl_c_ends_a_program_without_a_handler_and_says_nothing_more(sandbox: CommandLine) -> None:
    with sandbox.going("run", "--rm", "busybox", "sh", "-c", "echo ready; exec sleep 60") as process:
        assert process.stdout and process.stderr
        read_until(process.stdout.fileno(), b"ready\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stderr.read() == b""
    assert sandbox.ok("ps", "-aq").out == ""


def test_a_reader_that_goes_away_ends_the_program(sandbox: CommandLine) -> None:
    with sandbox.going("run", "--rm", "busybox", "yes") as process:
        assert process.stdout
        read_until(process.stdout.fileno(), b"y\n")
        process.stdout.close()
        process.stdout = None
        assert process.wait(timeout=30) == 141


def test_a_killed_client_takes_its_attached_container_along(sandbox: CommandLine) -> None:
    with sandbox.going("run", "--name", "orphan", "busybox", "sh", "-c", "echo ready; exec sleep 60") as process:
        assert process.stdout
        read_until(process.stdout.fileno(), b"ready\n")
        process.kill()
        process.wait()
    assert sandbox.ok("wait", "orphan").out == "137\n"


# terminals ------------------------------------------------------------------------------------------------------------


def test_a_terminal_of_its_own_has_the_size_of_this_one_and_follows_it(sandbox: CommandLine) -> None:
    script = "trap 'stty size' WINCH; tty; stty size; echo ready; while :; do sleep 0.05; done"
    with Terminal(sandbox, "run", "--rm", "-it", "busybox", "sh", "-c", script) as terminal:
        first = terminal.read_until(b"ready\r\n")
        assert b"/dev/" in first
        assert b"33 77\r\n" in first
        terminal.resize(44, 99)
        assert b"44 99\r\n" in terminal.read_until(b"44 99\r\n")


def test_keys_go_through_raw_and_the_terminal_is_given_back(sandbox: CommandLine) -> None:
    script = "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.05; done"
    with Terminal(sandbox, "run", "--rm", "-it", "busybox", "sh", "-c", script) as terminal:
        terminal.read_until(b"ready\r\n")
        terminal.type(b"\x03")
        terminal.read_until(b"interrupted\r\n")
        assert terminal.process.wait(timeout=30) == 5
        assert termios.tcgetattr(terminal.slave) == terminal.before


def test_a_shell_in_a_terminal_works(sandbox: CommandLine) -> None:
    with Terminal(sandbox, "run", "--rm", "-it", "busybox", "sh") as terminal:
        terminal.read_until(b"# ")
        terminal.type(b"echo $((6*7))\n")
        terminal.read_until(b"\n42\r\n")
        terminal.type(b"exit 4\n")
        assert terminal.process.wait(timeout=30) == 4


def test_without_t_the_program_never_sees_our_terminal(sandbox: CommandLine) -> None:
    script = "for fd in 0 1 2; do test -t $fd && echo terminal $fd; done; echo checked"
    with Terminal(sandbox, "run", "--rm", "-it", "busybox", "sh", "-c", script) as terminal:
        assert terminal.read_until(b"checked").count(b"terminal") == 3
    with Terminal(sandbox, "run", "--rm", "-i", "busybox", "sh", "-c", script) as terminal:
        assert b"terminal" not in terminal.read_until(b"checked")
        assert terminal.process.wait(timeout=30) == 0


def test_typed_lines_reach_a_program_without_a_terminal(sandbox: CommandLine) -> None:
    with Terminal(sandbox, "run", "--rm", "-i", "busybox", "sh", "-c", "echo ready; read x; echo got:$x") as terminal:
        terminal.read_until(b"ready")
        terminal.type(b"hello\n")
        terminal.read_until(b"got:hello")
        assert terminal.process.wait(timeout=30) == 0


def test_it_without_a_terminal_is_refused(sandbox: CommandLine) -> None:
    done = sandbox("run", "--rm", "-it", "busybox", "true")
    assert done.status == 125
    assert "stdin is not a terminal" in done.err


# exec -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def web(sandbox: CommandLine) -> str:
    sandbox.ok("run", "-d", "--name", "web", "-e", "OWN=1", "busybox", "sleep", "300")
    return "web"


def test_exec_has_the_programs_streams_and_exit_code(sandbox: CommandLine, web: str) -> None:
    done = sandbox("exec", "-i", web, "sh", "-c", "cat; echo err >&2; exit 7", stdin=b"in")
    assert (done.status, done.out, done.err) == (7, "in", "err\n")


def test_exec_runs_inside_with_its_flags(sandbox: CommandLine, web: str) -> None:
    script = "echo $OWN $NEW $(id -u) $(pwd)"
    assert sandbox.ok("exec", "-e", "NEW=2", "-u", "nobody", "-w", "/tmp", web, "sh", "-c", script).out == "1 2 65534 /tmp\n"


@pytest.mark.parametrize(("command", "status"), [(["nope"], 127), (["/etc/passwd"], 126)])
def test_exec_of_what_cannot_run_gives_126_or_127(sandbox: CommandLine, web: str, command: list[str], status: int) -> None:
    assert sandbox("exec", web, *command).status == status


def test_exec_where_nothing_runs_is_an_error(sandbox: CommandLine) -> None:
    sandbox.ok("create", "--name", "idle", "busybox", "true")
    assert sandbox("exec", "idle", "true").status == 1
    assert "is not running" in sandbox("exec", "idle", "true").err
    assert "no such container" in sandbox("exec", "nope", "true").err


def test_a_detached_exec_goes_on(sandbox: CommandLine, web: str) -> None:
    sandbox.ok("exec", "-d", web, "sh", "-c", "mkfifo /tmp/f; echo done > /tmp/f")
    assert sandbox.ok("exec", web, "sh", "-c", "while ! test -p /tmp/f; do :; done; cat /tmp/f").out == "done\n"


def test_exec_in_a_terminal(sandbox: CommandLine, web: str) -> None:
    with Terminal(sandbox, "exec", "-it", web, "sh") as terminal:
        terminal.read_until(b"# ")
        terminal.type(b"stty size; exit 6\n")
        terminal.read_until(b"33 77")
        assert terminal.process.wait(timeout=30) == 6


REOPEN = "echo out > /dev/stdout; echo err > /dev/stderr"


@pytest.mark.parametrize("user", ["0", "7:8"])
@pytest.mark.parametrize("userns", ["private", pytest.param("host", marks=requires("root"))])
def test_a_program_may_open_its_streams_again(sandbox: CommandLine, user: str, userns: str) -> None:
    how = ("-u", user, "--userns", userns)
    done = sandbox("run", "--rm", *how, "busybox", "sh", "-c", REOPEN)
    assert (done.status, done.out, done.err) == (0, "out\n", "err\n")
    name = sandbox.ok("run", "-d", *how, "busybox", "sh", "-c", f"{REOPEN}; exec sleep 1000").out.strip()
    done = sandbox("exec", "-u", user, name, "sh", "-c", REOPEN)
    assert (done.status, done.out, done.err) == (0, "out\n", "err\n")
    sandbox.ok("stop", "-t", "0", name)
    logs = sandbox.ok("logs", name)
    assert (logs.out, logs.err) == ("out\n", "err\n")
    sandbox.ok("rm", name)
