"""Run containers: `Runtime` starts them and enters them; see runtime/running for one that runs."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any  # Any: plans and reports are JSON

import msgspec
from msgspec.structs import replace

from sandbox.errors import PortTaken, Unsupported, WrongState
from sandbox.hashing import sha256_hex
from sandbox.runtime import cgroups
from sandbox.runtime.init import files, procs, subids
from sandbox.runtime.plan import GROUP_ID, Handling, Site, another_ground, capabilities, has_left_host, make_plan, process_plan
from sandbox.runtime.running import OnOutput, Running, Streams, Wiring
from sandbox.runtime.spawner import Spawner, hand_over
from sandbox.runtime.spec import Completed, ContainerSpec, Limits, Process

if TYPE_CHECKING:
    from sandbox.runtime.network.bridges import Where
    from sandbox.runtime.network.networks import Networks
    from sandbox.runtime.security.filters import Filters

SPARES = "spares"
"""Below the engine's directory: locks of those who wait with a ground, named by container id."""
_FIRST_RANGE, _RANGES = 16, 32768
"""Id ranges start at 16 × 65536 (above what distributions hand out to users) and end below 2³¹."""


class Runtime:
    """Starts containers whose files are below `root`. `spawner`: a helper made before, closed with us. Thread-safe."""

    def __init__(self, root: Path, spawner: Spawner | None = None) -> None:
        self.root = root
        self._spawner = spawner or Spawner()
        self._discovery = cgroups.Discovery()

    @cached_property
    def _filters(self) -> Filters:
        from sandbox.runtime.security.filters import Filters  # the first container needs them, images do not

        return Filters(self.root / "seccomp")

    @cached_property
    def networks(self) -> Networks:
        """The networks containers can be in."""
        from sandbox.runtime.network.networks import Networks  # most runs have none

        return Networks(self.root, lambda container_id: files.is_locked(str(self.record(container_id))), self._where_bridges_are())

    def _where_bridges_are(self) -> Where:
        if os.geteuid() == 0:
            from sandbox.runtime.network.bridges import OnHost

            return OnHost()
        from sandbox.runtime.network.userspace import InHub

        return InHub(self.root, self._spawner)

    def close(self) -> None:
        """End the helper process; detached containers live on."""
        if "networks" in self.__dict__:
            self.networks.close()
        self._spawner.close()

    def warm(self) -> None:
        """Start the helper process now, and have it ready."""
        self._spawner.warm()

    def dismiss_spares(self) -> None:
        """Take away what was made ahead for the next container."""
        self._spawner.dismiss_spares()

    def run(self, spec: ContainerSpec, *, stdin: bytes | IO[bytes] | None = None, on_output: OnOutput | None = None) -> Completed:
        """Run `spec` to its end without keeping anything of it; output goes to `on_output`, else into the result.

        Raises SetupFailed when the container could not be set up. A KeyboardInterrupt ends the container first.
        """
        with self.start(spec, Handling(), Streams(stdin=stdin)) as running:
            return running.wait(on_output)

    @contextmanager
    def reserve(self) -> Iterator[Place]:
        """A place for a container that is still being made; unused it ends with the block."""
        spare = self._spawner.reserve_grounded()
        with spare.end:
            yield Place(self, spare.end, spare.container_id or new_id())

    def start(self, spec: ContainerSpec, handling: Handling, streams: Streams = Streams()) -> Running:
        """Start `spec`; raises SetupFailed or Unsupported. With `handling.detach` the result only knows the pid."""
        with self._spawner.reserve() as supervisor:
            return Place(self, supervisor, spec.id).start(spec, handling, streams)

    def _attached(self, spec: ContainerSpec) -> AbstractContextManager[dict[str, Any] | None]:
        """Its place in its network, given back when the block fails; None without one."""
        if not spec.places:
            return nullcontext()
        return self.networks.attached(spec, spec.dns or _name_servers(_resolv_conf()))

    def _plan(self, spec: ContainerSpec, handling: Handling, streams: Streams, network: dict[str, Any] | None) -> dict[str, Any]:
        record = self.record(spec.id)
        record.mkdir(parents=True, exist_ok=True)
        _make_devices(spec, record)
        if os.geteuid() != 0:
            from sandbox.runtime.twins import with_twins  # root's layers are seen through an idmapped mount

            spec = with_twins(self.root, spec)
        site = self._site(spec, record, network)
        if site.shares:
            spec = replace(spec, userns="private" if site.shares["idmap"] else "host")
        plan = make_plan(spec, site, handling)
        return {**plan, "window": streams.window, "detach_keys": streams.detach_keys.hex(), "may_leave": streams.may_leave}

    def exec(
        self,
        container: ContainerSpec,
        state: Mapping[str, Any],
        process: Process,
        streams: Streams = Streams(),
        *,
        handling: Handling = Handling(),
        grouped: bool = True,
    ) -> Running:
        """Start one more program in a running container, whose state.json says `state`; with `grouped` in its cgroups."""
        plan = {
            "pid": procs.entered_through(int(state["pid"])),
            "namespaces": state.get("namespaces", []),
            "joins": state.get("joins", []) if grouped else [],
            "into": state.get("into") if grouped else None,
            "process": process_plan(process, container, self._filter_for(container), _capabilities(container)),
            "window": streams.window,
            "detach_keys": streams.detach_keys.hex(),
            "detach": handling.detach,
            "interactive": handling.interactive,
            "log": None,
            "timeout": None,
            "cgroup": None,
        }
        with self._spawner.reserve() as supervisor:
            return _hand_over(supervisor, "exec", plan, streams, Limits(), None, self._spawner.restock)

    def attach(self, container: ContainerSpec, name: str, streams: Streams) -> Running:
        """Take part in a running container: get what it prints from now on, type into it. WrongState when that cannot be."""
        from sandbox.runtime.attaching import attach  # only one verb needs it

        return attach(str(self.record(container.id)), name, container, streams)

    def record(self, container_id: str) -> Path:
        """The directory of a container."""
        return self.root / "containers" / container_id

    def cgroup_plan(self, spec: ContainerSpec) -> tuple[cgroups.Plan, bool]:
        """The container's groups, and whether the host has only v2; raises Unsupported for a limit that cannot be enforced."""
        layout = self._discovery.layout(self._spawner.place)
        try:
            plan = layout.plan(cgroup_name(self.root, spec.id), spec.limits, allow_unenforced=spec.allow_unenforced)
        except Unsupported as err:
            if self._spawner.complaint:
                err.args = (f"{err}; {self._spawner.complaint}",)
            raise
        return plan, all(h.version == 2 for h in layout.hierarchies)

    def _site(self, spec: ContainerSpec, record: Path, network: dict[str, Any] | None) -> Site:
        group, v2_only = self.cgroup_plan(spec)
        return Site(
            store=str(self.root),
            record=str(record),
            privileged=os.geteuid() == 0,
            id_base=id_base(spec.id),
            uid=os.geteuid(),
            gid=os.getegid(),
            resolv_conf=_resolv_conf(),
            network=network,
            shares=self._shared(spec),
            cgroup=group.plain() if group.groups else None,
            cgroup2_only=v2_only,
            seccomp=self._filter_for(spec),
            capabilities=_capabilities(spec),
            subids=None if os.geteuid() == 0 else subids.find(os.geteuid(), os.getegid()),
        )

    def _restock_like(self, plan: Mapping[str, Any], spec: ContainerSpec) -> None:
        """Make the ground for the next container, which is likely to be like this one."""
        container_id = new_id()
        base = id_base(container_id) if os.geteuid() == 0 and spec.userns == "private" else None
        lock = self.root / SPARES / container_id
        self._spawner.restock_grounded(container_id, lock, lambda: another_ground(plan, container_id, base))

    def _shared(self, spec: ContainerSpec) -> dict[str, Any] | None:
        """What a container has of the one whose network it has, too; WrongState when that does not run."""
        if not spec.shares_with:
            return None
        directory = str(self.record(spec.shares_with))
        state = files.read_json(f"{directory}/state.json") or {}
        if state.get("status") != "running" or not files.is_locked(directory):
            name = (files.read_json(f"{directory}/config.json") or {}).get("name", spec.shares_with[:12])
            message = f"--network container:{name}: cannot join the network of a container that is not running"
            raise WrongState(message, wanted="running", actual="exited", hint=f"sandbox start {name}")
        return {"directory": directory, **state["shares"]}

    def _filter_for(self, spec: ContainerSpec) -> bytes:
        """The compiled seccomp filter; empty for none."""
        if spec.privileged or spec.seccomp == "unconfined":
            return b""
        profile = self._filters.default_profile if spec.seccomp == "default" else spec.seccomp.encode()
        return self._filters.filter_for(profile, _capabilities(spec))


class Place(msgspec.Struct, frozen=True):
    """Where one container can be started: its supervisor came up while the container was still being made. `container_id`: what it should
    be called; a ground (init/ground) may have been made for one of that name."""

    _runtime: Runtime
    _supervisor: socket.socket
    container_id: str

    def start(self, spec: ContainerSpec, handling: Handling, streams: Streams = Streams()) -> Running:
        """As Runtime.start; once."""
        with self._runtime._attached(spec) as network:
            plan = self._runtime._plan(spec, handling, streams, network)
            try:
                return _hand_over(self._supervisor, "run", plan, streams, spec.limits, spec.timeout, self._restock(plan, spec))
            except PortTaken as err:
                from sandbox.runtime.network.ports import owner_of

                owner = owner_of(self._runtime.root, err.port, err.protocol)
                raise PortTaken(f"{err}{owner and f' by {owner}'}", port=err.port, protocol=err.protocol) from err

    def _restock(self, plan: Mapping[str, Any], spec: ContainerSpec) -> Callable[[], object]:
        """How to make what the next container needs."""
        is_next_alike = not plan["detach"] and has_left_host(plan) and not spec.shares_with
        return partial(self._runtime._restock_like, plan, spec) if is_next_alike else self._runtime._spawner.restock


def _hand_over(
    supervisor: socket.socket,
    job: str,
    plan: Mapping[str, Any],
    streams: Streams,
    limits: Limits,
    timeout: float | None,
    restock: Callable[[], object],
) -> Running:
    """Have a supervisor start what is planned; the connection is the result's own from now on. `restock` makes what the next one needs,
    while this one runs."""
    with ExitStack() as opened:
        wiring = Wiring(streams, opened)
        hand_over(supervisor, job, plan, wiring.theirs)
        wiring.close_theirs()
        running = Running(opened.enter_context(socket.socket(fileno=supervisor.detach())), wiring, limits, timeout)
        running._wait_started()
        restock()
        opened.pop_all()
    return running


def _capabilities(spec: ContainerSpec) -> tuple[str, ...]:
    """What its processes hold; our own bounding set limits it in our own user namespace."""
    status = Path("/proc/self/status").read_text() if spec.userns == "host" else "CapBnd: 0"
    return capabilities(spec, int(status.partition("CapBnd:")[2].split()[0], 16))


def _name_servers(resolv_conf: str) -> list[str]:
    """The addresses in it."""
    return [line.split()[1] for line in resolv_conf.splitlines() if line.startswith("nameserver") and len(line.split()) > 1]


def _resolv_conf() -> str:
    """The host's; where that only asks systemd-resolved on loopback, what systemd-resolved asks."""
    text = _read_text("/etc/resolv.conf")
    servers = [line.split()[1] for line in text.splitlines() if line.startswith("nameserver ")]
    return (_read_text("/run/systemd/resolve/resolv.conf") or text) if servers == ["127.0.0.53"] else text


def _make_devices(spec: ContainerSpec, record: Path) -> None:
    """Nodes of the container's own for --device: the host's belong to a root that is nobody inside. Nothing without privileges."""
    if os.geteuid() != 0 or spec.userns == "host" or not spec.devices:
        return
    place = record / "devices"
    place.mkdir(exist_ok=True)
    for number, device in enumerate(spec.devices):
        found = os.stat(device.source)
        node = place / str(number)
        node.unlink(missing_ok=True)
        os.mknod(node, stat.S_IFMT(found.st_mode) | 0o660, found.st_rdev)


def new_id() -> str:
    """A container's: 64 random hex digits."""
    return os.urandom(32).hex()


def cgroup_name(root: Path, container_id: str) -> str:
    """The container's group: a mark of the engine's root first, so that two engines leave each other's groups alone."""
    return f"{engine_mark(root)}.{container_id[:GROUP_ID]}"


@lru_cache
def engine_mark(root: Path) -> str:
    """Eight characters that stand for this state directory."""
    return sha256_hex(os.fsencode(root.resolve()))[:8]


def id_base(container_id: str) -> int:
    """The first host id of a container's range: drawn from its random id, so two containers hardly ever share one."""
    return (_FIRST_RANGE + int(container_id[:8], 16) % (_RANGES - _FIRST_RANGE)) * 65536


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
