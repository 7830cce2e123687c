"""config.json of an OCI bundle, typed: the runtime specification 1.0 to 1.2 (config.md, config-linux.md).

Fields that another platform has are ignored, as the specification asks; a field of Linux that this runtime cannot honour
is refused by `plan.py`, never ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any  # resources and seccomp stay as the specification has them, their readers are tables

import msgspec

from sandbox.errors import InvalidBundle

_LARGEST = 16 << 20


class Struct(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    """What every object of the specification is here."""


class Box(Struct, frozen=True):
    """A terminal's size in characters."""

    height: int = 0
    width: int = 0


class User(Struct, frozen=True):
    """Who the process is, in numbers."""

    uid: int = 0
    gid: int = 0
    umask: int | None = None
    additional_gids: tuple[int, ...] = ()


class Capabilities(Struct, frozen=True):
    """The five sets of capabilities(7), as CAP_… names."""

    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


class Rlimit(Struct, frozen=True):
    """One limit of setrlimit(2): RLIMIT_…."""

    type: str
    hard: int
    soft: int


class Process(Struct, frozen=True):
    """The program of a container, or one that enters it."""

    cwd: str
    args: tuple[str, ...] = ()
    terminal: bool = False
    console_size: Box | None = None
    user: User = User()
    env: tuple[str, ...] = ()
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    apparmor_profile: str = ""
    selinux_label: str = ""
    oom_score_adj: int | None = None
    scheduler: dict[str, Any] | None = None
    io_priority: dict[str, Any] | None = msgspec.field(default=None, name="ioPriority")


class Root(Struct, frozen=True):
    """The root file system: relative to the bundle, or absolute."""

    path: str
    readonly: bool = False


class IdMapping(Struct, frozen=True):
    """A line of uid_map or gid_map, user_namespaces(7)."""

    container_id: int = msgspec.field(name="containerID")
    host_id: int = msgspec.field(name="hostID")
    size: int = msgspec.field(name="size")


class Mount(Struct, frozen=True):
    """One mount; `options` are mount(8)'s words and the file system's own."""

    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()


class Hook(Struct, frozen=True):
    """A program of the host to run at one point of the life cycle; `timeout` in seconds."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class Hooks(Struct, frozen=True):
    """The hooks, by the point they run at."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


class Namespace(Struct, frozen=True):
    """A namespace: a new one, or with `path` an existing one to join."""

    type: str
    path: str = ""


class Device(Struct, frozen=True):
    """A device node to make."""

    path: str
    type: str
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class Linux(Struct, frozen=True):
    """config-linux.md."""

    namespaces: tuple[Namespace, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    devices: tuple[Device, ...] = ()
    cgroups_path: str = ""
    resources: dict[str, Any] = {}
    rootfs_propagation: str = ""
    seccomp: msgspec.Raw = msgspec.Raw(b"null")
    sysctl: dict[str, str] = {}
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    mount_label: str = ""
    intel_rdt: dict[str, Any] | None = None
    personality: dict[str, Any] | None = None
    time_offsets: dict[str, Any] | None = None


class Config(Struct, frozen=True):
    """A whole config.json."""

    oci_version: str
    process: Process | None = None
    root: Root | None = None
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] = ()
    hooks: Hooks = Hooks()
    linux: Linux = Linux()
    annotations: dict[str, str] = {}


_CONFIG = msgspec.json.Decoder(Config)
_PROCESS = msgspec.json.Decoder(Process)


def read_config(bundle: Path) -> tuple[Config, bytes]:
    """`bundle`/config.json and its bytes; InvalidBundle names the field that is wrong."""
    raw = _read(bundle / "config.json")
    config: Config = _decoded(_CONFIG, raw, bundle / "config.json")
    if not config.oci_version.startswith("1."):
        raise InvalidBundle(f"config.json: ociVersion {config.oci_version}: only 1.x is known")
    return config, raw


def read_process(path: Path) -> Process:
    """A process.json for exec; InvalidBundle."""
    process: Process = _decoded(_PROCESS, _read(path), path)
    return process


def decode_config(raw: bytes) -> Config:
    """The config of a container that was made: as `read_config` read it then."""
    return _CONFIG.decode(raw)


def _decoded(decoder: msgspec.json.Decoder[Any], raw: bytes, path: Path) -> Any:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise InvalidBundle(f"{path}: {err}") from err


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
    except OSError as err:
        raise InvalidBundle(f"{path}: {(err.strerror or '').lower()}", hint="is --bundle right?") from err
    if len(raw) > _LARGEST:
        raise InvalidBundle(f"{path}: larger than {_LARGEST >> 20} MiB")
    return raw
