"""Builder: a Dockerfile and a context into an image of the store, step by step, each step remembered.

A step's cache key is a digest over the chain id it starts from and the step's inputs (`Change.inputs`): text after
expansion, environment and ARGs, user, working directory, shell, and for COPY the digest of exactly the files it names.
So a key hits whenever the same thing would be done to the same files, whatever the Dockerfile's earlier lines were.

The time a step was made is remembered with its key (`Memory.created`) and goes into the history again: a build from the
cache gives the very config of the build that filled it, hence the same image id.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from sandbox.build import instructions as ins
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
from sandbox.build.expand import PROXY_ARGS, expand, global_args, platform_args
from sandbox.build.memory import Memory
from sandbox.build.running import CommandFailed
from sandbox.build.site import Origin, Runs, Site
from sandbox.build.stages import Stage, Step, host, plan_stages
from sandbox.build.state import BuildState, Change, empty_state, state_of
from sandbox.build.steps import change_of, without_triggers
from sandbox.errors import DockerfileError, InvalidInput, SandboxError, StepFailed
from sandbox.image.reference import Reference
from sandbox.image.store import Image, Store
from sandbox.oci import Digest, History
from sandbox.runtime.spec import Network

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

log = logging.getLogger(__name__)

FAILED = "build:failed"
"""The name a failed build's last good state is kept under."""
_EPOCH = "SOURCE_DATE_EPOCH"
_SILENT_ARGS = (*PROXY_ARGS, _EPOCH)
_LAST_LINES = 10
_WIDEST_TITLE = 120


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What to build. `dockerfile` is its text; `dockerfile_path`, when it came from a file, gives <Dockerfile>.dockerignore;
    `name` is what messages call it (default: the path's name). `context` None: nothing to COPY from. `now` is the time in
    history and config, unless the build argument SOURCE_DATE_EPOCH gives another. `target`: the stage, default the last."""

    dockerfile: str
    now: datetime
    context: Path | None = None
    dockerfile_path: Path | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()
    build_args: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    no_cache: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    network: Network = "host"


class Builder:
    """Builds images into a store, with RUN steps in `runtime`. `on_event` is called in the building thread."""

    def __init__(
        self, store: Store, runtime: Runs, on_event: OnEvent = lambda _: None, *, new_id: Callable[[], str] = lambda: secrets.token_hex(32)
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._on_event = on_event
        self._new_id = new_id

    def build(self, request: BuildRequest) -> Image:
        """Build, tag and return the image. DockerfileError, UnknownStage, StepFailed; an interrupt leaves nothing behind."""
        _check_text(request)
        path = request.dockerfile_path
        dockerfile = parse(request.dockerfile, request.name or (path.name if path else "Dockerfile"))
        tags = tuple(Reference.parse(tag) for tag in request.tags)
        with ExitStack() as opened:
            opened.enter_context(self._store.shared())
            memory = opened.enter_context(Memory(self._store.root / "build.db"))
            context = self._context(request)
            if context is not None:
                opened.enter_context(context)
            return _Build(self._store, self._on_event, request, dockerfile, tags, self._site(request, dockerfile, memory, context)).run()

    def _context(self, request: BuildRequest) -> Context | None:
        if request.context is None:
            return None
        path = request.dockerfile_path
        return Context(request.context, path.with_name(path.name + ".dockerignore") if path else None)

    def _site(self, request: BuildRequest, dockerfile: Dockerfile, memory: Memory, context: Context | None) -> Site:
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
            context=context,
            build_args=request.build_args,
            global_args=global_args(leading, request.build_args, platform_args(host(), host()), escape, source),
            network=request.network,
            now=_time_of(request),
            origin=_no_origin,
            output=lambda _stream, _data: None,
            warn=lambda message: self._on_event(BuildWarning(message)),
            new_id=self._new_id,
        )


def _check_text(request: BuildRequest) -> None:
    """Values from a command line may hold bytes that are not UTF-8; neither a config nor an environment can."""
    for what, values in (("build argument", request.build_args), ("label", request.labels)):
        for name, value in values.items():
            if "\0" in value or any("\ud800" <= char <= "\udfff" for char in name + value):
                raise InvalidInput(f"{what} {name!a}: not text: it holds a NUL or broken UTF-8")


def _no_origin(name: str) -> Origin:
    raise LookupError(name)  # each stage brings its own


def _time_of(request: BuildRequest) -> datetime:
    text = request.build_args.get(_EPOCH)
    if not text:
        return request.now
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise InvalidInput(f"build argument {_EPOCH}={text}: not a number of seconds")
    return datetime.fromtimestamp(int(text), UTC)


@dataclass(frozen=True)
class _Outcome:
    """What a change led to: the root file system after it, when that was made, whether it was remembered."""

    chain_id: Digest | None
    created: str
    cached: bool


@dataclass
class _Build:
    """One build: the stages one after the other, and where each ended."""

    store: Store
    on_event: OnEvent
    request: BuildRequest
    dockerfile: Dockerfile
    tags: tuple[Reference, ...]
    site: Site
    states: dict[int, BuildState] = field(default_factory=dict)
    index: int = 0
    total: int = 0
    cached: int = 0
    started: float = field(default_factory=time.monotonic)

    def run(self) -> Image:
        stages = plan_stages(self.dockerfile, self.request.target, self.site.global_args, self.store.find)
        self.total = sum(1 + len(stage.steps) for stage in stages)
        self.on_event(BuildStarted(self.total, tuple(stage.label for stage in stages)))
        self._warn(stages)
        for stage in stages:
            self.states[stage.index] = self._build_stage(stage)
        return self._finish(self.states[stages[-1].index])

    def _finish(self, state: BuildState) -> Image:
        if self.request.labels:
            labels = {**(state.run.labels or {}), **self.request.labels}
            state = state.with_run(msgspec.structs.replace(state.run, labels=labels))
        image = self.store.put_image(state.image_config())
        for reference in self.tags:
            self.store.tag(reference, image)
        seconds = time.monotonic() - self.started
        self.on_event(BuildDone(image.id, tuple(map(str, self.tags)), seconds, self.total, self.cached))
        return image

    def _warn(self, stages: tuple[Stage, ...]) -> None:
        """What is legal but doubtful: the parser's warnings, and build arguments that no ARG takes."""
        for message, line in self.dockerfile.warnings:
            self.on_event(BuildWarning(message, line))
        instructions = [*self.dockerfile.instructions, *(step.instruction for stage in stages for step in stage.steps)]
        declared = {name for i in instructions if isinstance(i, ins.Arg) for name, _ in i.pairs}
        unused = [name for name in self.request.build_args if name not in declared and name not in _SILENT_ARGS]
        if unused:
            self.on_event(BuildWarning(f"build arguments that no ARG takes: {', '.join(sorted(unused))}"))

    def _build_stage(self, stage: Stage) -> BuildState:
        state = self._enter(stage)
        site = replace(self.site, origin=lambda name: self._origin(stage, name))
        for step in stage.steps:
            state = _Performer(self, stage, step, replace(site, source=step.source, escape=step.escape)).perform(state)
        return state

    def _enter(self, stage: Stage) -> BuildState:
        """FROM, which is a step for whoever watches."""
        self.index += 1
        text, line, label = stage.origin.text, stage.origin.span.first, stage.label
        self.on_event(StepStarted(self.index, self.total, label, text, line))
        state = self._base_state(stage)
        self.cached += 1
        self.on_event(StepDone(self.index, self.total, label, text, line, True, 0.0, 0, state.top))
        return replace(state, run=without_triggers(state.run), args=(), has_cmd=False)

    def _base_state(self, stage: Stage) -> BuildState:
        if stage.base is None:
            return empty_state(host())
        if isinstance(stage.base, Image):
            return state_of(stage.base.config.value, stage.base.top)
        return self.states[stage.base]

    def _origin(self, stage: Stage, name: str) -> Origin:
        found = stage.origins[name]
        top = found.top if isinstance(found, Image) else self.states[found].top
        return Origin(self.store.tree(top), top or "")

    def keep_failed(self, state: BuildState) -> bool:
        """Keep what was good as `build:failed`, to look inside; False when there is nothing to look into, or no room for it."""
        if state.top is None:
            return False
        try:
            self.store.tag(Reference.parse(FAILED), self.store.put_image(state.image_config()))
        except (SandboxError, OSError) as err:
            log.warning("%s: not kept: %s", FAILED, err)  # what made the step fail must not be hidden by this
            return False
        return True


@dataclass
class _Performer:
    """One step: announced, found in the cache or done, and told about."""

    build: _Build
    stage: Stage
    step: Step
    site: Site

    def perform(self, state: BuildState) -> BuildState:
        build, step = self.build, self.step
        build.index += 1
        place = build.index, build.total, self.stage.label
        text, line = step.text, step.span.first
        self.site = replace(self.site, output=self._tell_output)
        build.on_event(StepStarted(*place, text, line))
        started = time.monotonic()
        try:
            after, outcome, size = self._advance(state)
        except BaseException as err:
            seconds = time.monotonic() - started
            failure = self._explained(err, state)
            build.on_event(StepError(*place, text, line, seconds, str(failure) or type(failure).__name__))
            if failure is err:
                raise
            raise failure from err
        build.cached += outcome.cached
        seconds = time.monotonic() - started
        build.on_event(StepDone(*place, text, line, outcome.cached, seconds, size, after.top))
        return after

    def _tell_output(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        self.build.on_event(StepOutput(self.build.index, self.build.total, self.stage.label, stream, data))

    def _advance(self, state: BuildState) -> tuple[BuildState, _Outcome, int]:
        """The state after the step, how it came about, and the bytes of its layer."""
        instruction = expand(self.step.instruction, self.site.expander(state, self.step.instruction.span))
        change = change_of(state, instruction, self.site)
        outcome = self._outcome(state, change)
        after, size = change.state, 0
        made_layer = outcome.chain_id != state.top
        if made_layer:
            assert outcome.chain_id is not None  # only an empty stack has no chain id, and a step adds to it
            snapshot = self.build.store.snapshot(outcome.chain_id)
            after, size = replace(after, top=snapshot.chain_id, diff_ids=(*after.diff_ids, snapshot.diff_id)), snapshot.size
        entry = History(outcome.created, change.created_by, after.author or "", empty_layer=not made_layer)
        return replace(after, history=(*after.history, entry), created=outcome.created), outcome, size

    def _outcome(self, state: BuildState, change: Change) -> _Outcome:
        key = cache_key(state.top, change.inputs)
        known = self._remembered(key, state, change)
        if known is not None:
            return known
        if change.precise is None:
            return self._done(key, state, change)
        exact = cache_key(state.top, change.precise())
        outcome = self._remembered(exact, state, change) or self._done(exact, state, change)
        self._remember(key, state, outcome)
        return outcome

    def _remembered(self, key: str, state: BuildState, change: Change) -> _Outcome | None:
        if self.build.request.no_cache:
            return None
        created = self.site.memory.created(key)
        if change.make is None:
            return _Outcome(state.top, created, cached=True) if created else None
        step = self.build.store.cached_step(key)
        return _Outcome(step.chain_id, created or self._now(), cached=True) if step else None

    def _done(self, key: str, state: BuildState, change: Change) -> _Outcome:
        """Do it, and remember it."""
        chain_id = state.top
        if change.make is not None:
            with self.build.store.draft() as draft:
                change.make(draft)
                snapshot = self.build.store.commit(draft, state.top)
            chain_id = snapshot.chain_id if snapshot else state.top
        outcome = _Outcome(chain_id, self._now(), cached=False)
        self._remember(key, state, outcome, has_layer=change.make is not None)
        return outcome

    def _remember(self, key: str, state: BuildState, outcome: _Outcome, *, has_layer: bool = True) -> None:
        # The time first: whoever finds the step must find its time.
        self.site.memory.remember_created(key, outcome.created)
        if has_layer:
            self.build.store.remember_step(key, state.top, outcome.chain_id)

    def _now(self) -> str:
        return self.site.now.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

    def _explained(self, err: BaseException, state: BuildState) -> BaseException:
        """The error to raise: about the text as it is, anything else as StepFailed with the place and what is known."""
        if isinstance(err, DockerfileError) or not isinstance(err, (SandboxError, OSError)):
            return err
        step = self.step
        failed = err if isinstance(err, CommandFailed) else None
        look = f"look inside: sandbox run --rm -it {FAILED} sh" if self.build.keep_failed(state) else None
        hint = "; ".join(text for text in (getattr(err, "hint", None), look) if text)
        reason = _os_reason(err) if isinstance(err, OSError) else str(err)
        return StepFailed(
            f"{_title(step.text)}: {reason}",
            span=step.span,
            instruction=step.text,
            completed=failed.completed if failed else None,
            output=_last_lines(failed.output) if failed else "",
            excerpt=self.build.dockerfile.source.excerpt(step.span),
            hint=hint or None,
        )


def cache_key(parent: str | None, inputs: tuple[str, ...]) -> str:
    """The name under which a step is remembered: every part with its length, so that no two lists read the same."""
    total = hashlib.sha256(b"sandbox build 1\n")
    for part in (parent or "", *inputs):
        data = part.encode("utf-8", "surrogateescape")
        total.update(b"%d:" % len(data))
        total.update(data)
    return total.hexdigest()


def _title(text: str) -> str:
    return text if len(text) <= _WIDEST_TITLE else text[: _WIDEST_TITLE - 1] + "…"


def _os_reason(err: OSError) -> str:
    reason = (err.strerror or str(err)).lower()
    return f"{err.filename}: {reason}" if err.filename else reason


def _last_lines(output: str) -> str:
    return "\n".join(output.rstrip().splitlines()[-_LAST_LINES:])
