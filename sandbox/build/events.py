"""What a build tells while it runs: typed events, one consumer per face (terminal, plain, JSON lines, notebook).

They are told one after the other in the thread that builds. Stages run at the same time, so the events of different
steps interleave: `index` says whose an event is. Steps are numbered in the order of the Dockerfile, not of time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from sandbox.image.registry.progress import TransferEvent


class BuildStarted(msgspec.Struct, frozen=True):
    """The plan is made: `total` steps in `stages` (only what the target needs, in the order they are built)."""

    total: int
    stages: tuple[str, ...]


class StepStarted(msgspec.Struct, frozen=True):
    """Step `index` of `total` (counted from 1 over all needed stages; FROM is a step) begins."""

    index: int
    total: int
    stage: str
    """The stage's name, or its number as text when it has none."""
    text: str
    """The instruction on one line, as in the Dockerfile."""
    line: int
    """The first line of the instruction in the Dockerfile."""
    step: int = 0
    """Which step of its stage this is, counted from 1, FROM being the first."""
    steps: int = 0
    """How many steps its stage has."""


class StepOutput(msgspec.Struct, frozen=True):
    """Bytes a RUN step printed, as they came (no line buffering)."""

    index: int
    total: int
    stage: str
    stream: Literal["stdout", "stderr"]
    data: bytes


class StepDone(msgspec.Struct, frozen=True):
    """Step `index` is complete. `cached`: its result was remembered; `bytes`: size of the layer it made (0: none);
    `layer`: the chain id of the root file system after it (None: still empty)."""

    index: int
    total: int
    stage: str
    text: str
    line: int
    cached: bool
    seconds: float
    bytes: int
    layer: str | None
    step: int = 0
    steps: int = 0


class StepError(msgspec.Struct, frozen=True):
    """Step `index` failed or was interrupted; the exception follows. `message` is its first line.
    `canceled`: nothing was wrong with it, but another step failed meanwhile."""

    index: int
    total: int
    stage: str
    text: str
    line: int
    seconds: float
    message: str
    step: int = 0
    steps: int = 0
    canceled: bool = False


class BuildWarning(msgspec.Struct, frozen=True):
    """Something the author should look at; the build goes on. `line` is 0 when it is about no line."""

    message: str
    line: int = 0


class BuildDone(msgspec.Struct, frozen=True):
    """The image is in the store under `tags` (canonical form). `id` is the image id (`sha256:…`)."""

    id: str
    tags: tuple[str, ...]
    seconds: float
    total: int
    cached: int


class PullProgress(msgspec.Struct, frozen=True):
    """An image that the Dockerfile names is brought from its registry, before the steps begin. Told by the threads that bring it, while
    the one that builds waits."""

    transfer: TransferEvent


BuildEvent = PullProgress | BuildStarted | StepStarted | StepOutput | StepDone | StepError | BuildWarning | BuildDone
OnEvent = Callable[[BuildEvent], None]
