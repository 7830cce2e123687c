"""A build context is its directory less .dockerignore, and nothing beyond it."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from sandbox.build.context import Context, TreeSource, find, walk
from sandbox.errors import BuildError
from sandbox.image.tree import Tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "context"
    for name in ("a.txt", "b.txt", "dir/c.txt", "dir/sub/d.log", "e.log"):
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return made


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    secret = tmp_path / "outside" / "secret.txt"
    secret.parent.mkdir()
    secret.write_text("secret")
    return secret


def paths(context: Context, pattern: str = ".") -> list[str]:
    return [entry.path for match in find(context, pattern) for entry in walk(context, match.entry)]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.txt", ["a.txt"]),
        ("./a.txt", ["a.txt"]),
        ("/a.txt", ["a.txt"]),
        ("*.txt", ["a.txt", "b.txt"]),
        ("*/*.txt", ["c.txt"]),
        ("d*", ["dir"]),
        ("dir/su?/*.log", ["d.log"]),
        ("dir", ["dir"]),
        ("dir/", ["dir"]),
        (".", [""]),
        ("/", [""]),
        ("../a.txt", ["a.txt"]),
        ("dir/../../../a.txt", ["a.txt"]),
        ("[ab].txt", ["a.txt", "b.txt"]),
        ("nope", []),
        ("nope*", []),
        ("a.txt/x", []),
    ],
)
def test_source_names_these_files(root: Path, pattern: str, names: list[str]) -> None:
    with Context(root) as context:
        assert [match.name for match in find(context, pattern)] == names


def test_a_missing_context_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no such file"):
        Context(tmp_path / "nowhere")


# Links


def test_link_inside_is_followed_when_named_and_kept_when_met(root: Path) -> None:
    (root / "link").symlink_to("dir")
    (root / "dir/up").symlink_to("../a.txt")
    with Context(root) as context:
        (match,) = find(context, "link")
        assert (match.name, match.entry.path) == ("link", "/dir")
        met = {entry.path: entry for entry in walk(context, match.entry)}
        assert met["/dir/up"].is_symlink
        assert context.readlink(met["/dir/up"]) == "../a.txt"


@pytest.mark.parametrize("target", ["absolute", "relative"])
@pytest.mark.parametrize("pattern", ["link", "link/secret.txt", "lin*", "file", "fil*"])
def test_link_out_of_the_context_leads_nowhere(root: Path, canary: Path, target: str, pattern: str) -> None:
    out = str(canary.parent) if target == "absolute" else os.path.relpath(canary.parent, root)
    (root / "link").symlink_to(out)
    (root / "file").symlink_to(f"{out}/secret.txt")
    with Context(root) as context:
        try:
            assert find(context, pattern) == []
        except FileNotFoundError as err:
            assert "*" in pattern, err  # a wildcard found the link itself, which leads to nothing
    assert canary.read_text() == "secret"


def test_absolute_link_resolves_inside_the_context(root: Path) -> None:
    (root / "link").symlink_to("/dir/c.txt")
    with Context(root) as context:
        (match,) = find(context, "link")
        with os.fdopen(context.open(match.entry)) as stream:
            assert stream.read() == "dir/c.txt"


def test_a_loop_of_links_is_an_error(root: Path) -> None:
    (root / "loop").symlink_to("loop")
    with Context(root) as context, pytest.raises(OSError, match="symbolic links"):
        find(context, "loop")


def test_file_swapped_for_a_link_after_the_look_is_not_followed(root: Path, canary: Path) -> None:
    with Context(root) as context:
        (match,) = find(context, "dir/c.txt")
        (root / "dir/c.txt").unlink()
        (root / "dir/c.txt").symlink_to(canary)
        with pytest.raises(OSError, match="symbolic links"):
            context.open(match.entry)


def test_directory_swapped_for_a_link_after_the_look_is_not_followed(root: Path, canary: Path) -> None:
    with Context(root) as context:
        (match,) = find(context, "dir/sub")
        find(context, "a.txt")  # the directory looked at last is held open: look at another
        (root / "dir").rename(root / "was")
        (root / "dir").symlink_to(canary.parent)
        (canary.parent / "sub").mkdir()
        with pytest.raises(OSError, match="Not a directory"):
            context.scandir(match.entry.path)


def test_the_canary_is_reached_where_links_are_followed(root: Path, canary: Path) -> None:
    """The oracle of the tests above: a plain open does follow."""
    (root / "file").symlink_to(canary)
    assert (root / "file").read_text() == "secret"


# .dockerignore


@pytest.mark.parametrize(
    ("ignore", "left"),
    [
        ("", ["a.txt", "b.txt", "dir", "dir/c.txt", "dir/sub", "dir/sub/d.log", "e.log"]),
        ("*.log", ["a.txt", "b.txt", "dir", "dir/c.txt", "dir/sub", "dir/sub/d.log"]),
        ("**/*.log", ["a.txt", "b.txt", "dir", "dir/c.txt", "dir/sub"]),
        ("dir", ["a.txt", "b.txt", "e.log"]),
        ("/dir/sub", ["a.txt", "b.txt", "dir", "dir/c.txt", "e.log"]),
        ("*\n!a.txt", ["a.txt"]),
        ("dir\n!dir/sub", ["a.txt", "b.txt", "dir", "dir/sub", "dir/sub/d.log", "e.log"]),
        ("dir\n!dir/nothing", ["a.txt", "b.txt", "e.log"]),
        ("*.txt\n!*.txt\na.*", ["b.txt", "dir", "dir/c.txt", "dir/sub", "dir/sub/d.log", "e.log"]),
        ("# a comment\n\n  b.txt  \n", ["a.txt", "dir", "dir/c.txt", "dir/sub", "dir/sub/d.log", "e.log"]),
        ("dir/../b.txt", ["a.txt", "dir", "dir/c.txt", "dir/sub", "dir/sub/d.log", "e.log"]),
        ("**", []),
    ],
)
def test_dockerignore_leaves_these(root: Path, ignore: str, left: list[str]) -> None:
    (root / ".dockerignore").write_text(ignore)
    with Context(root) as context:
        assert [path[1:] for path in paths(context)[1:] if path != "/.dockerignore"] == left


def test_ignored_file_is_not_found_even_by_name_or_link(root: Path) -> None:
    (root / ".dockerignore").write_text("*.log\n")
    (root / "link").symlink_to("e.log")
    with Context(root) as context:
        assert find(context, "e.log") == []
        assert find(context, "link") == []
        assert context.is_hidden("e.log")
        assert not context.is_hidden("a.txt")
        assert not context.is_hidden("nope.log")


def test_ignore_file_of_the_dockerfile_replaces_the_directorys(root: Path, tmp_path: Path) -> None:
    (root / ".dockerignore").write_text("a.txt\n")
    own = tmp_path / "My.Dockerfile.dockerignore"
    own.write_text("\ufeffb.txt\n")
    with Context(root, own) as context:
        assert find(context, "a.txt")
        assert not find(context, "b.txt")
    with Context(root, tmp_path / "missing.dockerignore") as context:
        assert not find(context, "a.txt")


def test_a_dockerignore_that_links_outside_is_not_read(root: Path, canary: Path) -> None:
    canary.write_text("a.txt\n")
    (root / ".dockerignore").symlink_to(canary)
    with Context(root) as context:
        assert find(context, "a.txt")


def test_an_invalid_ignore_pattern_is_an_error(root: Path) -> None:
    (root / ".dockerignore").write_text("[z\n")
    with pytest.raises(BuildError, match=r"\.dockerignore: invalid"):
        Context(root)


def test_no_file_descriptor_is_left_open(root: Path) -> None:
    (root / ".dockerignore").write_text("dir\n!dir/sub\n")
    gc.collect()  # what other tests have let go of must not be closed meanwhile
    before = len(os.listdir("/proc/self/fd"))
    with Context(root) as context:
        for match in find(context, "**"):
            list(walk(context, match.entry))
        os.close(context.open(find(context, "a.txt")[0].entry))
    assert len(os.listdir("/proc/self/fd")) == before


# Trees


def test_an_images_tree_is_a_source_with_its_links_inside(root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to("/dir")
    source = TreeSource(Tree((str(root),)))
    (match,) = find(source, "link")
    assert [entry.path for entry in walk(source, match.entry)] == ["/dir", "/dir/c.txt", "/dir/sub", "/dir/sub/d.log"]
    assert [match.name for match in find(source, "/*.txt")] == ["a.txt", "b.txt"]
