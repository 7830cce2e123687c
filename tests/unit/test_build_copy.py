"""COPY's rules: what lands where, beside what the image already has. Layouts are dicts: path → content, "/" at the end for a
directory, `-> target` for a link. Expectations are what `docker build` (BuildKit) leaves in the layer."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sandbox.build.context import Context, TreeSource, find
from sandbox.build.modes import parse_mode
from sandbox.build.transfer import LayerWriter, Manner
from sandbox.errors import BuildError
from sandbox.image.tree import Tree

NOW = 1_700_000_000 * 10**9
OLD = 1_000_000_000 * 10**9
SOURCE = {"a": "A", "b": "B", "dir/c": "C", "dir/sub/d": "D", "dir/link": "-> c", "empty/": ""}
Layout = dict[str, str]


def lay(root: Path, layout: Layout) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, content in layout.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        elif content.startswith("-> "):
            path.symlink_to(content[3:])
        else:
            path.write_text(content)
    return root


def seen(root: Path) -> Layout:
    found: Layout = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            found[name + "/"] = ""
        else:
            found[name] = path.read_text()
    return found


class Bench:
    """A lower layer, a context and an empty upper to copy into."""

    def __init__(self, tmp_path: Path, lower: Layout, source: Layout | None = None) -> None:
        self.lower = lay(tmp_path / "lower", lower)
        self.context = lay(tmp_path / "context", SOURCE if source is None else source)
        self.upper = lay(tmp_path / "upper", {})
        self.warnings: list[str] = []
        self.writer = LayerWriter((str(self.lower),), self.upper, NOW, self.warnings.append)

    def copy(self, pattern: str, destination: str, manner: Manner = Manner()) -> Layout:
        with Context(self.context) as context:
            for match in find(context, pattern):
                self.writer.copy(context, match, destination, into=destination.endswith("/"), manner=manner)
        self.writer.finish()
        return seen(self.upper)


@pytest.mark.parametrize(
    ("lower", "source", "destination", "layer"),
    [
        # a file
        ({}, "a", "/x", {"x": "A"}),
        ({}, "a", "/x/", {"x/": "", "x/a": "A"}),
        ({}, "a", "/", {"a": "A"}),
        ({}, "a", "/p/q/x", {"p/": "", "p/q/": "", "p/q/x": "A"}),
        ({"x/": ""}, "a", "/x", {"x/": "", "x/a": "A"}),
        ({"x": "old"}, "a", "/x", {"x": "A"}),
        ({"x/a": "old", "x/other": "o"}, "a", "/x", {"x/": "", "x/a": "A"}),
        # several
        ({}, "[ab]", "/x/", {"x/": "", "x/a": "A", "x/b": "B"}),
        # a directory: its contents, never itself
        ({}, "dir", "/x", {"x/": "", "x/c": "C", "x/sub/": "", "x/sub/d": "D", "x/link": "-> c"}),
        ({}, "dir/", "/x/", {"x/": "", "x/c": "C", "x/sub/": "", "x/sub/d": "D", "x/link": "-> c"}),
        ({"x/": ""}, "dir", "/x", {"x/": "", "x/c": "C", "x/sub/": "", "x/sub/d": "D", "x/link": "-> c"}),
        ({"x/sub/other": "o"}, "dir/sub", "/x/sub", {"x/": "", "x/sub/": "", "x/sub/d": "D"}),
        ({"x/c": "old"}, "dir", "/x", {"x/": "", "x/c": "C", "x/sub/": "", "x/sub/d": "D", "x/link": "-> c"}),
        ({}, "empty", "/x", {"x/": ""}),
        # a wildcard that finds directories copies the contents of each
        ({}, "*", "/x/", {"x/": "", "x/a": "A", "x/b": "B", "x/c": "C", "x/sub/": "", "x/sub/d": "D", "x/link": "-> c"}),
        # links in the destination resolve inside the image
        ({"real/": "", "x": "-> real"}, "a", "/x/", {"real/": "", "real/a": "A"}),
        ({"real/": "", "x": "-> /real"}, "a", "/x", {"real/": "", "real/a": "A"}),
        ({"x": "-> ../../../real"}, "a", "/x/", {"real/": "", "real/a": "A"}),
        ({"real": "old", "x": "-> real"}, "a", "/x", {"real": "A"}),
        ({"x": "-> missing"}, "a", "/x", {"missing": "A"}),
        ({"deep/dir/": "", "x": "-> deep"}, "a", "/x/dir/y", {"deep/": "", "deep/dir/": "", "deep/dir/y": "A"}),
        # a link that is itself the file's place is replaced
        ({"x/a": "-> b", "x/b": "keep"}, "a", "/x/", {"x/": "", "x/a": "A"}),
        # a link in the source stays one; naming it means what it leads to
        ({}, "dir/link", "/x/", {"x/": "", "x/link": "C"}),
        ({"x/link/": ""}, "a", "/x/link", {"x/": "", "x/link/": "", "x/link/a": "A"}),
    ],
)
def test_copy_leaves_this_layer(tmp_path: Path, lower: Layout, source: str, destination: str, layer: Layout) -> None:
    bench = Bench(tmp_path, lower)
    before = seen(bench.lower)
    assert bench.copy(source, destination) == layer
    assert seen(bench.lower) == before


@pytest.mark.parametrize(
    ("lower", "source", "destination", "message"),
    [
        ({"x": "file"}, "dir", "/x", "/x: not a directory"),
        ({"x": "file"}, "a", "/x/", "/x: not a directory"),
        ({"x": "file"}, "a", "/x/y/z", "/x: not a directory"),
        ({"x/a/": ""}, "a", "/x/", "/x/a: a directory in the image"),
        ({"x/sub": "file"}, "dir", "/x", "/x/sub: not a directory"),
        ({"x/sub": "-> elsewhere", "x/elsewhere/": ""}, "dir", "/x", "/x/sub: not a directory"),
        ({"x/c/": ""}, "dir", "/x", "/x/c: a directory in the image"),
    ],
)
def test_copy_over_another_type_is_refused(tmp_path: Path, lower: Layout, source: str, destination: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        Bench(tmp_path, lower).copy(source, destination)


def test_later_source_replaces_what_an_earlier_one_brought(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {})
    bench.copy("a", "/x")
    assert bench.copy("b", "/x") == {"x": "B"}
    assert bench.copy("dir", "/y")["y/c"] == "C"
    assert bench.copy("b", "/y/c")["y/c"] == "B"


def test_a_link_one_source_brings_does_not_lead_the_next_out(tmp_path: Path) -> None:
    canary = lay(tmp_path / "host", {"keep": "canary"})
    bench = Bench(tmp_path, {}, {"links/out": f"-> {canary}", "links/up": "-> ../../../../../../../../../..", "a": "A"})
    bench.copy("links", "/x/")
    bench.copy("a", "/x/out/")
    layer = bench.copy("a", "/x/up/y")
    assert layer["y"] == "A"
    assert layer[f"{canary}/a".lstrip("/")] == "A"  # the same path, inside the image
    assert seen(canary) == {"keep": "canary"}


def modes(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): stat.S_IMODE(path.lstat().st_mode) for path in sorted(root.rglob("*"))}


def test_modes_and_times_are_kept_and_missing_directories_are_0755(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {})
    (bench.context / "dir/sub").chmod(0o700)
    (bench.context / "dir").chmod(0o2710)
    (bench.context / "dir/c").chmod(0o4751)
    for path in [*bench.context.rglob("*")]:
        os.utime(path, ns=(OLD, OLD), follow_symlinks=False)
    bench.copy("dir", "/new/x")
    found = modes(bench.upper)
    assert {name: found[name] for name in ("new", "new/x", "new/x/c", "new/x/sub")} == {
        "new": 0o755, "new/x": 0o755, "new/x/c": 0o4751, "new/x/sub": 0o700,
    }  # fmt: skip
    times = {str(path.relative_to(bench.upper)): path.lstat().st_mtime_ns for path in bench.upper.rglob("*")}
    assert times == {
        "new": NOW, "new/x": NOW, "new/x/c": OLD, "new/x/link": OLD, "new/x/sub": OLD, "new/x/sub/d": OLD,
    }  # fmt: skip


def test_directories_of_the_image_keep_their_metadata(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"etc/conf.d/x": "x"})
    (bench.lower / "etc").chmod(0o711)
    (bench.lower / "etc/conf.d").chmod(0o1777)
    for name in ("etc", "etc/conf.d"):
        os.utime(bench.lower / name, ns=(OLD, OLD))
    bench.copy("dir", "/etc/conf.d")
    assert modes(bench.upper)["etc"] == 0o711
    assert modes(bench.upper)["etc/conf.d"] == 0o1777
    assert (bench.upper / "etc").stat().st_mtime_ns == (bench.upper / "etc/conf.d").stat().st_mtime_ns == OLD


def test_nested_directory_takes_the_sources_metadata(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"x/sub/": ""})
    (bench.lower / "x/sub").chmod(0o777)
    (bench.context / "dir/sub").chmod(0o750)
    bench.copy("dir", "/x")
    assert modes(bench.upper)["x/sub"] == 0o750


def test_chmod_counts_for_files_and_directories_but_not_for_new_parents(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {})
    (bench.context / "dir/c").chmod(0o700)
    bench.copy("dir", "/p/x", Manner(mode=parse_mode("u=rwX,go=rX")))
    found = modes(bench.upper)
    assert (found["p"], found["p/x"], found["p/x/c"], found["p/x/sub"], found["p/x/sub/d"]) == (0o755, 0o755, 0o755, 0o755, 0o644)


def test_hard_links_within_a_source_stay_hard_links(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {})
    os.link(bench.context / "dir/c", bench.context / "dir/sub/again")
    bench.copy("dir", "/x")
    assert os.path.samefile(bench.upper / "x/c", bench.upper / "x/sub/again")
    assert not os.path.samefile(bench.upper / "x/c", bench.context / "dir/c")


def test_fifo_is_copied_and_socket_is_left_out_with_a_warning(tmp_path: Path) -> None:
    import socket

    bench = Bench(tmp_path, {})
    os.mkfifo(bench.context / "dir/fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(bench.context)  # a socket's path is at most 107 bytes
        try:
            listener.bind("dir/socket")
        finally:
            os.chdir(here)
        os.mkfifo(bench.upper / "probe")
        (bench.upper / "probe").unlink()
        with Context(bench.context) as context:
            (match,) = find(context, "dir")
            bench.writer.copy(context, match, "/x", into=False)
    assert stat.S_ISFIFO((bench.upper / "x/fifo").lstat().st_mode)
    assert not (bench.upper / "x/socket").exists()
    assert bench.warnings == ["dir/socket: a socket, not copied"]


def test_file_that_changes_while_it_is_copied_is_an_error(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {})
    with Context(bench.context) as context:
        (match,) = find(context, "a")
        (bench.context / "a").write_text("something longer")
        with pytest.raises(BuildError, match="a: changed while it was copied"):
            bench.writer.copy(context, match, "/x", into=False)


def test_large_file_is_copied_whole(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    bench = Bench(tmp_path, {})
    (bench.context / "big").write_bytes(data)
    with Context(bench.context) as context:
        bench.writer.copy(context, find(context, "big")[0], "/big", into=False)
    assert (bench.upper / "big").read_bytes() == data


def test_overlay_marks_of_a_source_do_not_come_along(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {})
    origin = lay(tmp_path / "origin", {"dir/c": "C"})
    os.setxattr(origin / "dir", "user.overlay.opaque", b"x")
    os.setxattr(origin / "dir/c", "user.overlay.metacopy", b"")
    os.setxattr(origin / "dir/c", "user.kept", b"1")
    source = TreeSource(Tree((str(origin),)))
    bench.writer.copy(source, find(source, "/")[0], "/x", into=False)
    assert os.listxattr(bench.upper / "x/dir") == []
    assert os.listxattr(bench.upper / "x/dir/c") == ["user.kept"]


def test_written_file_follows_the_same_rules(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"real/": "", "x": "-> real", "y": "old"})
    bench.writer.write_file("/x", "name", b"1", into=False)
    bench.writer.write_file("/y", "name", b"2", into=False)
    bench.writer.write_file("/z/", "name", b"3", into=True, manner=Manner(mode=parse_mode("600")))
    assert seen(bench.upper) == {"real/": "", "real/name": "1", "y": "2", "z/": "", "z/name": "3"}
    assert modes(bench.upper)["z/name"] == 0o600
    assert (bench.upper / "y").stat().st_mtime_ns == NOW


@pytest.mark.parametrize(
    ("text", "mode", "is_dir", "result"),
    [
        ("755", 0o600, False, 0o755),
        ("0644", 0o777, True, 0o644),
        ("4755", 0, False, 0o4755),
        ("u=rwX,go=rX", 0o600, False, 0o644),
        ("u=rwX,go=rX", 0o700, False, 0o755),
        ("u=rwX,go=rX", 0o600, True, 0o755),
        ("+x", 0o644, False, 0o755),
        ("a-w", 0o666, False, 0o444),
        ("g+w,o=", 0o755, False, 0o770),
        ("u+s", 0o755, False, 0o4755),
        ("g-s+x", 0o2644, False, 0o654),
        ("+t", 0o755, True, 0o1755),
        ("u=", 0o4755, False, 0o055),
    ],
)
def test_chmod_text_means(text: str, mode: int, result: int, *, is_dir: bool) -> None:
    assert oct(parse_mode(text)(mode, is_dir)) == oct(result)


@pytest.mark.parametrize("text", ["", "999", "u~x", "x+u", "rwx", "77777", "u=rwx,", "$M"])
def test_a_mode_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BuildError, match="not a mode"):
        parse_mode(text)
