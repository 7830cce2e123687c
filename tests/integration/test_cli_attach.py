"""attach: what a running container prints and takes, for several at once, with and without a terminal; and leaving it running."""

from __future__ import annotations

import os
import select
import signal
import subprocess

import pytest

from sandbox import Engine
from sandbox.engine import Streams
from sandbox.errors import WrongState
from sandbox.options import RunOptions
from tests.support.command_line import CommandLine, read_until
from tests.support.host import requires
from tests.support.terminal import Terminal

pytestmark = [requires("userns", "overlay"), pytest.mark.anybody]

LEAVE = b"\x10\x11"  # ctrl-p, ctrl-q
ECHO = "echo ready; while read line; do test $line = end && exit 5; echo out:$line; echo err:$line >&2; done; echo closed"


TICK = "while :; do echo tick; sleep 0.05; done"


def says(process: subprocess.Popen[bytes], *words: bytes) -> None:
    assert process.stdout
    for word in words:
        read_until(process.stdout.fileno(), word)


def types(process: subprocess.Popen[bytes], text: bytes) -> None:
    assert process.stdin
    process.stdin.write(text)
    process.stdin.flush()


def wait_log(sandbox: CommandLine, name: str, word: bytes) -> None:
    with sandbox.going("logs", "-f", name) as logs:
        says(logs, word)


def test_several_type_and_everybody_sees_everything(sandbox: CommandLine) -> None:
    sandbox.ok("run", "-di", "--name", "shell", "busybox", "sh", "-c", ECHO)
    with sandbox.going("attach", "shell", stdin=subprocess.PIPE) as one, sandbox.going("attach", "shell", stdin=subprocess.PIPE) as two:
        types(one, b"1\n")  # its answer says that `one` is attached; then the same for `two`
        says(one, b"out:1\n")
        types(two, b"2\n")
        says(two, b"out:2\n")
        says(one, b"out:2\n")
        types(one, b"3\nend\n")
        says(two, b"out:3\n")
        (_, said), (_, also) = one.communicate(timeout=30), two.communicate(timeout=30)
        assert (one.returncode, two.returncode) == (5, 5)
        assert said == b"err:1\nerr:2\nerr:3\n"
        assert said.endswith(also)
        assert b"err:3\n" in also
    assert sandbox.ok("logs", "shell").out == "ready\nout:1\nout:2\nout:3\n"


def test_the_end_of_ones_input_is_not_that_of_the_container(sandbox: CommandLine) -> None:
    sandbox.ok("run", "-di", "--name", "shell", "busybox", "sh", "-c", ECHO)
    with sandbox.going("attach", "shell", stdin=subprocess.PIPE) as first:
        types(first, b"1\n")
        says(first, b"out:1\n")
        assert first.stdin
        first.stdin.close()
        first.stdin = None
        with sandbox.going("attach", "shell", stdin=subprocess.PIPE) as second:
            types(second, b"2\n")
            says(first, b"out:2\n")
            types(second, b"end\n")
            assert (first.wait(timeout=30), second.wait(timeout=30)) == (5, 5)


def test_one_that_is_killed_harms_nobody(sandbox: CommandLine) -> None:
    sandbox.ok("run", "-di", "--name", "shell", "busybox", "sh", "-c", ECHO)
    with (
        sandbox.going("attach", "shell", stdin=subprocess.PIPE) as killed,
        sandbox.going("attach", "shell", stdin=subprocess.PIPE) as other,
    ):
        types(killed, b"1\n")
        says(killed, b"out:1\n")
        killed.kill()
        killed.wait()
        types(other, b"2\n")
        says(other, b"out:2\n")


def test_no_stdin_only_looks_on(sandbox: CommandLine) -> None:
    sandbox.ok("run", "-di", "--name", "shell", "busybox", "sh", "-c", ECHO)
    with sandbox.going("attach", "shell", stdin=subprocess.PIPE) as typist:
        types(typist, b"1\n")
        says(typist, b"out:1\n")
        with sandbox.going("attach", "--no-stdin", "shell", stdin=subprocess.PIPE) as looker:
            types(looker, b"end\n")
            assert looker.stdout
            while not select.select([looker.stdout], [], [], 0.1)[0]:  # until it is attached
                types(typist, b"2\n")
            types(typist, b"end\n")
            assert (looker.wait(timeout=30), typist.wait(timeout=30)) == (5, 5)


@pytest.mark.parametrize("proxied", [True, False])
def test_signals_are_passed_on_or_leave_it_running(sandbox: CommandLine, proxied: bool) -> None:
    script = "trap 'echo told; exit 3' INT; echo ready; while read line; do echo got:$line; done"
    sandbox.ok("run", "-di", "--name", "shell", "busybox", "sh", "-c", script)
    with sandbox.going("attach", f"--sig-proxy={str(proxied).lower()}", "shell", stdin=subprocess.PIPE) as client:
        types(client, b"x\n")
        says(client, b"got:x\n")
        client.send_signal(signal.SIGINT)
        if proxied:
            types(client, b"y\n")  # busybox' sh runs a trap once read returns
            says(client, b"told\n")
            assert client.wait(timeout=30) == 3
        else:
            assert client.wait(timeout=30) == 130  # docker's own end by Ctrl-C
    state = sandbox.ok("inspect", "-f", "{{.State.Status}}", "shell").out.strip()
    assert state == ("exited" if proxied else "running")


def test_run_with_signals_kept_here_leaves_it_running(sandbox: CommandLine) -> None:
    with sandbox.going("run", "--rm", "--sig-proxy=false", "--name", "left", "busybox", "sh", "-c", TICK) as client:
        says(client, b"tick\n")
        client.send_signal(signal.SIGINT)
        client.communicate(timeout=30)
        assert client.returncode == 130
    assert sandbox.ok("ps", "--format", "{{.Names}}").out == "left\n"
    with sandbox.going("attach", "--no-stdin", "left") as again:
        says(again, b"tick\n")
        sandbox.ok("kill", "left")
        assert again.wait(timeout=30) == 137


@pytest.mark.parametrize(
    ("verb", "keys", "typed"), [("run", None, LEAVE), ("run", "a,a,b", b"aaab"), ("start", "ctrl-\\,x", b"\x1cx")], ids=str
)
def test_detach_keys_leave_it_running_and_attach_comes_back(sandbox: CommandLine, verb: str, keys: str | None, typed: bytes) -> None:
    options = () if keys is None else ("--detach-keys", keys)
    words = ("-it", "--name", "shell", "busybox", "sh")
    if verb == "start":
        sandbox.ok("create", *words)
        words = ("-ai", "shell")
    with Terminal(sandbox, verb, *options, *words) as terminal:
        terminal.read_until(b"# ")
        terminal.type(b"X=4$((1))\n")
        terminal.read_until(b"# ")
        terminal.type(typed)
        terminal.read_until(b"detached: it goes on\r\n")
        assert terminal.process.wait(timeout=30) == 0
    with Terminal(sandbox, "attach", "shell", rows=21, columns=43) as terminal:
        terminal.read_until(b"# ")  # drawn again: it is attached
        terminal.type(b"\x15echo $X; until stty size | grep '21 43'; do :; done; exit 7\n")
        assert b"41\r\n" in terminal.read_until(b"21 43\r\n")
        assert terminal.process.wait(timeout=30) == 7


def test_the_beginning_of_the_detach_keys_alone_is_input(sandbox: CommandLine) -> None:
    with Terminal(sandbox, "run", "--rm", "-it", "--detach-keys", "x,y", "busybox", "sh") as terminal:
        terminal.read_until(b"# ")
        terminal.type(b"echo xx-$((6*7))-xa\n")
        terminal.read_until(b"\nxx-42-xa\r\n")


def test_an_exec_that_is_left_goes_on(sandbox: CommandLine) -> None:
    sandbox.ok("run", "-d", "--name", "web", "busybox", "sleep", "300")
    with Terminal(
        sandbox, "exec", "-it", "web", "sh", "-c", "mkfifo /tmp/f; echo ready; cat /tmp/f; echo more; echo done > /tmp/g"
    ) as terminal:
        terminal.read_until(b"ready\r\n")
        terminal.type(LEAVE)
        assert terminal.process.wait(timeout=30) == 0
    sandbox.ok("exec", "web", "sh", "-c", "echo go > /tmp/f; until test -s /tmp/g; do :; done")


def test_two_terminals_show_the_same(sandbox: CommandLine) -> None:
    sandbox.ok("run", "-dit", "--name", "shell", "busybox", "sh")
    with Terminal(sandbox, "attach", "shell") as one, Terminal(sandbox, "attach", "shell") as two:
        one.read_until(b"# ")
        two.read_until(b"# ")
        one.type(b"echo $((6*6))\n")
        one.read_until(b"36\r\n")
        two.type(b"echo $((6*7))\n")
        one.read_until(b"42\r\n")
        two.read_until(b"42\r\n")
        two.type(LEAVE)
        assert two.process.wait(timeout=30) == 0
        one.type(b"exit 3\n")
        assert one.process.wait(timeout=30) == 3


def test_input_that_the_program_does_not_read_stops_nothing(sandbox: CommandLine) -> None:
    sandbox.ok("run", "-di", "--name", "deaf", "busybox", "sh", "-c", TICK)
    with sandbox.going("attach", "deaf", stdin=subprocess.PIPE) as client:
        says(client, b"tick\n")
        assert client.stdin
        os.set_blocking(client.stdin.fileno(), False)
        written = 0
        try:
            while written < 4 << 20:
                written += os.write(client.stdin.fileno(), b"x" * 4096)
        except BlockingIOError:
            pass
        sandbox.ok("stop", "-t", "0", "deaf")
        assert client.wait(timeout=30) in (137, 143)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (("create", "--name", "cc", "busybox", "true"), "container cc: is not running"),
        (("run", "-dit", "--name", "cc", "busybox", "sh"), "it has a terminal, and stdin is none"),
    ],
)
def test_what_cannot_be_attached_to_is_said(sandbox: CommandLine, made: tuple[str, ...], message: str) -> None:
    sandbox.ok(*made)
    done = sandbox("attach", "cc")
    assert done.status != 0
    assert message in done.err


def test_wrong_keys_are_refused(sandbox: CommandLine) -> None:
    done = sandbox("run", "--rm", "-it", "--detach-keys", "ctrl-p,enter", "busybox", "true")
    assert (done.status, "'enter' is no key" in done.err) == (125, True)


def test_output_that_is_its_starters_alone_is_said(sandbox: CommandLine) -> None:
    with sandbox.going("run", "--rm", "--name", "direct", "busybox", "sh", "-c", "echo ready; exec sleep 300") as process:
        says(process, b"ready\n")
        done = sandbox("attach", "direct")
        assert done.status == 1
        assert "goes straight to whoever started it" in done.err
        assert "-d" in done.err


@requires("root")
def test_one_waiting_for_its_restart_takes_nobody(engine: Engine, busybox_image: str) -> None:
    container = engine.start("busybox", ["sh", "-c", "echo $$; exec sleep 300"], options=RunOptions(restart=("always", 0)))
    container.kill(signal.SIGINT)  # sleep ignores nothing: it ends, and runs again
    with pytest.raises(WrongState):
        while True:
            container.attach().close()
            container.kill(signal.SIGINT)


@requires("root")
def test_the_api_captures_what_is_printed(engine: Engine, busybox_image: str) -> None:
    options = RunOptions(interactive=True)
    container = engine.start("busybox", ["sh", "-c", ECHO], options=options)
    with container.attach(Streams(stdin=b"hello\nend\n")) as running:
        done = running.wait()
    printed = done.stdout.removeprefix(b"ready\n")  # where we came before it said so
    assert (done.exit_code, printed, done.stderr) == (5, b"out:hello\n", b"err:hello\n")
    assert container.wait().exit_code == 5


@requires("root")
def test_leaving_through_the_api_lets_it_go_on(engine: Engine, busybox_image: str) -> None:
    container = engine.start("busybox", ["sh", "-c", ECHO], options=RunOptions(interactive=True))
    with container.attach() as running:
        running.detach()
        assert running.wait().why == "detached"
    assert container.status == "running"
