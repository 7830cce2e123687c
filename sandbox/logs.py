"""Read what a container printed: docker's json-file logs, over the files that rotation made, while they are written and renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal

import msgspec

_FIRST = datetime.fromtimestamp(0, UTC)


class LogLine(msgspec.Struct, frozen=True):
    """One entry of a container's log; `data` ends with a line feed unless the program left it out."""

    stream: Literal["stdout", "stderr"]
    time: datetime
    data: bytes


def read(
    path: Path, *, tail: int | None = None, since: datetime | None = None, lives: Callable[[], bool] | None = None
) -> Iterator[LogLine]:
    """The entries, oldest first: the last `tail`, those not before `since`. With `lives`, which waits a moment and says whether
    there may be more, also what comes."""
    for number, batch in enumerate(batches(path, lives)):
        rows = batch[len(batch) - min(tail, len(batch)) :] if tail is not None and not number else batch
        yield from (line for line in map(_line, rows) if line.time >= (since or _FIRST))


def batches(path: Path, lives: Callable[[], bool] | None = None) -> Iterator[list[bytes]]:
    """The lines of a file and of those it was rotated to (PATH.1 is older than PATH): first all there are, then, as long as `lives` says
    that there may be more, what has come."""
    with ExitStack() as opened:
        files = _newer_than(None, path, opened)
        yield [raw for file in files for raw in _whole_lines(file)]
        current = files[-1] if files else None
        while lives is not None:
            more = lives()
            came = list(_whole_lines(current)) if current is not None else []  # to its end, before one that was begun later
            for newer in _newer_than(current, path, opened):
                came += _whole_lines(newer)
                current = newer
            yield came
            if not more:
                return


def _newer_than(last: IO[bytes] | None, path: Path, opened: ExitStack) -> list[IO[bytes]]:
    """The files begun after `last`, oldest first. From the newest on: a file that is renamed meanwhile is met again, not missed."""
    known = {_identity(last)} if last else set()
    found: list[IO[bytes]] = []
    number = 0
    while True:
        try:
            file = opened.enter_context(path.with_name(f"{path.name}.{number}" if number else path.name).open("rb"))
        except FileNotFoundError:
            return found[::-1]
        if last and _identity(file) == _identity(last):
            return found[::-1]
        if _identity(file) not in known:
            known.add(_identity(file))
            found.append(file)
        number += 1


def _identity(file: IO[bytes]) -> tuple[int, int]:
    facts = os.fstat(file.fileno())
    return facts.st_dev, facts.st_ino


def _whole_lines(file: IO[bytes]) -> Iterator[bytes]:
    """From where the file stands; half a line waits for the next call."""
    while True:
        start = file.tell()
        raw = file.readline()
        if not raw.endswith(b"\n"):
            file.seek(start)
            return
        yield raw


def _line(raw: bytes) -> LogLine:
    row = json.loads(raw)
    return LogLine(row["stream"], datetime.fromisoformat(row["time"][:26] + "+00:00"), row["log"].encode("utf-8", "surrogateescape"))
