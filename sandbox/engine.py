"""Engine: the one object callers hold. Joins the image store, the builder and the runtime; adds docker's defaults."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal, Self

import msgspec

from sandbox import launch, trees
from sandbox.build.events import BuildEvent
from sandbox.containers import Container, LogLine, ProcessRow, Stats
from sandbox.errors import ContainerError, ImageError, InvalidOption, SandboxError, WrongState
from sandbox.image.reference import Reference
from sandbox.image.store import Image, Store
from sandbox.launch import VolumeRequest
from sandbox.oci import Digest, History, ImageConfig, RootFS, RunConfig
from sandbox.options import RunOptions, parse_duration, parse_size
from sandbox.records import Record, Records, State, Status
from sandbox.runtime import cgroups
from sandbox.runtime.container import OnOutput, Running, Runtime, Streams, engine_mark
from sandbox.runtime.init import cgroup, files
from sandbox.runtime.init.program import DEFAULT_PATH
from sandbox.runtime.plan import Handling
from sandbox.runtime.spec import Completed, ContainerSpec, Mount, Process, Rootfs

__all__ = [
    "Completed",
    "Container",
    "Engine",
    "Handling",
    "HistoryRow",
    "ImageSummary",
    "LogLine",
    "OnOutput",
    "ProcessRow",
    "PruneReport",
    "Running",
    "Stats",
    "Status",
    "Streams",
]


@dataclass(frozen=True)
class ImageSummary:
    """One row of `images`: an image under one of its names (or None). `size`: bytes of the files of all its layers."""

    id: str
    repository: str | None
    tag: str | None
    created: datetime | None
    size: int


@dataclass(frozen=True)
class HistoryRow:
    """One step of an image's history; `id` is the image's on the newest row, else None. `size`: bytes of its layer's files."""

    id: str | None
    created: datetime | None
    created_by: str
    comment: str
    size: int


@dataclass(frozen=True)
class PruneReport:
    """What `prune` removed: ids of containers, images and snapshots, and the bytes that came free."""

    containers: tuple[str, ...]
    images: tuple[str, ...]
    snapshots: tuple[str, ...]
    reclaimed: int


def default_root() -> Path:
    """SANDBOX_ROOT, else /var/lib/jupyter-sandbox for root and $XDG_DATA_HOME/jupyter-sandbox for others."""
    if given := os.environ.get("SANDBOX_ROOT"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/jupyter-sandbox")
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local/share") / "jupyter-sandbox"


class Engine:
    """Images, builds and containers below one directory.

    `root`: the state directory; see `default_root`. Engines with different roots do not see each other. Thread-safe.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root).expanduser().absolute() if root is not None else default_root().absolute()
        self._store = Store(self.root)
        self._records = Records(self.root)
        self._runtime = Runtime(self.root)

    def close(self) -> None:
        """End the helper process; detached containers live on."""
        self._runtime.close()

    def warm(self) -> None:
        """Start the helper process now, so that the first container does not wait for it."""
        self._runtime.warm()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # images

    def build(
        self,
        context: str | Path | None = ".",
        *,
        dockerfile: str | Path | None = None,
        tags: Sequence[str] = (),
        build_args: Mapping[str, str] | None = None,
        target: str | None = None,
        no_cache: bool = False,
        labels: Mapping[str, str] | None = None,
        network: Literal["host", "none"] = "host",
        on_event: Callable[[BuildEvent], None] | None = None,
    ) -> Image:
        """Build an image. `dockerfile`: a Path to the file, or its text; default CONTEXT/Dockerfile.

        Raises DockerfileError, UnknownStage, StepFailed. SOURCE_DATE_EPOCH, when set, is the time everything gets.
        """
        from sandbox.build.builder import Builder, BuildRequest  # the parser costs every other verb 15 ms

        directory = Path(context) if context is not None else None
        text, path = _read_dockerfile(directory, dockerfile)
        request = BuildRequest(
            context=directory,
            dockerfile=text,
            dockerfile_path=path,
            tags=tuple(tags),
            build_args=dict(build_args or {}),
            target=target,
            no_cache=no_cache,
            labels=dict(labels or {}),
            network=network,
            now=_now(os.environ),
        )
        return Builder(self._store, self._runtime, on_event or _ignore_event).build(request)

    def capture(self, tag: str, *, packages: Sequence[str] = ()) -> Image:
        """Make this machine's Python an image; `packages`: installed distributions to take along, or `all`."""
        from sandbox.image.capture import capture  # only this verb needs it

        return capture(self._store, tag, packages=packages)

    def import_image(
        self, source: str | Path | IO[bytes], name: str | None = None, *, changes: Sequence[str] = (), message: str = ""
    ) -> Image:
        """Make an image of the tar of a root file system; `changes` are Dockerfile instructions such as `CMD ["sh"]`."""
        from sandbox.image.archive import import_rootfs

        config = self._changed(RunConfig(), changes)
        reference = Reference.parse(name) if name else None
        with _opened(source) as stream:
            return import_rootfs(self._store, stream, reference, config=config, message=message, created=_now(os.environ))

    def load(self, source: str | Path | IO[bytes]) -> list[tuple[str | None, Image]]:
        """Take in an archive of `save`, docker, podman or skopeo: names and images."""
        from sandbox.image import archive

        with _opened(source) as stream:
            return archive.load(self._store, stream)

    def save(self, names: Sequence[str], target: str | Path | IO[bytes], *, format: Literal["oci", "docker"] = "docker") -> None:
        """Write images to an archive; a file appears whole or not at all."""
        from sandbox.image import archive

        images = [(_reference_of(name), self._store.find(name)) for name in names]
        if not isinstance(target, str | Path):
            archive.save(self._store, images, target, format=format)
            return
        temporary = Path(f"{target}.{os.getpid()}.part")
        try:
            with temporary.open("wb") as out:
                archive.save(self._store, images, out, format=format)
            temporary.rename(target)
        finally:
            temporary.unlink(missing_ok=True)

    def image(self, name: str) -> Image:
        """The image of this name, id or unique id prefix; ImageNotFound says what is close."""
        return self._store.find(name)

    def images(self) -> list[ImageSummary]:
        """Every image, once a name, newest first; those without a name too."""
        rows = []
        for image in self._store.images():
            created, size = self._store.image_created(image.id), self._store.image_size(image)
            names: list[Reference | None] = [*self._store.names(image.id)]
            for name in names or [None]:
                repository = name.familiar_name if name else None
                rows.append(ImageSummary(image.id, repository, name.tag if name else None, created, size))
        return sorted(rows, key=lambda row: (row.created or datetime.fromtimestamp(0, UTC), row.repository or ""), reverse=True)

    def history(self, name: str) -> list[HistoryRow]:
        """What an image was made of, newest first."""
        image = self._store.find(name)
        sizes = iter(self.layer_sizes(image))
        rows = []
        for step in image.config.value.history:
            size = 0 if step.empty_layer else next(sizes, 0)
            rows.append(HistoryRow(None, _parse_time(step.created), step.created_by, step.comment, size))
        if rows:
            rows[-1] = replace(rows[-1], id=image.id)
        return rows[::-1]

    def inspect_image(self, name: str) -> dict[str, object]:
        """docker image inspect's shape."""
        image = self._store.find(name)
        config = image.config.value
        return {
            "Id": image.id,
            "RepoTags": self.image_names(image),
            "RepoDigests": [],
            "Created": config.created or "",
            "Author": config.author or "",
            "Architecture": config.architecture,
            "Os": config.os,
            "Size": self._store.image_size(image),
            "Config": msgspec.to_builtins(config.config),
            "RootFS": {"Type": "layers", "Layers": list(config.rootfs.diff_ids)},
            "ManifestDigest": image.manifest.digest,
        }

    def image_names(self, image: Image) -> list[str]:
        """Its names, as docker shows them."""
        return [name.familiar for name in self._store.names(image.id)]

    def image_size(self, image: Image) -> int:
        """The bytes of the files of all its layers."""
        return self._store.image_size(image)

    def has_program(self, image: Image, name: str) -> bool:
        """Whether the image has this program, by path or along its PATH. Nothing of the image is run."""
        tree = self._store.tree(image.top)
        env = dict(launch.split_env(image.config.value.config.env or ()))
        places = [name] if "/" in name else [f"{directory}/{name}" for directory in env.get("PATH", DEFAULT_PATH).split(":")]
        return any((found := tree.lookup(place, follow=True)) is not None and found.is_file for place in places)

    def layer_sizes(self, image: Image) -> list[int]:
        """The bytes of the files of each of its layers, lowest first."""
        return [self._store.snapshot(chain_id).size for chain_id in image.chain_ids]

    def tag(self, source: str, target: str) -> None:
        """Give an image one more name."""
        self._store.tag(Reference.parse(target), self._store.find(source))

    def remove_image(self, name: str, *, force: bool = False) -> list[str]:
        """Take a name away, and the image with its last name; docker's lines (`Untagged: …`, `Deleted: …`).

        Raises ImageError when a container needs it, or when an id has several names, unless `force`.
        """
        image = self._store.find(name)
        names = self._store.names(image.id)
        by_id = name.removeprefix("sha256:") and image.id.removeprefix("sha256:").startswith(name.removeprefix("sha256:"))
        going = names if by_id else [Reference.parse(name)]
        if by_id and len(names) > 1 and not force:
            raise ImageError(f"image {image.id.short}: has {len(names)} names", hint="remove them one by one, or use --force")
        if len(going) >= len(names):
            self._refuse_used(image, force=force)
        lines = [f"Untagged: {reference.familiar}" for reference in going if self._store.untag(reference)]
        if not self._store.names(image.id):
            self._store.remove(image.id)
            lines.append(f"Deleted: {image.id}")
        return lines

    def _refuse_used(self, image: Image, *, force: bool) -> None:
        for record in self._records.all():
            running = self._records.state(record.id).status == "running"
            if record.image_id == image.id and (running or not force):
                hint = f"sandbox rm {'-f ' if running else ''}{record.name}"
                raise ImageError(f"image {image.id.short}: container {record.name} is made of it", hint=hint)

    # containers

    def run(
        self,
        image: str | Image,
        argv: Sequence[str] = (),
        *,
        options: RunOptions | None = None,
        stdin: bytes | IO[bytes] | None = None,
        on_output: OnOutput | None = None,
        memory: int | str | None = None,
        cpus: float | None = None,
        pids_limit: int | None = None,
        network: Literal["none", "host"] | None = None,
        env: Mapping[str, str] | None = None,
        volumes: Sequence[str] = (),
        workdir: str | None = None,
        user: str | None = None,
        timeout: float | str | None = None,
        name: str | None = None,
        read_only: bool | None = None,
        rm: bool | None = None,
    ) -> Completed:
        """Run a program in a fresh container to its end; nothing of it is left unless `rm=False`.

        `argv` replaces the image's CMD. Sizes may be docker's texts (`"64m"`), times too (`"5s"`). Output goes to
        `on_output(stream, data)` as it comes, else into the result. A program that cannot be found or executed is a
        result (127, 126), as is one killed by a limit; SetupFailed and Unsupported mean there was no container.
        """
        base = options if options is not None else RunOptions(rm=True)
        chosen = launch.with_shortcuts(
            base,
            memory=parse_size(memory) if isinstance(memory, str) else memory,
            cpus=cpus,
            pids_limit=pids_limit,
            network=network,
            env=(*base.env, *(f"{key}={value}" for key, value in env.items())) if env else None,
            volume=(*base.volume, *volumes) if volumes else None,
            workdir=workdir,
            user=user,
            timeout=parse_duration(timeout) if isinstance(timeout, str) else timeout,
            name=name,
            read_only=read_only,
            rm=rm,
        )
        with self.launch(image, argv, options=chosen, streams=Streams(stdin=stdin)) as running:
            return running.wait(on_output)

    def launch(
        self, image: str | Image, argv: Sequence[str] = (), *, options: RunOptions = RunOptions(), streams: Streams = Streams()
    ) -> Running:
        """Start a program in a fresh container and stay attached to it; leaving the result's context ends it."""
        record = self._create(image, argv, options)
        try:
            return self._attach(record, streams)
        except BaseException:
            self._remove_record(record)
            raise

    def create(self, image: str | Image, argv: Sequence[str] = (), *, options: RunOptions = RunOptions()) -> Container:
        """Make a container without starting it."""
        return Container(self, self._create(image, argv, options))

    def start(self, image: str | Image, argv: Sequence[str] = (), *, options: RunOptions = RunOptions()) -> Container:
        """Start a fresh container in the background (`run -d`); it outlives this process."""
        container = self.create(image, argv, options=options)
        try:
            container.start()
        except BaseException:
            container.remove(force=True)
            raise
        return container

    def container(self, name: str) -> Container:
        """The container of this name, id or unique id prefix; ContainerNotFound says what is close."""
        return Container(self, self._records.find(name))

    def containers(self, *, all: bool = False) -> list[Container]:
        """The running containers (with `all` every one), newest first."""
        found = [Container(self, record) for record in self._records.all()]
        return [container for container in found if all or container.status == "running"]

    def _create(self, image: str | Image, argv: Sequence[str], options: RunOptions) -> Record:
        with self._store.shared():
            found = self._store.find(image) if isinstance(image, str) else image
            container_id = self._records.new_id()
            spec = self._spec(container_id, found, argv, options)
            directory = self._records.directory(container_id)
            name = self._records.claim_name(container_id, options.name)
            try:
                directory.mkdir(mode=0o700, parents=True)
                mounts = self._mounts(found, directory, options)
                self._make_upper(directory, found)
                record = self._record_of(replace(spec, mounts=mounts), found, name, image, options)
                self._records.write(record)
            except BaseException:
                self._records.remove(container_id, [name])
                raise
        return record

    def _record_of(self, spec: ContainerSpec, image: Image, name: str, asked: str | Image, options: RunOptions) -> Record:
        config = image.config.value.config
        return Record(
            id=spec.id,
            name=name,
            image_name=asked if isinstance(asked, str) else next(iter(self.image_names(image)), image.id.short),
            image_id=str(image.id),
            chain=str(image.top) if image.top else None,
            created=time.time(),
            labels=launch.make_labels(config, options),
            auto_remove=options.rm,
            interactive=options.interactive,
            ports=sorted(config.exposed_ports or ()),
            spec=spec,
        )

    def _spec(self, container_id: str, image: Image, argv: Sequence[str], options: RunOptions) -> ContainerSpec:
        config = image.config.value.config
        directory = self._records.directory(container_id)
        env = launch.make_env(options, os.environ, _read_file)
        return ContainerSpec(
            id=container_id,
            rootfs=Rootfs(self._store.lowers(image.top), str(directory / "upper"), str(directory / "work"), volatile=options.rm),
            process=launch.make_process(config, argv, options, env),
            hostname=launch.check_hostname(options.hostname or container_id[:12]),
            network=launch.make_network(options),
            userns="host" if options.userns == "host" else "private",
            limits=launch.make_limits(options),
            read_only=options.read_only,
            cap_add=options.cap_add,
            cap_drop=options.cap_drop,
            ulimits=options.ulimit,
            extra_hosts=launch.make_hosts(options),
            stop_signal=launch.make_stop_signal(config, options),
            timeout=options.timeout,
            shm_size=options.shm_size,
            allow_unenforced=options.allow_unenforced,
        )

    def _make_upper(self, directory: Path, image: Image) -> None:
        """The upper directory gives the container's / its mode and owner: the image's."""
        upper = directory / "upper"
        upper.mkdir()
        (directory / "work").mkdir(mode=0o700)
        root = self._store.tree(image.top).stat("/").stat
        os.chmod(upper, root.st_mode & 0o7777)
        if os.geteuid() == 0:
            os.chown(upper, root.st_uid, root.st_gid)

    def _mounts(self, image: Image, directory: Path, options: RunOptions) -> tuple[Mount, ...]:
        """-v, --tmpfs, and an anonymous volume for each VOLUME of the image that nothing else covers."""
        requests = [launch.parse_volume(text) for text in options.volume]
        tmpfs = [launch.parse_tmpfs(text) for text in options.tmpfs]
        taken = {request.target for request in requests} | {target for target, _ in tmpfs}
        requests += [VolumeRequest("named", "", path) for path in sorted(image.config.value.config.volumes or ()) if path not in taken]
        return (
            *(self._bind(request, number, image, directory) for number, request in enumerate(requests)),
            *(Mount("tmpfs", target, options=given) for target, given in tmpfs),
        )

    def _bind(self, request: VolumeRequest, number: int, image: Image, directory: Path) -> Mount:
        if request.kind == "bind":
            source = Path(request.source).expanduser().absolute()
            if not source.exists():
                source.mkdir(parents=True)  # as docker does
        else:
            source = self.root / "volumes" / request.source / "_data" if request.source else directory / "volumes" / str(number)
            self._make_volume(source, image, request.target)
        return Mount("bind", request.target, str(source), read_only=request.read_only)

    def _make_volume(self, source: Path, image: Image, target: str) -> None:
        """A new volume begins with what the image has at its place. Filled beside its place, so that nobody sees half of it."""
        if source.exists():
            return
        source.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = source.with_name(f"{source.name}.{self._records.new_id()[:12]}")
        fresh.mkdir(mode=0o755)
        trees.populate(self._store.tree(image.top), target, fresh)
        try:
            fresh.rename(source)
        except OSError:  # another container made it meanwhile
            files.remove_tree(str(fresh))

    def _attach(self, record: Record, streams: Streams) -> Running:
        log = None if record.auto_remove else str(self._records.directory(record.id) / "log.json")
        return self._runtime.start(record.spec, self._handling(record, log=log, detach=False), streams)

    def _handling(self, record: Record, *, log: str | None, detach: bool) -> Handling:
        names = (str(self._records.name_link(record.name)),)
        return Handling(detach=detach, remove=record.auto_remove, log=log, interactive=record.interactive and not detach, names=names)

    def attach_started(self, record_name: str, streams: Streams) -> Running:
        """Start an existing container and stay attached to it (`start -a`)."""
        record = self._records.find(record_name)
        self._prepare_start(record)
        return self._attach(record, streams)

    def _prepare_start(self, record: Record) -> None:
        """WrongState when it runs; a work directory of overlayfs that was mounted `volatile` cannot be used twice."""
        if self._records.state(record.id).status == "running":
            raise WrongState(f"container {record.name}: is running already", wanted="exited", actual="running")
        self._sweep_groups({record.id})
        work = Path(record.spec.rootfs.work)
        files.remove_tree(str(work))
        work.mkdir(mode=0o700)

    def _start_detached(self, record: Record) -> None:
        self._prepare_start(record)
        log = str(self._records.directory(record.id) / "log.json")
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            running = self._runtime.start(record.spec, self._handling(record, log=log, detach=True), Streams(null, null, null))
        finally:
            os.close(null)
        with running:
            if running.refused is not None:
                raise ContainerError(f"container {record.name}: {running.refused.reason}")

    def _remove_record(self, record: Record) -> None:
        self._records.remove(record.id, [record.name])

    def _commit(self, record: Record, state: State, tag: str | None, *, message: str, author: str, changes: Sequence[str]) -> Image:
        from sandbox.image.apply import apply_tar
        from sandbox.image.layers import write_tar

        base = self._store.find(record.image_id).config.value
        chain = Digest(record.chain) if record.chain else None
        with self._store.shared(), self._store.draft() as draft, _temporary_file(self.root) as copy:
            write_tar(record.spec.rootfs.upper, copy, record.spec.rootfs.lowers)
            copy.seek(0)
            apply_tar(copy, draft.upper)
            files.remove_stubs(str(draft.upper), state.facts.get("stubs", []))
            snapshot = self._store.commit(draft, chain)
            image = self._store.put_image(self._committed(base, record, snapshot.diff_id if snapshot else None, message, author, changes))
            if tag:
                self._store.tag(Reference.parse(tag), image)
        return image

    def _committed(
        self, base: ImageConfig, record: Record, diff_id: str | None, message: str, author: str, changes: Sequence[str]
    ) -> ImageConfig:
        process = record.spec.process
        config = RunConfig(
            **{
                **{field: getattr(base.config, field) for field in RunConfig.__struct_fields__},
                "env": [f"{name}={value}" for name, value in process.env],
                "user": process.user,
                "working_dir": process.cwd if process.cwd != "/" else base.config.working_dir,
            }
        )
        created = _now(os.environ).isoformat().replace("+00:00", "Z")
        step = History(created=created, created_by=" ".join(process.argv), author=author, comment=message, empty_layer=diff_id is None)
        return ImageConfig(
            created=created,
            author=author or base.author,
            architecture=base.architecture,
            os=base.os,
            variant=base.variant,
            config=self._changed(config, changes),
            rootfs=RootFS("layers", [*base.rootfs.diff_ids, *([diff_id] if diff_id else [])]),
            history=[*base.history, step],
        )

    def _changed(self, config: RunConfig, changes: Sequence[str]) -> RunConfig:
        """`config` after Dockerfile instructions (`--change`)."""
        if not changes:
            return config
        from sandbox.build.changes import apply_changes
        from sandbox.build.memory import Memory

        with Memory(self.root / "build.db") as memory:
            return apply_changes(self._store, memory, config, changes)

    def _unpack(self, record: Record, state: State, path: str, tar: bytes) -> None:
        """Run our own unpacker inside: in the running container's namespaces, else in a container set up for it."""
        process = Process(argv=(), unpack=path)
        if state.status == "running":
            running = self._runtime.exec(record.spec, int(state.facts["pid"]), process, Streams(stdin=tar))
        else:
            self._prepare_start(record)
            spec = replace(record.spec, process=process, network="none", timeout=None, read_only=False)
            running = self._runtime.start(spec, Handling(remove=False, record=False), Streams(stdin=tar))
        with running:
            done = running.wait()
        if done.exit_code:
            raise ContainerError(done.stderr.decode(errors="replace").strip() or done.reason or f"unpacking failed ({done.exit_code})")

    # clean-up

    def prune(self, *, all: bool = False) -> PruneReport:
        """Remove stopped containers, images without a name (`all`: without a container), unused snapshots and everything stray."""
        removed = [record for record in self._records.all() if self._records.state(record.id).status == "exited"]
        with self._store.exclusive():
            for record in removed:
                self._remove_record(record)
            self._sweep_groups(set(self._stray_ids()))
            for container_id in self._stray_ids():
                self._records.remove(container_id, [])
            for link in self._records.stale_names():
                link.unlink(missing_ok=True)
        return replace(self.prune_images(all=all), containers=tuple(record.id for record in removed))

    def prune_containers(self) -> PruneReport:
        """Remove stopped containers only."""
        removed = [record for record in self._records.all() if self._records.state(record.id).status == "exited"]
        for record in removed:
            self._remove_record(record)
        return PruneReport(tuple(record.id for record in removed), (), (), 0)

    def prune_images(self, *, all: bool = False) -> PruneReport:
        """Remove images without a name (`all`: without a container) and what only they needed."""
        images = self._remove_unused(all_images=all)
        snapshots = self._store.prune_snapshots({record.chain for record in self._records.all() if record.chain})
        ids = tuple(image.id for image in images)
        return PruneReport((), ids, tuple(s.chain_id for s in snapshots), sum(s.size for s in snapshots))

    def _remove_unused(self, *, all_images: bool) -> list[Image]:
        images = self._unused_images(all_images=all_images)
        for image in images:
            for name in self._store.names(image.id):
                self._store.untag(name)
            self._store.remove(image.id)
        return images

    def _unused_images(self, *, all_images: bool) -> list[Image]:
        used = {record.image_id for record in self._records.all()}
        return [image for image in self._store.images() if image.id not in used and (all_images or not self._store.names(image.id))]

    def _stray_ids(self) -> Iterable[str]:
        """Directories of no living container: build steps and runs whose supervisor was killed, creations cut short."""
        known = {record.id for record in self._records.all()}
        return [i for i in self._records.ids() if i not in known and not self._records.is_supervised(i)]

    def _sweep_groups(self, dead: set[str]) -> None:
        """Kill and remove the cgroups of containers without supervisor: those in `dead`, and those whose directory is gone."""
        alive = {i[:32] for i in self._records.ids() if i not in dead}
        mark = engine_mark(self.root)
        for name, groups in cgroups.discover().existing().items():
            owner, _, container_id = name.partition(".")
            if owner == mark and container_id not in alive:
                cgroup.remove(groups)


def _ignore_event(event: BuildEvent) -> None:
    """Nobody wants to know."""


def _parse_time(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None


def _read_dockerfile(context: Path | None, dockerfile: str | Path | None) -> tuple[str, Path | None]:
    """The text, and the file it came from."""
    if isinstance(dockerfile, str):
        return dockerfile, None
    path = dockerfile if dockerfile is not None else (context / "Dockerfile" if context is not None else None)
    if path is None:
        raise InvalidOption("no Dockerfile and no context", hint="give dockerfile= its text")
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape"), path
    except OSError as err:
        raise InvalidOption(f"{path}: {(err.strerror or str(err)).lower()}", hint="name the Dockerfile with -f FILE") from err


def _now(environ: Mapping[str, str]) -> datetime:
    """SOURCE_DATE_EPOCH when set (reproducible-builds.org), else now."""
    if epoch := environ.get("SOURCE_DATE_EPOCH"):
        if not epoch.isdigit():
            raise InvalidOption(f"SOURCE_DATE_EPOCH={epoch!r}: not a number of seconds")
        return datetime.fromtimestamp(int(epoch), UTC)
    return datetime.now(UTC)


def _read_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise InvalidOption(f"{path}: {err}") from err


def _opened(source: str | Path | IO[bytes]) -> IO[bytes]:
    """The stream; one given open is left to its owner to close in any case."""
    if not isinstance(source, str | Path):
        return source
    try:
        return Path(source).open("rb")
    except OSError as err:
        raise SandboxError(f"{source}: {(err.strerror or str(err)).lower()}") from err


def _temporary_file(directory: Path) -> IO[bytes]:
    import tempfile

    return tempfile.TemporaryFile(dir=directory)


def _reference_of(name: str) -> Reference | None:
    """The reference when `name` is one, None for an id."""
    bare = name.removeprefix("sha256:")
    if len(bare) >= 12 and set(bare) <= set("0123456789abcdef"):
        return None
    return Reference.parse(name)
