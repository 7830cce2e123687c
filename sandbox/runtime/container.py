"""Run containers: `Runtime` starts them and enters them, `Running` is one that its caller is attached to."""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Self  # Any: plans and reports are JSON

import msgspec
from msgspec.structs import replace

from sandbox.errors import PortTaken, SetupFailed, Unsupported
from sandbox.runtime import cgroups
from sandbox.runtime.init import files, link, procs, subids
from sandbox.runtime.plan import GROUP_ID, Handling, Site, another_ground, capabilities, has_left_host, make_plan, process_plan
from sandbox.runtime.spawner import Spawner, hand_over
from sandbox.runtime.spec import Completed, ContainerSpec, Limits, Process, Usage, Why

if TYPE_CHECKING:
    from sandbox.runtime.network.networks import Networks
    from sandbox.runtime.security.seccomp import Filters

Stream = Literal["stdout", "stderr"]
OnOutput = Callable[[Stream, bytes], None]

SPARES = "spares"
"""Below the engine's directory: locks of those who wait with a ground, named by container id."""
_CHUNK = 65536
_MIB = 1 << 20
_FIRST_RANGE, _RANGES = 16, 32768
"""Id ranges start at 16 × 65536 (above what distributions hand out to users) and end below 2³¹."""
_OVERRUN = 0.5
"""Seconds after the time is up in which bytes that have come are still taken."""
_LONGEST_WAIT = 1.0
"""Seconds. A SIGINT that comes just before poll(2) sleeps does not wake it (signal-safety of CPython): Python looks at least this often."""
_ESCALATION = ((signal.SIGINT, 2.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, 10.0))
"""What an interrupt sends, and how many seconds it waits before the next."""


class Streams(msgspec.Struct, frozen=True):
    """What a program's 0, 1 and 2 are connected to. None: /dev/null for stdin, a pipe that is read for the others.
    `window`: rows and columns its terminal, if it gets one, has from the start. `channel`: what its descriptor 3 is; none without.
    `detach_keys`: typed on a terminal, they end the attachment and not the program; empty: nothing does. `may_leave`: `detach` is
    possible; without it a program that nobody else hears writes into the descriptors themselves."""

    stdin: int | bytes | IO[bytes] | None = None
    stdout: int | None = None
    stderr: int | None = None
    window: tuple[int, int] | None = None
    channel: int | None = None
    detach_keys: bytes = b""
    may_leave: bool = False


class Runtime:
    """Starts containers whose files are below `root`. `spawner`: a helper made before, closed with us. Thread-safe."""

    def __init__(self, root: Path, spawner: Spawner | None = None) -> None:
        self.root = root
        self._spawner = spawner or Spawner()
        self._discovery = cgroups.Discovery()

    @cached_property
    def _filters(self) -> Filters:
        from sandbox.runtime.security.seccomp import Filters  # the first container needs them, images do not

        return Filters(self.root / "seccomp")

    @cached_property
    def networks(self) -> Networks:
        """The networks containers can be in."""
        from sandbox.runtime.network.networks import Networks  # most runs have none

        return Networks(self.root, lambda container_id: files.is_locked(str(self.record(container_id))))

    def close(self) -> None:
        """End the helper process; detached containers live on."""
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
        if spec.network in ("none", "host"):
            return nullcontext()
        if os.geteuid() != 0:
            from sandbox.runtime.network import userspace

            return userspace.attached(self.root, spec, spec.dns or _name_servers(_resolv_conf()))
        return self.networks.attached(spec, spec.dns or _name_servers(_resolv_conf()))

    def _plan(self, spec: ContainerSpec, handling: Handling, streams: Streams, network: dict[str, Any] | None) -> dict[str, Any]:
        record = self.record(spec.id)
        record.mkdir(parents=True, exist_ok=True)
        _make_devices(spec, record)
        if os.geteuid() != 0:
            from sandbox.runtime.twins import with_twins  # root's layers are seen through an idmapped mount

            spec = with_twins(self.root, spec)
        plan = make_plan(spec, self._site(spec, record, network), handling)
        return {**plan, "window": streams.window, "detach_keys": streams.detach_keys.hex(), "may_leave": streams.may_leave}

    def exec(
        self, container: ContainerSpec, pid: int, process: Process, streams: Streams = Streams(), *, handling: Handling = Handling()
    ) -> Running:
        """Start one more program in the running container whose init is `pid`."""
        state = files.read_json(str(self.record(container.id) / "state.json")) or {}
        plan = {
            "pid": procs.entered_through(pid),
            "namespaces": state.get("namespaces", []),
            "joins": state.get("joins", []),
            "into": state.get("into"),
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
            running = _hand_over(supervisor, "exec", plan, streams, Limits(), None)
        running.finally_do(self._spawner.restock)
        return running

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
                running = _hand_over(self._supervisor, "run", plan, streams, spec.limits, spec.timeout)
            except PortTaken as err:
                from sandbox.runtime.network.ports import owner_of

                owner = owner_of(self._runtime.root, err.port, err.protocol)
                raise PortTaken(f"{err}{owner and f' by {owner}'}", port=err.port, protocol=err.protocol) from err
        runtime = self._runtime
        is_next_alike = not handling.detach and has_left_host(plan)
        running.finally_do(partial(runtime._restock_like, plan, spec) if is_next_alike else runtime._spawner.restock)
        return running


def _hand_over(
    supervisor: socket.socket, job: str, plan: Mapping[str, Any], streams: Streams, limits: Limits, timeout: float | None
) -> Running:
    """Have a supervisor start what is planned; the connection is the result's own from now on."""
    with ExitStack() as opened:
        wiring = Wiring(streams, opened)
        hand_over(supervisor, job, plan, wiring.theirs)
        wiring.close_theirs()
        running = Running(opened.enter_context(socket.socket(fileno=supervisor.detach())), wiring, limits, timeout)
        running._wait_started()
        opened.pop_all()
    return running


class Wiring:
    """Pipes between the caller and the program."""

    def __init__(self, streams: Streams, opened: ExitStack) -> None:
        self.theirs: list[int] = []
        self._close: list[int] = []
        self.feed: bytes | None = None
        self.stdin = -1
        self.outputs: dict[int, Stream] = {}
        opened.callback(self.close)
        self._wire_stdin(streams.stdin)
        self._wire_output("stdout", streams.stdout)
        self._wire_output("stderr", streams.stderr)
        self.theirs += [] if streams.channel is None else [streams.channel]

    def _wire_stdin(self, stdin: int | bytes | IO[bytes] | None) -> None:
        if isinstance(stdin, int):
            self.theirs.append(stdin)
        elif stdin is None:
            self.theirs.append(self._keep(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)))
        elif isinstance(stdin, bytes):
            read_end, self.stdin = os.pipe()
            os.set_blocking(self.stdin, False)
            self.theirs.append(self._keep(read_end))
            self.feed = stdin
        else:
            self.theirs.append(stdin.fileno())

    def _wire_output(self, name: Stream, fd: int | None) -> None:
        if fd is not None:
            self.theirs.append(fd)
            return
        read_end, write_end = os.pipe()
        self.outputs[read_end] = name
        self.theirs.append(self._keep(write_end))

    def _keep(self, fd: int) -> int:
        self._close.append(fd)
        return fd

    def close_theirs(self) -> None:
        """The program has its ends now; ours of them would keep the pipes open for ever."""
        while self._close:
            os.close(self._close.pop())

    def write_stdin(self) -> None:
        """One piece of stdin; closes it after the last, or when the program stopped reading."""
        assert self.feed is not None
        try:
            written = os.write(self.stdin, self.feed[:_CHUNK])
        except BlockingIOError:
            return
        except BrokenPipeError:
            written = len(self.feed)
        self.feed = self.feed[written:]
        if not self.feed:
            self.close_stdin()

    def close_stdin(self) -> None:
        """No more input."""
        os.close(self.stdin)
        self.stdin = -1

    def close(self) -> None:
        """Close every end of ours."""
        self.close_theirs()
        if self.stdin >= 0:
            self.close_stdin()
        for fd in list(self.outputs):
            os.close(fd)
            del self.outputs[fd]


class Running(msgspec.Struct):
    """A started container or exec that its caller is attached to. Leaving the context ends what still runs."""

    _client: socket.socket
    _wiring: Wiring
    _limits: Limits
    _timeout: float | None
    pid: int = 0
    _result: dict[str, Any] | None = None
    _captured: dict[Stream, list[bytes]] = msgspec.field(default_factory=lambda: {"stdout": [], "stderr": []})
    _attended: dict[int, Callable[[], object]] = msgspec.field(default_factory=dict)
    _after: Callable[[], object] | None = None
    is_guest: bool = False
    """Whether somebody else started it: then it goes on without us."""
    takes_input: bool = True
    """Whether what is given as stdin reaches the program."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def refused(self) -> Completed | None:
        """The result when the program could not be started (126, 127); None when it was."""
        return self._completed() if self._result and self._result["event"] == "refused" else None

    def close(self) -> None:
        """Let go: a container that still runs attached is killed by its supervisor, a detached one goes on."""
        self._client.close()
        self._wiring.close()
        self.prepare_next()

    def prepare_next(self) -> None:
        """Make what the next container needs now, not when this one has ended: for one that runs long."""
        after, self._after = self._after, None
        if after is not None:
            after()

    def finally_do(self, action: Callable[[], object]) -> None:
        """Something to do once it is let go."""
        self._after = action

    def signal(self, number: int) -> None:
        """Send a signal to the program; nothing happens when it has ended."""
        self._tell({"signal": number})

    def interrupt_group(self) -> None:
        """SIGINT to the program's process group, as a terminal sends it: to the program and what it started. Nothing when it has ended."""
        try:
            os.killpg(procs.program_of(self.pid), signal.SIGINT)
        except OSError:
            self.signal(signal.SIGINT)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the program's terminal its size."""
        self._tell({"size": [rows, columns]})

    def detach(self) -> None:
        """Leave: it goes on without us. `wait` then says `detached`."""
        self._tell({"detach": True})

    def _tell(self, message: Mapping[str, Any]) -> None:
        try:
            link.send(self._client, message)
        except (BrokenPipeError, ConnectionResetError):
            return  # it has ended; wait() says how

    def _wait_started(self) -> None:
        message, _ = link.receive(self._client)
        if message is None:
            raise SetupFailed("supervisor: ended before the container started")
        if message["event"] == "started":
            self.pid = int(message["pid"])
        else:
            self._result = message
            raise_refused(message)

    def wait(self, on_output: OnOutput | None = None) -> Completed:
        """Until the container has ended and nothing of it is left; with output captured unless `on_output` takes it.

        On KeyboardInterrupt the program gets SIGINT, two seconds later SIGTERM, then SIGKILL (nothing when somebody else started it);
        then it is raised again.
        """
        take = on_output or self._capture
        try:
            self._pump(take, None)
        except KeyboardInterrupt:
            if not self.is_guest:
                self._end_interrupted(take)
            raise
        return self._completed()

    @property
    def ended(self) -> bool:
        """Whether its end has been reported, as far as `serve` and `wait` have looked."""
        return self._result is not None

    def attend(self, fd: int, ready: Callable[[], object]) -> None:
        """Call `ready` from `serve` and `wait` whenever `fd` can be read; it calls `unattend` at the end of the file."""
        self._attended[fd] = ready

    def unattend(self, fd: int) -> None:
        """Undo `attend`."""
        self._attended.pop(fd, None)

    def serve(self, on_output: OnOutput, until: Callable[[], bool], *, timeout: float | None = None) -> bool:
        """Move bytes until `until()`; False when the container has ended or the time is up before that."""
        return self._pump(on_output, None if timeout is None else time.monotonic() + timeout, until) and until()

    def drain(self, on_output: OnOutput) -> None:
        """Take what the program has printed until now, and no more: it may print faster than this reads."""
        for fd in list(self._wiring.outputs):
            left = _waiting_in(fd)
            while left > 0:
                left -= self._read_output(fd, on_output)

    def end(self) -> None:
        """Kill it, wait until nothing of it is left, and let go."""
        self._attended.clear()
        if self._result is None:
            self.signal(signal.SIGKILL)
            self._pump(lambda stream, data: None, time.monotonic() + _ESCALATION[-1][1], lambda: self._result is not None)
        self.close()

    def _end_interrupted(self, take: OnOutput) -> None:
        for number, patience in _ESCALATION:
            self.signal(number)
            if self._pump(take, time.monotonic() + patience):
                return

    def _capture(self, stream: Stream, data: bytes) -> None:
        self._captured[stream].append(data)

    def _pump(self, take: OnOutput, deadline: float | None, until: Callable[[], bool] = lambda: False) -> bool:
        """Move bytes until the supervisor has reported the end and the pipes are empty, or `until()`; False when time ran out, also
        when there are always more of them."""
        while (self._result is None or self._wiring.outputs) and not until():
            left = _LONGEST_WAIT if deadline is None else max(0.0, deadline - time.monotonic())
            ready = self._poll().poll(min(left, _LONGEST_WAIT) * 1000)
            for fd, _ in ready:
                self._serve(fd, take)
            if deadline is not None and time.monotonic() >= deadline + (_OVERRUN if ready else 0.0):
                return False
        return True

    def _poll(self) -> select.poll:
        poll = select.poll()
        if self._result is None:
            poll.register(self._client.fileno(), select.POLLIN)
        for fd in (*self._wiring.outputs, *self._attended):
            poll.register(fd, select.POLLIN)
        if self._wiring.stdin >= 0:
            poll.register(self._wiring.stdin, select.POLLOUT)
        return poll

    def _serve(self, fd: int, take: OnOutput) -> None:
        if fd == self._wiring.stdin:
            self._wiring.write_stdin()
        elif fd in self._wiring.outputs:
            self._read_output(fd, take)
        elif fd in self._attended:
            self._attended[fd]()
        elif fd == self._client.fileno() and self._result is None:
            message, _ = link.receive(self._client)
            self._result = message or {"event": "lost"}

    def _read_output(self, fd: int, take: OnOutput) -> int:
        """Pass one piece on; the number of its bytes, and nothing more comes when that is 0."""
        stream = self._wiring.outputs[fd]
        data = os.read(fd, _CHUNK)
        if data:
            take(stream, data)
        else:
            os.close(fd)
            del self._wiring.outputs[fd]
        return len(data)

    def _completed(self) -> Completed:
        assert self._result is not None
        done = completed(self._result, self._limits, self._timeout)
        return replace(done, stdout=b"".join(self._captured["stdout"]), stderr=b"".join(self._captured["stderr"]))


def _waiting_in(fd: int) -> int:
    """The bytes that can be read of a pipe or terminal at once."""
    import fcntl
    import struct
    import termios

    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0])


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
    import hashlib  # start-up time

    return hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]


def id_base(container_id: str) -> int:
    """The first host id of a container's range: drawn from its random id, so two containers hardly ever share one."""
    return (_FIRST_RANGE + int(container_id[:8], 16) % (_RANGES - _FIRST_RANGE)) * 65536


def raise_refused(message: Mapping[str, Any]) -> None:
    """The error for a supervisor's `refused`: 126 and 127 are results, not errors, and pass."""
    if message["event"] == "lost":
        raise SetupFailed("supervisor: killed while the container was set up")
    if message["code"] == 125:
        if message.get("taken"):
            raise PortTaken(message["message"], port=message["taken"][0], protocol=message["taken"][1])
        if message.get("errno") in (1, 38, 95):  # EPERM, ENOSYS, EOPNOTSUPP
            raise Unsupported(
                message["message"], feature=str(message.get("step")), hint="run `sandbox doctor` to see what this host allows"
            )
        raise SetupFailed(message["message"])


def completed(report: Mapping[str, Any], limits: Limits, timeout: float | None) -> Completed:
    """A supervisor's last report, or a container's state.json, as Completed."""
    if report["event"] == "refused":
        return Completed(exit_code=int(report["code"]), why="exited", reason=str(report["message"]))
    if report["event"] == "detached":
        return Completed(exit_code=0, why="detached", reason="detached: it goes on")
    if report["event"] == "lost":
        return Completed(exit_code=137, why="lost", signal=9, reason="its supervisor was killed")
    code = os.waitstatus_to_exitcode(report["wait_status"])
    number = -code if code < 0 else None
    why, reason = _explain(code, report, limits, timeout)
    exit_code = 124 if why == "timeout" else 128 + number if number else code
    denied = tuple(report.get("denied", ()))
    return Completed(exit_code=exit_code, why=why, reason=reason, signal=number, usage=_usage(report), denied=denied)


def _usage(report: Mapping[str, Any]) -> Usage:
    used = cgroups.reading(report["used"])
    return Usage(
        wall=float(report["wall"]), cpu=used.cpu, peak_memory=used.peak_memory, peak_pids=used.peak_pids, throttled=used.throttled,
        io_read=used.io_read, io_written=used.io_written, cpu_stall=used.cpu_stall, memory_stall=used.memory_stall, io_stall=used.io_stall,
    )  # fmt: skip


def _explain(code: int, report: Mapping[str, Any], limits: Limits, timeout: float | None) -> tuple[Why, str]:
    """Why a container ended, most telling first."""
    ending, used = report["ending"], report["used"]
    if ending == "timeout":
        return "timeout", f"stopped: ran longer than --timeout {timeout:g}s"
    if ending == "interrupted":
        return "interrupted", "interrupted"
    if ending == "disk":
        return "disk", f"disk full: wrote more than --storage-opt size={_mib(report['storage_size'])}"
    if ending == "output":
        return "output", f"stopped: printed more than --output-limit {_mib(report['output_limit'])}"
    if code != 0 and used.get("oom_kills"):
        return "oom", f"out of memory: killed at the {_mib(limits.memory)} limit"
    if code != 0 and used.get("pids_refused"):
        return "pids", f"process limit reached (--pids-limit {limits.pids})"
    if code < 0:
        return "signal", f"killed by {signal.Signals(-code).name}"
    return "exited", ""


def _mib(size: int | None) -> str:
    if size is None:
        return "host's"
    return f"{size // _MIB} MiB" if size % _MIB == 0 else f"{size / _MIB:.1f} MiB"


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
