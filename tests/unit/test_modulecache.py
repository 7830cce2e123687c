"""Modules from our one file of byte-code are what Python would have imported, whatever happened to that file or to them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_MAIN = """import json, sys
del sys.path[0]  # the working directory
from sandbox.modulecache import ModuleCache
cache = ModuleCache(sys.argv[1])
cache.open()
sys.meta_path.insert(0, cache)
exec(sys.argv[2])
cache.save()
"""
_FACTS = """import inspect, package.inner, package, alone, _bisect
modules = package, package.inner, alone
facts = [[m.__name__, m.__file__, m.__cached__, getattr(m, "__path__", None), m.__package__] for m in modules]
print(json.dumps([facts, inspect.getsource(alone.which), alone.which(), alone.__doc__, package.inner.found]))
"""
_LOADERS = "print({type(m.__spec__.loader).__name__ for m in modules})"
_WHICH = "import alone; print(alone.which(), type(alone.__spec__.loader).__name__)"
_KEEPS = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Python code in a process with a cache in `modules`, two directories on its path, and what it printed."""
    for name in ("early/__pycache__", "late/__pycache__", "late/package"):  # a first import would change these directories
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "late/package/__init__.py").write_text("")
    (tmp_path / "late/package/inner.py").write_text("from alone import which\nfound = which()\n")
    _write(tmp_path / "late/alone.py", "one")

    def runs(code: str, file: str = "modules", **environ: str) -> str:
        path = os.pathsep.join([str(tmp_path / "early"), str(tmp_path / "late")])
        argv = [sys.executable, "-c", _MAIN, str(tmp_path / file), code]
        done = subprocess.run(argv, env={**_KEEPS, "PYTHONPATH": path, **environ}, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return runs


def _write(file: Path, word: str) -> None:
    before = file.stat().st_mtime_ns if file.exists() else None
    file.write_text(f'"""About {word}."""\ndef which():\n    return "{word}"\n')
    if file.stat().st_mtime_ns == before:
        os.utime(file, ns=(before + 1, before + 1))


def test_modules_are_as_python_imports_them(run: Run, tmp_path: Path) -> None:
    without = run(_FACTS, "no directory/modules")
    assert run(_FACTS) == without
    assert run(f"{_FACTS}\n{_LOADERS}") == f"{without}{{'_Loader'}}\n"
    assert json.loads(without)[2:] == ["one", "About one.", "one"]
    assert [each.name for each in tmp_path.glob("modules*")] == ["modules"]


def test_changed_source_is_what_counts(run: Run, tmp_path: Path) -> None:
    assert run(_WHICH) == "one SourceFileLoader\n"
    _write(tmp_path / "late/alone.py", "two")
    os.utime(tmp_path / "late/alone.py", (5, 5))  # Python's own byte-code knows seconds
    assert [run(_WHICH), run(_WHICH)] == ["two SourceFileLoader\n", "two _Loader\n"]


def test_module_that_comes_earlier_on_the_path_is_found(run: Run, tmp_path: Path) -> None:
    assert [run(_WHICH), run(_WHICH)] == ["one SourceFileLoader\n", "one _Loader\n"]
    _write(tmp_path / "early/alone.py", "own")
    assert [run(_WHICH), run(_WHICH)] == ["own SourceFileLoader\n", "own _Loader\n"]
    (tmp_path / "early/alone.py").unlink()
    assert run(_WHICH) == "one SourceFileLoader\n"


def test_module_that_is_gone_is_gone(run: Run, tmp_path: Path) -> None:
    run(_WHICH)
    (tmp_path / "late/alone.py").unlink()
    assert run("try: import alone\nexcept ImportError: print('gone')") == "gone\n"


@pytest.mark.parametrize("damage", ["empty", "text", "cut in the index", "cut", "longer", "zeros", "numbers"])
def test_damaged_file_does_no_harm_and_is_made_anew(run: Run, tmp_path: Path, damage: str) -> None:
    expected, kept = run(_FACTS), tmp_path / "modules"
    run(_FACTS)
    whole = kept.read_bytes()
    line = whole.index(b"\n") + 1
    codes = line + 8 + int.from_bytes(whole[line : line + 8], "little")
    ways = {
        "empty": b"", "text": b"x" * 100, "cut in the index": whole[:60], "cut": whole[:-1], "longer": whole + b"0",
        "zeros": whole[:codes] + bytes(len(whole) - codes), "numbers": whole[:codes] + b"i" * (len(whole) - codes),
    }  # fmt: skip
    kept.write_bytes(ways[damage])
    assert run(_FACTS) == expected
    assert run(f"{_FACTS}\n{_LOADERS}") == f"{expected}{{'_Loader'}}\n"


def test_nothing_is_written_where_python_writes_nothing(run: Run, tmp_path: Path) -> None:
    assert run(_WHICH, PYTHONDONTWRITEBYTECODE="1") == "one SourceFileLoader\n"
    assert not (tmp_path / "modules").exists()


def test_nobody_else_may_write_it_whatever_the_umask(run: Run, tmp_path: Path) -> None:
    run(f"import os; os.umask(0)\n{_WHICH}")
    assert stat.S_IMODE((tmp_path / "modules").stat().st_mode) == 0o644


def test_nothing_is_left_where_it_cannot_be_written_whole(run: Run, tmp_path: Path) -> None:
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))"
    assert run(f"{_WHICH}\n{limit}") == "one SourceFileLoader\n"
    assert list(tmp_path.glob("modules*")) == []


def test_commands_use_it_but_not_where_modules_may_come_from_the_working_directory(tmp_path: Path) -> None:
    environ = {**_KEEPS, "PYTHONPYCACHEPREFIX": str(tmp_path / "kept")}

    def run(*argv: str) -> str:
        done = subprocess.run([*argv, "--version"], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def kept() -> list[tuple[int, int]]:
        return [(each.stat().st_ino, each.stat().st_mtime_ns) for each in (tmp_path / "kept").rglob("*.modules")]

    script = str(Path(sys.executable).with_name("sandbox"))
    assert run(sys.executable, "-m", "sandbox").startswith("sandbox version ")
    assert kept() == []
    assert run(script).startswith("sandbox version ")
    first = kept()
    assert len(first) == 1
    assert run(script).startswith("sandbox version ")
    assert kept() == first
    (tmp_path / "click.py").write_text("raise SystemExit('from the working directory')")
    assert run(sys.executable, "-m", "sandbox") == "from the working directory\n"
