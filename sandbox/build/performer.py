"""One step of a stage: announced, found in the cache or done, told about; a failure is told with its place."""

from __future__ import annotations

import time
from typing import Literal

import msgspec
from msgspec.structs import replace

from sandbox.build import instructions as ins
from sandbox.build.context import Context
from sandbox.build.events import BuildEvent, StepDone, StepError, StepOutput, StepStarted
from sandbox.build.expand import expand
from sandbox.build.graph import Graph
from sandbox.build.running import CommandFailed
from sandbox.build.site import Site
from sandbox.build.source import SourceText
from sandbox.build.stages import Stage, Step, origins_of
from sandbox.build.state import BuildState
from sandbox.build.stepcache import Outcome, StepCache
from sandbox.build.steps import change_of
from sandbox.build.stop import Stopped
from sandbox.errors import DockerfileError, SandboxError, StepFailed
from sandbox.image.reference import Reference
from sandbox.oci import History

FAILED = "build:failed"
"""The name a failed build's last good state is kept under."""
_LAST_LINES = 10
_WIDEST_TITLE = 120


class Place(msgspec.Struct, frozen=True):
    """Which step this is: `index` of `total` in the build, `step` of `steps` in its stage."""

    index: int
    total: int
    stage: str
    text: str
    line: int
    step: int
    steps: int

    @property
    def head(self) -> tuple[int, int, str, str, int]:
        """What every event of a step begins with."""
        return self.index, self.total, self.stage, self.text, self.line

    def started(self) -> StepStarted:
        """The event that it begins."""
        return StepStarted(*self.head, self.step, self.steps)

    def done(self, outcome: Outcome, seconds: float, size: int, layer: str | None) -> StepDone:
        """The event that it is complete."""
        return StepDone(*self.head, outcome.cached, seconds, size, layer, self.step, self.steps)

    def error(self, err: BaseException, seconds: float) -> StepError:
        """The event that it failed, or that it will not be done because something else failed."""
        canceled = isinstance(err, Stopped)
        message = "canceled" if canceled else str(err) or type(err).__name__
        return StepError(*self.head, seconds, message, self.step, self.steps, canceled)


class Performer(msgspec.Struct):
    """Performs one step. `site` is that of the stage, `redo`: the cache is not asked."""

    graph: Graph
    cache: StepCache
    stage: Stage
    step: Step
    place: Place
    site: Site
    dockerfile: SourceText
    redo: bool

    def perform(self, state: BuildState) -> tuple[BuildState, bool]:
        """The state after the step, and whether it was cached. Tells events; raises DockerfileError, StepFailed, Stopped."""
        for name in origins_of(self.step.instruction):  # before the step is said to begin: it may take long
            self._await(name)
        self.graph.stop.check()
        self._tell(self.place.started())
        self.site = replace(self.site, output=self._tell_output)
        started = time.monotonic()
        try:
            after, outcome, size = self._advance(state)
        except BaseException as err:
            failure = self._explained(err, state)
            self._tell(self.place.error(failure, time.monotonic() - started))
            if failure is err:
                raise
            raise failure from err
        self._tell(self.place.done(outcome, time.monotonic() - started, size, after.top))
        return after, outcome.cached

    def _await(self, name: str) -> None:
        found = self.stage.origins.get(name)
        if isinstance(found, int):
            self.graph.state_of(found)

    def _tell(self, event: BuildEvent) -> None:
        self.graph.tell(event)

    def _tell_output(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        self._tell(StepOutput(self.place.index, self.place.total, self.place.stage, stream, data))

    def _advance(self, state: BuildState) -> tuple[BuildState, Outcome, int]:
        """The state after the step, how it came about, and the bytes of its layer."""
        with self.graph.slot():
            instruction = expand(self.step.instruction, self.site.expander(state, self.step.instruction.span))
            change = change_of(state, instruction, self.site)
        outcome = self.cache.outcome(state, change, redo=self.redo, stage=self.stage.index, from_host=self._reads_host(instruction))
        after, size = change.state, 0
        made_layer = outcome.chain_id != state.top
        if made_layer:
            assert outcome.chain_id is not None  # only an empty stack has no chain id, and a step adds to it
            snapshot = self.site.store.snapshot(outcome.chain_id)
            after, size = replace(after, top=snapshot.chain_id, diff_ids=(*after.diff_ids, snapshot.diff_id)), snapshot.size
        entry = History(outcome.created, change.created_by, after.author or "", empty_layer=not made_layer)
        return replace(after, history=(*after.history, entry), created=outcome.created), outcome, size

    def _reads_host(self, instruction: ins.Instruction) -> bool:
        """Whether it brings files of the host, with times of the host."""
        if isinstance(instruction, ins.Copy) and instruction.origin is not None:
            return isinstance(self.stage.origins.get(instruction.origin), Context)
        return isinstance(instruction, ins.Copy | ins.Add)

    def _explained(self, err: BaseException, state: BuildState) -> BaseException:
        """The error to raise: about the text as it is, anything else as StepFailed with the place and what is known."""
        if self.graph.stop.is_over and isinstance(err, Exception):
            return Stopped()  # its program was ended by us
        if isinstance(err, DockerfileError) or not isinstance(err, (SandboxError, OSError)):
            return err
        step = self.step
        failed = err if isinstance(err, CommandFailed) else None
        look = f"look inside: sandbox run --rm -it {FAILED} sh" if self._keep(state) else None
        hint = "; ".join(text for text in (getattr(err, "hint", None), look) if text)
        reason = _os_reason(err) if isinstance(err, OSError) else str(err)
        return StepFailed(
            f"{_title(step.text)}: {reason}",
            span=step.span,
            instruction=step.text,
            completed=failed.completed if failed else None,
            output=_last_lines(failed.output) if failed else "",
            excerpt=self.dockerfile.excerpt(step.span),
            hint=hint or None,
        )

    def _keep(self, state: BuildState) -> bool:
        """Keep what was good as `build:failed`, to look inside; False when there is nothing to look into, or no room for it."""
        if state.top is None:
            return False
        store = self.site.store
        try:
            store.tag(Reference.parse(FAILED), store.put_image(state.image_config()))
        except (SandboxError, OSError) as err:
            import logging

            logging.getLogger(__name__).warning("%s: not kept: %s", FAILED, err)  # what made the step fail must not be hidden by this
            return False
        return True


def _title(text: str) -> str:
    return text if len(text) <= _WIDEST_TITLE else text[: _WIDEST_TITLE - 1] + "…"


def _os_reason(err: OSError) -> str:
    reason = (err.strerror or str(err)).lower()
    return f"{err.filename}: {reason}" if err.filename else reason


def _last_lines(output: str) -> str:
    return "\n".join(output.rstrip().splitlines()[-_LAST_LINES:])
