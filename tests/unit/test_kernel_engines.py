"""One engine for all kernels of a process."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from kernelspec.engines import Engines, shared_engines
from sandbox import Engine


def test_kernels_share_the_engine_of_a_directory_and_each_makes_it_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[Engine] = []
    closed: list[Engine] = []
    both = threading.Barrier(2)

    def warm(self: Engine) -> None:
        warmed.append(self)
        both.wait(30)

    monkeypatch.setattr(Engine, "warm", warm)
    monkeypatch.setattr(Engine, "close", lambda self: closed.append(self))
    engines = Engines()
    first = engines.engine(str(tmp_path / "a"))
    both.wait(30)
    monkeypatch.setenv("SANDBOX_ROOT", str(tmp_path / "a"))
    usual = engines.engine("")
    both.wait(30)
    assert usual is first
    monkeypatch.setenv("SANDBOX_ROOT", str(tmp_path / "b"))
    other = engines.engine("")
    both.wait(30)
    assert (first.root, other.root) == (tmp_path / "a", tmp_path / "b")
    assert warmed == [first, first, other]
    engines.close()
    assert closed == [first, other]
    assert shared_engines() is shared_engines()
