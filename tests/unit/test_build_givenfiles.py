"""Files that are part of a context without being in its directory."""

from __future__ import annotations

import os
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sandbox.build.context import Context, walk
from sandbox.build.givenfiles import open_context
from sandbox.build.request import BuildRequest
from sandbox.build.settings import Settings
from sandbox.errors import InvalidInput


def _open(opened: ExitStack, root: Path | None, files: dict[str, bytes]) -> Context:
    request = BuildRequest(dockerfile="", now=datetime(2026, 1, 1, tzinfo=UTC), context=root, settings=Settings(files=files))
    found = open_context(request, opened)
    assert found is not None
    return found


def _text(context: Context, path: str) -> str:
    entry = context.lookup(path)
    assert entry is not None
    with os.fdopen(context.open(entry), "rb") as stream:
        return stream.read().decode()


def _paths(context: Context) -> list[str]:
    root = context.lookup("/")
    assert root is not None
    return [entry.path for entry in walk(context, root)]


def test_given_files_lie_over_the_directory_and_its_ignore_file(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/old.txt").write_text("old")
    (tmp_path / "src/same.txt").write_text("below")
    (tmp_path / ".dockerignore").write_text("*.csv\n.dockerignore\n")
    (tmp_path / "hidden.csv").write_text("1")
    with ExitStack() as opened:
        context = _open(opened, tmp_path, {"src/same.txt": b"given", "src/deep/new.txt": b"new", "t.csv": b"x"})
        assert _paths(context) == ["/", "/src", "/src/deep", "/src/deep/new.txt", "/src/old.txt", "/src/same.txt", "/t.csv"]
        assert _text(context, "/src/same.txt") == "given"
        assert _text(context, "/src/old.txt") == "old"
        assert _text(context, "/src/deep/new.txt") == "new"
    assert (tmp_path / "src/same.txt").read_text() == "below"


def test_without_a_directory_the_files_are_the_context() -> None:
    with ExitStack() as opened:
        assert _paths(_open(opened, None, {"a/b": b"x"})) == ["/", "/a", "/a/b"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", ""])
def test_names_outside_the_context_are_refused(name: str) -> None:
    with ExitStack() as opened, pytest.raises(InvalidInput, match="not a path below the context"):
        _open(opened, None, {name: b""})
