"""create, start, kill, delete, exec … of bundle containers (runtime.md, Operations)."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from sandbox.errors import ContainerError, InvalidBundle, SetupFailed, WrongState
from sandbox.runtime.bundle import resources
from sandbox.runtime.bundle.config import Config, Process, read_config
from sandbox.runtime.bundle.groups import freezer, groups_of, make_groups, remove_groups, write_limits
from sandbox.runtime.bundle.making import NOTHING_GIVEN, Given, Making, at_directory, check_terminal, listen_at, set_oom_score, write_pid
from sandbox.runtime.bundle.plan import NAMESPACES, hook_plan, hooks_of, make_plan, process_plan
from sandbox.runtime.bundle.states import SOCKET, Record, States, hook_state, process_start
from sandbox.runtime.init import bundle, cgroup, hooks, link
from sandbox.runtime.security.filters import Filters

_NAMESPACE_FILES = {"network": "net", "mount": "mnt"}


class Bundles:
    """The operations on the containers below one `--root`."""

    def __init__(self, root: Path) -> None:
        self.states = States(root)
        self._filters = Filters(root / ".seccomp")

    def _filter(self, config: Config, process: Process | None) -> bytes | None:
        if bytes(config.linux.seccomp) == b"null":
            return None
        names = process.capabilities.bounding if process and process.capabilities else ()
        return self._filters.filter_for(bytes(config.linux.seccomp), [name.removeprefix("CAP_") for name in names])

    # create and start -------------------------------------------------------------------------------------------------

    def create(self, container_id: str, path: Path, given: Given = NOTHING_GIVEN) -> Record:
        """Set a container up; its program waits for `start`. SandboxError, and then nothing is left of it."""
        path = path.resolve()
        config, raw = read_config(path)
        check_terminal(config.process, given)
        directory = self.states.make(container_id)
        with ExitStack() as undo:
            undo.callback(self.states.remove, container_id)
            (directory / "config.json").write_bytes(raw)
            groups = groups_of(self.states.group_name(container_id), config)
            plan = make_plan(config, path, groups, seccomp=self._filter(config, config.process), pivot=given.pivot)
            record = self._record(container_id, path, config, groups)
            self.states.write(record)  # before there is anything: whoever finds it after a kill -9 can delete all of it
            make_groups(groups)
            undo.callback(remove_groups, groups.directories)
            plan["state"] = hook_state(record, "creating")
            record = self._spawn(plan, record, groups, given, undo)
            undo.pop_all()
        return record

    def _record(self, container_id: str, path: Path, config: Config, groups: resources.Groups) -> Record:
        assert config.root is not None
        return Record(
            id=container_id,
            bundle=str(path),
            rootfs=str((path / config.root.path).resolve()),
            pid=0,
            process_start=0,
            created=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            owner=str(os.geteuid()),
            version=groups.version,
            groups=groups.directories,
            places=dict(groups.places),
            annotations=config.annotations,
            oci_version=config.oci_version,
        )

    def _spawn(self, plan: dict[str, Any], record: Record, groups: resources.Groups, given: Given, undo: ExitStack) -> Record:
        with listen_at(self.states.directory(record.id)) as listener, Making(plan, groups, given, listener) as making:
            pid = making.clone(bundle.run_container)
            undo.callback(_kill_and_reap, pid)
            record = replace(record, pid=pid, process_start=process_start(pid) or 0)
            making.map_ids(pid)
            set_oom_score(pid, plan)
            making.expect("hooks")
            for point in ("prestart", "createRuntime"):
                hooks.run(plan["hooks"][point], plan["state"], pid)
            making.go_on()
            making.expect("created")
        self.states.write(record)
        if given.pid_file:
            write_pid(given.pid_file, pid)
        return record

    def start(self, container_id: str) -> None:
        """Let the program of a created container run; WrongState, and SetupFailed when it cannot be executed."""
        record = self.states.read(container_id)
        status = self.states.status(record)
        if status != "created":
            raise WrongState(f"container {container_id}: {status}: only a created one can be started", wanted="created", actual=status)
        directory = self.states.directory(container_id)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as starter:
            at_directory(directory, lambda: starter.connect(SOCKET))
            (directory / SOCKET).unlink()
            link.send(starter, {"start": True})
            answer, _ = link.receive(starter)
        if answer is not None:
            raise SetupFailed(f"container {container_id}: {answer['message']}")
        config = self.states.config(container_id)
        hooks.run([hook_plan(hook) for hook in hooks_of(config)["poststart"]], hook_state(record, "running"), record.pid)

    # afterwards -------------------------------------------------------------------------------------------------------

    def kill(self, container_id: str, number: int, *, everyone: bool = False) -> None:
        """Send a signal to the container's first process, or to all its processes; WrongState when it has ended."""
        record = self.states.read(container_id)
        status = self.states.status(record)
        if everyone and record.groups:
            for pid in cgroup.processes(record.groups):
                _signal(pid, number)
            return
        if status == "stopped":
            raise WrongState(f"container {container_id}: container not running", wanted="running", actual=status)  # runc's words
        _signal(record.pid, number)

    def delete(self, container_id: str, *, force: bool = False) -> None:
        """Forget a stopped container, with its groups; `force` kills it first, and forgives that there is none."""
        directory = self.states.directory(container_id)
        if force and not directory.exists():
            return
        record = self.states.read(container_id)
        status = self.states.status(record)
        if status not in ("stopped",) and not (force or status == "created"):
            raise WrongState(f"container {container_id}: cannot delete a container that is {status}", wanted="stopped", actual=status)
        if status != "stopped":
            _signal(record.pid, signal.SIGKILL)
        _wait_gone(record)
        remove_groups(record.groups)
        config = self.states.config(container_id)
        try:
            hooks.run([hook_plan(hook) for hook in hooks_of(config)["poststop"]], hook_state(record, "stopped"), 0)
        finally:
            self.states.remove(container_id)

    def freeze(self, container_id: str, *, thaw: bool = False) -> None:
        """pause and resume; WrongState."""
        record = self.states.read(container_id)
        status = self.states.status(record)
        wanted = "paused" if thaw else "running"
        if status != wanted and not (status == "created" and not thaw):
            raise WrongState(f"container {container_id}: is {status}, not {wanted}", wanted=wanted, actual=status)
        switch = freezer(record)
        (cgroup.thaw if thaw else cgroup.freeze)(switch)

    def update(self, container_id: str, asked: Mapping[str, Any]) -> None:
        """Change the limits of a container."""
        record = self.states.read(container_id)
        version: resources.Version = 1 if record.version == 1 else 2
        writes = resources.limit_writes(record.places, version, asked)
        write_limits(list(writes))

    def processes(self, container_id: str) -> list[int]:
        """The container's pids as this pid namespace numbers them."""
        return sorted(cgroup.processes(self.states.read(container_id).groups))

    # exec -------------------------------------------------------------------------------------------------------------

    def exec(self, container_id: str, process: Process, given: Given = NOTHING_GIVEN) -> int:
        """Start one more process in a running container; its pid. It is the caller's child."""
        record = self.states.read(container_id)
        status = self.states.status(record)
        if status not in ("running", "created"):
            raise WrongState(f"container {container_id}: cannot exec in a container that is {status}", wanted="running", actual=status)
        check_terminal(process, given)
        config = self.states.config(container_id)
        groups = resources.Groups(record.places, 1 if record.version == 1 else 2)
        plan = {
            **_entering(record),
            "process": process_plan(process, self._filter(config, process)),
        }
        with Making(plan, groups, given, None) as making:
            pid = making.clone(bundle.run_entered)
            set_oom_score(pid, plan)
            making.map_ids(pid)
            making.expect_executed(pid)
        if given.pid_file:
            write_pid(given.pid_file, pid)
        return pid

    def default_process(self, container_id: str) -> Process:
        """The container's own process, for exec's flags to change."""
        process = self.states.config(container_id).process
        if process is None:
            raise InvalidBundle("process: is missing")
        return process


def _entering(record: Record) -> dict[str, Any]:
    """The namespaces of the container that are not our own."""
    enter: list[tuple[str, int]] = []
    users = False
    for name, flag in NAMESPACES.items():
        file = _NAMESPACE_FILES.get(name, name)
        theirs = f"/proc/{record.pid}/ns/{file}"
        if os.stat(theirs).st_ino != os.stat(f"/proc/self/ns/{file}").st_ino:
            enter.append((theirs, flag))
            users |= name == "user"
    return {"flags": 0, "cgroup_namespace": False, "enter": enter, "into": None, "become_root": users, "idmap": None}


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _kill_and_reap(pid: int) -> None:
    _signal(pid, signal.SIGKILL)
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return


def _wait_gone(record: Record) -> None:
    """Until the first process has ended; its parent may be somebody else."""
    if process_start(record.pid) != record.process_start:
        return
    try:
        fd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return
    try:
        if process_start(record.pid) == record.process_start and not select.select([fd], [], [], 10.0)[0]:
            raise ContainerError(f"container {record.id}: its process survives SIGKILL")
    finally:
        os.close(fd)
