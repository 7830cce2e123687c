"""A bundle's cgroups: made, limited, frozen and removed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sandbox.errors import SetupFailed, Unsupported
from sandbox.runtime.bundle.config import Config
from sandbox.runtime.bundle.resources import BASE, Groups, hierarchies, plan_groups
from sandbox.runtime.bundle.states import Record
from sandbox.runtime.init import cgroup, files


def groups_of(name: str, config: Config) -> Groups:
    trees = hierarchies(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    devices = tuple(f"{d.type.replace('u', 'c')} {d.major}:{d.minor} rwm" for d in config.linux.devices if d.type in "cub")
    return plan_groups(name, config.linux.cgroups_path, config.linux.resources, trees, devices)


def make_groups(groups: Groups) -> None:
    try:
        for directory in groups.directories:
            _make_directory(directory)
        cgroup.make((), copies=groups.copies)
        write_limits(list(groups.writes))
    except OSError as err:
        remove_groups(groups.directories)
        raise SetupFailed(f"cgroup {err.filename or ''}: {(err.strerror or '').lower()}") from err


def _make_directory(directory: str) -> None:
    """A group and those above it; another container's delete may take an empty one away meanwhile."""
    while True:
        try:
            os.makedirs(directory, 0o755, exist_ok=True)
        except FileNotFoundError:
            continue
        return


def remove_groups(groups: Sequence[str]) -> None:
    """The groups, and our directory above them after its last container."""
    cgroup.remove(groups)
    for base in {os.path.dirname(group) for group in groups if os.path.basename(os.path.dirname(group)) == BASE}:
        with suppress(OSError):  # not empty: others are there
            os.rmdir(base)


def write_limits(writes: list[tuple[str, str]]) -> None:
    """Two limits may be possible in one order only (memory and memory + swap): one that is refused is tried again after the rest."""
    while writes:
        refused: list[tuple[tuple[str, str], OSError]] = []
        for path, text in writes:
            for line in text.splitlines():
                try:
                    files.write_value(path, line)
                except OSError as err:
                    refused.append(((path, line), err))
        if len(refused) == len(writes):
            raise refused[0][1]
        writes = [write for write, _ in refused]


def freezer(record: Record) -> tuple[str, ...]:
    if record.version == 1:
        directory = record.places.get("freezer")
        if directory is None:
            raise Unsupported("pause: no freezer controller here", feature="freezer")
        state = f"{directory}/freezer.state"
        return state, "FROZEN", "THAWED", state, "FROZEN"
    directory = record.places[""]
    return f"{directory}/cgroup.freeze", "1", "0", f"{directory}/cgroup.events", "frozen 1"
