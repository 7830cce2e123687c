"""Containerised kernels under the programs people use: jupyter console, nbconvert, papermill, nbval."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.kernel import KERNEL_MARKS, KernelPlace, kernel_place

pytestmark = KERNEL_MARKS


@pytest.fixture(scope="module")
def place(ipykernel_base: Path) -> Iterator[KernelPlace]:
    """With the kernel `limited`."""
    with kernel_place(ipykernel_base) as place:
        said = place.install("localhost/ipy", "--name", "limited", "--network", "none", "--replace")
        assert "kernel python3 of the image" in said
        yield place


def _run(argv: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", *argv], capture_output=True, text=True, timeout=100, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def _notebook(place: KernelPlace, name: str, *cells: Any) -> Path:
    metadata = {"kernelspec": {"name": "limited", "display_name": "limited", "language": "python"}}
    path = place.work / name
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells), metadata=metadata), path)
    return path


LOOK = "import os, socket\nprint(os.getppid(), [name for _, name in socket.if_nameindex()])"


def test_nbconvert_executes(place: KernelPlace) -> None:
    path = _notebook(place, "convert.ipynb", nbformat.v4.new_code_cell(LOOK))
    done = _run(["nbconvert", "--to", "notebook", "--execute", "--stdout", str(path)])
    assert nbformat.reads(done.stdout, 4).cells[0].outputs[0]["text"] == "1 ['lo']\n"


def test_papermill_fills_in_parameters(place: KernelPlace) -> None:
    given = nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["parameters"]})
    path = _notebook(place, "mill.ipynb", given, nbformat.v4.new_code_cell(LOOK + "\nprint(x)"))
    _run(["papermill", "--no-progress-bar", "-p", "x", "42", str(path), str(place.work / "out.ipynb")])
    assert nbformat.read(place.work / "out.ipynb", 4).cells[-1].outputs[0]["text"] == "1 ['lo']\n42\n"


def test_jupyter_console_talks(place: KernelPlace) -> None:
    done = _run(
        ["jupyter_console", "--kernel", "limited", "--simple-prompt"], input=f"{LOOK.splitlines()[0]}\n{LOOK.splitlines()[1]}\nexit\n"
    )
    assert "1 ['lo']" in done.stdout


PNG = b"\x89PNG\r\n\x1a\nnot much of a picture"


def test_kernelspec_found_in_the_image_gives_language_argv_environment_and_picture(place: KernelPlace) -> None:
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
    dockerfile = "FROM localhost/ipy\nCOPY . /usr/local/share/jupyter/kernels/\n"
    place.engine.build(context, dockerfile=dockerfile, tags=["localhost/brings"])
    said = place.install("localhost/brings", "--kernel", "mine")
    assert "kernel mine of the image; others, by --kernel: python3" in said
    directory = place.directory("brings")
    written = json.loads((directory / "kernel.json").read_text())
    assert (written["language"], written["interrupt_mode"], written["env"]) == ("mine", "message", {})
    assert {path.name for path in directory.iterdir()} == {"kernel.json", "logo-64x64.png"}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import os; os.environ['FROM_SPEC']")])
    NotebookClient(notebook, kernel_name="brings", resources={"metadata": {"path": str(place.work)}}, timeout=60).execute()
    assert notebook.cells[0].outputs[0]["data"]["text/plain"] == "'$HOME'"
    with pytest.raises(subprocess.CalledProcessError) as refused:
        place.install("localhost/brings", "--kernel", "other")
    assert "kernel other: not in image localhost/brings" in refused.value.stderr


def test_nbval_compares_a_notebook(place: KernelPlace) -> None:
    cell = nbformat.v4.new_code_cell(LOOK, outputs=[nbformat.v4.new_output("stream", name="stdout", text="1 ['lo']\n")], execution_count=1)
    path = _notebook(place, "compared.ipynb", cell)
    (place.work / "differs.ipynb").write_text(path.read_text().replace("1 ['lo']", "2 ['lo']"))
    argv = ["pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(place.work), "--nbval"]
    done = subprocess.run(
        [sys.executable, "-m", *argv, "compared.ipynb", "differs.ipynb"],
        cwd=place.work, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert "FAILED differs.ipynb::Cell 0" in done.stdout
    assert "1 failed, 1 passed" in done.stdout
