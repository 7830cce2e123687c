"""Which groups a container gets on this host, in which trees, and what is written there: pure.

v2 has the no-internal-processes rule (Documentation/admin-guide/cgroup-v2.rst): a group with processes cannot hand
controllers such as memory down to its children. So, for limits on v2, the processes of our own group move into the leaf
OWN/jupyter-sandbox.engine first, as systemd's delegation document asks of a manager. That is done only where the group is ours to
arrange: systemd delegated it (xattr `delegate`), or it is the root of a cgroup namespace (we are in a container), or
nobody is in it but us and our children. Otherwise limits cannot be enforced there, and the error says how to get such a group.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from sandbox.errors import Unsupported
from sandbox.runtime.cgroups.limits import (
    CONTROLLERS,
    FREEZERS,
    LABELS,
    REPORTS,
    TABLES,
    Places,
    Version,
    check_limits,
    is_implied,
    limit_writes,
    limits_asked,
)  # fmt: skip
from sandbox.runtime.spec import Limits

BASE = "jupyter-sandbox"
"""The group below our own in which every container's group is."""
ENGINE = "jupyter-sandbox.engine"
"""The v2 leaf for the processes that were in our own group."""


class Hierarchy(msgspec.Struct, frozen=True):
    """One mounted cgroup tree. `own`: the directory of our own group in it; groups of ours go below `base`.

    `swap`: whether memory and swap can be limited together (v1; v2 tells only once a group is there).
    `obstacle` says why nothing can be made here (empty: it can); `crowd` why controllers cannot be handed down (v2);
    `evacuate`: they can, once the processes of `base` have moved into its leaf ENGINE.
    """

    version: Version
    controllers: frozenset[str]
    mount: Path
    own: Path
    base: Path
    swap: bool = False
    obstacle: str = ""
    crowd: str = ""
    evacuate: bool = False


class Plan(msgspec.Struct, frozen=True):
    """What to do for one container's groups, in order, as plain data: `plain()` of it travels to the spawner as JSON.

    Make `directories`; empty `moves[0]` into `moves[1]`; copy `copies`; write `writes` (those in `optional` may be missing).
    The container's first process then writes "0" to each of `joins`; one v2 group, `into`, is quicker joined by
    clone3(CLONE_INTO_CGROUP), then leave out its file, `slow_join`. At the end remove `groups`.
    """

    id: str
    directories: tuple[str, ...] = ()
    moves: tuple[tuple[str, str], ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    writes: tuple[tuple[str, str], ...] = ()
    optional: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    joins: tuple[str, ...] = ()
    into: str | None = None
    slow_join: str | None = None
    report: tuple[tuple[str, tuple[str, str, float]], ...] = ()
    freezer: tuple[str, ...] = ()
    places: tuple[tuple[str, Version, str], ...] = ()
    unenforced: tuple[str, ...] = ()

    def plain(self) -> dict[str, object]:
        """The fields as JSON takes them; `Plan.from_plain` reads them back."""
        return {name: getattr(self, name) for name in self.__struct_fields__}

    @classmethod
    def from_plain(cls, plain: Mapping[str, object]) -> Plan:
        """A plan that came as JSON (a container's state on disk)."""
        return cls(**{name: _frozen(value) for name, value in plain.items()})  # type: ignore[arg-type]  # as plain() gave them


class Layout(msgspec.Struct, frozen=True):
    """What this host mounts, as seen from our own group."""

    hierarchies: tuple[Hierarchy, ...]

    @property
    def kind(self) -> Literal["none", "v1", "v2", "hybrid"]:
        """v2 when memory, pids or cpu can come from v2; hybrid when v2 is mounted beside v1 controllers."""
        versions = {h.version for h in self.hierarchies}
        if versions == {1, 2}:
            return "hybrid"
        return "v1" if versions == {1} else "v2" if versions == {2} else "none"

    @property
    def unified(self) -> Hierarchy | None:
        """The v2 tree if groups can be made in it."""
        return next((h for h in self.hierarchies if h.version == 2 and not h.obstacle), None)

    def obstacle(self, limit: str) -> str | None:
        """Why this limit (a field of Limits) cannot be enforced here; None: it can. What `sandbox doctor` prints."""
        h = self._enforcer(limit)
        if h is None:
            offered = [f"{name} (v{version})" for version, name in _controllers_of(limit)]
            return f"no {offered[0].partition(' ')[0]} cgroup controller here" if len(offered) > 1 else f"only cgroup {offered[0]} has it"
        if limit == "memory_swap" and h.version == 1 and not h.swap:
            return "Linux does not account swap here"
        return h.obstacle or h.crowd or None

    def _enforcer(self, limit: str) -> Hierarchy | None:
        """The tree that can enforce it: the one that has its controller, in a version that has the limit."""
        wanted = set(_controllers_of(limit))
        return next((h for h in self.hierarchies if any((h.version, name) in wanted for name in h.controllers)), None)

    def plan(self, id: str, limits: Limits, *, allow_unenforced: bool = False) -> Plan:
        """The groups of container `id` and what to write for its limits. Pure.

        Raises Unsupported for a limit that cannot be enforced, unless `allow_unenforced`; then Plan.unenforced says which
        and why. InvalidOption for limits that contradict each other. Without limits a host without cgroups is no error.
        """
        check_limits(limits)
        asked = limits_asked(limits)
        without = {limit: why for limit in asked if (why := self.obstacle(limit))}
        if without and not allow_unenforced:
            raise unsupported(*next(iter(without.items())), uid=os.geteuid())
        if self.obstacle("memory_swap"):
            without.setdefault("memory_swap", "")
        enforcers = {limit: h for limit in asked if limit not in without and (h := self._enforcer(limit))}
        required = {name for limit, h in enforcers.items() for version, name in _controllers_of(limit) if version == h.version}
        used = dict(self._choose(required))
        return _assemble(id, limits, used, required, without)

    def existing(self) -> dict[str, tuple[str, ...]]:
        """Id → the groups below our base that are there now, of whichever engine; v2 first."""
        found: dict[str, list[str]] = {}
        for h in _v2_first(self.hierarchies):
            for directory in _subdirectories(f"{h.base}/{BASE}"):
                found.setdefault(os.path.basename(directory), []).append(directory)
        return {id: tuple(groups) for id, groups in found.items()}

    def remove_base(self) -> None:
        """Remove OWN/jupyter-sandbox wherever it is empty; engines make it again when they need it."""
        for h in self.hierarchies:
            try:
                os.rmdir(f"{h.base}/{BASE}")
            except OSError as err:
                if err.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY, errno.EACCES, errno.EPERM, errno.EROFS):
                    raise

    def _choose(self, required: set[str]) -> Iterator[tuple[str, Hierarchy]]:
        """Controller → tree, for what is required and what reports without being asked.

        The v2 group tells CPU time, freezes and kills by itself, so beside it v1's cpuacct and freezer are left out: each
        tree costs a mkdir and a rmdir per container.
        """
        unified = self.unified
        if unified:
            yield "unified", unified
        told = {"memory", "pids"} | (set() if unified else {"cpuacct", "freezer"})
        for controller in CONTROLLERS:
            h = next((h for h in self.hierarchies if controller in h.controllers and not h.obstacle), None)
            is_free = h is not None and not h.crowd and not h.evacuate
            if h and (controller in required or (controller in told and is_free)):
                yield controller, h


@cache
def _controllers_of(limit: str) -> Sequence[tuple[Version, str]]:
    """The controllers that enforce a limit, by version."""
    return list(dict.fromkeys((version, row.controller) for version, table in TABLES.items() for row in table if row.limit == limit))


def _v2_first(hierarchies: tuple[Hierarchy, ...]) -> list[Hierarchy]:
    """cgroup.kill of the v2 group ends everything at once, so it goes first."""
    return sorted(hierarchies, key=lambda h: -h.version)


def _assemble(id: str, limits: Limits, used: Mapping[str, Hierarchy], required: set[str], without: Mapping[str, str]) -> Plan:
    trees = _v2_first(tuple(dict.fromkeys(used.values())))
    places: dict[str, tuple[Version, str]] = {name: (h.version, f"{h.base}/{BASE}/{id}") for name, h in used.items()}
    rows = tuple(limit_writes(places, limits, without=without))
    unified = used.get("unified")
    moving = unified if unified and unified.evacuate and required & unified.controllers else None
    engine = f"{moving.base}/{ENGINE}" if moving else None
    into = places["unified"][1] if unified else None
    return Plan(
        id=id,
        directories=((engine,) if engine else ()) + tuple(d for h in trees for d in (f"{h.base}/{BASE}", f"{h.base}/{BASE}/{id}")),
        moves=((str(moving.base), engine),) if moving and engine else (),
        copies=_cpuset_copies(used, id, limits),
        writes=_enabling(used) + tuple((path, text) for _, path, text in rows),
        optional=tuple(path for control, path, _ in rows if is_implied(control, limits)),
        groups=tuple(f"{h.base}/{BASE}/{id}" for h in trees),
        joins=tuple(f"{h.base}/{BASE}/{id}/{'tasks' if h.version == 1 else 'cgroup.procs'}" for h in trees),
        into=into,
        slow_join=f"{into}/cgroup.procs" if into else None,
        report=_report(places),
        freezer=_freezer(places),
        places=tuple((name, version, path) for name, (version, path) in places.items()),
        unenforced=tuple(f"{LABELS[limit]}: {why}" for limit, why in without.items() if why),
    )


def _enabling(used: Mapping[str, Hierarchy]) -> tuple[tuple[str, str], ...]:
    """v2: hand the controllers down, level by level. Writing what is enabled already costs nothing."""
    controllers = [name for name, h in used.items() if h.version == 2 and name != "unified"]
    if not controllers:
        return ()
    base, text = used[controllers[0]].base, " ".join(f"+{name}" for name in controllers)
    return (f"{base}/cgroup.subtree_control", text), (f"{base}/{BASE}/cgroup.subtree_control", text)


def _cpuset_copies(used: Mapping[str, Hierarchy], id: str, limits: Limits) -> tuple[tuple[str, str], ...]:
    """v1: a new cpuset group is empty and takes nobody until it has CPUs and memory nodes, level by level."""
    h = used.get("cpuset")
    if not h or h.version == 2:
        return ()
    ours = f"{h.base}/{BASE}"
    down = tuple((f"{h.base}/{file}", f"{ours}/{file}") for file in ("cpuset.cpus", "cpuset.mems"))
    given = {"cpuset.cpus": limits.cpuset_cpus, "cpuset.mems": limits.cpuset_mems}
    return (*down, *((f"{ours}/{file}", f"{ours}/{id}/{file}") for file, text in given.items() if text is None))


def _report(places: Places) -> tuple[tuple[str, tuple[str, str, float]], ...]:
    """One source a name; v2's where both could tell."""
    found: dict[str, tuple[str, str, float]] = {}
    for version in (2, 1):
        for name, controller, file, key, factor in REPORTS[version]:
            place = places.get(controller)
            if place and place[0] == version:
                found.setdefault(name, (f"{place[1]}/{file}", key, factor))
    return tuple(found.items())


def _freezer(places: Places) -> tuple[str, ...]:
    for controller, (switch, frozen, thawed, told, word) in FREEZERS.values():
        if controller in places:
            group = places[controller][1]
            return f"{group}/{switch}", frozen, thawed, f"{group}/{told}", word
    return ()


def unsupported(limit: str, why: str, *, uid: int) -> Unsupported:
    delegated = "systemd-run --user --scope -p Delegate=yes jupyter lab"
    remedies = ["start it as root"] if uid else []
    remedies += [f"start it with `{delegated}`"] if uid or "not delegated" in why else []
    hint = ", ".join([*remedies, "or pass --allow-unenforced to run without it"]).removeprefix("or ")
    return Unsupported(f"{LABELS[limit]}: {why}", feature=LABELS[limit], hint=hint)


def _frozen(value: object) -> object:
    """JSON's lists as the tuples they were."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _subdirectories(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
