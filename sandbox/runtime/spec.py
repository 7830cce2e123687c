"""What is asked of the runtime (`ContainerSpec`) and how a container ended (`Completed`). Pure data, no action."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Network = Literal["none", "host"]
Why = Literal["exited", "oom", "timeout", "pids", "signal", "interrupted", "lost"]


@dataclass(frozen=True)
class Limits:
    """Resource limits; None means not limited. `memory`, `memory_swap` (memory + swap, -1 = unlimited) in bytes, `cpus` in CPUs."""

    memory: int | None = None
    memory_swap: int | None = None
    cpus: float | None = None
    cpuset_cpus: str | None = None
    pids: int | None = None


@dataclass(frozen=True)
class Mount:
    """One mount of the user's: `source` is a host path (bind) or empty (tmpfs); `options` are tmpfs options such as size=64m."""

    kind: Literal["bind", "tmpfs"]
    target: str
    source: str = ""
    read_only: bool = False
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Process:
    """The program: `argv` is looked up along the environment's PATH inside the container; `user` is docker's
    `name|uid[:group|gid]`, resolved against the container's own /etc/passwd and /etc/group. With `unpack` there is
    no program: our own unpacker reads a tar from stdin into that directory."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    cwd: str = "/"
    user: str = ""
    tty: bool = False
    unpack: str = ""


@dataclass(frozen=True)
class Rootfs:
    """The directories of an overlay, lowest layer first. `upper` receives what the container writes, and keeps the
    image's own uids; `work` is overlayfs's private directory on the same file system. All below one engine root."""

    lowers: tuple[str, ...]
    upper: str
    work: str
    volatile: bool = True


@dataclass(frozen=True)
class ContainerSpec:
    """Everything the runtime needs to know of one container."""

    id: str
    rootfs: Rootfs
    process: Process
    hostname: str = ""
    network: Network = "none"
    userns: Literal["private", "host"] = "private"
    limits: Limits = Limits()
    mounts: tuple[Mount, ...] = ()
    read_only: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    ulimits: tuple[tuple[str, int, int], ...] = ()
    extra_hosts: tuple[tuple[str, str], ...] = ()
    stop_signal: int = 15
    timeout: float | None = None
    shm_size: int = 64 << 20
    allow_unenforced: bool = False


@dataclass(frozen=True)
class Usage:
    """What a container used: seconds, bytes, processes. None means this host does not tell."""

    wall: float = 0.0
    cpu: float | None = None
    peak_memory: int | None = None
    peak_pids: int | None = None


@dataclass(frozen=True)
class Completed:
    """How a container ended. `exit_code` is docker's (125 set-up, 126 cannot execute, 127 not found, 128+n signal n)."""

    exit_code: int
    why: Why = "exited"
    reason: str = ""
    """One line for a person: `out of memory: killed at the 64 MiB limit`; empty when the program just exited."""
    signal: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    usage: Usage = field(default_factory=Usage)

    @property
    def ok(self) -> bool:
        """Whether the program ended by itself with 0."""
        return self.exit_code == 0 and self.why == "exited"
