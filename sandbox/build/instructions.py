"""The instructions of a Dockerfile, one frozen class each. Words are as written: expansion is `expand.py`'s."""

from __future__ import annotations

import msgspec

from sandbox.build.mounts import MountText, RunMount
from sandbox.build.source import Span


class Heredoc(msgspec.Struct, frozen=True):
    """The body of a `<<NAME`, tabs already stripped for `<<-`. `expand`: the name was not quoted, so $VAR counts in it."""

    name: str
    content: str
    expand: bool


class Command(msgspec.Struct, frozen=True):
    """Exec form: the argument list. Shell form: one element, the text for the shell."""

    argv: tuple[str, ...]
    shell: bool


class Instruction(msgspec.Struct, frozen=True):
    """What every instruction has: where it stands, and its text on one line (continuations joined)."""

    span: Span
    text: str


class From(Instruction, frozen=True):
    """`FROM [--platform=P] image [AS name]`; `name` is lower case."""

    image: str
    name: str | None = None
    platform: str | None = None


class Run(Instruction, frozen=True):
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


class Files(Instruction, frozen=True):
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


class Copy(Files, frozen=True):
    """`COPY`: the sources are below the context, or below `origin` (--from) when given."""

    origin: str | None = None
    parents: bool = False
    """Keep the sources' directories below the destination; from a `/./` in them on when they have one."""


class Add(Files, frozen=True):
    """`ADD`: as COPY from the context; a source may be a URL or a git repository, and a local tar archive is unpacked.
    `checksum` is that of a URL's content (`sha256:…`) or a commit; `unpack` None: local archives only."""

    checksum: str | None = None
    keep_git_dir: bool | None = None
    unpack: bool | None = None


class Env(Instruction, frozen=True):
    """`ENV name=value …`: all values see the environment as it was before the instruction. `legacy`: `ENV name value`."""

    pairs: tuple[tuple[str, str], ...]
    legacy: bool = False


class Arg(Instruction, frozen=True):
    """`ARG name[=default] …`; None: no default."""

    pairs: tuple[tuple[str, str | None], ...]


class Label(Instruction, frozen=True):
    """`LABEL name=value …`; `legacy`: `LABEL name value`."""

    pairs: tuple[tuple[str, str], ...]
    legacy: bool = False


class Workdir(Instruction, frozen=True):
    """`WORKDIR path`: absolute, or below the one before."""

    path: str


class User(Instruction, frozen=True):
    """`USER name|uid[:group|gid]`."""

    user: str


class Expose(Instruction, frozen=True):
    """`EXPOSE port[-port][/tcp|/udp|/sctp] …`."""

    ports: tuple[str, ...]


class Volume(Instruction, frozen=True):
    """`VOLUME path …`, as words or as a JSON list."""

    paths: tuple[str, ...]


class Cmd(Instruction, frozen=True):
    """`CMD`: the default command; an empty exec form clears it."""

    command: Command


class Entrypoint(Instruction, frozen=True):
    """`ENTRYPOINT`; an empty exec form clears it."""

    command: Command


class Shell(Instruction, frozen=True):
    """`SHELL ["program", "argument"…]`: what runs shell forms from here on."""

    argv: tuple[str, ...]


class StopSignal(Instruction, frozen=True):
    """`STOPSIGNAL name|number`."""

    signal: str


class Healthcheck(Instruction, frozen=True):
    """`HEALTHCHECK [flags] CMD …` or `HEALTHCHECK NONE` (`command` is None). Durations in nanoseconds, 0: not given."""

    command: Command | None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class Onbuild(Instruction, frozen=True):
    """`ONBUILD instruction`: `trigger_text` is what the image keeps, heredoc bodies included."""

    trigger: Instruction
    trigger_text: str


class Maintainer(Instruction, frozen=True):
    """`MAINTAINER name`: the image's author."""

    name: str
