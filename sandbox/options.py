"""docker's flags as data: one row an option, from which the CLI, the magics, their help and their completion are made.

`RUN` and `BUILD` list rows; `RunOptions` and `BuildOptions` hold the parsed values. A converter takes the text after the
flag and raises InvalidOption; it never reads files or the environment (the faces do, at the edge).
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from sandbox.default_network import default_network
from sandbox.errors import InvalidOption
from sandbox.network_options import Target, parse_allow_net, parse_network_rate
from sandbox.patterns import Pattern

Made = TypeVar("Made", bound=msgspec.Struct)
_SIZE = Pattern(r"(\d+(?:\.\d+)?)\s*([bkmgtp]?)(?:i?b)?", re.IGNORECASE)
_DURATION = Pattern(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


def parse_size(text: str) -> int:
    """docker's sizes (`512m`, `1.5g`, bytes without a unit) in bytes; -1 stays -1."""
    if text.strip() == "-1":
        return -1
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise InvalidOption(f"size {text!r}: not a number with b, k, m, g or t", hint="write 512m or 2g")
    return int(float(match[1]) * 1024 ** "bkmgtp".index(match[2].lower() or "b"))


def parse_duration(text: str) -> float:
    """`5s`, `1m30s`, `500ms` or plain seconds, in seconds."""
    pieces = list(_DURATION.finditer(text.strip()))
    if not pieces or "".join(p[0] for p in pieces) != text.strip():
        raise InvalidOption(f"duration {text!r}: not a number with ms, s, m or h", hint="write 30s or 1m30s")
    return sum(float(p[1]) * _SECONDS[p[2]] for p in pieces)


def parse_signal(text: str) -> int:
    """`TERM`, `SIGTERM` or `15` as a number."""
    name = text.upper().removeprefix("SIG")
    if name.isdigit() and 1 <= int(name) <= 64:
        return int(name)
    if (found := getattr(signal, "SIG" + name, None)) is None or name.startswith("_"):
        raise InvalidOption(f"signal {text!r}: not known")
    return int(found)


def parse_positive(text: str) -> float:
    """A number above zero."""
    try:
        value = float(text)
    except ValueError as err:
        raise InvalidOption(f"{text!r}: not a number") from err
    if not 0 < value < 1e9:
        raise InvalidOption(f"{text!r}: must be above zero")
    return value


def parse_pids(text: str) -> int:
    """A process limit; 0 and -1 mean unlimited, as in docker."""
    try:
        return int(text)
    except ValueError as err:
        raise InvalidOption(f"{text!r}: not a whole number") from err


_ULIMITS = frozenset(
    {
        "as", "core", "cpu", "data", "fsize", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending",
        "stack",
    }
)  # fmt: skip


def parse_jobs(text: str) -> int:
    """A whole number of jobs, at least 1."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 4096):
        raise InvalidOption(f"{text!r}: not a number of jobs")
    return int(text)


def parse_seconds(text: str) -> int:
    """Whole seconds since 1970."""
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise InvalidOption(f"{text!r}: not a number of seconds since 1970")
    return int(text)


def parse_ulimit(text: str) -> tuple[str, int, int]:
    """`nofile=1024[:2048]` as (name, soft, hard)."""
    match = re.fullmatch(r"([a-z]+)=(-?\d+)(?::(-?\d+))?", text)
    if not match:
        raise InvalidOption(f"ulimit {text!r}: not of the form name=soft[:hard]")
    name, soft, hard = match[1], int(match[2]), int(match[3] or match[2])
    if name not in _ULIMITS:
        raise InvalidOption(f"ulimit {name}: not known", hint=f"setrlimit(2) has {', '.join(sorted(_ULIMITS))}")
    if hard != -1 and (soft > hard or soft == -1):
        raise InvalidOption(f"ulimit {text!r}: the soft limit is above the hard one")
    return name, soft, hard


def parse_whole(text: str) -> int:
    """A whole number, also a negative one."""
    if not re.fullmatch(r"[+-]?\d{1,18}", text.strip()):
        raise InvalidOption(f"{text!r}: not a whole number")
    return int(text)


def parse_capability(text: str) -> str:
    """`net_admin`, `CAP_NET_ADMIN` or ALL, without its CAP_; whether Linux has it is looked up later."""
    name = text.upper().removeprefix("CAP_")
    if not re.fullmatch(r"[A-Z_]+", name):
        raise InvalidOption(f"capability {text!r}: not a name")
    return name


def parse_security_opt(text: str) -> tuple[str, str]:
    """docker's `NAME`, `NAME=VALUE` or `NAME:VALUE` as (name, value)."""
    match = re.fullmatch(r"([a-z-]+)(?:[=:](.*))?", text, re.DOTALL)
    if not match:
        raise InvalidOption(f"--security-opt {text!r}: not of the form NAME=VALUE")
    return match[1], match[2] or ""


def parse_pair(text: str) -> tuple[str, str]:
    """`NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InvalidOption(f"{text!r}: not of the form NAME=VALUE")
    return name, value


def parse_device(text: str) -> tuple[str, str]:
    """docker's `/dev/x[:/dev/y[:rwm]]` as (path here, path inside). Fewer permissions than rw cannot be held: Linux' device
    controller does not reach into a user namespace's mounts."""
    parts = text.split(":")
    if len(parts) > 3 or not all(part for part in parts) or not parts[0].startswith("/"):
        raise InvalidOption(f"--device {text!r}: not of the form /dev/x[:/dev/y[:rwm]]")
    inside, permissions = (parts[1] if len(parts) > 1 else parts[0]), (parts[2] if len(parts) > 2 else "rwm")
    if not inside.startswith("/"):
        inside, permissions = parts[0], inside  # docker's short form /dev/x:rw
    if not set("rw") <= set(permissions) <= set("rwm"):
        raise InvalidOption(f"--device {text!r}: permissions {permissions} cannot be enforced", hint="rw and rwm can")
    return parts[0], inside


def parse_rate(text: str) -> tuple[str, int]:
    """`/dev/sda:1mb` as (path, bytes or operations a second)."""
    path, colon, rate = text.rpartition(":")
    if not colon or not path.startswith("/"):
        raise InvalidOption(f"rate {text!r}: not of the form /dev/x:NUMBER")
    return path, parse_size(rate)


def parse_storage_opt(text: str) -> int:
    """`size=10g` in bytes; no other option is known."""
    name, _, size = text.partition("=")
    if name != "size":
        raise InvalidOption(f"--storage-opt {text!r}: not known", hint="write size=10g")
    return parse_size(size)


def parse_kernel_memory(text: str) -> int:
    """Never taken."""
    raise InvalidOption(f"--kernel-memory {text}: Linux has no such limit any more (5.4)", hint="--memory counts Linux' own memory as well")


def parse_env_file(text: str, name: str = "env file") -> tuple[str, ...]:
    """The `NAME=VALUE` and `NAME` lines of docker's --env-file: no quotes, no comments after a value, blanks at the end kept.
    Raises InvalidOption with the line number."""
    kept = []
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.removesuffix("\r").lstrip()
        if not line or line.startswith("#"):
            continue
        key = line.partition("=")[0]
        if not key:
            raise InvalidOption(f"{name} line {number}: no variable name before the =")
        if any(blank in key for blank in " \t\n\v\f\r\x85\xa0"):
            raise InvalidOption(f"{name} line {number}: variable {key!r} contains blanks")
        kept.append(line)
    return tuple(kept)


def with_environment(entries: Iterable[str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """`NAME=VALUE` for each entry; a bare NAME takes its value from `environ`, and is left out when that has none.
    Raises InvalidOption for an entry without a name."""
    made = []
    for entry in entries:
        name, equals, _ = entry.partition("=")
        if not name:
            raise InvalidOption(f"environment {entry!r}: no variable name", hint="write NAME=VALUE, or NAME")
        if equals:
            made.append(entry)
        elif name in environ:
            made.append(f"{name}={environ[name]}")
    return tuple(made)


def parse_restart(text: str) -> tuple[str, int]:
    """docker's `no`, `always`, `unless-stopped`, `on-failure[:N]` as (policy, most restarts; 0: without end)."""
    match = re.fullmatch(r"(no|always|unless-stopped)|(on-failure)(?::(\d+))?", text)
    if not match:
        raise InvalidOption(f"restart policy {text!r}: not known", hint="no, on-failure[:N], always or unless-stopped")
    return match[1] or match[2], int(match[3] or 0)


def parse_publish(text: str) -> tuple[Published, ...]:
    """docker's `[[ADDRESS:][HOST]:]PORT[/tcp|/udp]`; HOST and PORT may be ranges of one length. Without an address it is 127.0.0.1's
    alone: a notebook is not opened to the network by accident. HOST 0: a free one."""
    wrong = InvalidOption(f"--publish {text!r}: not of the form [[ADDRESS:][HOST]:]PORT[/udp]", hint="write 8080:80 or 0.0.0.0:8080:80")
    match = _PUBLISH.fullmatch(text)
    if match is None:
        raise wrong
    address = (match["address"] or "127.0.0.1").strip("[]")
    import ipaddress  # few ask for one

    try:
        ipaddress.ip_address(address)
    except ValueError as err:
        raise wrong from err
    inside = _port_range(match["inside"])
    outside = _port_range(match["host"]) if match["host"] else [0] * len(inside)
    if not inside or len(inside) != len(outside):
        raise wrong
    return tuple((port, host, address, match["kind"] or "tcp") for port, host in zip(inside, outside, strict=True))


Published = tuple[int, int, str, str]
"""A port of the container, of this machine, an address of this machine, tcp or udp."""
_PUBLISH = Pattern(
    r"(?:(?:(?P<address>\[[0-9a-fA-F:.]+\]|[0-9.]+):)?(?P<host>[\d-]*):)?(?P<inside>[\d-]+)(?:/(?P<kind>tcp|udp))?", re.ASCII
)


def _port_range(text: str) -> list[int]:
    first, dash, last = text.partition("-")
    if not first or (dash and not last) or "-" in last:
        return []
    ports = list(range(int(first), int(last or first) + 1))
    return ports if ports and ports[0] >= 1 and ports[-1] <= 65535 else []


class Choice(msgspec.Struct, frozen=True):
    """A converter that takes one of these words."""

    words: tuple[str, ...]

    def __call__(self, text: str) -> str:
        """The word, InvalidOption when it is none of them."""
        if text not in self.words:
            raise InvalidOption(f"{text!r}: not one of {', '.join(self.words)}")
        return text


class Option(msgspec.Struct, frozen=True):
    """One flag: `names` as typed, the `field` it fills, `convert` from its text (None: a switch), whether it repeats. `alone`: the text
    that it stands for without one; then only `=` gives it another."""

    names: tuple[str, ...]
    field: str
    help: str
    metavar: str = ""
    convert: Callable[[str], Any] | None = str  # Any: each row's converter has a type of its own, checked by its field
    repeat: bool = False
    alone: str = ""

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return self.convert is None


class RunOptions(msgspec.Struct, frozen=True):
    """docker run's options, parsed. Field names are docker's long flags; None or empty means not given."""

    rm: bool = False
    detach: bool = False
    interactive: bool = False
    tty: bool = False
    name: str | None = None
    env: tuple[str, ...] = ()
    env_file: tuple[str, ...] = ()
    volume: tuple[str, ...] = ()
    mount: tuple[str, ...] = ()
    volumes_from: tuple[str, ...] = ()
    workdir: str | None = None
    user: str | None = None
    memory: int | None = None
    memory_swap: int | None = None
    memory_reservation: int | None = None
    memory_swappiness: int | None = None
    kernel_memory: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    blkio_weight: int | None = None
    device_read_bps: tuple[tuple[str, int], ...] = ()
    device_write_bps: tuple[tuple[str, int], ...] = ()
    device_read_iops: tuple[tuple[str, int], ...] = ()
    device_write_iops: tuple[tuple[str, int], ...] = ()
    pids_limit: int | None = None
    read_only: bool = False
    tmpfs: tuple[str, ...] = ()
    entrypoint: str | None = None
    hostname: str | None = None
    ulimit: tuple[tuple[str, int, int], ...] = ()
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    security_opt: tuple[tuple[str, str], ...] = ()
    privileged: bool = False
    device: tuple[tuple[str, str], ...] = ()
    sysctl: tuple[tuple[str, str], ...] = ()
    oom_score_adj: int | None = None
    init: bool = False
    storage_opt: int | None = None
    output_limit: int | None = None
    label: tuple[str, ...] = ()
    stop_signal: int | None = None
    stop_timeout: int | None = None
    network: str | tuple[str, ...] = ()
    """One, or several."""
    network_alias: tuple[str, ...] = ()
    publish: tuple[tuple[Published, ...], ...] = ()
    publish_all: bool = False
    ip: str | None = None
    ip6: str | None = None
    mac_address: str | None = None
    network_rate: int | None = None
    allow_net: tuple[tuple[Target, ...], ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    userns: str = "private"
    add_host: tuple[str, ...] = ()
    shm_size: int = 64 << 20
    timeout: float | None = None
    restart: tuple[str, int] | None = None
    health_cmd: str | None = None
    health_interval: float | None = None
    health_timeout: float | None = None
    health_start_period: float | None = None
    health_start_interval: float | None = None
    health_retries: int | None = None
    no_healthcheck: bool = False
    log_driver: str | None = None
    log_opt: tuple[tuple[str, str], ...] = ()
    allow_unenforced: bool = False
    host_ca: bool = False
    pull: str | None = None

    @property
    def networks(self) -> tuple[str, ...]:
        """As they were asked for; where nothing is said, what `default_network` says."""
        if self.network:
            return (self.network,) if isinstance(self.network, str) else self.network
        needs_one = self.publish or self.publish_all or self.allow_net or self.network_rate
        return (default_network(publishes=bool(needs_one)),)

    @property
    def network_name(self) -> str:
        """What it is in, for a person: none, host, container:NAME, networks."""
        return ", ".join(re.sub(r".*\bname=([^,]*).*", r"\1", text) for text in self.networks)


RUN: tuple[Option, ...] = (
    Option(("--rm",), "rm", "remove the container when it ends", convert=None),
    Option(("-d", "--detach"), "detach", "run in the background and print the container's id", convert=None),
    Option(("-i", "--interactive"), "interactive", "keep stdin open", convert=None),
    Option(("-t", "--tty"), "tty", "give the program a terminal", convert=None),
    Option(("--name",), "name", "name of the container", "NAME"),
    Option(("-e", "--env"), "env", "set an environment variable (no value: take it from here)", "NAME[=VALUE]", repeat=True),
    Option(("--env-file",), "env_file", "read environment variables from a file", "FILE", repeat=True),
    Option(("-v", "--volume"), "volume", "mount a host directory or named volume", "SRC:DST[:ro]", repeat=True),
    Option(("--mount",), "mount", "mount in docker's long form: type=volume|bind|tmpfs,source=…,target=…", "KEY=VALUE,…", repeat=True),
    Option(("--volumes-from",), "volumes_from", "the host directories and volumes of another container", "NAME[:ro]", repeat=True),
    Option(("-w", "--workdir"), "workdir", "working directory inside", "DIR"),
    Option(("-u", "--user"), "user", "user inside, by name or number", "USER[:GROUP]"),
    Option(("-m", "--memory"), "memory", "memory limit", "BYTES", parse_size),
    Option(("--memory-swap",), "memory_swap", "memory and swap together, -1 for unlimited swap", "BYTES", parse_size),
    Option(("--memory-reservation",), "memory_reservation", "memory to leave it when the host runs short", "BYTES", parse_size),
    Option(("--memory-swappiness",), "memory_swappiness", "how readily it is swapped, 0 to 100 (cgroup v1)", "N", parse_whole),
    Option(("--kernel-memory",), "kernel_memory", "refused: Linux has it no more", "BYTES", parse_kernel_memory),
    Option(("--cpus",), "cpus", "number of CPUs, e.g. 1.5", "N", parse_positive),
    Option(("-c", "--cpu-shares"), "cpu_shares", "share of the CPUs when they are busy, 1024 is usual", "N", parse_whole),
    Option(("--cpuset-cpus",), "cpuset_cpus", "CPUs to run on, e.g. 0-1", "LIST"),
    Option(("--cpuset-mems",), "cpuset_mems", "memory nodes to use, e.g. 0", "LIST"),
    Option(("--blkio-weight",), "blkio_weight", "share of block I/O when it is busy, 10 to 1000", "N", parse_whole),
    Option(("--device-read-bps",), "device_read_bps", "limit of reading from a device", "DEVICE:BYTES", parse_rate, repeat=True),
    Option(("--device-write-bps",), "device_write_bps", "limit of writing to a device", "DEVICE:BYTES", parse_rate, repeat=True),
    Option(("--device-read-iops",), "device_read_iops", "limit of reads from a device a second", "DEVICE:N", parse_rate, repeat=True),
    Option(("--device-write-iops",), "device_write_iops", "limit of writes to a device a second", "DEVICE:N", parse_rate, repeat=True),
    Option(("--pids-limit",), "pids_limit", "limit of processes, 0 for unlimited", "N", parse_pids),
    Option(("--read-only",), "read_only", "mount the root file system read-only", convert=None),
    Option(("--tmpfs",), "tmpfs", "mount a tmpfs", "DIR[:OPTIONS]", repeat=True),
    Option(("--entrypoint",), "entrypoint", "replace the image's entrypoint", "PROGRAM"),
    Option(("-h", "--hostname"), "hostname", "host name inside", "NAME"),
    Option(("--ulimit",), "ulimit", "resource limit", "NAME=SOFT[:HARD]", parse_ulimit, repeat=True),
    Option(("--cap-add",), "cap_add", "add a capability (or ALL)", "CAP", parse_capability, repeat=True),
    Option(("--cap-drop",), "cap_drop", "drop a capability (or ALL)", "CAP", parse_capability, repeat=True),
    Option(
        ("--security-opt",), "security_opt", "seccomp=FILE|unconfined, no-new-privileges[=false]", "OPTION", parse_security_opt, repeat=True
    ),
    Option(("--privileged",), "privileged", "every capability and path, inside its user namespace", convert=None),
    Option(("--device",), "device", "give it a device of the host", "SRC[:DST[:rwm]]", parse_device, repeat=True),
    Option(("--sysctl",), "sysctl", "set a kernel setting of its own namespaces", "NAME=VALUE", parse_pair, repeat=True),
    Option(("--oom-score-adj",), "oom_score_adj", "how early it is killed when the host is out of memory", "N", parse_whole),
    Option(("--init",), "init", "run our init as its first process (always so)", convert=None),
    Option(("--storage-opt",), "storage_opt", "size=BYTES: stop it when it has written more to its root", "size=BYTES", parse_storage_opt),
    Option(("--output-limit",), "output_limit", "stop it when it has printed more", "BYTES", parse_size),
    Option(("-l", "--label"), "label", "set a label on the container", "KEY=VALUE", repeat=True),
    Option(("--stop-signal",), "stop_signal", "signal that stops it", "SIGNAL", parse_signal),
    Option(("--stop-timeout",), "stop_timeout", "seconds from its stop signal to SIGKILL (10)", "SECONDS", parse_whole),
    Option(
        ("--network", "--net"), "network", "none, host, bridge (root's default), container:NAME, or name[,ip=…]", "NETWORK", repeat=True
    ),
    Option(("--network-alias",), "network_alias", "another name for others in its network", "NAME", repeat=True),
    Option(("-p", "--publish"), "publish", "a port of it here: [[ADDRESS:][HOST]:]PORT[/udp]", "PORT", parse_publish, repeat=True),
    Option(("-P", "--publish-all"), "publish_all", "its image's ports, each on a free one of this machine", convert=None),
    Option(("--ip",), "ip", "the address it has in its network", "ADDRESS"),
    Option(("--ip6",), "ip6", "the IPv6 address it has in its network", "ADDRESS"),
    Option(("--mac-address",), "mac_address", "the MAC address it has in its network", "ADDRESS"),
    Option(("--network-rate",), "network_rate", "what it may send and receive at most: 10mbit (bits a second)", "RATE", parse_network_rate),
    Option(
        ("--allow-net",),
        "allow_net",
        "all it may reach: names, *.names, addresses, subnets, each with :PORT or not",
        "TARGET[:PORT],…",
        parse_allow_net,
        repeat=True,
    ),
    Option(("--dns",), "dns", "ask this name server", "ADDRESS", repeat=True),
    Option(("--dns-search",), "dns_search", "look names up in this domain too", "DOMAIN", repeat=True),
    Option(("--userns",), "userns", "private (default) or host", "MODE", Choice(("private", "host"))),
    Option(("--add-host",), "add_host", "add a line to /etc/hosts", "NAME:IP", repeat=True),
    Option(("--shm-size",), "shm_size", "size of /dev/shm", "BYTES", parse_size),
    Option(("--restart",), "restart", "run it again when it ends: no, on-failure[:N], always, unless-stopped", "POLICY", parse_restart),
    Option(("--health-cmd",), "health_cmd", "shell command that checks whether it is well", "COMMAND"),
    Option(("--health-interval",), "health_interval", "time between two checks (30s)", "TIME", parse_duration),
    Option(("--health-timeout",), "health_timeout", "longest time of one check (30s)", "TIME", parse_duration),
    Option(("--health-start-period",), "health_start_period", "time in which failures do not count (0s)", "TIME", parse_duration),
    Option(("--health-start-interval",), "health_start_interval", "time between two checks in that time (5s)", "TIME", parse_duration),
    Option(("--health-retries",), "health_retries", "failures in a row that make it unhealthy (3)", "N", parse_whole),
    Option(("--no-healthcheck",), "no_healthcheck", "run no check, not the image's either", convert=None),
    Option(("--log-driver",), "log_driver", "json-file, or none: keep nothing", "DRIVER", Choice(("json-file", "none"))),
    Option(("--log-opt",), "log_opt", "max-size=BYTES of a log file, max-file=N of them", "NAME=VALUE", parse_pair, repeat=True),
    Option(
        ("--pull",),
        "pull",
        "missing, always, never (else: when missing and its registry named)",
        "WHEN",
        Choice(("missing", "always", "never")),
    ),
    Option(("--timeout",), "timeout", "stop it after this long", "TIME", parse_duration),
    Option(("--host-ca",), "host_ca", "trust the certificate authorities that this machine trusts beside its distribution's", convert=None),
    Option(("--allow-unenforced",), "allow_unenforced", "run although a limit cannot be enforced here", convert=None),
)


class BuildOptions(msgspec.Struct, frozen=True):
    """docker build's options, parsed."""

    tag: tuple[str, ...] = ()
    file: str | None = None
    build_arg: tuple[str, ...] = ()
    target: str | None = None
    no_cache: bool = False
    pull: str | None = None
    label: tuple[str, ...] = ()
    network: str = "host"
    progress: str = "auto"
    quiet: bool = False
    check: bool = False
    export: tuple[str, ...] = ()
    metadata_file: str | None = None
    jobs: int | None = None
    no_cache_filter: tuple[str, ...] = ()
    build_context: tuple[str, ...] = ()
    secret: tuple[str, ...] = ()
    ssh: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    add_host: tuple[str, ...] = ()
    shm_size: int | None = None
    ulimit: tuple[tuple[str, int, int], ...] = ()
    memory: int | None = None
    memory_swap: int | None = None
    cpuset_cpus: str | None = None
    cgroup_parent: str | None = None
    platform: str | None = None
    cache_from: tuple[str, ...] = ()
    cache_to: tuple[str, ...] = ()
    timestamp: int | None = None
    no_host_ca: bool = False
    extra: dict[str, Any] = msgspec.field(default_factory=dict)  # Any: rows a face adds for itself (the magics' -o VAR)


BUILD: tuple[Option, ...] = (
    Option(("-t", "--tag"), "tag", "name of the image", "NAME[:TAG]", repeat=True),
    Option(("-f", "--file"), "file", "the Dockerfile (default: CONTEXT/Dockerfile; - reads stdin)", "FILE"),
    Option(("--build-arg",), "build_arg", "value of an ARG (no value: take it from here)", "NAME[=VALUE]", repeat=True),
    Option(("--target",), "target", "stage to build", "STAGE"),
    Option(("--no-cache",), "no_cache", "redo every step", convert=None),
    Option(
        ("--pull",),
        "pull",
        "bring bases: always (so alone), missing, never (else as run)",
        "[=WHEN]",
        Choice(("always", "missing", "never", "true", "false")),
        alone="always",
    ),
    Option(("--label",), "label", "set a label on the image", "KEY=VALUE", repeat=True),
    Option(("--network",), "network", "network of RUN steps: host (default), none, bridge, or a name", "NETWORK"),
    Option(("--progress",), "progress", "auto, plain, tty, quiet or rawjson", "KIND", Choice(("auto", "plain", "tty", "quiet", "rawjson"))),
    Option(("-q", "--quiet"), "quiet", "print the image id only", convert=None),
    Option(("--jobs",), "jobs", "how many steps may run at the same time", "N", parse_jobs),
    Option(("--no-cache-filter",), "no_cache_filter", "redo the steps of these stages", "STAGE", repeat=True),
    Option(("--build-context",), "build_context", "a directory, docker-image:// or oci-layout:// by a name", "NAME=PLACE", repeat=True),
    Option(("--secret",), "secret", "a secret for RUN --mount=type=secret", "id=ID,src=FILE|env=NAME", repeat=True),
    Option(("--ssh",), "ssh", "an agent's socket or keys for RUN --mount=type=ssh", "default|ID=PATH", repeat=True),
    Option(("--allow",), "allow", "allow what is not usual (security.insecure)", "WHAT", repeat=True),
    Option(("--add-host",), "add_host", "add a line to /etc/hosts of RUN steps", "NAME:IP", repeat=True),
    Option(("--shm-size",), "shm_size", "size of /dev/shm in RUN steps", "BYTES", parse_size),
    Option(("--ulimit",), "ulimit", "resource limit of RUN steps", "NAME=SOFT[:HARD]", parse_ulimit, repeat=True),
    Option(("-m", "--memory"), "memory", "memory limit of each RUN step", "BYTES", parse_size),
    Option(("--memory-swap",), "memory_swap", "memory and swap of each RUN step together", "BYTES", parse_size),
    Option(("--cpuset-cpus",), "cpuset_cpus", "CPUs for RUN steps, e.g. 0-1", "LIST"),
    Option(("--cgroup-parent",), "cgroup_parent", "not supported", "GROUP"),
    Option(("--platform",), "platform", "platform to build for (this machine's only)", "OS/ARCH"),
    Option(("--cache-from",), "cache_from", "a cache to take steps from", "type=local,src=DIR|NAME", repeat=True),
    Option(("--cache-to",), "cache_to", "where to keep the steps", "type=inline|local,dest=DIR|NAME", repeat=True),
    Option(("--timestamp",), "timestamp", "seconds since 1970 that every time is set to", "SECONDS", parse_seconds),
    Option(("--no-host-ca",), "no_host_ca", "RUN steps do not trust this machine's extra certificate authorities", convert=None),
    Option(("--check",), "check", "check the Dockerfile, build nothing", convert=None),
    Option(("-o", "--output"), "export", "where the result goes: DIR, - or type=oci|docker|tar|local|image,dest=PATH", "DEST", repeat=True),
    Option(("--metadata-file",), "metadata_file", "write the image's digests to a file, as JSON", "FILE"),
)


def given(made: Made, values: Mapping[str, object]) -> Made:
    """`made` with those of the values that were given and are its fields."""
    known = set(made.__struct_fields__)
    return replace(made, **{name: value for name, value in values.items() if name in known and value not in (None, ())})
