"""The warm interpreter behind the Sandbox kernel: which image, which language, one session of it.

Its container stays when the interpreter ends, for the next one: a restart forgets variables and keeps files, as everywhere in Jupyter.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from kernelspec import parameters
from kernelspec.container import mounted_directory, options_from
from kernelspec.dialects import DIALECTS, Answer, Content, Dialect
from kernelspec.environments import Environment, look_at
from kernelspec.orphans import CONNECTION_LABEL, KERNEL_LABEL, SERVER_LABEL, this_server
from magics.python_cells import CellFront
from magics.untrusted import Bundle
from sandbox import Container, Engine, RunOptions
from sandbox.errors import ContainerNotFound, SandboxError
from sandbox.records import ALIVE
from sandbox.runtime.spec import Mount
from sandbox.session.believed import CellCode, CellOutcome
from sandbox.session.session import Session

log = logging.getLogger(__name__)

SAME_LABEL = "org.jupyter.sandbox.kernel.same"
"""The label of a kernel's container that two have alike only if one can be used for the other."""
_ANOTHER = "what the kernel may do has changed: its container is another, without the files of the one before"
_END_SECONDS = 30.0
ASK_SECONDS = 5.0
"""A question between cells (completion, inspection) is given up after that."""
_VERSION_OPTIONS = RunOptions(rm=True, network="none")  # no limits: not everybody can enforce them
_VERSION_SECONDS = 10.0


class Config(msgspec.Struct, frozen=True):
    """What the kernelspec says (`metadata.sandbox_kernel`): the image (empty: the notebook's build cell makes it), docker run's
    flags, the language (empty: chosen by the image), the kernel's environment, whether the notebook's directory is mounted, the engine's
    state directory (empty: the usual one)."""

    image: str = ""
    flags: tuple[str, ...] = ()
    language: str = ""
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    mount: bool = True
    root: str = ""


class KernelFront(CellFront, frozen=True, kw_only=True):
    """A cell of the kernel as the runner's front end. `result`: shows the last value; `question`: asks the person."""

    result: Callable[[Bundle, Bundle], None]
    question: Callable[[str, bool], str]

    def show_result(self, data: Bundle, metadata: Bundle) -> None:
        """The last expression's value, with the cell's number."""
        self.streams.flush()
        self.result(*self._safe(data, metadata))

    def ask(self, prompt: str, password: bool) -> str | None:
        """Ask the front end; None when it asks nobody, or the person ended the input."""
        if not self.may_ask:
            return None
        self.streams.flush()
        try:
            return self.question(prompt, password)
        except EOFError:
            return None


class Inside:
    """The container of a kernel. Its interpreter is started by the first cell or question; `use` another image and it starts afresh."""

    def __init__(self, engine: Engine, config: Config, *, connection: Path, notebook: Path | None) -> None:
        self.engine, self._config = engine, config
        self._connection, self._notebook = connection, notebook
        self._directory = mounted_directory(None) if config.mount else None
        self._session: Session | None = None
        self._container: Container | None = None
        self._told: str | None = None
        self._notice = ""
        self.environment: Environment | None = None

    def look_at(self, name: str) -> Environment:
        """What an image is for cells; ImageNotFound, InvalidOption when none of its programs can run them."""
        return look_at(self.engine, name, self._config.language)

    def use(self, environment: Environment) -> None:
        """Run the next cells in this image. The state of the interpreter before it is gone; so is its container, if it is another's."""
        self.end()
        self.environment, self._told = environment, None

    @property
    def dialect(self) -> Dialect:
        """What is spoken here; Python before there is an image."""
        return self.environment.dialect if self.environment else DIALECTS[0]

    @property
    def language_info(self) -> Content:
        """As kernel_info_reply has it, and the image it is true of."""
        environment = self.environment
        if environment is None:
            return self.dialect.language_info("")
        if self._told is None:
            self._told = self._ask_version(environment)
        return {**self.dialect.language_info(self._told), "sandbox": {"image": environment.name, "digest": str(environment.image.id)}}

    def _ask_version(self, environment: Environment) -> str:
        """What the program says of its version; nothing when it cannot be run: the first cell will tell why."""
        options = replace(_VERSION_OPTIONS, entrypoint=environment.program)
        try:
            done = self.engine.run(environment.image, [environment.dialect.version_flag], options=options, timeout=_VERSION_SECONDS)
        except SandboxError as err:
            log.warning("%s --version: %s", environment.program, err)
            return ""
        return (done.stdout + done.stderr).decode(errors="replace")

    @property
    def has_state(self) -> bool:
        """Whether cells have run in the interpreter there is."""
        return self.cells > 0

    @property
    def cells(self) -> int:
        """How many cells the running interpreter has seen."""
        return self._session.cells if self._session is not None and self._session.status != "cold" else 0

    @property
    def is_warm(self) -> bool:
        """Whether there is state to lose."""
        return self._session is not None and self._session.status != "cold"

    @property
    def container(self) -> Container | None:
        """The running container, None between two of them."""
        return self._container if self.is_warm else None

    def find_kept(self) -> None:
        """The container of this kernel before its restart, if there is one. Called once, before anything else."""
        ours = self._labels()
        found = (each for each in self.engine.containers(all=True) if ours.items() <= each.labels.items())
        self._container = next(found, None)

    def run(self, code: str, front: KernelFront) -> CellOutcome:
        """Run a cell; SandboxError when there is no container for it. KeyboardInterrupt: interrupted inside too."""
        return self._warm_session().run(CellCode(code), front)

    def ask(self, operation: str, front: KernelFront, **facts: str | int) -> Answer | None:
        """Put a question to the interpreter (complete, inspect, parse); None without an answer in time, or while a cell runs."""
        return self._warm_session().ask(operation, front, timeout=ASK_SECONDS, **facts)

    def end(self) -> None:
        """End the interpreter. Its container stays, stopped."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def take_notice(self) -> str:
        """What somebody should know who expects the files of before; once. Empty: nothing."""
        notice, self._notice = self._notice, ""
        return notice

    def abandon(self) -> None:
        """Remove the container under whatever runs in it: this process ends at once. Any thread may call it."""
        container = self._container
        if container is not None:
            container.remove(force=True, volumes=True)

    def close(self) -> None:
        """End the interpreter and remove its container; the next cell starts afresh."""
        self.end()
        container, self._container = self._container, None
        if container is not None:
            container.remove(force=True, volumes=True)

    def _warm_session(self) -> Session:
        assert self.environment is not None, "an image is chosen before anything is asked of it"
        if self._session is None:
            self._session = Session("kernel", self.environment.name, partial(self._launch, self.environment))
        return self._session

    def _launch(self, environment: Environment) -> Any:  # Any: Interpreter, which only cells import
        options, mounts, runner = self._options(), self._mounts(), environment.dialect.runner
        same = _digest((str(environment.image.id), options, mounts, environment.program, runner.name))
        if (kept := self._kept(same, str(environment.image.id))) is not None:
            try:
                _wait_stopped(kept)
                return self.engine.interpreter_again(kept.id, runner=runner)
            except ContainerNotFound:
                log.info("kernel %s: its container was reset", self._connection.stem)
        labels = {**self._labels(), SAME_LABEL: same}
        options = replace(options, label=(*options.label, *(f"{name}={value}" for name, value in labels.items())))
        made = self.engine.interpreter(environment.image, (environment.program,), options=options, mounts=mounts, runner=runner)
        self._container = self.engine.container(made.container_id)
        return made

    def _kept(self, same: str, image_id: str) -> Container | None:
        """The container of the interpreter before. It is removed when it may more, or less, than a new one would."""
        if self._container is not None and self._container.labels.get(SAME_LABEL) != same:
            if self._container.image_id == image_id:  # who changes the image is told by then
                self._notice = _ANOTHER
            self._container.remove(force=True, volumes=True)
            self._container = None
        return self._container

    def _labels(self) -> dict[str, str]:
        """Whose container it is."""
        kernel_id = self._connection.stem.removeprefix("kernel-")
        return {KERNEL_LABEL: kernel_id, CONNECTION_LABEL: str(self._connection), SERVER_LABEL: this_server()}

    def _options(self) -> RunOptions:
        """Of the kernelspec, tightened by the notebook as it is now, then KERNEL_…; InvalidOption."""
        options = parameters.apply_all(options_from(self._config.flags), self._notebook, os.environ, self.engine.root)
        return replace(
            options,
            env=(*options.env, *(f"{name}={value}" for name, value in self._config.env.items())),
            workdir=options.workdir or self._directory,
            rm=False,
            log_driver="none",
            log_opt=(),
            detach=False,
            interactive=False,
            tty=False,
        )

    def _mounts(self) -> Sequence[Mount]:
        return [Mount("bind", self._directory, self._directory)] if self._directory else []


def _digest(facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _wait_stopped(container: Container) -> None:
    """A kernel that was killed: its container ends with it, a moment later."""
    if container.status in ALIVE:
        container.wait(_END_SECONDS)
