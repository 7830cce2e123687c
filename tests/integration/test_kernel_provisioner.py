"""Kernels in containers through jupyter_client, as servers and nbclient start them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jupyter_kernel_test
import nbclient
import nbformat
import pytest
from jupyter_client.manager import KernelManager
from jupyter_core.utils import run_sync

from kernelspec import trust
from sandbox.engine import Engine
from sandbox.errors import ContainerNotFound, InvalidOption
from tests.support.host import requires
from tests.support.kernel import KERNEL_MARKS, Kernel, KernelPlace, kernel_place, started_kernel
from tests.support.language_images import place_program

pytestmark = [pytest.mark.anybody, requires("userns", "overlay"), *KERNEL_MARKS[1:]]  # the first asks for root


@pytest.fixture(scope="module")
def place(ipykernel_base: Path) -> Iterator[KernelPlace]:
    """With the kernels `plain`, and `relayed`, which is the same to front ends that know no provisioners: they read its argv alone.
    Afterwards nothing of it is left, neither containers nor sockets."""
    with kernel_place(ipykernel_base) as made, tempfile.TemporaryDirectory(prefix="jsr-") as runtime, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", runtime)
        made.install("localhost/ipy", "--name", "plain", "--network", "none", "--replace")
        without_provisioner(made, "relayed", "plain")
        yield made
        assert _sockets() == set()


def without_provisioner(place: KernelPlace, name: str, original: str) -> None:
    """A kernelspec with the argv of another."""
    shutil.copytree(place.directory(original), place.directory(name))
    spec = json.loads((place.directory(name) / "kernel.json").read_text())
    (place.directory(name) / "kernel.json").write_text(json.dumps({**spec, "metadata": {}}))


def _sockets() -> set[Path]:
    return set(Path(os.environ["XDG_RUNTIME_DIR"]).iterdir())


def started(
    place: KernelPlace, name: str = "plain", *, env: dict[str, str] | None = None, connection_file: str = ""
) -> AbstractContextManager[tuple[KernelManager, Kernel]]:
    """A kernel, ready; shut down afterwards."""
    return started_kernel(name, place.root, place.work, env=env, connection_file=connection_file)


@pytest.mark.usefixtures("place")
class _Ipykernel(jupyter_kernel_test.KernelTests):
    """What jupyter_kernel_test tests, and any ipykernel passes: asked for a range of this session, it calls the session 0."""

    __test__ = False
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = ({"text": "zi", "matches": {"zip"}},)
    complete_code_samples = ("1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n")
    incomplete_code_samples = ("print('''hello", "def f(x):\n  x*2")
    invalid_code_samples = ("import = 7q",)
    code_page_something = "zip?"
    code_generate_error = "raise ValueError('no')"
    code_execute_result = ({"code": "1+2+3", "result": "6"},)
    supported_history_operations = ("tail", "search")
    code_history_pattern = "1?2*"
    code_inspect_sample = "zip"
    code_display_data = ({"code": "from IPython.display import HTML, display; display(HTML('<b>x</b>'))", "mime": "text/html"},)
    code_clear_output = "from IPython.display import clear_output; clear_output()"


class TestProvisioned(_Ipykernel):
    __test__ = True
    kernel_name = "plain"


class TestRelayed(_Ipykernel):
    __test__ = True
    kernel_name = "relayed"


@pytest.fixture(scope="module")
def running(place: KernelPlace) -> Iterator[tuple[KernelManager, Kernel]]:
    """One kernel for the tests that leave it as it was."""
    with started(place) as both:
        yield both


def test_runs_in_a_container_without_network_in_the_notebooks_directory(place: KernelPlace, running: tuple[KernelManager, Kernel]) -> None:
    code = "import os, socket; print(os.getcwd(), [name for _, name in socket.if_nameindex()], os.getpid() != 1, os.getppid())"
    assert running[1].text(code) == f"{place.work} ['lo'] True 1\n"
    assert not Path("/made-by-a-kernel").exists()
    running[1].run("open('/made-by-a-kernel', 'w').close(); open('shared.txt', 'w').write('x')")
    assert not Path("/made-by-a-kernel").exists()
    assert (place.work / "shared.txt").read_text() == "x"


def test_input_is_asked_of_the_front_end(running: tuple[KernelManager, Kernel]) -> None:
    kernel = running[1]
    outputs = kernel.run("print(input('name? ')[::-1])", on_input=lambda _: kernel.client.input("anna b"))
    assert outputs[-1]["text"] == "b anna\n"


def test_comms_go_both_ways(running: tuple[KernelManager, Kernel]) -> None:
    kernel = running[1]
    kernel.run(
        "from ipykernel.comm import Comm\n"
        "get_ipython().kernel.comm_manager.register_target('t', lambda c, m: c.send({'got': m['content']['data']}))"
    )
    client = kernel.client
    client.shell_channel.send(client.session.msg("comm_open", {"comm_id": "c1", "target_name": "t", "data": {"x": 1}}))
    while (message := client.get_iopub_msg(timeout=30))["msg_type"] != "comm_msg":
        pass
    assert message["content"]["data"] == {"got": {"x": 1}}


def test_interrupt_by_signal_and_by_message(running: tuple[KernelManager, Kernel]) -> None:
    kernel = running[1]
    client = kernel.client
    code = "import time\nprint('going')\ntime.sleep(1000)"
    by_signal = kernel.run(code, on_stream=kernel.interrupt)
    by_message = kernel.run(code, on_stream=lambda: client.control_channel.send(client.session.msg("interrupt_request", {})))
    for outputs in (by_signal, by_message):
        assert outputs[-1]["ename"] == "KeyboardInterrupt"
    assert kernel.text("print('alive')") == "alive\n"


def test_interrupt_reaches_programs_the_kernel_started(running: tuple[KernelManager, Kernel]) -> None:
    code = "import subprocess\nprint('going')\nsubprocess.run(['python3', '-c', 'import time; time.sleep(1000)'])"
    assert running[1].run(code, on_stream=running[1].interrupt)[-1]["ename"] == "KeyboardInterrupt"


def test_restart_keeps_the_container_and_forgets_the_variables(place: KernelPlace) -> None:
    with started(place) as (manager, kernel), Engine(place.root) as engine:
        kernel.run("x = 1; open('/kept', 'w').write('file')")
        before = {each.id for each in engine.containers()}
        manager.restart_kernel()
        kernel.wait_connected()
        assert {each.id for each in engine.containers()} == before
        assert kernel.text("print('x' in globals(), open('/kept').read())") == "False file\n"
        assert kernel.text("print(1)", "stderr") == ""  # asked for, so no reason


def test_reset_drops_the_container_and_a_restart_makes_a_new_one(place: KernelPlace, sandbox_command: list[str]) -> None:
    with started(place) as (manager, kernel):
        kernel.run("open('/kept', 'w').close()")
        kernel_id = manager.kernel_id or ""
        argv = [*sandbox_command, "kernel", "reset", kernel_id] if kernel_id else [*sandbox_command, "kernel", "reset", "--all"]
        subprocess.run(argv, check=True, env={**os.environ, "SANDBOX_ROOT": str(place.root)}, capture_output=True)
        run_sync(manager.provisioner.wait)()
        manager.restart_kernel(now=True)
        kernel.wait_connected()
        assert kernel.text("import os; print(os.path.exists('/kept'))") == "False\n"


DEATHS = {
    "x = bytearray(400 << 20)": "out of memory: killed at the 160 MiB limit",
    "import os; os._exit(3)": "exit code 3",
    "import os; os.kill(os.getpid(), 11)": "killed by SIGSEGV",
}


def test_why_a_kernel_ended_is_told_at_the_next_ones_first_cell_once_and_logged(
    place: KernelPlace, caplog: pytest.LogCaptureFixture
) -> None:
    with started(place, env={"KERNEL_MEMORY": "160m"}) as (manager, kernel):
        for code, reason in DEATHS.items():
            kernel.client.execute(code)
            assert run_sync(manager.provisioner.wait)() != 0
            assert not manager.is_alive()
            manager.restart_kernel(now=True)
            kernel.wait_connected()
            told = kernel.text("print(1)", "stderr")
            assert told.startswith(f"The kernel before this one ended: {reason}"), told
            assert kernel.text("print(1)", "stderr") == ""
            assert reason in caplog.messages[-1]


def test_two_kernels_do_not_see_each_other(place: KernelPlace, running: tuple[KernelManager, Kernel]) -> None:
    running[1].run("mine = 'first'")
    with started(place) as (_, other):
        assert other.text("print('mine' in globals())") == "False\n"
        assert running[1].text("print(mine)") == "first\n"


def test_connection_file_may_have_odd_characters(place: KernelPlace) -> None:
    directory = place.work / "a b'\"$(x)é%s{}"
    directory.mkdir()
    with started(place, connection_file=str(directory / "kernel 1;.json")) as (_, kernel):
        assert kernel.text("print(2)") == "2\n"


def test_volume_of_a_notebook_needs_trust(place: KernelPlace) -> None:
    canary = place.root.parent / "canary"
    canary.mkdir()
    (canary / "secret").write_text("seen")
    asked: dict[str, Any] = {"volumes": [f"{canary}:/canary:ro"]}
    notebook = place.work / "asks.ipynb"
    notebook.write_text(json.dumps({"cells": [], "metadata": {"sandbox": asked}, "nbformat": 4, "nbformat_minor": 5}))
    session = {"JPY_SESSION_NAME": notebook.name}
    before = _sockets()
    with pytest.raises(InvalidOption, match="not trusted"), started(place, env=session):
        pass
    assert _sockets() == before
    trust.trust(place.root, notebook, asked)
    with started(place, env=session) as (_, kernel):
        assert kernel.text("print(open('/canary/secret').read())") == "seen\n"


def test_front_end_without_provisioners_gets_the_same_kernel(place: KernelPlace) -> None:
    with started(place, "relayed") as (manager, kernel):
        assert type(manager.provisioner).__name__ == "LocalProvisioner"
        assert kernel.text("import socket; print([name for _, name in socket.if_nameindex()])") == "['lo']\n"
        code = "import time\nprint('going')\ntime.sleep(1000)"
        assert kernel.run(code, on_stream=kernel.interrupt)[-1]["ename"] == "KeyboardInterrupt"


def test_path_is_resolved_as_the_kernel_means_it(place: KernelPlace, running: tuple[KernelManager, Kernel]) -> None:
    manager, kernel = running
    (place.work / "mine.py").touch()
    kernel.run("from pathlib import Path; Path('/inside').mkdir(); Path('/inside/a.py').touch(); (Path.home() / 'b.py').touch()")
    kernel.run("import os; os.symlink('/inside', '/linked')")
    home = kernel.text("print(Path.home(), end='')")
    found = {path: manager.resolve_path(path) for path in ("mine.py", "/linked/a.py", "~/b.py", "no.py", __file__, "/proc/1/status", "\0")}
    assert found == {
        "mine.py": f"{place.work}/mine.py",
        "/linked/a.py": "/linked/a.py",
        "~/b.py": f"{home}/b.py",
        "no.py": None,
        __file__: None,  # there on the host
        "/proc/1/status": None,
        "\0": None,
    }


def _with_bash_kernel(place: KernelPlace, directory: Path) -> None:
    """An image with bash and the bash kernel of PyPI, which brings its kernelspec."""
    place_program("bash", directory / "root")
    dockerfile = (
        "FROM localhost/ipy\nCOPY root /\nENV LD_LIBRARY_PATH=/usr/local/lib/languages\nVOLUME /data\n"
        "RUN pip install -q --root-user-action ignore bash_kernel==0.10.0 && python3 -m bash_kernel.install --sys-prefix\n"
    )
    with Engine(place.root) as engine:
        engine.build(directory, dockerfile=dockerfile, tags=["localhost/bash"])


@requires("network")
@pytest.mark.network
def test_kernel_of_another_language_that_the_image_brings(place: KernelPlace, tmp_path: Path, sandbox_command: list[str]) -> None:
    _with_bash_kernel(place, tmp_path)
    command = json.dumps(["python3", "-m", "bash_kernel", "-f", "{connection_file}"])
    said = {}
    for name, flags in {"found": ["--kernel", "bash"], "told": ["--kernel-cmd", command, "--language", "bash"]}.items():
        argv = ["kernel", "install", "localhost/bash", "--name", name, "--prefix", str(place.base / "prefix"), "--network", "none", *flags]
        done = subprocess.run(
            [*sandbox_command, *argv], capture_output=True, text=True, check=True, env={**os.environ, "SANDBOX_ROOT": str(place.root)}
        )
        said[name] = done.stdout
        with started(place, name) as (manager, kernel):
            assert manager.kernel_spec.language == "bash"
            assert kernel.text("x=5; echo $((6 * 7)); pwd") == f"42\n{place.work}\n"
            assert kernel.text("echo $x") == "5\n"  # not interrupted: then bash_kernel sometimes starts another bash, or hangs
    assert "kernel bash of the image; others, by --kernel: python3" in said["found"]
    with Engine(place.root) as engine:
        assert engine.volumes.all() == []  # VOLUME's went with its container


SERVER = """\
import os, sys
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
manager = KernelManager(kernel_name="plain", kernel_spec_manager=KernelSpecManager(kernel_dirs=[sys.argv[1]]))
manager.start_kernel(cwd=sys.argv[2])
print(flush=True)
if sys.stdin.readline():
    manager.shutdown_kernel(now=True)
"""


def test_what_a_killed_server_left_goes_with_the_next_kernel(place: KernelPlace) -> None:
    argv = [sys.executable, "-c", SERVER, str(place.directory("plain").parent), str(place.work)]
    known = _sockets()
    with Engine(place.root) as engine:
        before = {each.id for each in engine.containers(all=True)}
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            server.stdout.readline()
            left = next(each for each in engine.containers() if each.id not in before)
            server.kill()
        assert left.wait(30).why == "interrupted"
        assert len(_sockets() - known) == 1
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            server.stdout.readline()
            with pytest.raises(ContainerNotFound):
                while True:  # its thread takes a moment; the test's time-out is the end of our patience
                    engine.container(left.id)
                    threading.Event().wait(0.02)
            server.communicate(b"end\n", timeout=60)
        assert server.returncode == 0
        assert _sockets() == known
        assert {each.id for each in engine.containers(all=True)} == before


def test_nbclient_executes_a_notebook(place: KernelPlace) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import os; os.getppid()")])
    nbclient.NotebookClient(notebook, kernel_name="plain", resources={"metadata": {"path": str(place.work)}}).execute()
    assert notebook.cells[0].outputs[0]["data"]["text/plain"] == "1"
