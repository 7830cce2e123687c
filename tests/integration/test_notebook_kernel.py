"""The kernelspec `sandbox` of the wheel: a notebook whose first build cell is the environment its other cells run in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from sandbox.engine import Engine
from tests.support.kernel import KERNEL_MARKS, Kernel, kernel_place, started_kernel

pytestmark = KERNEL_MARKS

BUILD = "%%dockerfile -t localhost/env\nFROM localhost/python\nENV WHO={who}\n"
LOOK = "import os; os.environ.get('WHO')"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, python_tar: Path) -> Iterator[Path]:
    """An engine with this machine's Python in it, and a directory of notebooks beside it."""
    with kernel_place(tmp_path_factory.mktemp("notebookkernel")) as place:
        place.engine.load(python_tar)
        yield place.root


def started(root: Path, notebook: str = "a.ipynb") -> AbstractContextManager[tuple[KernelManager, Kernel]]:
    """A kernel of that notebook."""
    work = root.parent / "work"
    return started_kernel("sandbox", root, work, env={"JPY_SESSION_NAME": str(work / notebook)})


def value(kernel: Kernel, code: str = LOOK) -> str:
    return str(kernel.run(code)[-1]["data"]["text/plain"])


def environment(outputs: list[dict[str, Any]]) -> tuple[str, dict[str, str]]:
    """What a build cell says last, and the facts that go with it."""
    return outputs[-1]["data"]["text/plain"], outputs[-1]["metadata"]["org.jupyter.sandbox"]["environment"]


def language_info(kernel: Kernel) -> dict[str, Any]:
    return dict(kernel.client.kernel_info(reply=True, timeout=30)["content"]["language_info"])


def test_build_cell_is_the_environment_and_a_rebuild_offers_a_restart(root: Path) -> None:
    with started(root) as (manager, kernel), Engine(root) as engine:
        text, facts = environment(kernel.run(BUILD.format(who="one")))
        assert facts == {"image": "localhost/env:latest", "digest": str(engine.image("localhost/env").id)}
        assert "restart" not in text
        assert value(kernel) == "'one'"
        text, facts = environment(kernel.run(BUILD.format(who="two")))
        assert "restart the kernel" in text
        assert value(kernel) == "'one'"
        kernel.run("%container reset kernel")
        assert value(kernel) == "'two'"
        kernel.run(BUILD.format(who="three"))
        manager.restart_kernel()
        kernel.wait_connected()
        assert value(kernel) == "'three'"
        info = language_info(kernel)
        assert (info["name"], info["sandbox"]["digest"]) == ("python", str(engine.image("localhost/env").id))


def test_builds_that_go_on_are_the_environment_and_others_are_not(root: Path) -> None:
    with started(root) as (_, kernel):
        kernel.run(BUILD.format(who="one"))
        kernel.run("%%dockerfile\nENV MORE=more")
        assert value(kernel, "import os; os.environ['WHO'] + os.environ['MORE']") == "'onemore'"
        outputs = kernel.run("%%dockerfile -t localhost/other\nFROM localhost/python\nENV WHO=other")
        assert "environment" not in outputs[-1]["metadata"]["org.jupyter.sandbox"]
        assert value(kernel) == "'one'"


def test_without_a_build_cell_cells_run_in_this_machines_python(root: Path) -> None:
    with started(root) as (_, kernel), Engine(root) as engine:
        assert value(kernel, "__import__('os').getppid()") == "1"
        assert language_info(kernel)["sandbox"]["digest"] == str(engine.image("localhost/python").id)
        table = kernel.run("%container stats self --no-stream")[-1]["data"]["text/plain"]
        assert engine.containers()[0].id[:12] in table


def test_saved_notebook_starts_in_the_image_it_had(root: Path) -> None:
    with started(root) as (_, kernel):
        outputs = kernel.run(BUILD.format(who="saved"))
    cell = {"cell_type": "code", "id": "b", "source": BUILD, "outputs": [{k: outputs[-1][k] for k in ("data", "metadata")}], "metadata": {}}
    notebook = root.parent / "work/saved.ipynb"
    notebook.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    with started(root, "saved.ipynb") as (_, kernel):
        assert value(kernel) == "'saved'"
    text = notebook.read_text().replace(outputs[-1]["metadata"]["org.jupyter.sandbox"]["environment"]["digest"], "sha256:" + "0" * 64)
    notebook.write_text(text)
    with started(root, "saved.ipynb") as (_, kernel):
        error = kernel.error("1")
        assert "%%dockerfile" in "".join(error["traceback"])


def test_expressions_on_a_magic_line_are_not_evaluated_on_the_host(root: Path) -> None:
    canary = root.parent / "canary"
    with started(root) as (_, kernel):
        assert "not a repository name" in kernel.error(f"%container run {{open({str(canary)!r}, 'w').close()}} true")["evalue"]
    assert not canary.exists()


def test_nbclient_runs_such_a_notebook_and_it_records_the_digest(root: Path) -> None:
    cells = [nbformat.v4.new_code_cell(text) for text in (BUILD.format(who="client"), LOOK)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "sandbox", "display_name": "Sandbox"}})
    NotebookClient(notebook, resources={"metadata": {"path": str(root.parent / "work")}}, timeout=60).execute()
    assert notebook.cells[1].outputs[0]["data"]["text/plain"] == "'client'"
    with Engine(root) as engine:
        facts = notebook.cells[0].outputs[-1]["metadata"]["org.jupyter.sandbox"]["environment"]
        assert facts["digest"] == str(engine.image("localhost/env").id)
    nbformat.validate(notebook)
