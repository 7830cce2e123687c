"""The limits and what a group reports, one row for each in each cgroup version: what differs between v1 and v2 is here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import msgspec

from sandbox.errors import InvalidOption
from sandbox.patterns import Pattern
from sandbox.runtime.spec import Limits

Version = Literal[1, 2]
Places = Mapping[str, tuple[Version, str]]
"""Controller → cgroup version and directory; the controller "unified" is the v2 group itself."""

CONTROLLERS = ("pids", "memory", "cpu", "cpuacct", "cpuset", "blkio", "io", "freezer")
LABELS = {
    "memory": "memory limit", "memory_swap": "swap limit", "memory_reservation": "memory reservation", "memory_swappiness": "swappiness",
    "cpus": "CPU limit", "cpu_shares": "CPU shares", "cpuset_cpus": "CPU set", "cpuset_mems": "memory nodes", "pids": "process limit",
    "blkio_weight": "block I/O weight", "io": "block I/O limit",
}  # fmt: skip
_LIST = Pattern(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_PERIOD = 100_000
"""Microseconds; docker's and Linux's default scheduling period."""
_IO_KINDS = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}


class Control(msgspec.Struct, frozen=True):
    """One limit in one cgroup version: the file and what to write there, one write each (empty: nothing asked).
    `limit`: the field of Limits."""

    limit: str
    controller: str
    file: str
    texts: Callable[[Limits], tuple[str, ...]]
    when_missing: Literal["refuse", "implied"] = "refuse"
    """implied: goes without saying when only `memory` was asked, so a host without it is no error."""


def _number(field: str) -> Callable[[Limits], tuple[str, ...]]:
    """The field as it is."""
    return lambda limits: () if (value := getattr(limits, field)) is None else (str(value),)


def _swap_total(limits: Limits) -> tuple[str, ...]:
    """Memory and swap together; docker's default is twice the memory. -1: unlimited."""
    if limits.memory_swap is not None:
        return (str(limits.memory_swap),)
    return () if limits.memory is None else (str(2 * limits.memory),)


def _swap_only(limits: Limits) -> tuple[str, ...]:
    total = _swap_total(limits)
    if not total or limits.memory is None:
        return ()
    return ("max",) if int(total[0]) < 0 else (str(int(total[0]) - limits.memory),)


def _oom_group(limits: Limits) -> tuple[str, ...]:
    """The container is one thing: it ends as a whole, not by a random process of it."""
    return () if limits.memory is None else ("1",)


def _quota(limits: Limits) -> tuple[str, ...]:
    return () if limits.cpus is None else (str(max(1000, round(limits.cpus * _PERIOD))),)  # Linux takes no less than 1 ms


def _cpu_weight(limits: Limits) -> tuple[str, ...]:
    """v1's 2…262144 as v2's 1…10000, as runc and crun do."""
    return () if limits.cpu_shares is None else (str(1 + (max(2, min(262144, limits.cpu_shares)) - 2) * 9999 // 262142),)


def _pids(limits: Limits) -> tuple[str, ...]:
    return () if limits.pids is None else (str(limits.pids) if limits.pids > 0 else "max",)


def _io_weight(limits: Limits) -> tuple[str, ...]:
    """v1's 10…1000 as v2's 1…10000."""
    return () if limits.blkio_weight is None else (f"default {1 + (limits.blkio_weight - 10) * 9999 // 990}",)


def _rates(kind: str) -> Callable[[Limits], tuple[str, ...]]:
    return lambda limits: tuple(f"{rate.device} {rate.rate}" for rate in limits.io if rate.kind == kind)


def _rates_v2(limits: Limits) -> tuple[str, ...]:
    return tuple(f"{rate.device} {_IO_KINDS[rate.kind]}={rate.rate}" for rate in limits.io)


V1 = (
    Control("memory", "memory", "memory.limit_in_bytes", _number("memory")),
    Control("memory_swap", "memory", "memory.memsw.limit_in_bytes", _swap_total, "implied"),
    Control("memory_reservation", "memory", "memory.soft_limit_in_bytes", _number("memory_reservation")),
    Control("memory_swappiness", "memory", "memory.swappiness", _number("memory_swappiness")),
    Control("cpus", "cpu", "cpu.cfs_period_us", lambda limits: () if limits.cpus is None else (str(_PERIOD),)),
    Control("cpus", "cpu", "cpu.cfs_quota_us", _quota),
    Control("cpu_shares", "cpu", "cpu.shares", _number("cpu_shares")),
    Control("cpuset_cpus", "cpuset", "cpuset.cpus", _number("cpuset_cpus")),
    Control("cpuset_mems", "cpuset", "cpuset.mems", _number("cpuset_mems")),
    Control("pids", "pids", "pids.max", _pids),
    Control("blkio_weight", "blkio", "blkio.bfq.weight", _number("blkio_weight")),
    *(Control("io", "blkio", f"blkio.throttle.{kind}_device", _rates(kind)) for kind in _IO_KINDS),
)
V2 = (
    Control("memory", "memory", "memory.max", _number("memory")),
    Control("memory", "memory", "memory.oom.group", _oom_group, "implied"),
    Control("memory_swap", "memory", "memory.swap.max", _swap_only, "implied"),
    Control("memory_reservation", "memory", "memory.low", _number("memory_reservation")),
    Control("cpus", "cpu", "cpu.max", lambda limits: tuple(f"{quota} {_PERIOD}" for quota in _quota(limits))),
    Control("cpu_shares", "cpu", "cpu.weight", _cpu_weight),
    Control("cpuset_cpus", "cpuset", "cpuset.cpus", _number("cpuset_cpus")),
    Control("cpuset_mems", "cpuset", "cpuset.mems", _number("cpuset_mems")),
    Control("pids", "pids", "pids.max", _pids),
    Control("blkio_weight", "io", "io.weight", _io_weight),
    Control("io", "io", "io.max", _rates_v2),
)
TABLES: Mapping[Version, tuple[Control, ...]] = {1: V1, 2: V2}

REPORTS: Mapping[Version, tuple[tuple[str, str, str, str, float], ...]] = {
    1: (
        ("cpu", "cpuacct", "cpuacct.usage", "", 1e-9),
        ("memory", "memory", "memory.usage_in_bytes", "", 1),
        ("peak_memory", "memory", "memory.max_usage_in_bytes", "", 1),
        ("oom_kills", "memory", "memory.oom_control", "oom_kill", 1),
        ("throttled", "cpu", "cpu.stat", "throttled_time", 1e-9),
        ("pids", "pids", "pids.current", "", 1),
        ("peak_pids", "pids", "pids.peak", "", 1),
        ("pids_refused", "pids", "pids.events", "max", 1),
        ("io_read", "blkio", "blkio.throttle.io_service_bytes_recursive", "Read *", 1),
        ("io_written", "blkio", "blkio.throttle.io_service_bytes_recursive", "Write *", 1),
    ),
    2: (
        ("cpu", "unified", "cpu.stat", "usage_usec", 1e-6),  # there without the cpu controller, in a hybrid too
        ("memory", "memory", "memory.current", "", 1),
        ("peak_memory", "memory", "memory.peak", "", 1),
        ("oom_kills", "memory", "memory.events", "oom_kill", 1),
        ("pids", "pids", "pids.current", "", 1),
        ("peak_pids", "pids", "pids.peak", "", 1),
        ("pids_refused", "pids", "pids.events", "max", 1),
        ("throttled", "cpu", "cpu.stat", "throttled_usec", 1e-6),
        ("io_read", "io", "io.stat", "rbytes=*", 1),
        ("io_written", "io", "io.stat", "wbytes=*", 1),
        ("cpu_stall", "unified", "cpu.pressure", "some total=*", 1e-6),
        ("memory_stall", "unified", "memory.pressure", "some total=*", 1e-6),
        ("io_stall", "unified", "io.pressure", "some total=*", 1e-6),
    ),
}
"""Name → controller, file, key in the file (init's `cgroup.read`: `key` begins a line, `key*` may stand anywhere), factor."""

FREEZERS: Mapping[Version, tuple[str, tuple[str, str, str, str, str]]] = {
    2: ("unified", ("cgroup.freeze", "1", "0", "cgroup.events", "frozen 1")),
    1: ("freezer", ("freezer.state", "FROZEN", "THAWED", "freezer.state", "FROZEN")),
}


def check_limits(limits: Limits) -> None:
    """Raise InvalidOption for limits that cannot be meant."""
    swap, memory = limits.memory_swap, limits.memory
    if swap is not None and memory is None:
        raise InvalidOption("memory-swap: needs a memory limit as well", hint="--memory-swap is memory and swap together")
    if swap is not None and memory is not None and 0 <= swap < memory:
        raise InvalidOption(f"memory-swap {swap}: less than the memory limit {memory}", hint="it is memory and swap together")
    if limits.memory_reservation is not None and memory is not None and limits.memory_reservation > memory:
        raise InvalidOption(f"memory-reservation {limits.memory_reservation}: more than the memory limit {memory}")
    _check_range("memory-swappiness", limits.memory_swappiness, 0, 100)
    _check_range("blkio-weight", limits.blkio_weight, 10, 1000)
    _check_range("cpu-shares", limits.cpu_shares, 2, 262144)
    for name, given, what in (("cpuset-cpus", limits.cpuset_cpus, "CPUs"), ("cpuset-mems", limits.cpuset_mems, "memory nodes")):
        if given is not None and not _LIST.fullmatch(given):
            raise InvalidOption(f"{name} {given!r}: not a list of {what}", hint="write 0-2 or 0,3")


def _check_range(name: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise InvalidOption(f"{name} {value}: must be from {low} to {high}")


def limit_rows(limits: Limits) -> Iterator[tuple[Version, Control, str]]:
    """Every row that has something to write for these limits, in both versions."""
    for version, table in TABLES.items():
        for control in table:
            for text in control.texts(limits):
                yield version, control, text


def limits_asked(limits: Limits) -> list[str]:
    """The fields of Limits that somebody asked for, in the tables' order."""
    return list(dict.fromkeys(control.limit for _, control, _ in limit_rows(limits) if not is_implied(control, limits)))


def is_implied(control: Control, limits: Limits) -> bool:
    """Whether nobody asked for this row: the swap limit beside a plain memory limit, or explicitly unlimited swap."""
    asked = control.limit == "memory_swap" and limits.memory_swap is not None and limits.memory_swap >= 0
    return control.when_missing == "implied" and not asked


def limit_writes(places: Places, limits: Limits, *, without: Mapping[str, str]) -> Iterator[tuple[Control, str, str]]:
    """(row, path, text) for the controllers in `places`, leaving out the limits named in `without`."""
    for version, control, text in limit_rows(limits):
        place = places.get(control.controller)
        if place and place[0] == version and control.limit not in without:
            yield control, f"{place[1]}/{control.file}", text
