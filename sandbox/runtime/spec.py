"""What is asked of the runtime (`ContainerSpec`) and how a container ended (`Completed`). Pure data, no action."""

from __future__ import annotations

from typing import Literal

import msgspec

Network = str
"""none (loopback alone), host, container:ID (that one's), or the name of a network."""
Why = Literal["exited", "oom", "timeout", "pids", "disk", "output", "signal", "interrupted", "lost", "detached"]


class Rate(msgspec.Struct, frozen=True):
    """A limit of block I/O: `device` as major:minor, `rate` in bytes (bps) or operations (iops) a second."""

    kind: Literal["read_bps", "write_bps", "read_iops", "write_iops"]
    device: str
    rate: int


class Limits(msgspec.Struct, frozen=True):
    """Resource limits; None means not limited. `memory`, `memory_swap` (memory + swap, -1 = unlimited) and `memory_reservation` in
    bytes, `memory_swappiness` 0 to 100, `cpus` in CPUs, `cpu_shares` 2 to 262144 (1024 is usual), `blkio_weight` 10 to 1000."""

    memory: int | None = None
    memory_swap: int | None = None
    memory_reservation: int | None = None
    memory_swappiness: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    pids: int | None = None
    blkio_weight: int | None = None
    io: tuple[Rate, ...] = ()


class Mount(msgspec.Struct, frozen=True):
    """One mount. bind: `source` is a host path, `options` its propagation where that is not rprivate. tmpfs: `options` as size=64m.
    file: one file of this `text` that is nowhere but in the container's own memory, with the `options` mode, uid, gid. layers: what
    `source` is in these layer directories, lowest first; with `upper` and `work` it can be written to."""

    kind: Literal["bind", "tmpfs", "file", "layers"]
    target: str
    source: str = ""
    read_only: bool = False
    options: tuple[str, ...] = ()
    text: str = ""
    lowers: tuple[str, ...] = ()
    upper: str = ""
    work: str = ""

    def __repr__(self) -> str:
        """Without `text`, which may be a secret."""
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__ if name != "text")
        return f"Mount({shown})"


class Device(msgspec.Struct, frozen=True):
    """A device of the host at `source`, to be seen inside at `target`."""

    source: str
    target: str


class Pack(msgspec.Struct, frozen=True):
    """What our own packer writes as a tar: `path` of the container, links resolved inside it, the last one only with `follow`.
    `shallow`: no more than its first entry, without content. `whole`: the root file system without mounts, without `skip`. `notes`: owners
    are noted beside the files; those of `links` (path below `path`, uid, gid), which hold none, its caller knows."""

    path: str
    follow: bool = False
    shallow: bool = False
    whole: bool = False
    skip: tuple[str, ...] = ()
    notes: bool = False
    links: tuple[tuple[str, int, int], ...] = ()


class Unpack(msgspec.Struct, frozen=True):
    """Where our own unpacker puts a tar: below the directory `path` of the container. `notes`: owners that Linux does not let it give
    are noted beside the files."""

    path: str
    notes: bool = False


class Process(msgspec.Struct, frozen=True):
    """The program: `argv` is looked up along the environment's PATH inside the container; `user` is docker's
    `name|uid[:group|gid]`, resolved against the container's own /etc/passwd and /etc/group. With `unpack` there is
    no program: our own unpacker reads a tar from stdin; with `pack` our packer writes one to stdout."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    cwd: str = "/"
    user: str = ""
    tty: bool = False
    unpack: Unpack | None = None
    pack: Pack | None = None


class Rootfs(msgspec.Struct, frozen=True):
    """The directories of an overlay, lowest layer first. `upper` receives what the container writes, and keeps the
    image's own uids; `work` is overlayfs's private directory on the same file system. All below one engine root."""

    lowers: tuple[str, ...]
    upper: str
    work: str
    volatile: bool = True


class Port(msgspec.Struct, frozen=True):
    """A port of the container published at `address` of the host, as `host` (0: a free one)."""

    container: int
    host: int = 0
    address: str = "127.0.0.1"
    protocol: Literal["tcp", "udp"] = "tcp"


class Allowed(msgspec.Struct, frozen=True):
    """What a container with an allow-list may reach: a `name` (`*.` before it: everything below it, not itself) or a `subnet` in CIDR
    form; `port` 0 means all, `protocol` "" both."""

    name: str = ""
    subnet: str = ""
    port: int = 0
    protocol: Literal["", "tcp", "udp"] = ""

    @property
    def protocols(self) -> tuple[Literal["tcp", "udp"], ...]:
        """Those meant."""
        return (self.protocol,) if self.protocol else ("tcp", "udp")

    def __str__(self) -> str:
        address, _, prefix = self.subnet.partition("/")
        place = self.name or (f"[{address}]/{prefix}" if ":" in address else self.subnet)
        port = f":{self.port}" if self.port else ""
        return place + port + (f"/{self.protocol}" if self.protocol else "")


class Endpoint(msgspec.Struct, frozen=True):
    """A container's place in a network: the addresses it wants there, the `names` others there may call it. Of several networks that
    lead out, the one with the highest `priority` does; of equal ones the first."""

    network: str
    address: str | None = None
    address6: str | None = None
    mac: str | None = None
    names: tuple[str, ...] = ()
    priority: int = 0


class Health(msgspec.Struct, frozen=True):
    """How a container is asked whether it is well: `argv` is run inside every `interval` seconds (`start_interval` until
    `start_period` is over, while failures do not count); `retries` failures in a row, or longer than `timeout`, and it is not."""

    argv: tuple[str, ...]
    interval: float = 30.0
    timeout: float = 30.0
    start_period: float = 0.0
    start_interval: float = 5.0
    retries: int = 3


class ContainerSpec(msgspec.Struct, frozen=True):
    """Everything the runtime needs to know of one container."""

    id: str
    rootfs: Rootfs
    process: Process
    hostname: str = ""
    network: Network = "none"
    endpoints: tuple[Endpoint, ...] = ()
    """Its places in networks, when there is more to say than the name; the first is in `network`."""
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    serves_names: bool = False
    """It is a name server itself: port 53 is left to it."""
    network_rate: int | None = None
    """Bits a second, each way."""
    allow_net: tuple[Allowed, ...] = ()
    """All it may reach; empty: there is no such list."""
    userns: Literal["private", "host"] = "private"
    limits: Limits = Limits()
    mounts: tuple[Mount, ...] = ()
    read_only: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    """All capabilities, no seccomp, nothing of /proc and /sys covered: inside its user namespace."""
    seccomp: str = "default"
    """default, unconfined, or the text of a profile in docker's format."""
    no_new_privileges: bool = True
    devices: tuple[Device, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    oom_score_adj: int | None = None
    storage_size: int | None = None
    """Bytes its root may grow by; above it the container is stopped."""
    output_limit: int | None = None
    """Bytes it may print; above it the container is stopped."""
    ulimits: tuple[tuple[str, int, int], ...] = ()
    extra_hosts: tuple[tuple[str, str], ...] = ()
    stop_signal: int = 15
    timeout: float | None = None
    shm_size: int = 64 << 20
    allow_unenforced: bool = False
    health: Health | None = None

    @property
    def places(self) -> tuple[Endpoint, ...]:
        """All networks with addresses that it is in."""
        if self.endpoints or self.network in ("none", "host") or self.shares_with:
            return self.endpoints
        return (Endpoint(self.network),)

    @property
    def shares_with(self) -> str:
        """The id of the container whose network this one has, too; empty: none."""
        kind, _, other = self.network.partition(":")
        return other if kind == "container" else ""


class Usage(msgspec.Struct, frozen=True):
    """What a container used: seconds, bytes, processes. None means this host does not tell."""

    wall: float = 0.0
    cpu: float | None = None
    peak_memory: int | None = None
    peak_pids: int | None = None
    throttled: float | None = None
    """Seconds it waited because of its CPU limit."""
    io_read: int | None = None
    io_written: int | None = None
    cpu_stall: float | None = None
    """Seconds in which something in it waited for a CPU, memory, or I/O (PSI)."""
    memory_stall: float | None = None
    io_stall: float | None = None


class Completed(msgspec.Struct, frozen=True):
    """How a container ended. `exit_code` is docker's (125 set-up, 126 cannot execute, 127 not found, 128+n signal n)."""

    exit_code: int
    why: Why = "exited"
    reason: str = ""
    """One line for a person: `out of memory: killed at the 64 MiB limit`; empty when the program just exited."""
    signal: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    usage: Usage = msgspec.field(default_factory=Usage)
    denied: tuple[str, ...] = ()
    """What it asked of its network and its allow-list has not: names, and addresses with their ports."""

    @property
    def denied_text(self) -> str:
        """`denied: evil.example.org, 192.0.2.7:80` for a person; empty when nothing was."""
        shown = self.denied[:12]
        more = f" and {len(self.denied) - len(shown)} more" if len(self.denied) > len(shown) else ""
        return f"denied: {', '.join(shown)}{more}" if self.denied else ""

    @property
    def ok(self) -> bool:
        """Whether the program ended by itself with 0."""
        return self.exit_code == 0 and self.why == "exited"
