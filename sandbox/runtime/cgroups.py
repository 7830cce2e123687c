"""cgroup v1, v2 and both at once: what this host offers, which groups a container gets, and how its limits are written.

`discover()` looks, `Layout.plan()` decides (pure), `create()` acts. All groups of ours are made below the cgroup the
engine itself is in, as OWN/jupyter-sandbox/ID: a place that others manage is never written to.

v2 has the no-internal-processes rule (Documentation/admin-guide/cgroup-v2.rst): a group with processes cannot hand
controllers such as memory down to its children. So, for limits on v2, the processes of our own group move into the leaf
OWN/jupyter-sandbox.engine first, as systemd's delegation document asks of a manager. That is done only where the group is ours to
arrange: systemd delegated it (xattr `delegate`), or it is the root of a cgroup namespace (we are in a container), or
nobody is in it but us and our children. Otherwise limits cannot be enforced there, and the error says how to get such a group.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from sandbox.errors import InvalidOption, SetupFailed, Unsupported
from sandbox.runtime.init import cgroup
from sandbox.runtime.spec import Limits

BASE = "jupyter-sandbox"
"""The group below our own in which every container's group is."""
ENGINE = "jupyter-sandbox.engine"
"""The v2 leaf for the processes that were in our own group."""

Version = Literal[1, 2]
Places = Mapping[str, tuple[Version, str]]
"""Controller → cgroup version and directory; the controller "unified" is the v2 group itself."""

_CONTROLLERS = ("pids", "memory", "cpu", "cpuacct", "cpuset", "freezer")
_LABELS = {"memory": "memory limit", "memory_swap": "swap limit", "cpus": "CPU limit", "cpuset_cpus": "CPU set", "pids": "process limit"}
_CPU_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_PERIOD = 100_000
"""Microseconds; docker's and Linux's default scheduling period."""


@dataclass(frozen=True)
class Hierarchy:
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


@dataclass(frozen=True)
class Plan:
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
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, object]) -> Plan:
        """A plan that came as JSON (a container's state on disk)."""
        return cls(**{name: _frozen(value) for name, value in plain.items()})  # type: ignore[arg-type]  # as plain() gave them


@dataclass(frozen=True)
class Reading:
    """What a group has used so far: seconds, bytes, processes, events. None: this host does not tell."""

    cpu: float | None = None
    memory: int | None = None
    peak_memory: int | None = None
    pids: int | None = None
    peak_pids: int | None = None
    oom_kills: int | None = None
    pids_refused: int | None = None


# Limits ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Control:
    """One limit in one cgroup version: the file and what to write there (None: nothing asked). `limit`: the field of Limits."""

    limit: str
    controller: str
    file: str
    text: Callable[[Limits], str | None]
    when_missing: Literal["refuse", "implied"] = "refuse"
    """implied: goes without saying when only `memory` was asked, so a host without it is no error."""


def _swap_total(limits: Limits) -> int | None:
    """Memory and swap together; docker's default is twice the memory. -1: unlimited."""
    if limits.memory_swap is not None:
        return limits.memory_swap
    return None if limits.memory is None else 2 * limits.memory


def _swap_only(limits: Limits) -> str | None:
    total = _swap_total(limits)
    if total is None or limits.memory is None:
        return None
    return "max" if total < 0 else str(total - limits.memory)


def _quota(limits: Limits) -> str | None:
    return None if limits.cpus is None else str(max(1000, round(limits.cpus * _PERIOD)))  # Linux takes no less than 1 ms


def _text(value: object | None) -> str | None:
    return None if value is None else str(value)


def _pids(limits: Limits) -> str | None:
    return None if limits.pids is None else str(limits.pids) if limits.pids > 0 else "max"


V1 = (
    Control("memory", "memory", "memory.limit_in_bytes", lambda limits: _text(limits.memory)),
    Control("memory_swap", "memory", "memory.memsw.limit_in_bytes", lambda limits: _text(_swap_total(limits)), "implied"),
    Control("cpus", "cpu", "cpu.cfs_period_us", lambda limits: None if limits.cpus is None else str(_PERIOD)),
    Control("cpus", "cpu", "cpu.cfs_quota_us", _quota),
    Control("cpuset_cpus", "cpuset", "cpuset.cpus", lambda limits: limits.cpuset_cpus),
    Control("pids", "pids", "pids.max", _pids),
)
V2 = (
    Control("memory", "memory", "memory.max", lambda limits: _text(limits.memory)),
    Control("memory_swap", "memory", "memory.swap.max", _swap_only, "implied"),
    Control("cpus", "cpu", "cpu.max", lambda limits: None if limits.cpus is None else f"{_quota(limits)} {_PERIOD}"),
    Control("cpuset_cpus", "cpuset", "cpuset.cpus", lambda limits: limits.cpuset_cpus),
    Control("pids", "pids", "pids.max", _pids),
)

REPORTS: Mapping[Version, tuple[tuple[str, str, str, str, float], ...]] = {
    1: (
        ("cpu", "cpuacct", "cpuacct.usage", "", 1e-9),
        ("memory", "memory", "memory.usage_in_bytes", "", 1),
        ("peak_memory", "memory", "memory.max_usage_in_bytes", "", 1),
        ("oom_kills", "memory", "memory.oom_control", "oom_kill", 1),
        ("pids", "pids", "pids.current", "", 1),
        ("peak_pids", "pids", "pids.peak", "", 1),
        ("pids_refused", "pids", "pids.events", "max", 1),
    ),
    2: (
        ("cpu", "unified", "cpu.stat", "usage_usec", 1e-6),  # there without the cpu controller, in a hybrid too
        ("memory", "memory", "memory.current", "", 1),
        ("peak_memory", "memory", "memory.peak", "", 1),
        ("oom_kills", "memory", "memory.events", "oom_kill", 1),
        ("pids", "pids", "pids.current", "", 1),
        ("peak_pids", "pids", "pids.peak", "", 1),
        ("pids_refused", "pids", "pids.events", "max", 1),
    ),
}
"""Name → controller, file, key in the file, factor."""

_FREEZERS: Mapping[Version, tuple[str, tuple[str, str, str, str, str]]] = {
    2: ("unified", ("cgroup.freeze", "1", "0", "cgroup.events", "frozen 1")),
    1: ("freezer", ("freezer.state", "FROZEN", "THAWED", "freezer.state", "FROZEN")),
}


def _check(limits: Limits) -> None:
    """Raise InvalidOption for limits that cannot be meant."""
    swap, memory = limits.memory_swap, limits.memory
    if swap is not None and memory is None:
        raise InvalidOption("memory-swap: needs a memory limit as well", hint="--memory-swap is memory and swap together")
    if swap is not None and memory is not None and 0 <= swap < memory:
        raise InvalidOption(f"memory-swap {swap}: less than the memory limit {memory}", hint="it is memory and swap together")
    if limits.cpuset_cpus is not None and not _CPU_LIST.fullmatch(limits.cpuset_cpus):
        raise InvalidOption(f"cpuset-cpus {limits.cpuset_cpus!r}: not a list of CPUs", hint="write 0-2 or 0,3")


def _limit_rows(limits: Limits) -> Iterator[tuple[Version, Control, str]]:
    """Every row that has something to write for these limits, in both versions."""
    tables: tuple[tuple[Version, tuple[Control, ...]], ...] = ((1, V1), (2, V2))
    for version, table in tables:
        for control in table:
            if (text := control.text(limits)) is not None:
                yield version, control, text


def _is_implied(control: Control, limits: Limits) -> bool:
    """Whether nobody asked for this row: the swap limit beside a plain memory limit, or explicitly unlimited swap."""
    return control.when_missing == "implied" and (limits.memory_swap is None or limits.memory_swap < 0)


def _limit_writes(places: Places, limits: Limits, *, without: Mapping[str, str]) -> Iterator[tuple[Control, str, str]]:
    """(row, path, text) for the controllers in `places`, leaving out the limits named in `without`."""
    for version, control, text in _limit_rows(limits):
        place = places.get(control.controller)
        if place and place[0] == version and control.limit not in without:
            yield control, f"{place[1]}/{control.file}", text


# Planning ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
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
        controller = next(control.controller for control in V2 if control.limit == limit)
        found = [h for h in self.hierarchies if controller in h.controllers]
        if not found:
            return f"no {controller} cgroup controller here"
        if limit == "memory_swap" and found[0].version == 1 and not found[0].swap:
            return "Linux does not account swap here"
        return found[0].obstacle or found[0].crowd or None

    def plan(self, id: str, limits: Limits, *, allow_unenforced: bool = False) -> Plan:
        """The groups of container `id` and what to write for its limits. Pure.

        Raises Unsupported for a limit that cannot be enforced, unless `allow_unenforced`; then Plan.unenforced says which
        and why. InvalidOption for limits that contradict each other. Without limits a host without cgroups is no error.
        """
        _check(limits)
        asked = {control.limit: control for _, control, _ in _limit_rows(limits) if not _is_implied(control, limits)}
        without = {limit: why for limit in asked if (why := self.obstacle(limit))}
        if without and not allow_unenforced:
            raise _unsupported(*next(iter(without.items())), uid=os.geteuid())
        if self.obstacle("memory_swap"):
            without.setdefault("memory_swap", "")
        required = {control.controller for limit, control in asked.items() if limit not in without}
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
        for controller in _CONTROLLERS:
            h = next((h for h in self.hierarchies if controller in h.controllers and not h.obstacle), None)
            is_free = h is not None and not h.crowd and not h.evacuate
            if h and (controller in required or (controller in told and is_free)):
                yield controller, h


def _v2_first(hierarchies: tuple[Hierarchy, ...]) -> list[Hierarchy]:
    """cgroup.kill of the v2 group ends everything at once, so it goes first."""
    return sorted(hierarchies, key=lambda h: -h.version)


def _assemble(id: str, limits: Limits, used: Mapping[str, Hierarchy], required: set[str], without: Mapping[str, str]) -> Plan:
    trees = _v2_first(tuple(dict.fromkeys(used.values())))
    places: dict[str, tuple[Version, str]] = {name: (h.version, f"{h.base}/{BASE}/{id}") for name, h in used.items()}
    rows = tuple(_limit_writes(places, limits, without=without))
    unified = used.get("unified")
    moving = unified if unified and unified.evacuate and required & unified.controllers else None
    engine = f"{moving.base}/{ENGINE}" if moving else None
    into = places["unified"][1] if unified else None
    return Plan(
        id=id,
        directories=((engine,) if engine else ()) + tuple(d for h in trees for d in (f"{h.base}/{BASE}", f"{h.base}/{BASE}/{id}")),
        moves=((str(moving.base), engine),) if moving and engine else (),
        copies=_cpuset_copies(used, id),
        writes=_enabling(used) + tuple((path, text) for _, path, text in rows),
        optional=tuple(path for control, path, _ in rows if _is_implied(control, limits)),
        groups=tuple(f"{h.base}/{BASE}/{id}" for h in trees),
        joins=tuple(f"{h.base}/{BASE}/{id}/{'tasks' if h.version == 1 else 'cgroup.procs'}" for h in trees),
        into=into,
        slow_join=f"{into}/cgroup.procs" if into else None,
        report=_report(places),
        freezer=_freezer(places),
        places=tuple((name, version, path) for name, (version, path) in places.items()),
        unenforced=tuple(f"{_LABELS[limit]}: {why}" for limit, why in without.items() if why),
    )


def _enabling(used: Mapping[str, Hierarchy]) -> tuple[tuple[str, str], ...]:
    """v2: hand the controllers down, level by level. Writing what is enabled already costs nothing."""
    controllers = [name for name, h in used.items() if h.version == 2 and name != "unified"]
    if not controllers:
        return ()
    base, text = used[controllers[0]].base, " ".join(f"+{name}" for name in controllers)
    return (f"{base}/cgroup.subtree_control", text), (f"{base}/{BASE}/cgroup.subtree_control", text)


def _cpuset_copies(used: Mapping[str, Hierarchy], id: str) -> tuple[tuple[str, str], ...]:
    """v1: a new cpuset group is empty and takes nobody until it has CPUs and memory nodes, level by level."""
    h = used.get("cpuset")
    if not h or h.version == 2:
        return ()
    ours = f"{h.base}/{BASE}"
    down = tuple((f"{h.base}/{file}", f"{ours}/{file}") for file in ("cpuset.cpus", "cpuset.mems"))
    return (*down, (f"{ours}/cpuset.mems", f"{ours}/{id}/cpuset.mems"))


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
    for controller, (switch, frozen, thawed, told, word) in _FREEZERS.values():
        if controller in places:
            group = places[controller][1]
            return f"{group}/{switch}", frozen, thawed, f"{group}/{told}", word
    return ()


def _unsupported(limit: str, why: str, *, uid: int) -> Unsupported:
    delegated = "systemd-run --user --scope -p Delegate=yes jupyter lab"
    remedies = ["start it as root"] if uid else []
    remedies += [f"start it with `{delegated}`"] if uid or "not delegated" in why else []
    hint = ", ".join([*remedies, "or pass --allow-unenforced to run without it"]).removeprefix("or ")
    return Unsupported(f"{_LABELS[limit]}: {why}", feature=_LABELS[limit], hint=hint)


def _frozen(value: object) -> object:
    """JSON's lists as the tuples they were."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _subdirectories(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


# Acting ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cgroup:
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
        _check(limits)
        places: Places = {name: (version, path) for name, version, path in self.plan.places}
        for _, control, _ in _limit_rows(limits):
            if control.controller not in places and not _is_implied(control, limits):
                raise _unsupported(control.limit, "the container was started without it", uid=os.geteuid())
        writes = [(path, text, _is_implied(control, limits)) for control, path, text in _limit_writes(places, limits, without={})]
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
        cgroup.make(
            plan.directories, moves=plan.moves, copies=plan.copies, writes=plan.writes, optional=plan.optional, groups=plan.groups
        )
    except OSError as err:
        raise refused(err) from err
    return Cgroup(plan)


def reading(values: Mapping[str, float | None]) -> Reading:
    """The typed form of what init's `cgroup.read` returns (it may have travelled as JSON)."""
    whole = {name: None if (value := values.get(name)) is None else int(value) for name in _WHOLE}
    return Reading(cpu=values.get("cpu"), **whole)


_WHOLE = tuple(f.name for f in fields(Reading) if f.name != "cpu")


def refused(err: OSError) -> SetupFailed:
    """The error for a step of a plan that Linux refused: which limit it was, and Linux's own word for it."""
    file = os.path.basename(str(err.filename or ""))
    word = os.strerror(err.errno or 0).lower()
    control = next((row for row in V1 + V2 if row.file == file), None)
    if control is None:
        return SetupFailed(f"cgroup {err.filename}: {word}", hint="`sandbox doctor` says what this host allows")
    hint = "it must lie within the limits of the group the engine runs in" if err.errno != errno.ENOENT else "pass --allow-unenforced"
    return Unsupported(f"{_LABELS[control.limit]}: refused by Linux ({file}: {word})", feature=_LABELS[control.limit], hint=hint)


def _write_in_some_order(writes: list[tuple[str, str, bool]]) -> None:
    """v1 wants memory ≤ memory+swap at every moment: what is refused at first is tried once more after the others."""
    again = []
    for path, text, is_implied in writes:
        try:
            cgroup.write(path, text)
        except OSError as err:
            if err.errno == errno.EINVAL:
                again.append((path, text))
            elif not (is_implied and err.errno == errno.ENOENT):
                raise refused(err) from err
    for path, text in again:
        try:
            cgroup.write(path, text)
        except OSError as err:
            raise refused(err) from err


# Discovery ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mount:
    version: Version
    root: str
    """The directory of the tree that is mounted here (a container often sees only its own)."""
    target: str
    options: frozenset[str]


def discover(proc: Path = Path("/proc")) -> Layout:
    """The cgroup trees of this host as our own process sees them. `proc` may be a made-up tree (tests). Cheap: call it often."""
    mounts = tuple(_mounts((proc / "self/mountinfo").read_text()))
    found = (_hierarchy(line, mounts, proc) for line in (proc / "self/cgroup").read_text().splitlines())
    return Layout(tuple(h for h in found if h))


def _mounts(mountinfo: str) -> Iterator[_Mount]:
    """The cgroup lines of mountinfo (proc_pid_mountinfo(5)): … root target options … - type source super-options."""
    for line in mountinfo.splitlines():
        if " - cgroup" in line:
            left, _, right = line.partition(" - ")
            kind, _, super_options = right.split(" ", 2)
            _, _, _, root, target, *_ = left.split(" ")
            if kind in ("cgroup", "cgroup2"):
                version: Version = 2 if kind == "cgroup2" else 1
                yield _Mount(version, _unescaped(root), _unescaped(target), frozenset(super_options.split(",")))


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def _hierarchy(line: str, mounts: tuple[_Mount, ...], proc: Path) -> Hierarchy | None:
    """One line of /proc/self/cgroup (`4:memory:/a/b`, v2: `0::/a/b`) with the mount that shows it; None: not mounted, not of use."""
    number, controllers, path = line.split(":", 2)
    version: Version = 2 if number == "0" and not controllers else 1
    names = frozenset(controllers.split(",")) & frozenset(_CONTROLLERS)
    if version == 1 and not names:
        return None
    fitting = [m for m in mounts if m.version == version and names <= m.options] if version == 1 else [m for m in mounts if m.version == 2]
    for mount in fitting:
        if (below := _below(path, mount.root)) is not None:
            return _seen_from(Path(mount.target + below), Path(mount.target), version, names, proc)
    if not fitting:
        return None
    outside = Path(fitting[0].target)
    return Hierarchy(version, names, outside, outside, outside, obstacle="our own cgroup is outside the mounted tree")


def _below(path: str, root: str) -> str | None:
    """`path` as seen from a mount of `root`: "" for root itself; None when it is not below, or outside our cgroup namespace."""
    prefix = root.rstrip("/")
    is_below = (path + "/").startswith(prefix + "/") and "/.." not in path
    return path[len(prefix) :].rstrip("/") if is_below else None


def _seen_from(own: Path, mount: Path, version: Version, names: frozenset[str], proc: Path) -> Hierarchy:
    base = own.parent if version == 2 and own.name == ENGINE else own
    obstacle = _not_writable(base, version)
    if version == 1:
        swap = "memory" in names and os.path.exists(f"{base}/memory.memsw.limit_in_bytes")
        return Hierarchy(1, names, mount, own, base, swap=swap, obstacle=obstacle)
    offered = _words(f"{base}/cgroup.controllers") & frozenset(_CONTROLLERS)
    crowd, evacuate = _crowd(base, own == mount, proc) if offered and not obstacle else ("", False)
    return Hierarchy(2, offered, mount, own, base, swap=True, obstacle=obstacle, crowd=crowd, evacuate=evacuate)


def _words(path: str) -> frozenset[str]:
    try:
        with open(path, encoding="ascii") as file:
            return frozenset(file.read().split())
    except FileNotFoundError:
        return frozenset()


def _not_writable(base: Path, version: Version) -> str:
    """Why no group can be made below `base`; empty when one can. On v2 joining needs base's cgroup.procs as well."""
    needed = [str(base)] + ([f"{base}/cgroup.procs"] if version == 2 else [])
    needed += [ours] if os.path.isdir(ours := f"{base}/{BASE}") else []
    for path in needed:
        if not os.access(path, os.W_OK):
            return f"{path} is not writable by uid {os.geteuid()}" if os.path.exists(path) else f"{path} does not exist"
    return ""


def _crowd(base: Path, is_top: bool, proc: Path) -> tuple[str, bool]:
    """v2's no-internal-processes rule for `base`: (why controllers cannot be handed down, whether moving its processes helps)."""
    if not os.path.exists(f"{base}/cgroup.events"):  # only the true root has none; it is exempt from the rule
        return "", False
    pids = _words(f"{base}/cgroup.procs")
    if not pids:
        return "", False
    if is_top or _is_delegated(base) or _all_ours(pids, proc):
        return "", True
    return f"others are in {base} and it was not delegated to us", False


def _is_delegated(base: Path) -> bool:
    """systemd marks what it hands over (Delegate=yes): trusted.delegate for services, user.delegate since v251."""
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(base, name) == b"1":
                return True
        except OSError as err:
            if err.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
                raise
    return False


def _all_ours(pids: frozenset[str], proc: Path) -> bool:
    """Whether every process is this one or below it."""
    self_pid = (proc / "self/stat").read_text().split(" ", 1)[0]
    return all(_descends(pid, self_pid, proc) for pid in pids)


def _descends(pid: str, ancestor: str, proc: Path) -> bool:
    while pid not in ("0", "1", ancestor):
        try:
            stat = (proc / pid / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True  # ended since: nobody to be moved
        pid = stat.rpartition(")")[2].split()[1]
    return pid == ancestor
