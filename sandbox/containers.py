"""Container: what can be asked of one container, running or not. Every property reads the disk afresh."""

from __future__ import annotations

import io
import os
import posixpath
import select
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal  # Any: JSON of state.json and inspect

from msgspec.structs import replace

from sandbox import networking
from sandbox.errors import ContainerNotFound, WrongState
from sandbox.image.store import Image
from sandbox.records import ALIVE, Record, State, Status
from sandbox.runtime.cgroups import Cgroup, Plan
from sandbox.runtime.ending import completed
from sandbox.runtime.init import control, link, procs
from sandbox.runtime.plan import Handling
from sandbox.runtime.running import OnOutput, Running, Streams
from sandbox.runtime.spec import Completed, Endpoint, Limits, Pack, Port, Process, Usage

if TYPE_CHECKING:
    from sandbox.engine import Engine
    from sandbox.logs import LogLine
    from sandbox.measuring import ProcessRow, Stats
    from sandbox.session.interpreter import Interpreter

_KILL = signal.SIGKILL


class Container:
    """A container as it stands on disk; two processes see the same."""

    def __init__(self, engine: Engine, record: Record) -> None:
        self._engine = engine
        self._record = record
        self.id = record.id
        self.name = record.name
        self.image_name = record.image_name
        self.image_id = record.image_id
        self.command: tuple[str, ...] = record.spec.process.argv
        self.labels: Mapping[str, str] = record.labels
        self.created = datetime.fromtimestamp(record.created, UTC)
        self.stop_timeout = record.stop_timeout

    def __repr__(self) -> str:
        return f"<Container {self.name} {self.id[:12]} {self.status}>"

    @property
    def _directory(self) -> Path:
        return self._engine._records.directory(self.id)

    @property
    def _state(self) -> State:
        return self._engine._records.state(self.id)

    @property
    def status(self) -> Status:
        """created, running or exited."""
        return self._state.status

    @property
    def pid(self) -> int | None:
        """The host's process id of its init while it runs."""
        state = self._state
        return int(state.facts["pid"]) if state.has_processes else None

    @property
    def takes_input(self) -> bool:
        """Whether it was made with a stdin that can be typed into (-i)."""
        return self._record.interactive

    @property
    def started(self) -> datetime | None:
        """When its program last started."""
        return _time(self._state.facts.get("started"))

    @property
    def finished(self) -> datetime | None:
        """When it last ended."""
        return _time(self._state.facts.get("finished"))

    @property
    def completed(self) -> Completed | None:
        """How it ended, without its output; None before that."""
        state = self._state
        if state.status != "exited":
            return None
        facts = {**state.facts, "event": "lost"} if state.lost else state.facts
        return completed(facts, self._record.spec.limits, self._record.spec.timeout)

    @property
    def health(self) -> Literal["none", "starting", "healthy", "unhealthy"]:
        """What its health check said last; `none` without one."""
        facts = self._state.facts.get("health")
        return facts["status"] if facts else "none"

    @property
    def address(self) -> str | None:
        """Its address in its (first) network while it runs."""
        return next((place["address"] for place in (self._network or {}).get("places", ())), None)

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of those it is in."""
        self._look_again()
        return tuple(endpoint.network for endpoint in self._record.spec.places)

    @property
    def ports(self) -> tuple[Port, ...]:
        """What is published while it runs, with the ports of this machine that were free."""
        return tuple(Port(**each) for each in (self._network or {}).get("ports", ()))

    @property
    def _network(self) -> Mapping[str, Any] | None:
        state = self._state
        return state.facts.get("network") if state.has_processes else None

    def describe_status(self, now: datetime) -> str:
        """docker's words: `Up 5 minutes`, `Exited (1) 3 seconds ago`, `Created`."""
        status = self.status
        if status in ("running", "paused"):
            health = {"none": "", "starting": " (health: starting)"}.get(self.health, f" ({self.health})")
            return f"Up {_ago(now - (self.started or now))}{' (Paused)' if status == 'paused' else health}"
        if status == "restarting":
            return f"Restarting {_ago(now - (self.finished or now))} ago"
        done = self.completed
        if status == "created" or done is None:
            return "Created"
        return f"Exited ({done.exit_code}) {_ago(now - (self.finished or now))} ago"

    # life

    def start(self) -> None:
        """Start it in the background; WrongState when it runs."""
        self._engine._starter.start_detached(self._record)

    def stop(self, timeout: float | None = None, *, signal: int | None = None) -> None:
        """Send `signal` (None: its stop signal) and, `timeout` seconds later (None: its --stop-timeout), SIGKILL; returns when it has
        ended, for good."""
        self._forbid_restart()
        if self.status == "restarting":
            self._wait_ended(None)
        if not self._signal(self._record.spec.stop_signal if signal is None else signal, thaw=True):
            self._wait_ended(None)  # its program may have ended just now, and its supervisor not yet
            return
        if not self._wait_ended(self.stop_timeout if timeout is None else timeout):
            self._signal(_KILL, thaw=True)
            self._wait_ended(None)
        self._note("stop")

    def restart(self, timeout: float | None = None, *, signal: int | None = None) -> None:
        """stop(timeout, signal=signal), if it runs, and start."""
        self.stop(timeout, signal=signal)
        self.start()
        self._note("restart")

    def kill(self, signal: int = signal.SIGKILL) -> None:
        """Send a signal to its program (SIGKILL ends the whole container); WrongState when it does not run."""
        is_last = signal in (_KILL, self._record.spec.stop_signal)
        if is_last:
            self._forbid_restart()
        if not self._signal(signal, thaw=is_last):
            raise WrongState(f"container {self.name}: is not running", wanted="running", actual=self.status)

    def _note(self, action: str, **more: object) -> None:
        self._engine._starter.note(self._record, action, **more)

    def wait(self, timeout: float | None = None) -> Completed:
        """Until it has ended; TimeoutError after `timeout` seconds."""
        if not self._wait_ended(timeout):
            raise TimeoutError(f"container {self.name}: still runs after {timeout:g} s" if timeout is not None else "")
        done = self.completed
        if done is None:
            raise WrongState(f"container {self.name}: was never started", wanted="running", actual=self.status)
        return done

    def remove(self, *, force: bool = False, volumes: bool = False) -> None:
        """Remove it with all it wrote, but for its volumes: with `volumes` those without a name go too. WrongState while it runs, unless
        `force` ends it first."""
        while True:
            if self.status in ALIVE and force:
                self._forbid_restart()
                self._signal(_KILL, thaw=True)
                self._wait_ended(None)
            try:
                self._engine._starter.remove(self._record, force=force)
                break
            except WrongState as err:
                if not force:  # else somebody started it in this moment
                    message = f"container {self.name}: is running"
                    raise WrongState(message, wanted="exited", actual=err.actual, hint="stop it first, or use --force") from None
        if volumes:
            self._engine.volumes.remove_anonymous([mount.source for mount in self._record.spec.mounts])

    def pause(self) -> None:
        """Stop all its processes where they are; WrongState when it does not run, Unsupported without a freezer."""
        self._want("running")
        self._cgroup.freeze()
        self._note("pause")

    def unpause(self) -> None:
        """Let them go on; WrongState when it is not paused."""
        self._want("paused")
        self._cgroup.thaw()
        self._note("unpause")

    def rename(self, name: str) -> None:
        """Give it another name; ContainerError when another container has it."""
        with self._changing():
            before = self.name
            self._record = self._engine._records.rename(self._record, name)
            self.name = name
            spec = networking.renamed(self._engine._runtime, self._record, before)
            self._record = self._engine._records.change(self._record, spec, self._record.restart)
        self._note("rename")

    def connect(
        self,
        network: str,
        *,
        alias: Sequence[str] = (),
        ip: str | None = None,
        ip6: str | None = None,
        mac_address: str | None = None,
        priority: int = 0,
    ) -> None:
        """Put it into one more network, at once while it runs. NetworkNotFound, NetworkError, WrongState, InvalidOption."""
        endpoint = Endpoint(network, ip, ip6, mac_address, tuple(alias), priority)
        with self._changing():
            self._record = networking.connect(self._engine._runtime, self._engine._records, self._record, endpoint)
        self._note("connect", network=network)

    def disconnect(self, network: str) -> None:
        """Take it out of a network, at once while it runs. ContainerError when it is not in it."""
        with self._changing():
            self._record = networking.disconnect(self._engine._runtime, self._engine._records, self._record, network)
        self._note("disconnect", network=network)

    def update(self, limits: Limits = Limits(), *, restart: tuple[str, int] | None = None) -> None:
        """Change limits (None: as before), now and for later starts, and the restart policy from the next start on."""
        given = {name: value for name in Limits.__struct_fields__ if (value := getattr(limits, name)) not in (None, ())}
        with self._changing():
            if self.status in ("running", "paused"):
                self._cgroup.update(replace(self._record.spec.limits, **given))
            spec = replace(self._record.spec, limits=replace(self._record.spec.limits, **given))
            self._record = self._engine._records.change(self._record, spec, restart or self._record.restart)
        self._note("update")

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Its record is what it is now, and nobody else changes it."""
        with self._engine._records.alone(self.id):
            self._look_again()
            yield

    def _look_again(self) -> None:
        """Its record is what others have made of it; what was known, when it is gone."""
        with suppress(ContainerNotFound):
            self._record = self._engine._records.read(self.id)
            self.name = self._record.name

    @property
    def _cgroup(self) -> Cgroup:
        """Its groups while it runs."""
        return Cgroup(Plan.from_plain(self._state.facts.get("cgroup") or {"id": self.id}))

    def _want(self, status: Status) -> None:
        if self.status != status:
            raise WrongState(f"container {self.name}: is not {status}", wanted=status, actual=self.status)

    def _forbid_restart(self) -> None:
        """Tell its supervisor that the next end is the last."""
        try:
            with control.connect(str(self._directory)) as end:
                link.send(end, {"ask": "stop"})
        except (FileNotFoundError, ConnectionRefusedError, BrokenPipeError):
            return  # it has no restart policy, or does not run

    def _signal(self, number: int, *, thaw: bool) -> bool:
        """Through a pidfd, and only while its supervisor lives: the pid cannot have been given away. With `thaw` a paused one feels it
        now. Whether it was sent."""
        pid = self.pid
        if pid is None:
            return False
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            if not self._engine._records.is_supervised(self.id):
                return False
            signal.pidfd_send_signal(fd, 0)
            self._note("kill", signal=number)  # before it is sent: its supervisor tells of the end as soon as it comes
            signal.pidfd_send_signal(fd, number)
            if thaw and self.status == "paused":
                self._cgroup.thaw()  # v1: a frozen process does not even die
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)
        return True

    def _wait_ended(self, timeout: float | None) -> bool:
        """Wait for its supervisor, which outlives everything else of it."""
        facts = self._state.facts
        if "supervisor" not in facts:
            return True
        try:
            fd = os.pidfd_open(int(facts["supervisor"]))
        except ProcessLookupError:
            return True
        try:
            if not self._engine._records.is_supervised(self.id):
                return True
            return _readable(fd, timeout)
        finally:
            os.close(fd)

    # inside

    def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        workdir: str | None = None,
        stdin: bytes | IO[bytes] | None = None,
        tty: bool = False,
        detach: bool = False,
        on_output: OnOutput | None = None,
    ) -> Completed:
        """Run one more program inside to its end; WrongState when the container does not run."""
        handling = Handling(detach=detach, interactive=stdin is not None)
        with self.launch(argv, env=env, user=user, workdir=workdir, tty=tty, streams=Streams(stdin=stdin), handling=handling) as running:
            return Completed(exit_code=0) if detach else running.wait(on_output)

    def interpreter(
        self,
        program: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        workdir: str | None = None,
        stdin: bytes | None = None,
    ) -> Interpreter:
        """Start its Python inside as an interpreter that runs cells; the caller closes it. WrongState when the container does not run."""
        import socket

        from sandbox.session.interpreter import Interpreter  # only cells need it
        from sandbox.session.runners import sent_runner

        argv, source = sent_runner(program)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with theirs:
                streams = Streams(stdin=stdin, channel=theirs.fileno())
                running = self.launch(argv, env=env, user=user, workdir=workdir, streams=streams)
            if running.refused is None:
                ours.sendall(source)  # less than the socket holds
        except BaseException:
            ours.close()
            raise
        return Interpreter(running, ours)

    def attach(self, streams: Streams = Streams()) -> Running:
        """Take part in it while it runs: get what it prints from now on, type into it (where it was created with -i). Leaving the
        result's context lets it go on. WrongState when it does not run, or when its output goes straight to whoever started it."""
        status = self.status
        if status != "running":
            hint = {"paused": f"sandbox unpause {self.name}", "restarting": "wait until it runs"}.get(status, f"sandbox start {self.name}")
            raise WrongState(
                f"container {self.name}: is {status if status in ALIVE else 'not running'}", wanted="running", actual=status, hint=hint
            )
        running = self._engine._runtime.attach(self._record.spec, self.name, streams)
        self._note("attach")
        return running

    def launch(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        workdir: str | None = None,
        tty: bool = False,
        streams: Streams = Streams(),
        handling: Handling = Handling(),
    ) -> Running:
        """Start one more program inside and stay attached to it."""
        state = self._state
        if state.status == "paused":
            raise WrongState(f"container {self.name}: is paused", wanted="running", actual="paused", hint=f"sandbox unpause {self.name}")
        if state.status != "running":
            raise WrongState(
                f"container {self.name}: is not running", wanted="running", actual=state.status, hint=f"sandbox start {self.name}"
            )
        own = self._record.spec.process
        process = Process(
            argv=tuple(argv),
            env=tuple({**dict(own.env), **(env or {})}.items()),
            cwd=workdir or own.cwd,
            user=own.user if user is None else user,
            tty=tty,
        )
        self._note(f"exec_start: {' '.join(argv)}")  # before, as docker: the program may end its container
        return self._engine._runtime.exec(self._record.spec, state.facts, process, streams, handling=handling)

    def logs(self, *, follow: bool = False, tail: int | None = None, since: datetime | None = None) -> Iterator[LogLine]:
        """What it printed; with `follow` also what it prints until it ends. WrongState when it keeps no log."""
        from sandbox import logs

        if self._record.log.driver == "none":
            raise WrongState(f"container {self.name}: keeps no log (--log-driver none)", wanted="json-file", actual="none")

        def lives() -> bool:
            alive = self.status in ALIVE
            if alive:
                self._wait_ended(0.1)  # bounds how late a line comes; the end of the container is an event
            return alive

        yield from logs.read(self._directory / "log.json", tail=tail, since=since, lives=lives if follow else None)

    def stats(self, previous: Stats | None = None) -> Stats:
        """What it uses now; `cpu_percent` is since `previous`. WrongState when it does not run."""
        from sandbox.measuring import stats_of

        self._look_again()
        return stats_of(self._running_facts()["report"], self._record.spec.limits, previous)

    def usage(self) -> Usage:
        """What it has used until now, its peaks included; once it has ended, of that nothing is known any more (`completed` tells)."""
        from sandbox.measuring import usage_of

        return usage_of(self._state.facts.get("report") or ())

    def meter(self) -> Callable[[], Usage]:
        """`usage`, to be asked often while it runs: where to look is found once."""
        from sandbox.measuring import meter

        return meter(lambda: self._state.facts.get("report") or ())

    def top(self) -> list[ProcessRow]:
        """Its processes; WrongState when it does not run."""
        from sandbox.measuring import processes_beside

        pid = int(self._running_facts()["pid"])
        return processes_beside(procs.entered_through(pid))  # init's namespaces are not an ordinary user's to see

    def _running_facts(self) -> Mapping[str, Any]:
        state = self._state
        if not state.has_processes:
            raise WrongState(f"container {self.name}: is not running", wanted="running", actual=state.status)
        return state.facts

    # files

    @property
    def _upper(self) -> Path:
        return Path(self._record.spec.rootfs.upper)

    def resolve(self, path: str) -> str | None:
        """The absolute path inside of what is there, seen from outside: in its layers, or in a directory or volume mounted over them. None
        when nothing is, or in a tmpfs. `path` may begin with ~, or be relative to the program's directory."""
        from sandbox import trees

        process = self._record.spec.process
        home = dict(process.env).get("HOME", "/root")
        full = posixpath.normpath(posixpath.join(process.cwd, home + path[1:] if path == "~" or path.startswith("~/") else path))
        return full if trees.is_there(full, self._record.spec) else None

    def diff(self) -> list[tuple[Literal["A", "C", "D"], str]]:
        """What it changed in its file system: added, changed, deleted."""
        from sandbox import trees
        from sandbox.image.tree import Tree

        stubs = set(self._state.facts.get("stubs", []))
        lower = Tree(self._record.spec.rootfs.lowers)
        return [change for change in trees.changes(self._upper, lower) if change[1] not in stubs]

    def commit(self, tag: str | None = None, *, message: str = "", author: str = "", changes: Sequence[str] = ()) -> Image:
        """Make an image of what it has become; `changes` are Dockerfile instructions such as `CMD ["x"]`."""
        from sandbox.committing import Words, commit  # the whole Dockerfile language, for what is rarely asked

        words = Words(message, author, changes)
        return commit(self._engine.root, self._engine._store, self._record, self._state, tag, words)

    def copy_out(self, path: str) -> bytes:
        """A tar of the file or directory, as `docker cp CONTAINER:PATH -` gives; in memory (see `write_tar`)."""
        out = io.BytesIO()
        self.write_tar(path, out)
        return out.getvalue()

    def write_tar(self, path: str, out: IO[bytes], *, follow: bool = False, shallow: bool = False) -> None:
        """Write a tar of the file or directory while it is read, as the container sees it, volumes included: what it was asked for
        first. `follow`: of what the path leads to when it is a link; `shallow`: that first entry only. NotInContainer, ContainerError."""
        self._pack(Pack(posixpath.join("/", path), follow=follow, shallow=shallow), out)

    def export(self, target: str | Path | IO[bytes]) -> None:
        """Write its whole file system as a tar, without volumes; a file appears whole or not at all."""
        wanted = Pack("/", whole=True, skip=tuple(self._state.facts.get("stubs", [])))
        if not isinstance(target, str | Path):
            self._pack(wanted, target)
            return
        temporary = Path(f"{target}.{os.getpid()}.part")
        try:
            with temporary.open("wb") as out:
                self._pack(wanted, out)
            temporary.rename(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _pack(self, wanted: Pack, out: IO[bytes]) -> None:
        self._engine._starter.pack(self._record, wanted, out)

    def copy_in(self, path: str, tar: bytes | IO[bytes]) -> None:
        """Unpack a tar below the directory `path` of the container; nothing can land outside of it. A file with a descriptor (a pipe,
        say) is read while it comes."""
        self._engine._starter.unpack(self._record, path, tar)

    def inspect(self) -> dict[str, object]:
        """docker inspect's shape."""
        from sandbox.inspecting import inspected

        self._look_again()
        return inspected(self._record, self._state, self.completed, self._engine.root)


def _readable(fd: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else max(0.0, timeout) * 1000))


def _time(seconds: float | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


_UNITS = ((365 * 86400, "year"), (30 * 86400, "month"), (7 * 86400, "week"), (86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def _ago(span: Any) -> str:
    """docker's rounding: the largest whole unit, `Less than a second`, `About a minute`, `About an hour`."""
    seconds = max(0, int(span.total_seconds()))
    for size, unit in _UNITS:
        count = seconds // size
        if count == 1 and unit in ("minute", "hour"):
            return f"About {'an' if unit == 'hour' else 'a'} {unit}"
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "Less than a second"
