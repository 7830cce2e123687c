"""Make, measure, change, freeze and remove the groups of one container."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

import msgspec

from sandbox.errors import SetupFailed, Unsupported
from sandbox.runtime.cgroups.layout import Plan, unsupported
from sandbox.runtime.cgroups.limits import LABELS, V1, V2, Places, check_limits, is_implied, limit_rows, limit_writes
from sandbox.runtime.init import cgroup, files
from sandbox.runtime.spec import Limits


class Reading(msgspec.Struct, frozen=True):
    """What a group has used so far: seconds, bytes, processes, events. None: this host does not tell.

    `throttled`: seconds it had to wait because of the CPU limit; `…_stall`: seconds in which something in it waited for CPU, memory
    or I/O (PSI, Documentation/accounting/psi.rst).
    """

    cpu: float | None = None
    memory: int | None = None
    peak_memory: int | None = None
    pids: int | None = None
    peak_pids: int | None = None
    oom_kills: int | None = None
    pids_refused: int | None = None
    throttled: float | None = None
    io_read: int | None = None
    io_written: int | None = None
    cpu_stall: float | None = None
    memory_stall: float | None = None
    io_stall: float | None = None


class Cgroup(msgspec.Struct, frozen=True):
    """The groups of one container that exist, whoever made them. After a restart: `Cgroup(Plan.from_plain(saved))`."""

    plan: Plan

    def usage(self) -> Reading:
        """What was used so far; of groups that are gone, nothing is known."""
        return reading(cgroup.read(dict(self.plan.report)))

    def processes(self) -> list[int]:
        """Their pids, as our pid namespace numbers them."""
        return cgroup.processes(self.plan.groups)

    def kill(self, *, timeout: float = 10.0) -> None:
        """SIGKILL everything inside; afterwards nobody is. TimeoutError when a process does not die (stuck in Linux)."""
        cgroup.kill(self.plan.groups, timeout=timeout)

    def update(self, limits: Limits) -> None:
        """Change the limits of a running container; Unsupported for one that has no group to be written to."""
        check_limits(limits)
        places: Places = {name: (version, path) for name, version, path in self.plan.places}
        for _, control, _ in limit_rows(limits):
            if control.controller not in places and not is_implied(control, limits):
                raise unsupported(control.limit, "the container was started without it", uid=os.geteuid())
        writes = [(path, text, is_implied(control, limits)) for control, path, text in limit_writes(places, limits, without={})]
        _write_in_some_order(writes)

    def freeze(self) -> None:
        """Stop all its processes at once; Unsupported where neither v2 nor a v1 freezer is."""
        if not self.plan.freezer:
            raise Unsupported("freeze: no freezer cgroup here", feature="freezer")
        cgroup.freeze(self.plan.freezer)

    def thaw(self) -> None:
        """Let them go on."""
        if self.plan.freezer:
            cgroup.thaw(self.plan.freezer)

    def remove(self, *, timeout: float = 10.0) -> None:
        """Kill what is inside and remove the groups; already gone is fine."""
        cgroup.remove(self.plan.groups, timeout=timeout)


def create(plan: Plan) -> Cgroup:
    """Make the groups and set the limits. On failure nothing of them is left; SetupFailed or Unsupported says what was refused."""
    try:
        cgroup.make(plan.directories, moves=plan.moves, copies=plan.copies, writes=plan.writes, optional=plan.optional, groups=plan.groups)
    except OSError as err:
        raise refused(err) from err
    return Cgroup(plan)


def reading(values: Mapping[str, float | None]) -> Reading:
    """The typed form of what init's `cgroup.read` returns (it may have travelled as JSON)."""
    return Reading(**{name: _typed(values.get(name), name) for name in Reading.__struct_fields__})  # type: ignore[arg-type]  # by name


_SECONDS = frozenset({"cpu", "throttled", "cpu_stall", "memory_stall", "io_stall"})


def _typed(value: float | None, name: str) -> float | None:
    return value if value is None or name in _SECONDS else int(value)


def refused(err: OSError) -> SetupFailed:
    """The error for a step of a plan that Linux refused: which limit it was, and Linux's own word for it."""
    file = os.path.basename(str(err.filename or ""))
    word = os.strerror(err.errno or 0).lower()
    control = next((row for row in V1 + V2 if row.file == file), None)
    if control is None:
        return SetupFailed(f"cgroup {err.filename}: {word}", hint="`sandbox doctor` says what this host allows")
    hint = "it must lie within the limits of the group the engine runs in" if err.errno != errno.ENOENT else "pass --allow-unenforced"
    return Unsupported(f"{LABELS[control.limit]}: refused by Linux ({file}: {word})", feature=LABELS[control.limit], hint=hint)


def _write_in_some_order(writes: list[tuple[str, str, bool]]) -> None:
    """v1 wants memory ≤ memory+swap at every moment: what is refused at first is tried once more after the others."""
    again = []
    for path, text, may_lack in writes:
        try:
            files.write_value(path, text)
        except OSError as err:
            if err.errno == errno.EINVAL:
                again.append((path, text))
            elif not (may_lack and err.errno == errno.ENOENT):
                raise refused(err) from err
    for path, text in again:
        try:
            files.write_value(path, text)
        except OSError as err:
            raise refused(err) from err
