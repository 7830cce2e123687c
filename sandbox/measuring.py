"""What a container uses, and its processes, as the host sees them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any  # a report is JSON

import msgspec

from sandbox.runtime.cgroups import reading
from sandbox.runtime.init import cgroup
from sandbox.runtime.spec import Limits, Usage

_OF_USAGE = ("cpu", "peak_memory", "peak_pids", "throttled")
_TICKS = os.sysconf("SC_CLK_TCK")
Report = Iterable[tuple[str, Any]]
"""Pairs of a name and where its value is (cgroup.read), as a container's state has them."""


class Stats(msgspec.Struct, frozen=True):
    """A running container's use at one moment: seconds, bytes, processes. `cpu_percent`: of one CPU, since the previous Stats."""

    at: float
    cpu_seconds: float | None
    cpu_percent: float | None
    memory: int | None
    memory_limit: int | None
    pids: int | None
    pids_limit: int | None


class ProcessRow(msgspec.Struct, frozen=True):
    """One process of a container; ids are the host's, the user is the container's."""

    user: str
    pid: int
    ppid: int
    time: str
    command: str


def stats_of(report: Report, limits: Limits, previous: Stats | None) -> Stats:
    """What a container uses now whose state says where it is told (`report`)."""
    used = cgroup.read(dict(report))
    now = time.monotonic()
    cpu = used.get("cpu")
    percent = None
    if previous is not None and cpu is not None and previous.cpu_seconds is not None and now > previous.at:
        percent = 100 * (cpu - previous.cpu_seconds) / (now - previous.at)
    return Stats(now, cpu, percent, _int(used.get("memory")), limits.memory, _int(used.get("pids")), limits.pids)


def usage_of(report: Report) -> Usage:
    """What it has used until now, its peaks included."""
    used = reading(cgroup.read(dict(report)))
    return Usage(cpu=used.cpu, peak_memory=used.peak_memory, peak_pids=used.peak_pids, throttled=used.throttled)


def meter(find: Callable[[], Report]) -> Callable[[], Usage]:
    """`usage_of`, to be asked often: `find` gives the report, and is asked until there is one."""
    found: dict[str, Any] = {}

    def measure() -> Usage:
        if not found:
            report = dict(find())
            found.update({name: report[name] for name in _OF_USAGE if name in report})
        return usage_of(found.items())

    return measure


def _int(value: float | None) -> int | None:
    return None if value is None else int(value)


def processes_beside(pid: int) -> list[ProcessRow]:
    """The processes in the same PID namespace as `pid`'s, by /proc."""
    namespace = _namespace(pid)
    rows = []
    for other in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        if namespace is not None and _namespace(other) == namespace:
            try:
                rows.append(_describe(other))
            except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
                continue
    return rows


def _namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None


def _describe(pid: int) -> ProcessRow:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    seconds = (int(fields[11]) + int(fields[12])) // _TICKS
    command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    uid = _inner_uid(pid, os.stat(f"/proc/{pid}").st_uid)
    return ProcessRow(
        "root" if uid == 0 else str(uid), pid, int(fields[1]), f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}", command
    )


def _inner_uid(pid: int, uid: int) -> int:
    """The host's uid as the container counts it."""
    for line in Path(f"/proc/{pid}/uid_map").read_text(encoding="ascii").splitlines():
        inner, outer, count = map(int, line.split())
        if outer <= uid < outer + count:
            return uid - outer + inner
    return uid
