"""What an interpreter says of itself, and moving its files to another prefix."""

from __future__ import annotations

import marshal
import os
import py_compile
import sys
import types
from pathlib import Path

import pytest

from sandbox.errors import ImageError, InvalidInput
from sandbox.image.capture_plan import Plan
from sandbox.image.capture_python import Relocation, compile_missing, compiled_place, examine, plan_files, stdlib_files

OLD = "/home/alice/pythons/3.11.7"
MOVE = Relocation.of((OLD, "/usr/local"))


def file_names(code: types.CodeType) -> set[str]:
    """The co_filename of a code object and of all in it."""
    inner = [file_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return {code.co_filename}.union(*inner)


def compiled(tmp_path: Path, text: str, name: str) -> bytes:
    (tmp_path / "m.py").write_text(text)
    return Path(str(py_compile.compile(str(tmp_path / "m.py"), cfile=str(tmp_path / "m.pyc"), dfile=name))).read_bytes()


def test_this_interpreter_tells_what_capture_needs() -> None:
    found = examine(sys.executable)
    assert found.version == ".".join(map(str, sys.version_info[:3]))
    assert found.base_prefix == sys.base_prefix
    assert found.tag == sys.implementation.cache_tag
    assert os.path.isfile(os.path.join(found.paths["stdlib"], "os.py"))
    assert os.path.realpath(found.executable) == found.executable


@pytest.mark.parametrize("program", ["/bin/true", "/bin/false", "/nonexistent/python"])
def test_a_program_that_is_no_python_is_refused(program: str) -> None:
    with pytest.raises(InvalidInput, match="not a Python interpreter"):
        examine(program)


def test_paths_move_by_their_longest_directory() -> None:
    relocation = Relocation.of(("/home/alice", "/a"), ("/home/alice/py", "/b"))
    assert relocation.path("/home/alice/py/lib/x") == "/b/lib/x"
    assert relocation.path("/home/alice/pyx") == "/a/pyx"
    assert relocation.path("/usr/lib/x") is None


def test_nothing_moves_when_the_prefix_stays() -> None:
    assert Relocation.of(("/usr", "/usr"), ("/", "/usr/local")).pairs == ()


def test_text_names_the_new_place_and_neighbours_stay() -> None:
    text = f"#!{OLD}/bin/python\nx = '{OLD}' # {OLD}-debug {OLD}x\n".encode()
    assert MOVE.content(text) == f"#!/usr/local/bin/python\nx = '/usr/local' # {OLD}-debug {OLD}x\n".encode()


def test_the_home_is_named_nowhere() -> None:
    relocation = Relocation.of((OLD, "/usr/local"), home="/home/alice")
    assert relocation.content(b"cache=/home/alice/.cache alice2=/home/alice2") == b"cache=/root/.cache alice2=/home/alice2"
    assert relocation.path("/home/alice/x") is None


def test_a_binary_keeps_every_offset() -> None:
    data = b"\0" + OLD.encode() + b"/lib\0after"
    moved = MOVE.content(data)
    assert len(moved) == len(data)
    path = moved[1 : moved.index(b"\0", 1)]
    assert os.path.normpath(path) == b"/usr/local/lib"
    assert moved.endswith(b"\0after")


def test_a_tail_that_linkers_share_stays_what_it_was() -> None:
    # Python's version "3.11.7" is the end of this very string in a real libpython.
    data = b"\0" + OLD.encode() + b"\0"
    moved = MOVE.content(data)
    assert moved.endswith(b"3.11.7\0")
    assert b"alice" not in moved
    assert len(moved) == len(data)


def test_a_prefix_too_short_to_replace_stays() -> None:
    assert Relocation.of(("/opt/py", "/usr/local")).content(b"\0/opt/py/lib\0") == b"\0/opt/py/lib\0"


@pytest.mark.parametrize("old", ["/home/alice", "/home/alice/" + "deep/" * 60 + "py", "/home/álice/py"])
@pytest.mark.parametrize("new", ["/usr/local", "/a/much/longer/place/" + "x" * 250])
def test_compiled_files_name_the_new_place(tmp_path: Path, old: str, new: str) -> None:
    text = "def f():\n    class A:\n        def g(self): return [x for x in 'abc']\n    return A\n"
    data = compiled(tmp_path, text, f"{old}/lib/m.py")
    moved = Relocation.of((old, new)).compiled(data)
    assert moved is not None
    assert moved[:16] == data[:16]
    code = marshal.loads(moved[16:])
    assert file_names(code) == {f"{new}/lib/m.py"}
    namespace: dict[str, object] = {}
    exec(code, namespace)
    assert callable(namespace["f"])


def test_a_compiled_file_with_the_path_inside_a_text_is_made_anew(tmp_path: Path) -> None:
    assert MOVE.compiled(compiled(tmp_path, f"X = 'prefix={OLD}/lib'\n", "/x.py")) is None


def test_an_unrelated_compiled_file_is_unchanged(tmp_path: Path) -> None:
    data = compiled(tmp_path, f"X = '{OLD}x'\n", "/x.py")
    assert MOVE.compiled(data) == data


def test_the_standard_library_comes_without_tests_idle_and_tk() -> None:
    files = list(stdlib_files(examine(sys.executable)))
    names = {os.path.basename(path) for path in files}
    assert {"os.py", "ssl.py"} <= names
    assert any(path.endswith("/ensurepip/__init__.py") for path in files)
    for unwanted in ("/test/", "/idlelib/", "/tkinter/", "/site-packages/", "/tests/", ".opt-1.pyc", ".a"):
        assert not [path for path in files if unwanted in path.rpartition("/")[0] + "/" or path.endswith(unwanted)]


def test_a_compiled_file_of_another_time_is_left_out(tmp_path: Path) -> None:
    source = tmp_path / "m.py"
    source.write_text("x = 1\n")
    target = py_compile.compile(str(source))
    assert target is not None
    assert plan_files(Plan(), [target], Relocation(())) == [target]
    os.utime(source, (1, 1))
    assert plan_files(Plan(), [target], Relocation(())) == []


def test_modules_without_compiled_file_are_compiled_under_their_image_name(tmp_path: Path) -> None:
    interpreter = examine(sys.executable)
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr/good.py").write_text("def f(): pass\n")
    (tmp_path / "usr/bad.py").write_text("print 'for Python 2'\n")
    made = compile_missing(interpreter, str(tmp_path), ["/usr/good.py", "/usr/bad.py", "/usr/x.txt"])
    assert made == [compiled_place("/usr/bad.py", interpreter), compiled_place("/usr/good.py", interpreter)]
    data = Path(f"{tmp_path}{compiled_place('/usr/good.py', interpreter)}").read_bytes()
    assert file_names(marshal.loads(data[16:])) == {"/usr/good.py"}
    assert not Path(f"{tmp_path}{compiled_place('/usr/bad.py', interpreter)}").exists()
    assert compile_missing(interpreter, str(tmp_path), ["/usr/good.py"]) == []


def test_an_interpreter_that_cannot_compile_is_said(tmp_path: Path) -> None:
    from msgspec.structs import replace

    (tmp_path / "m.py").write_text("")
    broken = replace(examine(sys.executable), executable="/bin/false")
    with pytest.raises(ImageError, match="could not compile"):
        compile_missing(broken, str(tmp_path), ["/m.py"])
