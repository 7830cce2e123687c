"""One engine for all kernels of a server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from kernelspec.engines import Engines, engines_of
from sandbox import Engine


def test_last_one_closes_the_engine_that_all_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed, closed = [], []
    monkeypatch.setattr(Engine, "warm", lambda self: warmed.append(self))
    monkeypatch.setattr(Engine, "close", lambda self: closed.append(self))
    engines = Engines()
    first, second = engines.take(str(tmp_path / "a")), engines.take(str(tmp_path / "a"))
    other = engines.take(str(tmp_path / "b"))
    assert first is second
    assert other is not first
    assert first.root == tmp_path / "a"
    engines.give_back(str(tmp_path / "a"))
    assert closed == []
    engines.give_back(str(tmp_path / "a"))
    assert closed == [first]
    assert engines.take(str(tmp_path / "a")) is not first


class _Server:
    """As jupyter_client's MultiKernelManager: as long as it has kernels."""

    def __len__(self) -> int:
        return 0


def test_kernels_of_a_server_share_and_a_manager_by_itself_does_not() -> None:
    server = _Server()
    one, two, alone = SimpleNamespace(parent=server), SimpleNamespace(parent=server), SimpleNamespace(parent=None)
    assert engines_of(one) is engines_of(two)
    assert engines_of(alone) is engines_of(alone)
    assert engines_of(alone) is not engines_of(one)
