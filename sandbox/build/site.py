"""What a step may use: the store, the runtime, the context, the arguments of the build, and ways to speak."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Literal, Protocol, Self

import msgspec

from sandbox.build import expand
from sandbox.build import instructions as ins
from sandbox.build.context import Context, Source, TreeSource
from sandbox.build.events import BuildWarning, OnEvent
from sandbox.build.memory import Memory
from sandbox.build.source import SourceText, Span
from sandbox.build.state import BuildState
from sandbox.build.stop import Stop
from sandbox.errors import DockerfileError
from sandbox.guarded import Guarded
from sandbox.image.store import Store
from sandbox.image.tree import Tree
from sandbox.runtime.plan import Handling
from sandbox.runtime.spec import Completed, ContainerSpec, Limits, Network

OnOutput = Callable[[Literal["stdout", "stderr"], bytes], None]


class Started(Protocol):
    """The part of a started container a build uses: `sandbox.runtime.container.Running`. Leaving the context ends it."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def signal(self, number: int) -> None:
        """Send its program a signal."""

    def wait(self, on_output: OnOutput | None = None) -> Completed:
        """Until it has ended."""


class Starts(Protocol):
    """Where one container can be started: `sandbox.runtime.container.Place`."""

    @property
    def container_id(self) -> str:
        """What it should be called."""

    def start(self, spec: ContainerSpec, handling: Handling) -> Started:
        """Start a container and stay attached to it."""


class Runs(Protocol):
    """The part of the runtime a build uses: `sandbox.runtime.container.Runtime`."""

    def reserve(self) -> AbstractContextManager[Starts]:
        """A place for a container that is still being made."""


class Origin(msgspec.Struct, frozen=True):
    """What --from names: the file system of a stage or image and its chain id (empty: no layer), or a directory of the host,
    which has none: its files must be looked at."""

    tree: Tree
    chain_id: str | None
    directory: Context | None = None

    @property
    def source(self) -> Source:
        """What is copied or mounted from."""
        return self.directory or TreeSource(self.tree)


class StepLimits(msgspec.Struct, frozen=True):
    """What every RUN of a build gets beside its instruction: docker build's --add-host, --shm-size, --ulimit, --memory …
    `insecure`: RUN --security=insecure is allowed."""

    hosts: tuple[tuple[str, str], ...] = ()
    shm_size: int = 64 << 20
    ulimits: tuple[tuple[str, int, int], ...] = ()
    limits: Limits = Limits()
    insecure: bool = False
    host_ca: bool = True
    """This host's extra certificate authorities are trusted by what a RUN starts: no part of any key, in no layer."""

    @property
    def key(self) -> tuple[str, ...]:
        """What of it a program's result depends on: as in BuildKit hosts and ulimits, not how much memory it may use."""
        return (repr(self.hosts), repr(self.ulimits), *((str(self.shm_size),) if self.shm_size != 64 << 20 else ()))


class Site(Guarded, frozen=True):
    """Everything around a step but its state. `source` and `escape` are those of the text the instruction stands in."""

    hidden = ("secrets",)

    store: Store
    runtime: Runs
    memory: Memory
    source: SourceText
    escape: str
    context: Context | None
    build_args: Mapping[str, str]
    global_args: Mapping[str, str]
    network: Network
    now: datetime
    origin: Callable[[str], Origin]
    output: OnOutput
    tell: OnEvent
    stop: Stop
    secrets: Mapping[str, bytes] = msgspec.field(default_factory=dict)
    agents: Mapping[str, str] = msgspec.field(default_factory=dict)
    limits: StepLimits = msgspec.field(default_factory=lambda: StepLimits())

    def warn(self, message: str) -> None:
        """Say that something is doubtful."""
        self.tell(BuildWarning(message))

    @property
    def now_ns(self) -> int:
        """The build's time, for files nobody gave a time."""
        return int(self.now.timestamp()) * 10**9

    def expander(self, state: BuildState, span: Span) -> expand.Expander:
        """What expands the words of an instruction in this state."""
        return expand.Expander(state.scope, self.escape, self.source, span)

    def define_args(self, state: BuildState, arg: ins.Arg) -> tuple[tuple[str, str | None], ...]:
        """What an ARG instruction of a stage defines."""
        return expand.define_args(arg, self.expander(state, arg.span), self.build_args, self.global_args)

    def error(self, message: str, instruction: ins.Instruction, *, word: str | None = None, hint: str | None = None) -> DockerfileError:
        """An error about the instruction's text."""
        return self.source.error(message, instruction.span, word=word, hint=hint)
