"""Logs over rotated files: nothing is told twice, and nothing that is still there is left out, also while files are renamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sandbox import logs
from sandbox.runtime.init.logfile import Log


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.json"


def texts(lines: object) -> list[str]:
    return [line.data.decode().strip() for line in lines]  # type: ignore[attr-defined]


def fill(log: Log, numbers: range) -> None:
    for number in numbers:
        log.write("stdout", b"%03d\n" % number)


def test_files_are_read_from_the_oldest_on(path: Path) -> None:
    log = Log(str(path), max_size=300, max_file=3)
    fill(log, range(20))
    assert len(list(path.parent.iterdir())) == 3
    assert all(each.stat().st_size <= 300 for each in path.parent.iterdir())
    kept = texts(logs.read(path))
    assert kept == [f"{number:03}" for number in range(20 - len(kept), 20)]
    assert len(kept) > 5
    assert texts(logs.read(path, tail=5)) == ["015", "016", "017", "018", "019"]
    assert texts(logs.read(path, since=datetime(2100, 1, 1, tzinfo=UTC))) == []


def test_one_file_begins_anew(path: Path) -> None:
    log = Log(str(path), max_size=300, max_file=1)
    fill(log, range(20))
    assert [each.name for each in path.parent.iterdir()] == ["log.json"]
    assert texts(logs.read(path))[-1] == "019"


def following(log: Log, rounds: list[range]) -> Callable[[], bool]:
    """A container that prints between two looks, and ends after the last round."""

    def lives() -> bool:
        if rounds:
            fill(log, rounds.pop(0))
        return bool(rounds)

    return lives


@pytest.mark.parametrize("each", [1, 2, 4, 9])  # within a file, over one border, over several
def test_following_goes_over_the_borders(path: Path, each: int) -> None:
    log = Log(str(path), max_size=300, max_file=9)
    fill(log, range(each))
    rounds = [range(start, start + each) for start in range(each, 12 * each, each)]
    assert texts(logs.read(path, lives=following(log, rounds))) == [f"{number:03}" for number in range(12 * each)]


def test_following_without_a_file_yet(path: Path) -> None:
    made: list[Log] = []

    def lives() -> bool:
        if not made:
            made.append(Log(str(path)))
            fill(made[0], range(2))
            return True
        return False

    assert texts(logs.read(path, lives=lives)) == ["000", "001"]


def test_following_what_is_rotated_away_leaves_out_and_goes_on(path: Path) -> None:
    log = Log(str(path), max_size=300, max_file=2)
    fill(log, range(2))
    told = texts(logs.read(path, lives=following(log, [range(2, 100), range(100, 102)])))
    assert told[:2] == ["000", "001"]
    assert told[-2:] == ["100", "101"]
    assert told == sorted(set(told))


def test_half_an_entry_waits(path: Path) -> None:
    entry = json.dumps({"log": "a\n", "stream": "stdout", "time": "2026-01-01T00:00:00.000000001Z"})
    path.write_text(entry[:30])

    def lives() -> bool:
        path.write_text(entry + "\n")
        return False

    assert texts(logs.read(path, lives=lives)) == ["a"]


def test_long_lines_are_cut_as_docker_does(path: Path) -> None:
    log = Log(str(path))
    log.write("stdout", b"x" * 40000 + b"\n" + b"y" * 20000)
    log.close()
    entries = [line.data for line in logs.read(path)]
    assert [len(data) for data in entries] == [16384, 16384, 7233, 16384, 3616]
    assert b"".join(entries) == b"x" * 40000 + b"\n" + b"y" * 20000
