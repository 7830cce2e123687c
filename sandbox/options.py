"""docker's flags as data: one row an option, from which the CLI, the magics, their help and their completion are made.

`RUN` and `BUILD` list rows; `RunOptions` and `BuildOptions` hold the parsed values. A converter takes the text after the
flag and raises InvalidOption; it never reads files or the environment (the faces do, at the edge).
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sandbox.errors import InvalidOption

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgtp]?)(?:i?b)?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
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


def parse_ulimit(text: str) -> tuple[str, int, int]:
    """`nofile=1024[:2048]` as (name, soft, hard)."""
    match = re.fullmatch(r"([a-z]+)=(-?\d+)(?::(-?\d+))?", text)
    if not match:
        raise InvalidOption(f"ulimit {text!r}: not of the form name=soft[:hard]")
    return match[1], int(match[2]), int(match[3] or match[2])


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


def parse_choice(*choices: str) -> Callable[[str], str]:
    """A converter that takes one of these words."""

    def convert(text: str) -> str:
        if text not in choices:
            raise InvalidOption(f"{text!r}: not one of {', '.join(choices)}")
        return text

    return convert


@dataclass(frozen=True)
class Option:
    """One flag: `names` as typed, the `field` it fills, `convert` from its text (None: a switch), whether it repeats."""

    names: tuple[str, ...]
    field: str
    help: str
    metavar: str = ""
    convert: Callable[[str], Any] | None = str  # Any: each row's converter has a type of its own, checked by its field
    repeat: bool = False

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return self.convert is None


@dataclass(frozen=True)
class RunOptions:
    """docker run's options, parsed. Field names are docker's long flags; None or empty means not given."""

    rm: bool = False
    detach: bool = False
    interactive: bool = False
    tty: bool = False
    name: str | None = None
    env: tuple[str, ...] = ()
    env_file: tuple[str, ...] = ()
    volume: tuple[str, ...] = ()
    workdir: str | None = None
    user: str | None = None
    memory: int | None = None
    memory_swap: int | None = None
    cpus: float | None = None
    cpuset_cpus: str | None = None
    pids_limit: int | None = None
    read_only: bool = False
    tmpfs: tuple[str, ...] = ()
    entrypoint: str | None = None
    hostname: str | None = None
    ulimit: tuple[tuple[str, int, int], ...] = ()
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    stop_signal: int | None = None
    network: str = "none"
    userns: str = "private"
    add_host: tuple[str, ...] = ()
    shm_size: int = 64 << 20
    timeout: float | None = None
    allow_unenforced: bool = False


RUN: tuple[Option, ...] = (
    Option(("--rm",), "rm", "remove the container when it ends", convert=None),
    Option(("-d", "--detach"), "detach", "run in the background and print the container's id", convert=None),
    Option(("-i", "--interactive"), "interactive", "keep stdin open", convert=None),
    Option(("-t", "--tty"), "tty", "give the program a terminal", convert=None),
    Option(("--name",), "name", "name of the container", "NAME"),
    Option(("-e", "--env"), "env", "set an environment variable (no value: take it from here)", "NAME[=VALUE]", repeat=True),
    Option(("--env-file",), "env_file", "read environment variables from a file", "FILE", repeat=True),
    Option(("-v", "--volume"), "volume", "mount a host directory or named volume", "SRC:DST[:ro]", repeat=True),
    Option(("-w", "--workdir"), "workdir", "working directory inside", "DIR"),
    Option(("-u", "--user"), "user", "user inside, by name or number", "USER[:GROUP]"),
    Option(("-m", "--memory"), "memory", "memory limit", "BYTES", parse_size),
    Option(("--memory-swap",), "memory_swap", "memory and swap together, -1 for unlimited swap", "BYTES", parse_size),
    Option(("--cpus",), "cpus", "number of CPUs, e.g. 1.5", "N", parse_positive),
    Option(("--cpuset-cpus",), "cpuset_cpus", "CPUs to run on, e.g. 0-1", "LIST"),
    Option(("--pids-limit",), "pids_limit", "limit of processes, 0 for unlimited", "N", parse_pids),
    Option(("--read-only",), "read_only", "mount the root file system read-only", convert=None),
    Option(("--tmpfs",), "tmpfs", "mount a tmpfs", "DIR[:OPTIONS]", repeat=True),
    Option(("--entrypoint",), "entrypoint", "replace the image's entrypoint", "PROGRAM"),
    Option(("-h", "--hostname"), "hostname", "host name inside", "NAME"),
    Option(("--ulimit",), "ulimit", "resource limit", "NAME=SOFT[:HARD]", parse_ulimit, repeat=True),
    Option(("--cap-add",), "cap_add", "add a capability", "CAP", repeat=True),
    Option(("--cap-drop",), "cap_drop", "drop a capability (or ALL)", "CAP", repeat=True),
    Option(("-l", "--label"), "label", "set a label on the container", "KEY=VALUE", repeat=True),
    Option(("--stop-signal",), "stop_signal", "signal that stops it", "SIGNAL", parse_signal),
    Option(("--network", "--net"), "network", "none (loopback only) or host", "MODE", parse_choice("none", "host", "bridge")),
    Option(("--userns",), "userns", "private (default) or host", "MODE", parse_choice("private", "host")),
    Option(("--add-host",), "add_host", "add a line to /etc/hosts", "NAME:IP", repeat=True),
    Option(("--shm-size",), "shm_size", "size of /dev/shm", "BYTES", parse_size),
    Option(("--timeout",), "timeout", "stop it after this long", "TIME", parse_duration),
    Option(("--allow-unenforced",), "allow_unenforced", "run although a limit cannot be enforced here", convert=None),
)


@dataclass(frozen=True)
class BuildOptions:
    """docker build's options, parsed."""

    tag: tuple[str, ...] = ()
    file: str | None = None
    build_arg: tuple[str, ...] = ()
    target: str | None = None
    no_cache: bool = False
    pull: bool = False
    label: tuple[str, ...] = ()
    network: str = "host"
    progress: str = "auto"
    quiet: bool = False
    extra: dict[str, Any] = field(default_factory=dict)  # Any: rows a face adds for itself (the magics' -o VAR)


BUILD: tuple[Option, ...] = (
    Option(("-t", "--tag"), "tag", "name of the image", "NAME[:TAG]", repeat=True),
    Option(("-f", "--file"), "file", "the Dockerfile (default: CONTEXT/Dockerfile; - reads stdin)", "FILE"),
    Option(("--build-arg",), "build_arg", "value of an ARG (no value: take it from here)", "NAME[=VALUE]", repeat=True),
    Option(("--target",), "target", "stage to build", "STAGE"),
    Option(("--no-cache",), "no_cache", "redo every step", convert=None),
    Option(("--pull",), "pull", "ask the registry for a newer base", convert=None),
    Option(("--label",), "label", "set a label on the image", "KEY=VALUE", repeat=True),
    Option(("--network",), "network", "network of RUN steps: host or none", "MODE", parse_choice("host", "none", "default")),
    Option(("--progress",), "progress", "auto, plain, tty or quiet", "KIND", parse_choice("auto", "plain", "tty", "quiet")),
    Option(("-q", "--quiet"), "quiet", "print the image id only", convert=None),
)
