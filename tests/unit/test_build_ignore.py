""".dockerignore: the tables of Go's patternmatcher, and what of a directory is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.build.context import Context, walk
from sandbox.errors import BuildError
from tests.support.building import write_files

TABLE = Path(__file__).parents[1] / "golden" / "build" / "ignore.txt"


def rows() -> list[tuple[str, str, str]]:
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return [(a.strip(), b.strip(), c.strip()) for a, b, c in (line.split(" | ") for line in lines)]


def test_the_table_is_read() -> None:
    assert len(rows()) > 100


@pytest.mark.parametrize(("patterns", "path", "expected"), rows())
def test_path_is_hidden_as_the_table_says(tmp_path: Path, patterns: str, path: str, expected: str) -> None:
    write_files(tmp_path / "c", {".dockerignore": patterns.replace(",", "\n").replace("!_", "! ") + "\n", path if path != "." else "x": ""})
    try:
        with Context(tmp_path / "c") as context:
            assert ("yes" if context.is_hidden(path) else "no") == expected
    except BuildError as err:
        assert expected == "error", err


def left(root: Path, ignore_file: Path | None = None) -> list[str]:
    with Context(root, ignore_file) as context:
        top = context.lookup("/")
        assert top is not None
        return [entry.path[1:] for entry in walk(context, top) if entry.path != "/"]


FILES = dict.fromkeys(["a.md", "README.md", "README-secret.md", "src/a.go", "src/a_test.go", "src/deep/b_test.go", "node/x/y", "temp1"], "")


@pytest.mark.parametrize(
    ("ignore", "expected"),
    [
        # the examples of the reference
        ("*.md\n!README.md\n", {"a.md", "README-secret.md"}),
        ("*.md\n!README*.md\nREADME-secret.md\n", {"a.md", "README-secret.md"}),
        ("*.md\nREADME-secret.md\n!README*.md\n", {"a.md"}),
        ("# comment\n\n  node  \ntemp?\n", {"node", "node/x", "node/x/y", "temp1"}),
        ("**/*_test.go\n", {"src/a_test.go", "src/deep/b_test.go", "src/deep/"}),
        ("*\n!src\n", set(FILES) - {"src/a.go", "src/a_test.go", "src/deep/b_test.go"} | {"node", "node/x"}),
        ("**\n!**/deep/*\n", set(FILES) - {"src/deep/b_test.go"} | {"node", "node/x"}),
        ("src\n!src/deep/b_test.go\n", {"src/a.go", "src/a_test.go"}),
        ("/src/../node\n", {"node", "node/x", "node/x/y"}),
        ("\ufeff*.md\r\n", {"a.md", "README.md", "README-secret.md"}),
    ],
)
def test_these_are_not_in_the_context(tmp_path: Path, ignore: str, expected: set[str]) -> None:
    write_files(tmp_path, FILES)
    everything = set(left(tmp_path))
    (tmp_path / ".dockerignore").write_bytes(ignore.encode())
    assert everything - set(left(tmp_path)) == {name for name in expected if not name.endswith("/")}


def test_the_dockerfiles_own_ignore_file_takes_the_others_place(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": "", "b": "", ".dockerignore": "a", "x.Dockerfile.dockerignore": "b"})
    assert "a" in left(tmp_path, tmp_path / "x.Dockerfile.dockerignore")
    assert "b" not in left(tmp_path, tmp_path / "x.Dockerfile.dockerignore")
    assert "a" not in left(tmp_path, tmp_path / "none.dockerignore")
