"""What a step may use: the store, the runtime, the context, the arguments of the build, and ways to speak."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from sandbox.build import expand
from sandbox.build import instructions as ins
from sandbox.build.context import Context
from sandbox.build.memory import Memory
from sandbox.build.source import SourceText, Span
from sandbox.build.state import BuildState
from sandbox.errors import DockerfileError
from sandbox.image.store import Store
from sandbox.image.tree import Tree
from sandbox.runtime.spec import Completed, ContainerSpec, Network

OnOutput = Callable[[Literal["stdout", "stderr"], bytes], None]


class Runs(Protocol):
    """The part of the runtime a build uses: `sandbox.runtime.container.Runtime`."""

    def run(self, spec: ContainerSpec, *, stdin: bytes | None = None, on_output: OnOutput | None = None) -> Completed:
        """Run a container to its end."""


@dataclass(frozen=True)
class Origin:
    """What --from names: a file system and its chain id."""

    tree: Tree
    chain_id: str


@dataclass(frozen=True)
class Site:
    """Everything around a step but its state. `source` and `escape` are those of the text the instruction stands in."""

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
    warn: Callable[[str], None]
    new_id: Callable[[], str]

    @property
    def now_ns(self) -> int:
        """The build's time, for files nobody gave a time."""
        return int(self.now.timestamp()) * 10**9

    def expander(self, state: BuildState, span: Span) -> expand.Expander:
        """What expands the words of an instruction in this state."""
        return expand.Expander(state.scope, self.escape, self.source, span)

    def define_args(self, state: BuildState, arg: ins.Arg) -> tuple[tuple[str, str | None], ...]:
        """What an ARG instruction of a stage defines."""
        return expand.define_args(arg, self.expander(state, arg.span), self.build_args, self.global_args, state.env)

    def error(self, message: str, instruction: ins.Instruction, *, word: str | None = None, hint: str | None = None) -> DockerfileError:
        """An error about the instruction's text."""
        return self.source.error(message, instruction.span, word=word, hint=hint)
