"""Digests of files are remembered by what stat tells, and times of steps by their key."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from sandbox.build.memory import Memory


class Counted:
    """Opens a file and counts how often."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened = 0

    def __call__(self) -> int:
        self.opened += 1
        return os.open(self.path, os.O_RDONLY)


def later() -> int:
    """A clock an hour ahead: files just written have settled."""
    return time.time_ns() + 3600 * 10**9


@pytest.fixture
def file(tmp_path: Path) -> Counted:
    path = tmp_path / "file"
    path.write_text("one")
    return Counted(path)


def digest(memory: Memory, file: Counted) -> bytes:
    return memory.file_digest(file.path.stat(), file)


def test_unchanged_file_is_read_once_also_by_the_next_build(tmp_path: Path, file: Counted) -> None:
    for _ in range(2):
        with Memory(tmp_path / "build.db", clock=later) as memory:
            assert digest(memory, file) == digest(memory, file) == hashlib.sha256(b"one").digest()
    assert file.opened == 1


def test_changed_file_is_read_again_though_size_and_mtime_are_the_same(tmp_path: Path, file: Counted) -> None:
    times = (file.path.stat().st_atime_ns, file.path.stat().st_mtime_ns)
    with Memory(tmp_path / "build.db", clock=later) as memory:
        digest(memory, file)
        before = file.path.stat().st_ctime_ns
        while file.path.stat().st_ctime_ns == before:  # the file system's clock ticks every few milliseconds
            file.path.write_text("two")
            os.utime(file.path, ns=times)
        assert digest(memory, file) == hashlib.sha256(b"two").digest()


def test_file_just_written_is_not_remembered(tmp_path: Path, file: Counted) -> None:
    with Memory(tmp_path / "build.db", clock=lambda: file.path.stat().st_ctime_ns + 1000) as memory:
        digest(memory, file)
        digest(memory, file)
    assert file.opened == 2


def test_nothing_learned_is_lost_when_the_build_fails(tmp_path: Path, file: Counted) -> None:
    with pytest.raises(KeyboardInterrupt), Memory(tmp_path / "build.db", clock=later) as memory:
        digest(memory, file)
        raise KeyboardInterrupt
    with Memory(tmp_path / "build.db", clock=later) as memory:
        digest(memory, file)
    assert file.opened == 1


def test_time_of_a_step_is_kept_and_replaced(tmp_path: Path) -> None:
    with Memory(tmp_path / "build.db") as memory:
        assert memory.created("k") is None
        memory.remember_created("k", "2020")
        memory.remember_created("k", "2021")
    with Memory(tmp_path / "build.db") as memory:
        assert memory.created("k") == "2021"


def test_two_builds_at_once_create_and_use_one_file(tmp_path: Path) -> None:
    with Memory(tmp_path / "build.db") as one, Memory(tmp_path / "build.db") as other:
        one.remember_created("a", "1")
        other.remember_created("b", "2")
        assert (one.created("b"), other.created("a")) == ("2", "1")
    assert not list(tmp_path.glob("*.new-*"))
