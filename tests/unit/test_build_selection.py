"""--exclude, --parents, --link and symbolic --chmod. Expectations are BuildKit's, from its reference and its tests."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sandbox.build.builder import StepDone
from sandbox.build.modes import parse_mode
from sandbox.errors import DockerfileError, StepFailed
from sandbox.image.tree import Tree
from tests.support.building import Workshop, write_files


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path)
    made.base("base", {"etc/keep": "kept"})
    return made


def names(tree: Tree, top: str = "/out") -> list[str]:
    """Everything below a directory, directories with a slash, relative to it."""
    found, pending = [], [top]
    while pending:
        for entry in tree.scandir(pending.pop()):
            found.append(entry.path[len(top) + 1 :] + "/" * entry.is_dir)
            if entry.is_dir:
                pending.append(entry.path)
    return sorted(found)


def copied(workshop: Workshop, *lines: str) -> list[str]:
    tree = workshop.tree(workshop.build("\n".join(["FROM scratch", "COPY <<EOF /out/.made", "EOF", *lines]) + "\n"))
    return [name for name in names(tree) if name != ".made"]


# --exclude


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("COPY --exclude=*.txt hom* /out/", ["home.md"]),
        ("COPY --exclude=*.txt --exclude=*.md hom* /out/", []),
        ("COPY --exclude=*.txt d /out/", ["a.md", "sub/", "sub/b.txt"]),
        ("COPY --exclude=**/*.txt d /out/", ["a.md", "sub/"]),
        ("COPY --exclude=sub d /out/", ["a.md", "a.txt"]),
        ("COPY --exclude=sub/ d /out/", ["a.md", "a.txt"]),
        ("COPY --exclude=d/sub . /out/", ["d/", "d/a.md", "d/a.txt", "home.md", "home.txt"]),
        ("COPY --exclude=* --exclude=!a.md d /out/", ["a.md"]),
        ("COPY --exclude=* --exclude=!sub/b.txt d /out/", ["sub/", "sub/b.txt"]),
        ("COPY --exclude=*.nothing d /out/", ["a.md", "a.txt", "sub/", "sub/b.txt"]),
        ("COPY --exclude=home.md home.md home.txt /out/", ["home.txt"]),
        ("COPY --exclude=*.txt home.txt /out/", []),
        ("ADD --exclude=*.txt d /out/", ["a.md", "sub/", "sub/b.txt"]),
        ("ARG P=md\nCOPY --exclude=*.$P d /out/", ["a.txt", "sub/", "sub/b.txt"]),
    ],
)
def test_exclude_leaves_these(workshop: Workshop, line: str, expected: list[str]) -> None:
    write_files(workshop.context, dict.fromkeys(["home.txt", "home.md", "d/a.txt", "d/a.md", "d/sub/b.txt"], "x"))
    assert copied(workshop, line) == expected


def test_exclude_holds_for_other_stages_too(workshop: Workshop) -> None:
    text = "FROM base AS one\nCOPY <<A <<B /src/\nA\nB\nFROM scratch\nCOPY --from=one --exclude=A /src /out\n"
    assert names(workshop.tree(workshop.build(text))) == ["B"]


def test_what_is_excluded_does_not_count_for_the_cache(workshop: Workshop) -> None:
    write_files(workshop.context, {"a": "1", "b.log": "1"})
    text = "FROM scratch\nCOPY --exclude=*.log . /out\n"
    workshop.build(text)
    workshop.file("b.log", "2")
    workshop.build(text)
    assert workshop.cached() == [True]
    workshop.build("FROM scratch\nCOPY . /out\n")
    assert workshop.cached() == [False]


# --parents


@pytest.fixture
def forest(workshop: Workshop) -> Workshop:
    """The tree of BuildKit's testCopyRelativeParents."""
    files = ["a/b/c/d/foo", "a/b/c/d/e/bay", "a/b2/c/d/e/bar", "a/b/c2/d/e/baz", "a/b/c2/d/e2/baz"]
    write_files(workshop.context, {f"test/{name}": "x" for name in files})
    return workshop


@pytest.mark.parametrize(
    ("sources", "present", "absent"),
    [
        ("/test/a/b/./c/d", ["c/d/e/", "c/d/foo"], ["a/", "e/"]),
        ("/test/a/b/c/d/.", ["test/a/b/c/d/e/", "test/a/b/c/d/foo"], ["test/a/b2/"]),
        ("./test/a/b/c/d", ["test/a/b/c/d/e/", "test/a/b/c/d/foo"], ["test/a/b/c2/"]),
        ("/test/a/./b/./c", ["b/c/d/e/", "b/c/d/foo"], ["b/c2/"]),
        ("/test/a/./*/c", ["b/c/d/e/", "b2/c/d/e/bar"], ["b/c2/"]),
        ("/test/a/b*/./c/**/e", ["c/d/e/", "c/d/e/bay", "c/d/e/bar"], ["c/d/foo"]),
        ("/test/a/b/c*/./d/**/baz /test/a/b*/./c/**/bar", ["d/e/baz", "d/e2/baz", "c/d/e/bar"], ["d/e/bay"]),
        ("test/a/b/c/d/foo", ["test/a/b/c/d/foo"], ["test/a/b/c/d/e/"]),
        ("test/**/ba*", ["test/a/b/c/d/e/bay", "test/a/b/c2/d/e2/baz"], ["test/a/b/c/d/foo"]),
        ("test/../test/a/b2", ["test/a/b2/c/d/e/bar"], ["test/a/b/"]),
    ],
)
def test_parents_keep_these_paths(forest: Workshop, sources: str, present: list[str], absent: list[str]) -> None:
    from_stage = f"FROM scratch AS src\nCOPY . /\nFROM scratch\nCOPY --from=src --parents {sources} /out/\n"
    for text in (f"FROM scratch\nCOPY --parents {sources} /out/\n", from_stage):
        found = names(forest.tree(forest.build(text)))
        assert set(present) <= set(found)
        assert not set(absent) & set(found)


def test_parents_keep_the_modes_of_the_directories_they_bring(workshop: Workshop) -> None:
    write_files(workshop.context, {"foo1/foo2/bar": "testing"})
    (workshop.context / "foo1").chmod(0o700)
    tree = workshop.tree(workshop.build("FROM scratch\nWORKDIR /test\nCOPY --parents --chown=3:4 foo1/foo2/ba* .\n"))
    entry = tree.lookup("/test/foo1")
    assert entry is not None
    assert (stat.S_IMODE(entry.stat.st_mode), entry.stat.st_uid, entry.stat.st_gid) == (0o700, 3, 4)


def test_parents_with_exclude(forest: Workshop) -> None:
    assert copied(forest, "COPY --parents --exclude=**/e test/a/b/./c /out/") == ["c/", "c/d/", "c/d/foo"]


def test_parents_of_a_file_that_is_not_there_are_an_error(forest: Workshop) -> None:
    with pytest.raises(StepFailed, match="test/a/nope: not in the build context"):
        copied(forest, "COPY --parents test/a/nope /out/")
    assert copied(forest, "COPY --parents test/a/nope* /out/") == []


# --link


def test_link_does_not_follow_a_link_of_the_image(workshop: Workshop) -> None:
    workshop.file("f", "new")
    workshop.base("linked", {"real/old": "old"}, fill=lambda root: os.symlink("real", root / "dir"))
    followed = workshop.tree(workshop.build("FROM linked\nCOPY f /dir/\n"))
    linked = workshop.tree(workshop.build("FROM linked\nCOPY --link f /dir/\n"))
    assert followed.read("/real/f") == b"new"
    assert (linked.lookup("/real/f"), linked.read("/dir/f")) == (None, b"new")
    entry = linked.lookup("/dir")
    assert entry is not None
    assert entry.is_dir


def test_linked_layer_is_the_same_above_any_parent_and_is_not_made_again(workshop: Workshop) -> None:
    write_files(workshop.context, {"d/f": "x", "d/sub/g": "y"})
    workshop.base("other", {"etc/other": "o"})
    text = "FROM {}\nCOPY --link --chown=5:6 d /p/q/\n"
    first = workshop.build(text.format("base"))
    assert workshop.cached() == [False]
    second = workshop.build(text.format("other"))
    assert workshop.cached() == [True]
    assert first.diff_ids[-1] == second.diff_ids[-1]
    assert first.top != second.top
    tree = workshop.tree(second)
    entry = tree.lookup("/p/q/sub/g")
    assert entry is not None
    assert (tree.read("/etc/other"), entry.stat.st_uid, entry.stat.st_gid) == (b"o", 5, 6)


def test_linked_layer_is_made_again_without_the_cache_or_with_other_files(workshop: Workshop) -> None:
    workshop.file("f", "1")
    workshop.base("other", {"etc/other": "o"})
    workshop.build("FROM base\nCOPY --link f /f\n")
    workshop.build("FROM other\nCOPY --link f /f\n", no_cache=True)
    assert workshop.cached() == [False]
    workshop.file("f", "2")
    assert workshop.tree(workshop.build("FROM other\nCOPY --link f /f\n")).read("/f") == b"2"


def test_without_link_another_parent_means_another_step(workshop: Workshop) -> None:
    workshop.file("f", "1")
    workshop.base("other", {"etc/other": "o"})
    workshop.build("FROM base\nCOPY f /f\n")
    workshop.build("FROM other\nCOPY f /f\n")
    assert workshop.cached() == [False]


def test_link_takes_only_numbers_as_owner(workshop: Workshop) -> None:
    workshop.base("users", {"etc/passwd": "app:x:7:8::/:/bin/sh\n"})
    workshop.file("f", "1")
    with pytest.raises(DockerfileError, match="--chown=app: not a number") as caught:
        workshop.build("FROM users\nCOPY --link --chown=app f /f\n")
    assert "empty file system" in (caught.value.hint or "")


def test_events_tell_a_linked_layer_that_was_taken_over_as_cached(workshop: Workshop) -> None:
    workshop.file("f", "1")
    workshop.base("other", {"etc/other": "o"})
    workshop.build("FROM base\nADD --link f /f\n")
    workshop.build("FROM other\nADD --link f /f\n")
    assert [event.cached for event in workshop.events if isinstance(event, StepDone)] == [True, True]


# --chmod


@pytest.mark.parametrize(
    ("text", "mode", "is_dir", "expected"),
    [
        ("755", 0o600, False, 0o755),
        ("0644", 0o777, True, 0o644),
        ("4755", 0o600, False, 0o4755),
        ("+x", 0o644, False, 0o755),
        ("u=rwX,go=rX", 0o640, False, 0o644),
        ("u=rwX,go=rX", 0o740, False, 0o755),
        ("u=rwX,go=rX", 0o700, True, 0o755),
        ("g=u", 0o750, False, 0o770),
        ("go=u", 0o741, False, 0o777),
        ("o-u", 0o647, False, 0o641),
        ("g+o", 0o604, False, 0o644),
        ("a-w,u+w", 0o666, False, 0o644),
        ("u+s,g+s,+t", 0o755, False, 0o7755),
        ("u=,g=rw", 0o777, False, 0o067),
    ],
)
def test_chmod_gives_this_mode(text: str, mode: int, is_dir: bool, expected: int) -> None:
    assert oct(parse_mode(text)(mode, is_dir)) == oct(expected)


@pytest.mark.parametrize("text", ["", "888", "77777", "rwx", "u", "u=gx", "u~r", "x+u", "u=r,"])
def test_chmod_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(Exception, match="not a mode"):
        parse_mode(text)
