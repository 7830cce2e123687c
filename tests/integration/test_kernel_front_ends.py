"""Containerised kernels under the programs people use: a Jupyter Server, jupyter console, nbconvert, papermill."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from nbclient import NotebookClient

from sandbox.engine import Engine
from tests.support.host import requires
from tests.support.kernel import Kernel
from tests.support.lab import Lab, jupyter_lab
from tests.support.leftovers import nothing_left

pytestmark = [
    requires("root", "userns", "overlay"),
    pytest.mark.xdist_group("kernels"),
    # zmq's sockets and loops are jupyter_client's to close
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LIMIT = "220m"
REASON = "out of memory: killed at the 220 MiB limit"


@dataclass(frozen=True)
class Place:
    """An engine with an image that has ipykernel, its kernelspec `limited`, and a directory of notebooks."""

    root: Path
    work: Path
    log: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, sandbox_command: list[str]) -> Iterator[Place]:
    base = tmp_path_factory.mktemp("frontends")
    (base / "work").mkdir()
    with Engine(base / "root") as engine, pytest.MonkeyPatch.context() as patch:
        engine.capture("localhost/ipy", packages=["ipykernel"])
        patch.setenv("SANDBOX_ROOT", str(base / "root"))
        patch.setenv("JUPYTER_PATH", str(base / "prefix/share/jupyter"))
        patch.setenv("IPYTHONDIR", str(base / "ipython"))
        flags = ["--name", "limited", "--prefix", str(base / "prefix"), "-m", LIMIT, "--network", "none"]
        done = subprocess.run([*sandbox_command, "kernel", "install", "localhost/ipy", *flags], capture_output=True, text=True, check=True)
        assert "kernel python3 of the image" in done.stdout
        yield Place(base / "root", base / "work", base / "jupyter/log.txt")
        assert engine.containers(all=True) == []
    nothing_left(base / "root")


def _post(lab: Lab, path: str, body: Any) -> Any:
    headers = {"Authorization": f"token {lab.token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{lab.url}/{path}", data=data, headers=headers), timeout=60) as answer:
        return json.load(answer)


@contextlib.contextmanager
def session(lab: Lab, place: Place, notebook: str) -> Iterator[Kernel]:
    """A notebook's kernel, started by the server as a browser asks it to."""
    (place.work / notebook).write_text(json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    made = _post(lab, "api/sessions", {"path": notebook, "name": notebook, "type": "notebook", "kernel": {"name": "limited"}})
    client = BlockingKernelClient(connection_file=str(place.log.parent / f"runtime/kernel-{made['kernel']['id']}.json"))
    client.load_connection_file()
    client.start_channels(hb=False)  # which would take a kernel that is still starting for dead
    try:
        kernel = Kernel(client, place.root, lambda: _post(lab, f"api/kernels/{made['kernel']['id']}/interrupt", {}))
        kernel.wait_connected()
        yield kernel
    finally:
        client.stop_channels()


def test_memory_hog_harms_neither_server_nor_neighbour_and_is_restarted_with_the_reason(place: Place) -> None:
    with jupyter_lab(place.work, place.root) as lab:
        with session(lab, place, "neighbour.ipynb") as neighbour, session(lab, place, "hog.ipynb") as hog:
            started = _post(lab, "api/status", None)["started"]
            neighbour.run("x = 'unharmed'")
            hog.client.execute("x = 1\ny = bytearray(1 << 30)")
            hog.wait_connected()  # to the next one, by the server's own restarter
            assert hog.text("print('x' in globals())", "stderr") == f"The kernel before this one ended: {REASON}\n"
            assert neighbour.text("print(x)") == "unharmed\n"
            assert _post(lab, "api/status", None)["started"] == started
        assert REASON in place.log.read_text()


def _run(argv: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", *argv], capture_output=True, text=True, timeout=100, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def _notebook(place: Place, name: str, *cells: Any) -> Path:
    metadata = {"kernelspec": {"name": "limited", "display_name": "limited", "language": "python"}}
    path = place.work / name
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells), metadata=metadata), path)
    return path


LOOK = "import os, socket\nprint(os.getppid(), [name for _, name in socket.if_nameindex()])"


def test_nbconvert_executes(place: Place) -> None:
    path = _notebook(place, "convert.ipynb", nbformat.v4.new_code_cell(LOOK))
    done = _run(["nbconvert", "--to", "notebook", "--execute", "--stdout", str(path)])
    assert nbformat.reads(done.stdout, 4).cells[0].outputs[0]["text"] == "1 ['lo']\n"


def test_papermill_fills_in_parameters(place: Place) -> None:
    given = nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["parameters"]})
    path = _notebook(place, "mill.ipynb", given, nbformat.v4.new_code_cell(LOOK + "\nprint(x)"))
    _run(["papermill", "--no-progress-bar", "-p", "x", "42", str(path), str(place.work / "out.ipynb")])
    assert nbformat.read(place.work / "out.ipynb", 4).cells[-1].outputs[0]["text"] == "1 ['lo']\n42\n"


def test_jupyter_console_talks(place: Place) -> None:
    done = _run(
        ["jupyter_console", "--kernel", "limited", "--simple-prompt"], input=f"{LOOK.splitlines()[0]}\n{LOOK.splitlines()[1]}\nexit\n"
    )
    assert "1 ['lo']" in done.stdout


PNG = b"\x89PNG\r\n\x1a\nnot much of a picture"


def test_kernelspec_found_in_the_image_gives_language_argv_environment_and_picture(place: Place, sandbox_command: list[str]) -> None:
    spec = {
        "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Mine",
        "language": "mine",
        "interrupt_mode": "message",
        "env": {"FROM_SPEC": "$HOME"},
    }
    context = place.root.parent / "context"
    (context / "mine").mkdir(parents=True)
    (context / "mine/kernel.json").write_text(json.dumps(spec))
    (context / "mine/logo-64x64.png").write_bytes(PNG)
    (context / "mine/logo-svg.svg").write_text("<svg><script>alert(1)</script></svg>")
    (context / "broken").mkdir()
    (context / "broken/kernel.json").write_text("{")
    with Engine(place.root) as engine:
        dockerfile = "FROM localhost/ipy\nCOPY . /usr/local/share/jupyter/kernels/\n"
        engine.build(context, dockerfile=dockerfile, tags=["localhost/brings"])
    prefix = Path(os.environ["JUPYTER_PATH"]).parents[1]
    command = [*sandbox_command, "kernel", "install", "localhost/brings", "--kernel", "mine", "--prefix", str(prefix)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "kernel mine of the image; others, by --kernel: python3" in done.stdout
    directory = prefix / "share/jupyter/kernels/brings"
    written = json.loads((directory / "kernel.json").read_text())
    assert (written["language"], written["interrupt_mode"], written["env"]) == ("mine", "message", {})
    assert {path.name for path in directory.iterdir()} == {"kernel.json", "logo-64x64.png"}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import os; os.environ['FROM_SPEC']")])
    NotebookClient(notebook, kernel_name="brings", resources={"metadata": {"path": str(place.work)}}, timeout=60).execute()
    assert notebook.cells[0].outputs[0]["data"]["text/plain"] == "'$HOME'"
    refused = subprocess.run([*command[:-2], "--prefix", str(prefix), "--kernel", "other"], capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "kernel other: not in image localhost/brings" in refused.stderr


def test_nbval_compares_a_notebook(place: Place) -> None:
    cell = nbformat.v4.new_code_cell(LOOK, outputs=[nbformat.v4.new_output("stream", name="stdout", text="1 ['lo']\n")], execution_count=1)
    path = _notebook(place, "compared.ipynb", cell)
    argv = ["pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(place.work), "--nbval"]
    _run([*argv, str(path)])
    path.write_text(path.read_text().replace("1 ['lo']", "2 ['lo']"))
    with pytest.raises(AssertionError, match="outputs differ"):
        _run([*argv, str(path)])
