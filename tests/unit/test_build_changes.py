"""`--change`: Dockerfile instructions on a config alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from sandbox.build.changes import apply_changes
from sandbox.build.memory import Memory
from sandbox.errors import DockerfileError, InvalidOption
from sandbox.image.store import Store
from sandbox.oci import RunConfig


def changed(root: Path, changes: Sequence[str], config: RunConfig | None = None) -> RunConfig:
    store = Store(root)
    with Memory(root / "build.db") as memory:
        return apply_changes(store, memory, config or RunConfig(env=["A=1"]), changes)


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ('ENV B="two words" C=$A', "env", ["A=1", "B=two words", "C=1"]),
        ('CMD ["a", "b"]', "cmd", ["a", "b"]),
        ("LABEL a='b c'", "labels", {"a": "b c"}),
        ("WORKDIR /x/../y", "working_dir", "/y"),
        ("EXPOSE 80", "exposed_ports", {"80/tcp": {}}),
        ("USER app", "user", "app"),
    ],
)
def test_change_is_applied_as_in_a_dockerfile(tmp_path: Path, change: str, field: str, expected: object) -> None:
    assert getattr(changed(tmp_path, [change]), field) == expected


def test_changes_are_applied_in_order(tmp_path: Path) -> None:
    found = changed(tmp_path, ["ENV B=1", "ENV C=$B", 'CMD ["x"]', 'ENTRYPOINT ["e"]'], RunConfig(cmd=["old"]))
    assert (found.env, found.cmd, found.entrypoint) == (["B=1", "C=1"], ["x"], ["e"])


@pytest.mark.parametrize("change", ["RUN x", "COPY a b", "ADD a b", "ARG A", "FROM a", 'SHELL ["a"]'])
def test_change_of_more_than_the_config_is_refused(tmp_path: Path, change: str) -> None:
    with pytest.raises(InvalidOption, match="--change"):
        changed(tmp_path, [change])


def test_change_that_cannot_be_parsed_is_a_dockerfile_error(tmp_path: Path) -> None:
    with pytest.raises(DockerfileError, match="--change line 2: unknown instruction ENVV"):
        changed(tmp_path, ["ENVV A=1"])
