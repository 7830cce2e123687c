"""docker's rules for what a container of an image runs: RunOptions + image config → process, limits, mounts. Pure but for `read`."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from sandbox.errors import InvalidOption, Unsupported
from sandbox.oci import Healthcheck, RunConfig
from sandbox.options import RunOptions, parse_signal, parse_size
from sandbox.patterns import Pattern
from sandbox.records import LogSettings
from sandbox.runtime.security.kernel_files import check_sysctls
from sandbox.runtime.spec import Device, Health, Limits, Port, Process, Rate

_VOLUME_NAME = Pattern(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_LEAST_MEMORY = 6 << 20
_HOST = Pattern(r"[a-zA-Z0-9][a-zA-Z0-9.-]{0,62}")


class VolumeRequest(msgspec.Struct, frozen=True):
    """One -v or --mount: `source` is a host path (kind bind; `make`: it is made where it is missing) or a volume's name (named; empty:
    anonymous; `copy`: an empty one begins with the image's files). `propagation`: one of PROPAGATIONS, of a host path."""

    kind: Literal["bind", "named"]
    source: str
    target: str
    read_only: bool = False
    copy: bool = True
    make: bool = True
    propagation: str = "rprivate"


def make_process(config: RunConfig, argv: Sequence[str], options: RunOptions, env: Mapping[str, str]) -> Process:
    """The program: `argv` replaces CMD, --entrypoint replaces ENTRYPOINT and drops CMD. InvalidOption when nothing is left to run."""
    entrypoint = list(config.entrypoint or ())
    command = list(argv) or list(config.cmd or ())
    if options.entrypoint is not None:
        entrypoint = [options.entrypoint] if options.entrypoint else []
        command = list(argv)
    if not entrypoint and not command:
        raise InvalidOption("no command: the image has neither ENTRYPOINT nor CMD", hint="name a program after the image")
    return Process(
        argv=(*entrypoint, *command),
        env=tuple({**dict(split_env(config.env or ())), **env}.items()),
        cwd=options.workdir or config.working_dir or "/",
        user=options.user if options.user is not None else config.user,
        tty=options.tty,
    )


def split_env(entries: Sequence[str]) -> list[tuple[str, str]]:
    """`NAME=VALUE` entries as pairs; one without `=` is dropped, as docker does in an image's Env."""
    return [(name, value) for name, equals, value in (entry.partition("=") for entry in entries) if equals]


def make_env(options: RunOptions, environ: Mapping[str, str], read: Callable[[str], str]) -> dict[str, str]:
    """--env-file, then --env; a bare NAME is taken from `environ` or left out. `read` gives a file's text."""
    env: dict[str, str] = {}
    for path in options.env_file:
        env.update(_parse_env_file(path, read(path), environ))
    for entry in options.env:
        name, equals, value = entry.partition("=")
        if not name:
            raise InvalidOption(f"--env {entry!r}: has no name")
        if equals:
            env[name] = value
        elif name in environ:
            env[name] = environ[name]
    return env


def _parse_env_file(path: str, text: str, environ: Mapping[str, str]) -> dict[str, str]:
    """docker's env files: one NAME=VALUE a line, taken literally; # begins a comment line; a bare NAME comes from outside."""
    env: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.lstrip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not name or re.search(r"\s", name):
            raise InvalidOption(f"{path}, line {number}: {line!r} is not NAME=VALUE")
        if equals:
            env[name] = value
        elif name in environ:
            env[name] = environ[name]
    return env


def make_limits(options: RunOptions, device_number: Callable[[str], str]) -> Limits:
    """The limits asked for; InvalidOption for what contradicts itself."""
    if options.memory is not None and options.memory < _LEAST_MEMORY:
        raise InvalidOption("--memory: at least 6m, or the container cannot start")
    if options.memory_swap is not None and options.memory is None:
        raise InvalidOption("--memory-swap: needs --memory too")
    if options.memory_swap is not None and options.memory is not None and -1 != options.memory_swap < options.memory:
        raise InvalidOption("--memory-swap: is memory and swap together, so not less than --memory")
    pids = options.pids_limit
    return Limits(
        memory=options.memory,
        memory_swap=options.memory_swap,
        memory_reservation=options.memory_reservation,
        memory_swappiness=options.memory_swappiness if options.memory_swappiness != -1 else None,
        cpus=options.cpus,
        cpu_shares=options.cpu_shares or None,
        cpuset_cpus=options.cpuset_cpus,
        cpuset_mems=options.cpuset_mems,
        pids=pids if pids and pids > 0 else None,
        blkio_weight=options.blkio_weight or None,
        io=tuple(_rates(options, device_number)),
    )


def _rates(options: RunOptions, device_number: Callable[[str], str]) -> Iterator[Rate]:
    for path, rate in options.device_read_bps:
        yield Rate("read_bps", device_number(path), rate)
    for path, rate in options.device_write_bps:
        yield Rate("write_bps", device_number(path), rate)
    for path, rate in options.device_read_iops:
        yield Rate("read_iops", device_number(path), rate)
    for path, rate in options.device_write_iops:
        yield Rate("write_iops", device_number(path), rate)


def block_device_number(path: str) -> str:
    """A block device as major:minor; InvalidOption when it is none."""
    try:
        found = os.stat(path)
    except OSError as err:
        raise InvalidOption(f"{path}: {(err.strerror or str(err)).lower()}") from err
    if not stat.S_ISBLK(found.st_mode):
        raise InvalidOption(f"{path}: not a block device")
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"


def make_seccomp(options: RunOptions, read: Callable[[str], str]) -> str:
    """--security-opt seccomp: default, unconfined, or the text of the profile. Raises for options that nothing here answers to."""
    chosen = "default"
    for name, value in options.security_opt:
        if name == "seccomp":
            chosen = value if value in ("unconfined", "builtin", "default") else read(value)
        elif (name, value) not in _SECURITY_OPTS:
            what = f"--security-opt {name}={value}" if value else f"--security-opt {name}"
            raise Unsupported(f"{what}: not offered", feature=name, hint="seccomp=FILE, seccomp=unconfined, no-new-privileges")
    return "default" if chosen == "builtin" else chosen


_SECURITY_OPTS = {
    *(("no-new-privileges", value) for value in ("", "true", "false")),
    ("apparmor", "unconfined"),  # what we do not use is off already
    ("label", "disable"),
}


def make_no_new_privileges(options: RunOptions) -> bool:
    """On, unless --security-opt no-new-privileges=false."""
    return ("no-new-privileges", "false") not in options.security_opt


def make_sysctls(options: RunOptions) -> tuple[tuple[str, str], ...]:
    """--sysctl; InvalidOption for what is not the container's own."""
    check_sysctls(options.sysctl, own_network=not options.network_name.startswith(("host", "container:")))
    return options.sysctl


def make_oom_score_adj(options: RunOptions) -> int | None:
    """--oom-score-adj; InvalidOption outside of Linux' range."""
    if options.oom_score_adj is not None and not -1000 <= options.oom_score_adj <= 1000:
        raise InvalidOption(f"--oom-score-adj {options.oom_score_adj}: must be from -1000 to 1000")
    return options.oom_score_adj


def make_devices(options: RunOptions) -> tuple[Device, ...]:
    """--device; InvalidOption for what is no device."""
    return tuple(Device(source, target) for source, target in options.device if _is_device(source))


def _is_device(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError as err:
        raise InvalidOption(f"--device {path}: {(err.strerror or str(err)).lower()}") from err
    if not (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)):
        raise InvalidOption(f"--device {path}: not a device")
    return True


def make_ports(config: RunConfig, options: RunOptions) -> tuple[Port, ...]:
    """--publish, and with --publish-all what the image exposes beside that."""
    asked = [each for given in options.publish for each in given]
    ports = [Port(inside, host, address, "udp" if kind == "udp" else "tcp") for inside, host, address, kind in asked]
    known = {(port.container, port.protocol) for port in ports}
    for text in sorted(config.exposed_ports or ()) if options.publish_all else ():
        number, _, kind = text.partition("/")
        protocol: Literal["tcp", "udp"] = "udp" if kind == "udp" else "tcp"
        if number.isdigit() and (int(number), protocol) not in known:
            ports.append(Port(int(number), protocol=protocol))
    return tuple(ports)


def serves_names(config: RunConfig, ports: Sequence[Port]) -> bool:
    """Whether it is a name server itself: it publishes port 53, or its image exposes it."""
    return any(port.container == _NAMES for port in ports) or any(
        text.partition("/")[0] == str(_NAMES) for text in config.exposed_ports or ()
    )


_NAMES = 53


def make_health(config: RunConfig, options: RunOptions) -> Health | None:
    """--health-…, else the image's HEALTHCHECK; None for none."""
    times = {name: getattr(options, f"health_{name}") for name in _HEALTH_TIMES}
    if options.no_healthcheck:
        if options.health_cmd is not None or options.health_retries is not None or any(each is not None for each in times.values()):
            raise InvalidOption("--no-healthcheck: contradicts --health-…")
        return None
    if options.health_retries is not None and options.health_retries < 1:
        raise InvalidOption(f"--health-retries {options.health_retries}: must be at least 1")
    image = config.healthcheck or Healthcheck()
    argv = _check_argv(["CMD-SHELL", options.health_cmd] if options.health_cmd else image.test or [], config)
    if not argv:
        return None
    given = {name: getattr(image, name) / 1e9 if each is None else each for name, each in times.items()}
    numbers = {name: each for name, each in given.items() if each}
    retries = options.health_retries or image.retries
    return Health(argv, **numbers, **({"retries": retries} if retries else {}))


_HEALTH_TIMES = ("interval", "timeout", "start_period", "start_interval")


def _check_argv(test: Sequence[str], config: RunConfig) -> tuple[str, ...]:
    """docker's Test: NONE, CMD with the words, CMD-SHELL with a line for the image's shell."""
    kind, *words = test or ("NONE",)
    if kind == "CMD-SHELL":
        return (*(config.shell or ("/bin/sh", "-c")), *words)
    return tuple(words) if kind == "CMD" else ()


def make_log(options: RunOptions) -> LogSettings:
    """--log-driver and --log-opt."""
    given = dict(options.log_opt)
    driver: Literal["json-file", "none"] = "none" if options.log_driver == "none" else "json-file"
    if unknown := sorted(given.keys() - {"max-size", "max-file"}):
        raise InvalidOption(f"--log-opt {unknown[0]}: not known", hint="max-size=10m and max-file=3 are")
    if given and driver == "none":
        raise InvalidOption("--log-opt: there is no log with --log-driver none")
    if "max-file" in given and "max-size" not in given:
        raise InvalidOption("--log-opt max-file: needs max-size, which fills a file")
    size, files = parse_size(given.get("max-size", "-1")), given.get("max-file", "1")
    if size == 0 or not (files.isascii() and files.isdigit() and 1 <= int(files) <= 1000):
        raise InvalidOption("--log-opt: max-size must be above 0, max-file from 1 to 1000")
    return LogSettings(driver, max(0, size), int(files))


def make_restart(options: RunOptions) -> tuple[str, int]:
    """--restart; a container that is removed at its end has none to come back."""
    restart = options.restart or ("no", 0)
    if options.rm and restart[0] != "no":
        raise InvalidOption("--restart and --rm: contradict each other")
    return restart


def make_labels(config: RunConfig, options: RunOptions) -> dict[str, str]:
    """The image's labels with --label on top."""
    pairs = (entry.partition("=") for entry in options.label)
    return {**(config.labels or {}), **{name: value for name, _, value in pairs}}


def make_stop_signal(config: RunConfig, options: RunOptions) -> int:
    """--stop-signal, else the image's STOPSIGNAL, else SIGTERM."""
    if options.stop_signal is not None:
        return options.stop_signal
    return parse_signal(config.stop_signal) if config.stop_signal else 15


def make_hosts(options: RunOptions) -> tuple[tuple[str, str], ...]:
    """--add-host NAME:IP as (name, address)."""
    pairs = [(entry, *entry.partition(":")) for entry in options.add_host]
    for entry, name, colon, address in pairs:
        if not (name and colon and address):
            raise InvalidOption(f"--add-host {entry!r}: not of the form NAME:IP")
    return tuple((name, address) for _, name, _, address in pairs)


def check_hostname(name: str) -> str:
    """A host name that /etc/hosts and sethostname(2) take."""
    if not _HOST.fullmatch(name):
        raise InvalidOption(f"--hostname {name!r}: letters, digits, dots and dashes, at most 63")
    return name


def parse_volume(text: str) -> VolumeRequest:
    """docker's -v: `[SRC:]DST[:ro]`; a source that begins with / . or ~ is a path, any other a named volume."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise InvalidOption(f"--volume {text!r}: not of the form SRC:DST[:ro]")
    source, target = ("", parts[0]) if len(parts) == 1 else (parts[0], parts[1])
    options = parts[2].split(",") if len(parts) == 3 else []
    if unknown := set(options) - {"ro", "rw", "nocopy", *PROPAGATIONS}:
        hint = f"ro, rw, nocopy and {', '.join(PROPAGATIONS)} are"
        raise InvalidOption(f"--volume {text!r}: option {', '.join(sorted(unknown))} is not supported", hint=hint)
    propagation = [option for option in options if option in PROPAGATIONS]
    if len(propagation) > 1:
        raise InvalidOption(f"--volume {text!r}: {' and '.join(propagation)} contradict each other")
    if not target.startswith("/") or target == "/":
        raise InvalidOption(f"--volume {text!r}: {target!r} is not an absolute path inside the container")
    is_path = source.startswith(("/", ".", "~"))
    if source and not is_path and not _VOLUME_NAME.fullmatch(source):
        raise InvalidOption(f"--volume {text!r}: {source!r} is no volume name", hint="for a directory begin it with / or ./")
    if propagation and not is_path:
        raise InvalidOption(f"--volume {text!r}: {propagation[0]} is for directories of the host")
    return VolumeRequest(
        "bind" if is_path else "named", source, target.rstrip("/"), "ro" in options, copy="nocopy" not in options,
        propagation="".join(propagation) or "rprivate",
    )  # fmt: skip


PROPAGATIONS = ("private", "rprivate", "slave", "rslave", "shared", "rshared")
"""mount_namespaces(7): where mounts made later, below a host path or its place inside, are seen too. All of them reach what is
mounted below: a private mount with a shared one in it would not be private."""
_MOUNT_KEYS = {
    "bind": {"type", "source", "target", "readonly", "bind-propagation"},
    "volume": {"type", "source", "target", "readonly", "volume-nocopy"},
    "tmpfs": {"type", "target", "tmpfs-size", "tmpfs-mode"},
}
_MOUNT_WORDS = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}


def parse_mount(text: str) -> VolumeRequest | tuple[str, tuple[str, ...]]:
    """docker's --mount: `type=volume|bind|tmpfs,source=…,target=…,…`; a tmpfs as `parse_tmpfs` gives it."""
    pairs = [entry.partition("=") for entry in text.split(",")]
    given = {_MOUNT_WORDS.get(key.strip().lower(), key.strip().lower()): value.strip() for key, _, value in pairs}
    kind = given.get("type", "volume")
    if kind not in _MOUNT_KEYS:
        raise InvalidOption(f"--mount {text!r}: type {kind!r} is not volume, bind or tmpfs")
    if unknown := given.keys() - _MOUNT_KEYS[kind]:
        known = ", ".join(sorted(_MOUNT_KEYS[kind]))
        raise InvalidOption(f"--mount {text!r}: {sorted(unknown)[0]} is not known", hint=f"a {kind} has {known}")
    target, source = given.get("target", ""), given.get("source", "")
    if not target.startswith("/") or target.strip("/") == "":
        raise InvalidOption(f"--mount {text!r}: target {target!r} is not an absolute path inside the container")
    if kind == "tmpfs":
        options = [f"{name}={given[f'tmpfs-{name}']}" for name in ("size", "mode") if f"tmpfs-{name}" in given]
        return target.rstrip("/"), tuple(options)
    if kind == "bind" and not source.startswith(("/", ".", "~")):
        raise InvalidOption(f"--mount {text!r}: source {source!r} is not a path")
    if kind == "volume" and source and not _VOLUME_NAME.fullmatch(source):
        raise InvalidOption(f"--mount {text!r}: {source!r} is no volume name", hint="for a directory say type=bind")
    propagation = given.get("bind-propagation", "rprivate")
    if propagation not in PROPAGATIONS:
        raise InvalidOption(f"--mount {text!r}: bind-propagation {propagation} is none of {', '.join(PROPAGATIONS)}")
    switches = {name: _is_on(text, name, given[name]) for name in ("readonly", "volume-nocopy") if name in given}
    copy = not switches.get("volume-nocopy", False)
    request_kind: Literal["bind", "named"] = "bind" if kind == "bind" else "named"
    read_only = switches.get("readonly", False)
    return VolumeRequest(request_kind, source, target.rstrip("/"), read_only, copy=copy, make=False, propagation=propagation)


def _is_on(text: str, name: str, value: str) -> bool:
    if value.lower() not in ("", "1", "true", "0", "false"):
        raise InvalidOption(f"--mount {text!r}: {name} is true or false, not {value!r}")
    return value.lower() in ("", "1", "true")


def parse_tmpfs(text: str) -> tuple[str, tuple[str, ...]]:
    """`DIR[:OPTIONS]` as (directory, options)."""
    target, _, options = text.partition(":")
    if not target.startswith("/") or target == "/":
        raise InvalidOption(f"--tmpfs {text!r}: not an absolute path inside the container")
    return target, tuple(option for option in options.split(",") if option)


def with_shortcuts(options: RunOptions, **given: object) -> RunOptions:
    """`options` with the keyword shortcuts of `Engine.run` that are not None."""
    return replace(options, **{name: value for name, value in given.items() if value is not None})
