"""What a kernel may have: kernelspec < notebook metadata < KERNEL_…, and what needs trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kernelspec import parameters, trust
from sandbox import RunOptions
from sandbox.errors import InvalidOption

_MIB = 1 << 20


def _notebook(directory: Path, asked: Any) -> Path:
    path = directory / "a.ipynb"
    path.write_text(json.dumps({"cells": [], "metadata": {"sandbox": asked}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def test_notebook_tightens_the_kernelspec_and_the_environment_overrides_both(tmp_path: Path) -> None:
    given = RunOptions(memory=512 * _MIB, cpus=2.0)
    notebook = _notebook(tmp_path, {"memory": "256m", "network": "none"})
    assert parameters.apply_all(given, None, {}, tmp_path) == given
    tight = parameters.apply_all(given, notebook, {}, tmp_path)
    assert (tight.memory, tight.cpus, tight.network) == (256 * _MIB, 2.0, "none")
    assert parameters.apply_all(given, notebook, {"KERNEL_MEMORY": "1g", "KERNEL_CPUS": ""}, tmp_path).memory == 1024 * _MIB


def test_notebook_does_not_loosen_a_limit(tmp_path: Path) -> None:
    notebook = _notebook(tmp_path, {"memory": "8g", "pids_limit": "-1"})
    loose = parameters.apply_all(RunOptions(memory=512 * _MIB, pids_limit=50), notebook, {}, tmp_path)
    assert (loose.memory, loose.pids_limit) == (512 * _MIB, 50)


@pytest.mark.parametrize("asked", [{"volumes": ["/etc:/etc"]}, {"network": "host"}, {"pull": "always"}, {"read_only": False}])
def test_what_gives_needs_trust(tmp_path: Path, asked: dict[str, Any]) -> None:
    notebook = _notebook(tmp_path, asked)
    with pytest.raises(InvalidOption, match="not trusted") as caught:
        parameters.apply_all(RunOptions(network="none"), notebook, {}, tmp_path)
    assert caught.value.hint == "sandbox trust NOTEBOOK"
    trust.trust(tmp_path, notebook, asked)
    assert parameters.apply_all(RunOptions(network="none"), notebook, {}, tmp_path)


def test_trust_ends_when_the_metadata_or_the_place_changes(tmp_path: Path) -> None:
    asked = {"volumes": ["/srv:/srv"]}
    notebook = _notebook(tmp_path, asked)
    trust.trust(tmp_path, notebook, asked)
    assert trust.is_trusted(tmp_path, notebook, asked)
    assert not trust.is_trusted(tmp_path, notebook, {"volumes": ["/:/srv"]})
    assert not trust.is_trusted(tmp_path, tmp_path / "b.ipynb", asked)
    assert trust.listed(tmp_path) == [str(notebook)]
    assert trust.forget(tmp_path, notebook) == 1
    assert not trust.is_trusted(tmp_path, notebook, asked)
    assert trust.listed(tmp_path) == []


@pytest.mark.parametrize(
    ("asked", "text"),
    [({"memory": "lots"}, "sandbox.memory=lots"), ({"volumes": "/a:/b"}, "expected a list"), ("all", "expected an object")],
)
def test_nonsense_is_an_error_that_says_where(tmp_path: Path, asked: Any, text: str) -> None:
    with pytest.raises(InvalidOption, match=text):
        parameters.apply_all(RunOptions(), _notebook(tmp_path, asked), {}, tmp_path)


def test_nonsense_in_the_environment_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="KERNEL_MEMORY=lots"):
        parameters.apply_all(RunOptions(), None, {"KERNEL_MEMORY": "lots"}, tmp_path)


def test_schema_is_one_and_takes_what_the_parameters_take() -> None:
    schema = parameters.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate({"memory": "512m", "cpus": "1.5", "pids_limit": "64", "timeout": "30m", "network": "none"}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"memory": "lots"}, schema)
