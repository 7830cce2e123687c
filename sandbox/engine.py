"""Engine: the one object callers hold. Joins the image store, the builder and the runtime; adds docker's defaults."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache, cached_property, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, Self

from msgspec.structs import replace

from sandbox import launch
from sandbox.build.times import now
from sandbox.containers import Container
from sandbox.creating import Creator
from sandbox.image import drafts, owners
from sandbox.image.reference import Reference
from sandbox.image.store import Image, Store
from sandbox.options import RunOptions, parse_duration, parse_size
from sandbox.records import ALIVE, Record, Records, Status
from sandbox.runtime.container import Runtime
from sandbox.runtime.init import journal
from sandbox.runtime.plan import Handling
from sandbox.runtime.running import OnOutput, Running, Streams
from sandbox.runtime.spec import Completed, Limits, Mount, Usage
from sandbox.starting import Starter
from sandbox.transfers import PullPolicy, Transfers
from sandbox.volumes import Volumes

if TYPE_CHECKING:
    from sandbox.archiving import Archives
    from sandbox.build.disk import CachePruned, CacheUse, Choice
    from sandbox.build.dockerfile import Dockerfile
    from sandbox.build.events import BuildEvent
    from sandbox.build.outputs import Output
    from sandbox.build.rules import Finding
    from sandbox.build.settings import Settings
    from sandbox.events import Event
    from sandbox.image.copying.copy import Copied
    from sandbox.image.layertree import Layer
    from sandbox.image.packing import Packing
    from sandbox.image.registry.access import Terms
    from sandbox.image.registry.progress import OnTransfer
    from sandbox.image.registry.pulling import Pulled
    from sandbox.image.registry.pushing import Pushed
    from sandbox.image.registry.searching import Found
    from sandbox.image.tree import Tree
    from sandbox.images import HistoryRow, Images, ImageSummary
    from sandbox.logs import LogLine
    from sandbox.manifests import Manifests
    from sandbox.measuring import ProcessRow, Stats
    from sandbox.pruning import Pruner, PruneReport
    from sandbox.runtime.network.networks import Networks
    from sandbox.runtime.spawner import Spawner
    from sandbox.session.interpreter import Interpreter
    from sandbox.session.runners import Runner

__all__ = [
    "Completed",
    "Container",
    "Engine",
    "Handling",
    "HistoryRow",
    "ImageSummary",
    "Limits",
    "LogLine",
    "OnOutput",
    "ProcessRow",
    "PruneReport",
    "Running",
    "Stats",
    "Status",
    "Streams",
]


def _remove_foreign(path: str) -> bool:
    from sandbox.runtime.init import owned  # rarely needed

    return owned.spawn("remove", path)


def _inside(uid: int, gid: int) -> tuple[int, int]:
    from sandbox.runtime.init import subids

    return subids.inside(uid, gid)


drafts.remove_foreign, owners.inside = _remove_foreign, _inside


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
    `spawner`: the helper that starts containers, for whoever had it come up before the engine was imported; closed with us.
    """

    def __init__(self, root: str | Path | None = None, *, spawner: Spawner | None = None) -> None:
        self.root = Path(root).expanduser().absolute() if root is not None else default_root().absolute()
        self._store = Store(self.root)
        self._records = Records(self.root)
        self._runtime = Runtime(self.root, spawner)
        self._transfers = Transfers(self._store)
        self.volumes = Volumes(self.root, self._records, self._store.exclusive)
        self._creator = Creator(self.root, self._store, self._records, self.volumes)
        self._starter = Starter(self._records, self._runtime)

    # Parts that a start does without are imported when they are asked for.

    @cached_property
    def _images(self) -> Images:
        from sandbox.images import Images

        return Images(self._store, self._records)

    @cached_property
    def _archives(self) -> Archives:
        from sandbox.archiving import Archives

        return Archives(self._store)

    @cached_property
    def _pruner(self) -> Pruner:
        from sandbox.pruning import Pruner

        return Pruner(self._store, self._records, self._images, self._starter, lambda: self._runtime.networks)

    @property
    def networks(self) -> Networks:
        """The networks containers can be in."""
        return self._runtime.networks

    def close(self) -> None:
        """End the helper process; detached containers live on."""
        self._runtime.close()

    def warm(self) -> None:
        """Start the helper process now, and have it ready, so that the next container does not wait for it."""
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
        network: str = "host",
        settings: Settings | None = None,
        on_event: Callable[[BuildEvent], None] | None = None,
    ) -> Image:
        """Build an image. `dockerfile`: a Path to the file, or its text; default CONTEXT/Dockerfile. `settings`: jobs, secrets,
        named contexts, caches …

        Raises DockerfileError, UnknownStage, StepFailed. SOURCE_DATE_EPOCH, as build argument or in the environment, is the time
        everything gets.
        """
        from sandbox.build.builder import Builder  # the parser costs every other verb 15 ms
        from sandbox.build.events import PullProgress
        from sandbox.build.request import BuildRequest, read_dockerfile, with_epoch
        from sandbox.build.settings import Settings

        directory = Path(context) if context is not None else None
        text, path = read_dockerfile(directory, dockerfile)
        request = BuildRequest(
            context=directory,
            dockerfile=text,
            dockerfile_path=path,
            tags=tuple(tags),
            build_args=with_epoch(build_args or {}, settings.timestamp if settings else None, os.environ),
            target=target,
            no_cache=no_cache,
            labels=dict(labels or {}),
            network=network,
            settings=settings or Settings(),
            now=now(os.environ),
        )
        tell = on_event or _ignore_event
        find = cache(lambda name: self.wanted_image(name, request.settings.pull, on_transfer=lambda event: tell(PullProgress(event))))
        return Builder(self._store, self._runtime, tell, find).build(request)

    def export_image(
        self, image: Image, outputs: Sequence[Output], *, tags: Sequence[str] = (), stdout: IO[bytes] | None = None
    ) -> dict[str, object]:
        """Write a built image where `outputs` say (`build.outputs.parse_output`); what buildx's --metadata-file holds of it."""
        from sandbox.build.outputs import check_outputs, metadata_of  # as in build

        names = [Reference.parse(tag) for tag in tags]
        if not outputs:
            return metadata_of(image, names)
        from sandbox.build.exporting import export

        check_outputs(outputs)
        return export(self._store, image, outputs, names, stdout)

    def check(
        self, context: str | Path | None = ".", *, dockerfile: str | Path | None = None, build_args: Mapping[str, str] | None = None
    ) -> tuple[Dockerfile, tuple[Finding, ...]]:
        """The Dockerfile as `build` takes it, and what BuildKit's rules find in it; nothing is built. DockerfileError."""
        from sandbox.build.builder import Builder  # as in build
        from sandbox.build.request import BuildRequest, read_dockerfile

        directory = Path(context) if context is not None else None
        text, path = read_dockerfile(directory, dockerfile)
        request = BuildRequest(
            context=directory, dockerfile=text, dockerfile_path=path, build_args=dict(build_args or {}), now=now(os.environ)
        )
        return Builder(self._store, self._runtime).check(request)

    def capture(self, tag: str, *, packages: Sequence[str] = ()) -> Image:
        """Make this machine's Python an image; `packages`: installed distributions to take along, or `all`."""
        from sandbox.image.capture import capture  # only this verb needs it

        return capture(self._store, tag, packages=packages)

    def import_image(
        self, source: str | Path | IO[bytes], name: str | None = None, *, changes: Sequence[str] = (), message: str = ""
    ) -> Image:
        """Make an image of the tar of a root file system; `changes` are Dockerfile instructions such as `CMD ["sh"]`."""
        return self._archives.import_rootfs(source, name, changes=changes, message=message)

    def load(self, source: str | Path | IO[bytes]) -> list[tuple[str | None, Image]]:
        """Take in an archive of `save`, docker, podman or skopeo: names and images."""
        return self._archives.load(source)

    def save(
        self,
        names: Sequence[str],
        target: str | Path | IO[bytes],
        *,
        format: Literal["oci", "docker"] = "docker",
        compression: Literal["none", "gzip", "zstd"] | None = None,
        level: int | None = None,
    ) -> None:
        """Write images to an archive; a file appears whole or not at all. `compression` of the layers: None leaves them as they are;
        `level`: how hard those are compressed that were not before. InvalidOption, ImageError."""
        self._archives.save(names, target, format=format, compression=compression, level=level)

    def pull(
        self,
        name: str,
        *,
        platform: str | None = None,
        all_tags: bool = False,
        terms: Terms | None = None,
        on_event: OnTransfer | None = None,
    ) -> list[Pulled]:
        """Bring an image (`all_tags`: every tag of a repository) from its registry. NotInRegistry, Unauthorized, RateLimited,
        DigestMismatch, InvalidImage, RegistryError: then no name has changed."""
        return self._transfers.pull(name, platform=platform, all_tags=all_tags, terms=terms, on_event=on_event)

    def push(
        self,
        name: str,
        target: str | None = None,
        *,
        packing: Packing | None = None,
        terms: Terms | None = None,
        on_event: OnTransfer | None = None,
    ) -> Pushed:
        """Send an image to its registry, as `target` or under its own name; layers built here leave as gzip unless `packing` says
        otherwise. Unauthorized, RegistryError."""
        from sandbox.image.packing import Packing

        return self._transfers.push(name, target, packing=packing or Packing("gzip"), terms=terms, on_event=on_event)

    def copy_image(
        self,
        source: str,
        target: str,
        *,
        everything: bool = False,
        platform: str | None = None,
        packing: Packing | None = None,
        terms: Terms | None = None,
        target_terms: Terms | None = None,
        on_event: OnTransfer | None = None,
    ) -> Copied:
        """Copy an image between docker://NAME, oci:DIR[:NAME], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME], dir:DIR and store:NAME
        (or NAME alone), byte for byte; of an index the image for `platform`, or with `everything` the whole. Layers built here leave as
        gzip unless `packing` says otherwise. ImageError, RegistryError, InvalidOption: then the target's name is what it was."""
        from sandbox.image.packing import Packing

        how = packing or Packing("none" if target.startswith("docker-archive:") else "gzip")
        return self._transfers.copy(
            source, target, everything=everything, platform=platform, packing=how, terms=terms, target_terms=target_terms, on_event=on_event
        )

    @property
    def manifests(self) -> Manifests:
        """Manifest lists: indexes that name an image for each platform."""
        from sandbox.manifests import Manifests

        return Manifests(self._store)

    def search(self, term: str, *, limit: int = 25, terms: Terms | None = None) -> list[Found]:
        """Repositories of Docker Hub, or of HOST for `HOST/TERM`, whose name has the term. RegistryError when it offers no search."""
        return self._transfers.search(term, limit=limit, terms=terms)

    def registry_tags(self, name: str, *, terms: Terms | None = None) -> list[str]:
        """Every tag a registry has of a repository. NotInRegistry, RegistryError."""
        return self._transfers.tags(name, terms=terms)

    def image_tree(self, images: Sequence[Image] | None = None) -> list[Layer]:
        """The layers of these images (all): a forest in which shared ones stand once."""
        from sandbox.image.layertree import layer_tree

        return layer_tree(self._store, self._store.images() if images is None else images)

    def ensure_image(self, name: str, policy: PullPolicy = "missing", *, on_event: OnTransfer | None = None) -> Image:
        """The image of this name, pulled when it is missing (`always`: in any case). ImageNotFound, RegistryError."""
        return self._transfers.ensure(name, policy, on_event=on_event)

    def wanted_image(self, name: str, policy: str | None = None, *, on_transfer: OnTransfer | None = None) -> Image:
        """The image as `run` and `build` take it, pulled when --pull says so; without a policy only when it is missing and its name has a
        registry. ImageNotFound, RegistryError."""
        return self._transfers.wanted(name, policy, lambda: self._store.find(name), on_transfer)

    def login(self, registry: str, user: str, password: str, *, terms: Terms | None = None) -> str:
        """Try a name and password, and keep them; where they are kept. Unauthorized, RegistryError."""
        return self._transfers.login(registry, user, password, terms=terms)

    def image(self, name: str) -> Image:
        """The image of this name, id or unique id prefix; ImageNotFound says what is close."""
        return self._store.find(name)

    def images(self) -> list[ImageSummary]:
        """Every image, once a name, newest first; those without a name too."""
        return self._images.all()

    def history(self, name: str) -> list[HistoryRow]:
        """What an image was made of, newest first."""
        return self._images.history(name)

    def inspect_image(self, name: str) -> dict[str, object]:
        """docker image inspect's shape."""
        return self._images.inspect(name)

    def image_names(self, image: Image) -> list[str]:
        """Its names, as docker shows them."""
        return self._images.names(image)

    def image_digests(self, name: str) -> list[str]:
        """What registries call an image: `NAME@sha256:…`."""
        return self._images.digests(self._store.find(name))

    def image_size(self, image: Image) -> int:
        """The bytes of the files of all its layers."""
        return self._store.image_size(image)

    def has_program(self, image: Image, name: str) -> bool:
        """Whether the image has this program, by path or along its PATH. Nothing of the image is run."""
        return self._images.has_program(image, name)

    def image_files(self, image: Image) -> Tree:
        """Its files, to be looked at where they are."""
        return self._store.tree(image.top)

    def layer_sizes(self, image: Image) -> list[int]:
        """The bytes of the files of each of its layers, lowest first."""
        return self._images.layer_sizes(image)

    def tag(self, source: str, target: str) -> None:
        """Give an image one more name."""
        image = self._store.find(source)
        self._store.tag(Reference.parse(target), image)
        self._note("image", "tag", str(image.id), name=target)

    def remove_image(self, name: str, *, force: bool = False) -> list[str]:
        """Take a name away, and the image with its last name; docker's lines (`Untagged: …`, `Deleted: …`).

        Raises ImageError when a container needs it, or when an id has several names, unless `force`.
        """
        image_id = str(self._store.find(name).id)
        lines = self._images.remove(name, force=force)
        for line in lines:
            word, _, what = line.partition(": ")
            self._note("image", "untag" if word == "Untagged" else "delete", image_id, **({"name": what} if word == "Untagged" else {}))
        return lines

    def _note(self, kind: str, action: str, subject: str, **attributes: str) -> None:
        journal.note(str(self.root), kind, action, subject, attributes)

    def events(self, *, since: datetime | None = None, until: datetime | None = None, follow: bool = False) -> Iterator[Event]:
        """What has happened here (a few megabytes of it are kept); with `follow` what happens, to `until` or for ever."""
        from sandbox.events import events

        return events(self.root, since=since, until=until, follow=follow)

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
        network: str | None = None,
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
        with self.launch(image, argv, options=chosen, streams=Streams(stdin=stdin))[0] as running:
            return running.wait(on_output)

    def launch(
        self,
        image: str | Image,
        argv: Sequence[str] = (),
        *,
        options: RunOptions = RunOptions(),
        streams: Streams = Streams(),
        mounts: Sequence[Mount] = (),
    ) -> tuple[Running, Container]:
        """Start a program in a fresh container and stay attached to it; leaving the first result's context ends it. The second is for
        whoever starts it again (`attach_started`), or wants to know more of it.

        `mounts`: more of them, beside those of the options.
        """
        with self._runtime.reserve() as place:
            record = self._create(image, argv, options, mounts, place.container_id)
            try:
                return self._starter.attach_new(record, streams, place), Container(self, record)
            except BaseException:
                Container(self, record).remove(force=True)  # it may run, if we were interrupted
                raise

    def interpreter(
        self,
        image: str | Image,
        program: Sequence[str],
        *,
        options: RunOptions = RunOptions(rm=True),
        stdin: bytes | None = None,
        mounts: Sequence[Mount] = (),
        runner: Runner | None = None,
    ) -> Interpreter:
        """Start an interpreter that runs cells in a fresh container; the caller closes it. `program`: how it is called; `runner`: the
        one that suits it (None: Python's, for 3.6 and newer). Without `rm` its container stays, for `interpreter_again`."""
        from sandbox.session import interpreter  # only cells need it
        from sandbox.session.runners import PYTHON, runner_mount

        runner = runner or PYTHON
        first, *rest = runner.command(program)
        chosen = replace(options, entrypoint=first, tty=False, detach=False)

        def launch(channel: int) -> tuple[Running, str, Callable[[], Usage]]:
            streams = Streams(stdin=stdin, channel=channel)
            running, container = self.launch(image, rest, options=chosen, streams=streams, mounts=(runner_mount(), *mounts))
            return running, container.id, container.meter()

        return interpreter.start(runner, launch)

    def interpreter_again(self, container_id: str, *, runner: Runner) -> Interpreter:
        """Start the interpreter of a stopped container again: its variables are gone, its files are not. ContainerNotFound, WrongState
        while it runs."""
        from sandbox.session import interpreter

        container = self.container(container_id)

        def launch(channel: int) -> tuple[Running, str, Callable[[], Usage]]:
            return self.attach_started(container.id, Streams(channel=channel)), container.id, container.meter()

        return interpreter.start(runner, launch)

    def create(
        self, image: str | Image, argv: Sequence[str] = (), *, options: RunOptions = RunOptions(), mounts: Sequence[Mount] = ()
    ) -> Container:
        """Make a container without starting it. `mounts`: more of them, beside those of the options."""
        record = self._create(image, argv, options, mounts)
        return Container(self, record)

    def _create(
        self, image: str | Image, argv: Sequence[str], options: RunOptions, mounts: Sequence[Mount], container_id: str | None = None
    ) -> Record:
        make = partial(self._creator.create, image, argv, options, mounts, container_id=container_id)
        record = self._transfers.wanted(image, options.pull, make)
        self._starter.note(record, "create")
        return record

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
        return [container for container in found if all or container.status in ALIVE]

    def attach_started(self, record_name: str, streams: Streams) -> Running:
        """Start an existing container and stay attached to it (`start -a`)."""
        record = self._records.find(record_name)
        return self._starter.attach(record, streams)

    def restore(self) -> list[Container]:
        """After a reboot: start again what its restart policy wants running (`always`, and `unless-stopped` or `on-failure`
        of what nobody stopped). Nothing is started by itself: there is no daemon; call this from an init system."""
        return [Container(self, record) for record in self._starter.restore()]

    # clean-up

    def prune(self, *, all: bool = False) -> PruneReport:
        """Remove stopped containers, images without a name (`all`: without a container), unused snapshots and everything stray."""
        self._runtime.dismiss_spares()
        return self._pruner.everything(all=all)

    def cache_uses(self) -> list[CacheUse]:
        """What the build cache holds beside what images and containers need, the longest unused first."""
        from sandbox.build.disk import cache_uses

        return cache_uses(self._store, self._pruner.chains_in_use())

    def prune_cache(self, choice: Choice | None = None) -> CachePruned:
        """Remove build cache: layers no image or container needs, and cache mounts. Waits for builds that run."""
        from sandbox.build.disk import Choice, prune_cache

        return prune_cache(self._store, self._pruner.chains_in_use(), choice or Choice())

    def prune_containers(self) -> PruneReport:
        """Remove stopped containers only."""
        return self._pruner.containers()

    def prune_images(self, *, all: bool = False) -> PruneReport:
        """Remove images without a name (`all`: without a container) and what only they needed."""
        return self._pruner.images(all=all)


def _ignore_event(event: BuildEvent) -> None:
    """Nobody wants to know."""
