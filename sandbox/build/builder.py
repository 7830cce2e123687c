"""Builder: a Dockerfile and a context into an image of the store: its stages as a graph, each step remembered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC

import msgspec
from msgspec.structs import replace

from sandbox.build import instructions as ins
from sandbox.build.cachesources import Imported, Record, document_of, export_local, export_registry
from sandbox.build.checks import OPTIONS_ARG, check, check_options, surroundings
from sandbox.build.context import Context
from sandbox.build.dockerfile import Dockerfile, parse
from sandbox.build.events import (
    BuildDone,
    BuildEvent,
    BuildStarted,
    BuildWarning,
    OnEvent,
    StepDone,
    StepError,
    StepOutput,
    StepStarted,
)
from sandbox.build.expand import PROXY_ARGS, global_args, platform_args
from sandbox.build.givenfiles import open_context
from sandbox.build.graph import Graph, default_jobs
from sandbox.build.memory import Memory
from sandbox.build.namedcontexts import open_contexts
from sandbox.build.performer import Performer, Place
from sandbox.build.request import EPOCH, BuildRequest, check_text
from sandbox.build.rules import Finding
from sandbox.build.site import Origin, Runs, Site
from sandbox.build.source import Span
from sandbox.build.stages import Stage, Step, host, plan_stages
from sandbox.build.state import BuildState, empty_state, state_of
from sandbox.build.stepcache import StepCache
from sandbox.build.steps import without_triggers
from sandbox.build.stop import Stop
from sandbox.errors import RegistryError
from sandbox.image.flights import Flights
from sandbox.image.reference import Reference
from sandbox.image.store import Image, Store
from sandbox.image.tree import Tree
from sandbox.oci import ImageConfig

__all__ = [
    "BuildDone",
    "BuildEvent",
    "BuildRequest",
    "BuildStarted",
    "BuildWarning",
    "Builder",
    "OnEvent",
    "StepDone",
    "StepError",
    "StepOutput",
    "StepStarted",
]

_SILENT_ARGS = (*PROXY_ARGS, EPOCH, OPTIONS_ARG)


class Builder:
    """Builds images into a store, with RUN steps in `runtime`. `on_event` is called in the thread that calls `build`. `find_image`: how
    the images that a Dockerfile names are found, if not only in the store."""

    def __init__(
        self, store: Store, runtime: Runs, on_event: OnEvent = lambda _: None, find_image: Callable[[str], Image] | None = None
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._on_event = on_event
        self._find_image = find_image or store.find

    def build(self, request: BuildRequest) -> Image:
        """Build, tag and return the image. DockerfileError, UnknownStage, StepFailed; an interrupt leaves nothing behind."""
        check_text(request)
        path = request.dockerfile_path
        dockerfile = parse(request.dockerfile, request.name or (path.name if path else "Dockerfile"))
        tags = tuple(Reference.parse(tag) for tag in request.tags)
        with ExitStack() as opened:
            opened.enter_context(self._store.shared())
            memory = opened.enter_context(Memory(self._store.root / "build.db"))
            site = self._site(request, dockerfile, memory)
            site = replace(site, context=open_context(request, opened))
            contexts = open_contexts(request.settings.contexts, self._store, self._find_image, opened)
            stages = plan_stages(dockerfile, request.target, site.global_args, self._find_image, contexts)
            if request.settings.ssh:
                from sandbox.build.sshagent import open_agents  # with socketserver and subprocess

                site = replace(site, agents=opened.enter_context(open_agents(request.settings.ssh)))
            graph = Graph(stages, site.stop, self._on_event, request.settings.jobs or default_jobs())
            return _Build(request, dockerfile, tags, graph, replace(site, tell=graph.tell)).run()

    def check(self, request: BuildRequest) -> tuple[Dockerfile, tuple[Finding, ...]]:
        """What the rules find in all stages, without building; DockerfileError."""
        check_text(request)
        path = request.dockerfile_path
        dockerfile = parse(request.dockerfile, request.name or (path.name if path else "Dockerfile"))
        with ExitStack() as opened:
            opened.enter_context(self._store.shared())
            return dockerfile, check(dockerfile, surroundings(request.build_args, self._store, open_context(request, opened)))

    def _site(self, request: BuildRequest, dockerfile: Dockerfile, memory: Memory) -> Site:
        source, escape = dockerfile.source, dockerfile.escape
        leading = []
        for instruction in dockerfile.instructions:
            if not isinstance(instruction, ins.Arg):
                break
            leading.append(instruction)
        return Site(
            store=self._store,
            runtime=self._runtime,
            memory=memory,
            source=source,
            escape=escape,
            context=None,
            build_args=request.build_args,
            global_args=global_args(leading, request.build_args, platform_args(host(), host()), escape, source),
            network=request.network,
            now=request.time,
            origin=_no_origin,
            output=lambda _stream, _data: None,
            tell=self._on_event,
            stop=Stop(),
            secrets=request.settings.secrets,
            limits=request.settings.limits,
        )


def _no_origin(name: str) -> Origin:
    raise LookupError(name)  # each stage brings its own


class _Build(msgspec.Struct, dict=True):
    """One build at work."""

    request: BuildRequest
    dockerfile: Dockerfile
    tags: tuple[Reference, ...]
    graph: Graph
    site: Site
    started: float = msgspec.field(default_factory=time.monotonic)
    _cached: int = 0
    _counting: threading.Lock = msgspec.field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        site = self.site
        now = site.now.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        self._cache = StepCache(
            store=site.store,
            memory=site.memory,
            flights=Flights(site.store.root, site.stop.poll),
            now=now,
            slot=self.graph.slot,
            epoch=self.request.epoch,
            imported=self._imported(),
        )
        self._first: dict[int, int] = {}
        self.total = 0
        for stage in self.graph.stages:
            self._first[stage.index] = self.total + 1
            self.total += 1 + len(stage.steps)

    def _imported(self) -> Imported:
        found = Imported(self.site.store)
        for spec in self.request.settings.cache_from:
            try:
                found.add(spec)
            except RegistryError as err:  # as BuildKit: perhaps this is the build that writes it first
                self.graph.on_event(BuildWarning(f"--cache-from {spec.place}: {err}"))
        return found

    def run(self) -> Image:
        self.graph.on_event(BuildStarted(self.total, tuple(stage.label for stage in self.graph.stages)))
        self._warn()
        return self._finish(self.graph.run(self._build_stage))

    def _finish(self, state: BuildState) -> Image:
        store = self.site.store
        if self.request.labels:
            labels = {**(state.run.labels or {}), **self.request.labels}
            state = state.with_run(msgspec.structs.replace(state.run, labels=labels))
        image = store.put_image(self._with_inline_cache(state.image_config()))
        self._export()
        for reference in self.tags:
            store.tag(reference, image)
        seconds = time.monotonic() - self.started
        self.graph.on_event(BuildDone(image.id, tuple(map(str, self.tags)), seconds, self.total, self._cached))
        return image

    def _with_inline_cache(self, config: ImageConfig) -> ImageConfig:
        if any(spec.kind == "inline" for spec in self.request.settings.cache_to):
            # only what the image's own layers give back
            config.cache = document_of(self._records(every_stage=False)).decode()
        return config

    def _export(self) -> None:
        for spec in self.request.settings.cache_to:
            if spec.kind != "inline":
                write = export_local if spec.kind == "local" else export_registry
                write(self.site.store, self._records(every_stage=spec.every_stage), spec.place)

    def _records(self, *, every_stage: bool) -> list[Record]:
        """The steps of all stages, or of those the image's layers come from: the target and its bases."""
        wanted: set[int] = set()
        stages = {stage.index: stage for stage in self.graph.stages}
        link: object = self.graph.stages[-1].index
        while isinstance(link, int):
            wanted.add(link)
            link = stages[link].base
        found = {record.key: record for index, record in self._cache.used if every_stage or index in wanted}
        return list(found.values())

    def _warn(self) -> None:
        """What is legal but doubtful: what the checks find, and build arguments that no ARG takes. DockerfileError when the file
        wants the former to be an error."""
        site = self.site
        around = surroundings(site.build_args, site.store, site.context)
        found = check(self.dockerfile, around, {stage.index for stage in self.graph.stages})
        for one in found:
            self.graph.on_event(BuildWarning(f"{one.rule}: {one.message}", one.line))
        if found and check_options(self.dockerfile, site.build_args).error:
            names = ", ".join(sorted({one.rule for one in found}))
            first = Span(found[0].line, found[0].line)
            raise site.source.error(f"checks failed: {names}", first, hint="`check=error=true` makes them errors")
        instructions = [*self.dockerfile.instructions, *(step.instruction for stage in self.graph.stages for step in stage.steps)]
        declared = {name for i in instructions if isinstance(i, ins.Arg) for name, _ in i.pairs}
        unused = [name for name in self.request.build_args if name not in declared and name not in _SILENT_ARGS]
        if unused:
            self.graph.on_event(BuildWarning(f"build arguments that no ARG takes: {', '.join(sorted(unused))}"))

    def _build_stage(self, stage: Stage) -> BuildState:
        state = self._enter(stage)
        with self.site.store.shared():
            site = replace(self.site, origin=lambda name: self._origin(stage, name))
            for number, step in enumerate(stage.steps, 2):
                state, cached = self._performer(stage, step, number, site).perform(state)
                self._count(cached)
        return state

    def _performer(self, stage: Stage, step: Step, number: int, site: Site) -> Performer:
        return Performer(
            graph=self.graph,
            cache=self._cache,
            stage=stage,
            step=step,
            place=self._place(stage, number, step.text, step.span.first),
            site=replace(site, source=step.source, escape=step.escape),
            dockerfile=self.dockerfile.source,
            redo=self.request.no_cache or stage.label in self.request.settings.no_cache_stages,
        )

    def _place(self, stage: Stage, number: int, text: str, line: int) -> Place:
        index = self._first[stage.index] + number - 1
        return Place(index, self.total, stage.label, text, line, number, 1 + len(stage.steps))

    def _enter(self, stage: Stage) -> BuildState:
        """FROM, which is a step for whoever watches."""
        place = self._place(stage, 1, stage.origin.text, stage.origin.span.first)
        state = self._base_state(stage)
        self.graph.stop.check()
        self.graph.tell(place.started())
        self._count(True)
        self.graph.tell(StepDone(*place.head, True, 0.0, 0, state.top, place.step, place.steps))
        return replace(state, run=without_triggers(state.run), has_cmd=False)  # ARGs of a stage hold in those based on it

    def _count(self, cached: bool) -> None:
        with self._counting:
            self._cached += cached

    def _base_state(self, stage: Stage) -> BuildState:
        if stage.base is None:
            return empty_state(host())
        if isinstance(stage.base, Image):
            return state_of(stage.base.config.value, stage.base.top)
        return self.graph.state_of(stage.base)

    def _origin(self, stage: Stage, name: str) -> Origin:
        found = stage.origins[name]
        if isinstance(found, Context):
            return Origin(Tree(()), None, found)
        top = found.top if isinstance(found, Image) else self.graph.state_of(found).top
        return Origin(self.site.store.tree(top), top or "")
