"""The instructions of a Dockerfile, one frozen class each. Words are as written: expansion is `expand.py`'s."""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.build.mounts import MountText, RunMount
from sandbox.build.source import Span


@dataclass(frozen=True)
class Heredoc:
    """The body of a `<<NAME`, tabs already stripped for `<<-`. `expand`: the name was not quoted, so $VAR counts in it."""

    name: str
    content: str
    expand: bool


@dataclass(frozen=True)
class Command:
    """Exec form: the argument list. Shell form: one element, the text for the shell."""

    argv: tuple[str, ...]
    shell: bool


@dataclass(frozen=True)
class Instruction:
    """What every instruction has: where it stands, and its text on one line (continuations joined)."""

    span: Span
    text: str


@dataclass(frozen=True)
class From(Instruction):
    """`FROM [--platform=P] image [AS name]`; `name` is lower case."""

    image: str
    name: str | None = None
    platform: str | None = None


@dataclass(frozen=True)
class Run(Instruction):
    """`RUN`: a command, with the bodies of its heredocs; `network` is none, host or default, `security` sandbox or insecure.
    `mount_texts` are its mounts as written, `mounts` the same with all known about them: empty until the instruction is expanded."""

    command: Command
    heredocs: tuple[Heredoc, ...] = ()
    network: str = "default"
    security: str = "sandbox"
    mount_texts: tuple[MountText, ...] = ()
    mounts: tuple[RunMount, ...] = ()

    @property
    def origins(self) -> tuple[str, ...]:
        """What its mounts are `from`, known before expansion: a stage, an image or a named context."""
        return tuple(mount.origin for mount in self.mount_texts if mount.origin)


@dataclass(frozen=True)
class Files(Instruction):
    """What COPY and ADD have in common: `sources` are patterns, `heredocs` become files beside them."""

    sources: tuple[str, ...]
    destination: str
    heredocs: tuple[Heredoc, ...] = ()
    chown: str | None = None
    chmod: str | None = None
    link: bool = False
    """The layer does not depend on what lies below: it is the same above any parent, whose links it does not follow."""
    excludes: tuple[str, ...] = ()
    """Patterns as in .dockerignore for what the sources hold but is not copied."""


@dataclass(frozen=True)
class Copy(Files):
    """`COPY`: the sources are below the context, or below `origin` (--from) when given."""

    origin: str | None = None
    parents: bool = False
    """Keep the sources' directories below the destination; from a `/./` in them on when they have one."""


@dataclass(frozen=True)
class Add(Files):
    """`ADD`: as COPY from the context; a source may be a URL or a git repository, and a local tar archive is unpacked.
    `checksum` is that of a URL's content (`sha256:…`) or a commit; `unpack` None: local archives only."""

    checksum: str | None = None
    keep_git_dir: bool | None = None
    unpack: bool | None = None


@dataclass(frozen=True)
class Env(Instruction):
    """`ENV name=value …`: all values see the environment as it was before the instruction. `legacy`: `ENV name value`."""

    pairs: tuple[tuple[str, str], ...]
    legacy: bool = False


@dataclass(frozen=True)
class Arg(Instruction):
    """`ARG name[=default] …`; None: no default."""

    pairs: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class Label(Instruction):
    """`LABEL name=value …`; `legacy`: `LABEL name value`."""

    pairs: tuple[tuple[str, str], ...]
    legacy: bool = False


@dataclass(frozen=True)
class Workdir(Instruction):
    """`WORKDIR path`: absolute, or below the one before."""

    path: str


@dataclass(frozen=True)
class User(Instruction):
    """`USER name|uid[:group|gid]`."""

    user: str


@dataclass(frozen=True)
class Expose(Instruction):
    """`EXPOSE port[-port][/tcp|/udp|/sctp] …`."""

    ports: tuple[str, ...]


@dataclass(frozen=True)
class Volume(Instruction):
    """`VOLUME path …`, as words or as a JSON list."""

    paths: tuple[str, ...]


@dataclass(frozen=True)
class Cmd(Instruction):
    """`CMD`: the default command; an empty exec form clears it."""

    command: Command


@dataclass(frozen=True)
class Entrypoint(Instruction):
    """`ENTRYPOINT`; an empty exec form clears it."""

    command: Command


@dataclass(frozen=True)
class Shell(Instruction):
    """`SHELL ["program", "argument"…]`: what runs shell forms from here on."""

    argv: tuple[str, ...]


@dataclass(frozen=True)
class StopSignal(Instruction):
    """`STOPSIGNAL name|number`."""

    signal: str


@dataclass(frozen=True)
class Healthcheck(Instruction):
    """`HEALTHCHECK [flags] CMD …` or `HEALTHCHECK NONE` (`command` is None). Durations in nanoseconds, 0: not given."""

    command: Command | None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


@dataclass(frozen=True)
class Onbuild(Instruction):
    """`ONBUILD instruction`: `trigger_text` is what the image keeps, heredoc bodies included."""

    trigger: Instruction
    trigger_text: str


@dataclass(frozen=True)
class Maintainer(Instruction):
    """`MAINTAINER name`: the image's author."""

    name: str
