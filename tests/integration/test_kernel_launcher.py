"""The same kernelspecs for front ends that know nothing of provisioners: VS Code, Spyder, old servers. They write a connection file with
ports of TCP, start argv, and talk."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file

from tests.support.kernel import KERNEL_MARKS, Kernel, KernelPlace, kernel_place, wait_removed

pytestmark = KERNEL_MARKS

LIMIT = "200m"
LOOK = "import os, socket; print(os.getcwd(), os.getppid(), [name for _, name in socket.if_nameindex()])"


@pytest.fixture(scope="module")
def place(ipykernel_base: Path) -> Iterator[KernelPlace]:
    with kernel_place(ipykernel_base) as place:
        place.install("localhost/ipy", "--name", "launched", "-m", LIMIT, "--network", "none", "--replace")
        yield place


@dataclass(frozen=True)
class FrontEnd:
    """One that starts a kernel's argv, as VS Code does."""

    place: KernelPlace
    connection_file: Path
    name: str = "launched"

    def write_connection(self, transport: str = "tcp", ip: str = "127.0.0.1") -> None:
        """Five ports, and a key."""
        write_connection_file(str(self.connection_file), transport=transport, ip=ip, key=secrets.token_hex(16).encode())

    def argv(self) -> list[str]:
        """Of kernel.json, with the connection file's name in it."""
        spec = json.loads((self.place.directory(self.name) / "kernel.json").read_text())
        return [word.replace("{connection_file}", str(self.connection_file)) for word in spec["argv"]]

    @contextlib.contextmanager
    def started(self, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """The kernel's process; ended afterwards."""
        given = {**os.environ, **(env or {})}
        process = subprocess.Popen(self.argv(), cwd=self.place.work, env=given, stderr=subprocess.PIPE, start_new_session=True)
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=60)

    @contextlib.contextmanager
    def connected(self, process: subprocess.Popen[bytes]) -> Iterator[Kernel]:
        """By the connection file alone."""
        client = BlockingKernelClient(connection_file=str(self.connection_file))
        client.load_connection_file()
        client.start_channels(hb=False)
        try:
            kernel = Kernel(client, self.place.root, lambda: os.kill(process.pid, signal.SIGINT))
            kernel.wait_connected()
            yield kernel
        finally:
            client.stop_channels()


@pytest.fixture
def front_end(place: KernelPlace, tmp_path: Path) -> FrontEnd:
    directory = tmp_path / "a b'\"$(x)é%s{}"
    directory.mkdir()
    made = FrontEnd(place, directory / "kernel 1;.json")
    made.write_connection()
    return made


def test_vs_code_starts_asks_and_interrupts(front_end: FrontEnd, place: KernelPlace) -> None:
    with front_end.started() as process, front_end.connected(process) as kernel:
        assert kernel.text(LOOK) == f"{place.work} 1 ['lo']\n"
        assert kernel.run("print(input('name? ')[::-1])", on_input=lambda _: kernel.client.input("anna b"))[-1]["text"] == "b anna\n"
        code, client = "import time\nprint('going')\ntime.sleep(1000)", kernel.client
        by_signal = kernel.run(code, on_stream=kernel.interrupt)
        by_message = kernel.run(code, on_stream=lambda: client.control_channel.send(client.session.msg("interrupt_request", {})))
        assert [each[-1]["ename"] for each in (by_signal, by_message)] == ["KeyboardInterrupt"] * 2
        many = kernel.text("print('x' * (8 << 20))")  # through the relay as it is
        assert len(many) == (8 << 20) + 1
        console = [sys.executable, "-m", "jupyter_console", "--simple-prompt", "--existing", str(front_end.connection_file)]
        kernel.run("mine = 6 * 7")
        done = subprocess.run(console, input="print('it is', mine)\nexit\n", capture_output=True, text=True, timeout=100, check=True)
        assert "it is 42" in done.stdout
        client.shutdown()
        assert process.wait(60) == 0
    assert place.engine.containers(all=True) == []


def test_restart_is_a_kill_and_a_start_with_the_same_connection_file(front_end: FrontEnd, place: KernelPlace) -> None:
    with front_end.started() as first, front_end.connected(first) as kernel:
        kernel.run("mine = 1")
        before = [each.id for each in place.engine.containers()]
        first.kill()
        first.wait()
        with front_end.started():
            kernel.wait_connected()  # the same client: its sockets connect again
            assert kernel.text("print('mine' in globals())") == "False\n"
            wait_removed(place.engine, before)
    assert place.engine.containers(all=True) == []


def test_old_client_may_ask_for_ipc(front_end: FrontEnd, tmp_path: Path) -> None:
    front_end.connection_file.unlink()
    front_end.write_connection("ipc", str(tmp_path / "k"))
    with front_end.started() as process, front_end.connected(process) as kernel:
        assert kernel.text("print(2)") == "2\n"


def test_kernel_goes_with_the_front_end_that_was_killed(front_end: FrontEnd, place: KernelPlace) -> None:
    code = "import subprocess, sys\nsubprocess.Popen(sys.argv[1:]).wait()"
    env = {**os.environ, "JPY_PARENT_PID": "of this process"}
    argv = [sys.executable, "-c", code, *front_end.argv()]
    with subprocess.Popen(argv, cwd=place.work, env=env, stderr=subprocess.DEVNULL) as parent:
        with front_end.connected(parent):
            running = [each.id for each in place.engine.containers()]
        parent.kill()
    assert len(running) == 1
    wait_removed(place.engine, running)


def test_death_has_its_reason_on_stderr_and_its_status(front_end: FrontEnd) -> None:
    with front_end.started() as process:
        with front_end.connected(process) as kernel:
            kernel.client.execute("x = bytearray(1 << 30)")
            _, told = process.communicate(timeout=60)
        assert b"out of memory: killed at the 200 MiB limit" in told
        assert process.returncode == 137


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("imageless", {"image": "localhost/missing"}, "localhost/missing"),
        ("no-program", {"command": ["nothing-of-that-name", "{connection_file}"]}, "nothing-of-that-name"),
        ("removed", None, "kernel.json"),
        ("foreign", {}, "is no kernelspec of ours (sandbox kernel install IMAGE makes one)"),
    ],
)
def test_what_cannot_be_started_says_why(
    front_end: FrontEnd, place: KernelPlace, name: str, change: dict[str, object] | None, told: str
) -> None:
    directory = place.directory(name)
    directory.mkdir()
    spec = json.loads((place.directory("launched") / "kernel.json").read_text())
    spec["metadata"]["kernel_provisioner"]["config"].update(change or {})
    argv = [str(directory) if word == str(place.directory("launched")) else word for word in front_end.argv()]
    if change is not None:
        (directory / "kernel.json").write_text(json.dumps(spec if change else {**spec, "metadata": {}}))
    done = subprocess.run(argv, cwd=place.work, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 125
    assert done.stderr.startswith("kernel: ")
    assert told in done.stderr
    assert place.engine.containers(all=True) == []
