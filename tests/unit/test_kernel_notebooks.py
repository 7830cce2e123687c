"""Which of a notebook's builds is its environment, and what a saved notebook says that it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kernelspec.notebooks import Built, NotebookImage

BUILT = Built("localhost/app", "sha256:aa", "first")


def _notebook(directory: Path, *cells: dict[str, Any], metadata: Any = None) -> Path:
    path = directory / "a.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": metadata or {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def _build(name: str, *outputs: Any) -> dict[str, Any]:
    return {"cell_type": "code", "id": name, "source": ["%%dockerfile -t x\n", "FROM y"], "outputs": list(outputs)}


def _shown(metadata: Any) -> dict[str, Any]:
    return {"output_type": "display_data", "data": {}, "metadata": metadata}


def test_first_build_cell_and_what_goes_on_from_it_is_the_environment(tmp_path: Path) -> None:
    image = NotebookImage(None, tmp_path / "memory")
    assert image.is_environment("a", None, "localhost/x")
    assert not image.is_environment("b", None, "localhost/x")
    assert not image.is_environment("c", "b", "localhost/x")
    assert image.is_environment("d", "a", "localhost/x")
    assert image.is_environment("e", "d", "localhost/x")
    assert image.is_environment("a", None, "localhost/x")


def test_saved_notebook_knows_which_cell_is_first(tmp_path: Path) -> None:
    notebook = _notebook(tmp_path, {"cell_type": "markdown", "source": "%%dockerfile"}, _build("a"), _build("b"))
    image = NotebookImage(notebook, tmp_path / "memory")
    assert not image.is_environment("b", None, "localhost/x")
    assert image.is_environment("a", None, "localhost/x")


def test_restarted_kernel_knows_what_its_cell_had_built(tmp_path: Path) -> None:
    NotebookImage(None, tmp_path / "memory").remember(BUILT)
    again = NotebookImage(None, tmp_path / "memory")
    assert again.known() == BUILT
    assert not again.is_environment("other", None, "localhost/x")
    assert not again.is_environment("other", None, "localhost/app")
    assert again.is_environment("text:0123", None, "localhost/app")
    again.forget()
    again.forget()
    assert NotebookImage(None, tmp_path / "memory").known() is None


def test_saved_outputs_tell_the_image_then_language_info(tmp_path: Path) -> None:
    cell = _build("first", _shown({}), _shown(BUILT.metadata()))
    assert NotebookImage(_notebook(tmp_path, cell), tmp_path / "m").known() == BUILT
    said = {"language_info": {"name": "python", "sandbox": {"image": "localhost/app", "digest": "sha256:aa"}}}
    assert NotebookImage(_notebook(tmp_path, _build("first"), metadata=said), tmp_path / "m").known() == BUILT
    assert NotebookImage(_notebook(tmp_path, metadata=said), tmp_path / "m").known() is None  # no build cell: nothing makes it again


@pytest.mark.parametrize(
    "metadata", [None, 5, [], {"org.jupyter.sandbox": 5}, {"org.jupyter.sandbox": {"environment": {"digest": 5}}}], ids=str
)
def test_nonsense_in_a_notebook_says_nothing(tmp_path: Path, metadata: Any) -> None:
    path = _notebook(tmp_path, _build("first", _shown(metadata)), metadata={"language_info": metadata})
    assert NotebookImage(path, tmp_path / "m").known() is None
    path.write_text("{")
    assert NotebookImage(path, tmp_path / "m").known() is None
