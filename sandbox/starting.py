"""Start containers that exist, unpack into them, and take away what is left of them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import IO

from msgspec.structs import replace

from sandbox.errors import ContainerError, ContainerNotFound, NotInContainer, WrongState
from sandbox.image import owners
from sandbox.image.tree import Tree
from sandbox.records import ALIVE, Record, Records, State
from sandbox.runtime.cgroups import systemd
from sandbox.runtime.container import SPARES, Place, Runtime, engine_mark
from sandbox.runtime.init import cgroup, files, journal, subids
from sandbox.runtime.plan import GROUP_ID, Handling, LogFile
from sandbox.runtime.running import Running, Stream, Streams
from sandbox.runtime.spec import Pack, Process, Rootfs, Unpack


def told(record: Record) -> dict[str, str]:
    """What its events say beside its id."""
    return {"image": record.image_name, "name": record.name, **record.labels}


def _are_noted() -> bool:
    """Whether owners stand beside the files also while a container uses them: an ordinary user without subordinate ids has no others."""
    return os.geteuid() != 0 and subids.find(os.geteuid(), os.getegid()) is None


def _links_below(wanted: Pack, rootfs: Rootfs) -> tuple[tuple[str, int, int], ...]:
    """Whose the links are that are to be packed; by where they are below the path that was asked for."""
    layers = (*rootfs.lowers, rootfs.upper)
    top = Tree(layers).lookup(wanted.path, follow=wanted.follow)
    if top is None:
        return ()
    prefix = top.path.rstrip("/")
    found = owners.of_links(layers).items()
    return tuple((path[len(prefix) :].lstrip("/"), *owner) for path, owner in found if path == prefix or path.startswith(f"{prefix}/"))


def _refuse_alive(record: Record, state: State) -> None:
    if state.status in ALIVE:
        raise WrongState(f"container {record.name}: is running already", wanted="exited", actual=state.status)


class Starter:
    """Starts the containers of `records` in `runtime`."""

    def __init__(self, records: Records, runtime: Runtime) -> None:
        self._records = records
        self._runtime = runtime

    def attach_new(self, record: Record, streams: Streams, place: Place) -> Running:
        """Start a container that was just made in its place, attached to `streams`. WrongState when somebody else was quicker."""
        with self._records.alone(record.id) as state:
            _refuse_alive(record, state)
            return place.start(record.spec, self._attached(record), streams)

    def attach(self, record: Record, streams: Streams) -> Running:
        """Start it attached to `streams`; WrongState when it runs."""
        with self._records.alone(record.id) as state:
            _refuse_alive(record, state)
            record = self._prepared(record)
            return self._runtime.start(record.spec, self._attached(record), streams)

    def _attached(self, record: Record) -> Handling:
        return self._handling(record, log=not record.auto_remove, detach=False)

    def _prepared(self, record: Record) -> Record:
        """As it is by now. A work directory of overlayfs that was mounted `volatile` cannot be used twice, and none by two."""
        self._records.wait_unsupervised(record.id)
        self.sweep_groups({record.id})
        work = Path(record.spec.rootfs.work)
        files.remove_tree(str(work))
        work.mkdir(mode=0o700)
        return self._records.read(record.id)

    def start_detached(self, record: Record) -> None:
        """Start it in the background; WrongState, and ContainerError when its program cannot be started."""
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            with self._records.alone(record.id) as state:
                _refuse_alive(record, state)
                record = self._prepared(record)
                running = self._runtime.start(record.spec, self._handling(record, log=True, detach=True), Streams(null, null, null))
        finally:
            os.close(null)
        with running:
            if running.refused is not None:
                raise ContainerError(f"container {record.name}: {running.refused.reason}")

    def restore(self) -> Iterator[Record]:
        """Start again what its restart policy wants running after a reboot; each that was."""
        for record in self._records.all():
            state = self._records.state(record.id)
            wanted = record.restart[0] == "always" or (record.restart[0] != "no" and state.lost)
            if wanted and state.status == "exited":
                try:
                    self.start_detached(record)
                except WrongState as err:
                    if err.actual not in ALIVE:
                        raise
                    continue  # somebody else was quicker
                yield record

    def unpack(self, record: Record, path: str, tar: bytes | IO[bytes]) -> None:
        """Run our own unpacker inside: in the running container's namespaces, else in a container set up for it. ContainerError."""
        process = Process(argv=(), unpack=Unpack(path, notes=_are_noted()))
        with self._ours(record, process, Streams(stdin=tar)) as running:
            done = running.wait()
        if done.exit_code:
            raise ContainerError(done.stderr.decode(errors="replace").strip() or done.reason or f"unpacking failed ({done.exit_code})")
        if done.stderr:
            import logging  # commands start without

            logging.getLogger(__name__).warning("%s: %s", record.name, done.stderr.decode(errors="replace").strip())

    def pack(self, record: Record, wanted: Pack, out: IO[bytes]) -> None:
        """Run our own packer inside, as `unpack`, and write its tar to `out` while it comes. NotInContainer, ContainerError."""
        said = io.BytesIO()
        if _are_noted():
            wanted = replace(wanted, notes=True, links=_links_below(wanted, record.spec.rootfs))

        def take(stream: Stream, data: bytes) -> None:
            (out if stream == "stdout" else said).write(data)

        with self._ours(record, Process(argv=(), pack=wanted), Streams()) as running:
            done = running.wait(take)
        if done.exit_code:
            reason = said.getvalue().decode(errors="replace").strip() or done.reason
            from sandbox.runtime.init.pack import NOT_FOUND  # with tarfile

            kind = NotInContainer if done.exit_code == NOT_FOUND else ContainerError
            raise kind(reason or f"packing failed ({done.exit_code})")

    def _ours(self, record: Record, process: Process, streams: Streams) -> Running:
        """Our own program in it. Who starts the container meanwhile waits for its end, who removes it does not."""
        with self._records.alone(record.id) as state:
            if not state.has_processes:
                _refuse_alive(record, state)
                record = self._prepared(record)
                spec = replace(record.spec, process=process, network="none", endpoints=(), ports=(), timeout=None, read_only=False)
                return self._runtime.start(spec, Handling(remove=False, record=False), streams)
        is_inside = state.status == "running"  # in the groups of one that is paused it would be paused, too
        return self._runtime.exec(record.spec, state.facts, process, streams, grouped=is_inside)

    def note(self, record: Record, action: str, **more: object) -> None:
        """An event of a container."""
        attributes = {**told(record), **{name: str(each) for name, each in more.items()}}
        journal.note(str(self._runtime.root), "container", action, record.id, attributes)

    def remove(self, record: Record, *, force: bool = False) -> None:
        """Take a stopped container away; its volumes stay. WrongState when it runs; one that is gone is no error. `force`: what is being
        started in this moment is ended."""
        with ExitStack() as alone:
            try:
                state = alone.enter_context(self._records.alone(record.id, partial(self.sweep_groups, {record.id}) if force else None))
            except ContainerNotFound:
                return
            _refuse_alive(record, state)
            with suppress(ContainerNotFound):  # else its name may have changed meanwhile
                record = self._records.read(record.id)
            self.note(record, "destroy")
            if state.lost or self._records.is_supervised(record.id):  # killed, it left its groups; or files are copied
                self.sweep_groups({record.id})
            self._records.remove(record.id, [record.name])

    def sweep_groups(self, dead: set[str]) -> None:
        """Kill and remove the cgroups of containers without supervisor: those in `dead`, and those whose directory is gone."""
        alive = {i[:GROUP_ID] for i in (*self._waiting(), *self._records.ids()) if i not in dead}
        mark = engine_mark(self._runtime.root)
        for name, groups in systemd.existing():
            owner, _, container_id = name.partition(".")
            if owner == mark and container_id not in alive:
                cgroup.remove(groups)

    def _waiting(self) -> list[str]:
        """The ids whose ground was made ahead, and whose supervisor waits; the locks of others are removed."""
        found = []
        for lock in (self._runtime.root / SPARES).glob("*"):
            if files.is_held(str(lock)):
                found.append(lock.name)
            else:
                files.remove_file(str(lock))
        return found

    def _handling(self, record: Record, *, log: bool, detach: bool) -> Handling:
        is_kept = log and record.log.driver == "json-file"
        path = str(self._records.directory(record.id) / "log.json")
        return Handling(
            detach=detach,
            remove=record.auto_remove,
            log=LogFile(path, record.log.max_size, record.log.max_file) if is_kept else None,
            interactive=record.interactive,
            name=str(self._records.name_link(record.name)),
            restart=record.restart,
            told=told(record),
        )
