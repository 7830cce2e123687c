"""Read what a container printed: docker's json-file logs, over the files that rotation made, while they are written and renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal

_FIRST = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class LogLine:
    """One entry of a container's log; `data` ends with a line feed unless the program left it out."""

    stream: Literal["stdout", "stderr"]
    time: datetime
    data: bytes


def read(
    path: Path, *, tail: int | None = None, since: datetime | None = None, lives: Callable[[], bool] | None = None
) -> Iterator[LogLine]:
    """The entries, oldest first: the last `tail`, those not before `since`. With `lives`, which waits a moment and says whether
    there may be more, also what comes."""
    with ExitStack() as opened:
        files = _newer_than(None, path, opened)
        lines = [line for file in files for line in _entries(file)]
        lines = lines[len(lines) - min(tail, len(lines)) :] if tail is not None else lines
        yield from (line for line in lines if line.time >= (since or _FIRST))
        current = files[-1] if files else None
        while lives is not None:
            more = lives()
            if current is not None:
                yield from _entries(current)  # to its end, before one that was begun later
            for newer in _newer_than(current, path, opened):
                yield from _entries(newer)
                current = newer
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


def _entries(log: IO[bytes]) -> Iterator[LogLine]:
    """Whole entries from where the file stands; half an entry waits for the next call."""
    while True:
        start = log.tell()
        raw = log.readline()
        if not raw.endswith(b"\n"):
            log.seek(start)
            return
        row = json.loads(raw)
        yield LogLine(row["stream"], datetime.fromisoformat(row["time"][:26] + "+00:00"), row["log"].encode("utf-8", "surrogateescape"))
