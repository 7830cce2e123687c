"""How a build is done, beside what is built: docker build's further options, read from their texts."""

from __future__ import annotations

import csv
import ipaddress
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from sandbox.build.cachesources import CacheSpec, parse_cache
from sandbox.build.site import StepLimits
from sandbox.build.stages import host
from sandbox.errors import InvalidOption, Unsupported
from sandbox.guarded import Guarded
from sandbox.options import BuildOptions
from sandbox.runtime.spec import Limits

_SECRET_LIMIT = 500 << 10
"""BuildKit's limit for one secret."""
_PULL = {"true": "always", "false": None}
"""What docker's switch says."""


class Settings(Guarded, frozen=True, kw_only=True):
    """`jobs`: how many steps may run at once, None: `graph.default_jobs`. `no_cache_stages`: stages whose steps are redone.
    `contexts`: named contexts, name → directory, docker-image://NAME or oci-layout://DIRECTORY. `secrets`: id → value; `ssh`:
    id → an agent's socket, or key files. `limits`: what every RUN gets. `cache_from`, `cache_to`: caches to read and write."""

    hidden = ("secrets", "files")

    jobs: int | None = None
    no_cache_stages: tuple[str, ...] = ()
    contexts: Mapping[str, str] = msgspec.field(default_factory=dict)
    secrets: Mapping[str, bytes] = msgspec.field(default_factory=dict)
    ssh: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    limits: StepLimits = msgspec.field(default_factory=StepLimits)
    cache_from: tuple[CacheSpec, ...] = ()
    cache_to: tuple[CacheSpec, ...] = ()
    pull: str | None = None
    """When base images are brought from their registries: always, missing or never; None: when missing and their registry is named."""
    timestamp: int | None = None
    """Seconds since 1970: as the build argument SOURCE_DATE_EPOCH."""
    files: Mapping[str, bytes] = msgspec.field(default_factory=dict)
    """Files of the context beside those of its directory: path below it → content."""


def settings_of(options: BuildOptions, environ: Mapping[str, str]) -> Settings:
    """The options as settings; reads secrets. InvalidOption, Unsupported."""
    _refuse(options)
    return Settings(
        jobs=options.jobs,
        no_cache_stages=tuple(name.lower() for text in options.no_cache_filter for name in text.split(",") if name),
        contexts=_contexts(options.build_context),
        secrets=dict(read_secret(text, environ) for text in options.secret),
        ssh=parse_ssh(options.ssh, environ),
        limits=StepLimits(
            hosts=tuple(map(_host, options.add_host)),
            shm_size=64 << 20 if options.shm_size is None else options.shm_size,
            ulimits=options.ulimit,
            limits=Limits(memory=options.memory, memory_swap=options.memory_swap, cpuset_cpus=options.cpuset_cpus),
            insecure=_allowed(options.allow),
            host_ca=not options.no_host_ca,
        ),
        cache_from=tuple(parse_cache(text, "--cache-from") for text in options.cache_from),
        cache_to=tuple(parse_cache(text, "--cache-to") for text in options.cache_to),
        timestamp=options.timestamp,
        pull=_PULL.get(options.pull or "", options.pull),
    )


def parse_ssh(texts: Sequence[str], environ: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """`default`, `ID`, `ID=SOCKET` or `ID=KEY,KEY…` as id → paths; without a path the environment's agent. InvalidOption."""
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, paths = text.partition("=")
        agent = environ.get("SSH_AUTH_SOCK")
        if not name or (equals and not all(paths.split(","))):
            raise InvalidOption(f"--ssh {text!r}: not of the form default, or id=socket-or-key[,key]")
        if not equals and not agent:
            raise InvalidOption(f"--ssh {name}: no agent runs (SSH_AUTH_SOCK is not set)", hint=f"start one, or write --ssh {name}=KEYFILE")
        found[name] = tuple(paths.split(",")) if equals else (agent or "",)
    return found


def _refuse(options: BuildOptions) -> None:
    if options.cgroup_parent:
        hint = "limit the steps with --memory or --cpuset-cpus"
        raise Unsupported("--cgroup-parent: steps run in the engine's own cgroup", feature="cgroup-parent", hint=hint)
    here = host()
    names = {f"{here.os}/{here.architecture}", "/".join(filter(None, (here.os, here.architecture, here.variant)))}
    if options.platform and options.platform.lower() not in names:
        message = f"--platform {options.platform}: this machine runs {here.os}/{here.architecture} only"
        raise Unsupported(message, feature="platform", hint="emulation of other processors is not supported")


def _allowed(texts: Sequence[str]) -> bool:
    known = ("security.insecure", "network.host")
    for text in texts:
        if text not in known:
            raise InvalidOption(f"--allow {text}: not one of {', '.join(known)}")
    return "security.insecure" in texts


def _contexts(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if any(not (name and value) for name, _, value in pairs):
        raise InvalidOption(
            "--build-context: not of the form name=directory", hint="or name=docker-image://IMAGE, name=oci-layout://DIRECTORY"
        )
    return {name: value for name, _, value in pairs}


def _host(text: str) -> tuple[str, str]:
    """NAME:IP or NAME=IP, as buildx takes them."""
    name, _, address = text.partition("=") if "=" in text else text.partition(":")
    try:
        return _named(name, text), str(ipaddress.ip_address(address.strip("[]")))
    except ValueError as err:
        raise InvalidOption(f"--add-host {text!r}: not of the form NAME:IP") from err


def _named(name: str, text: str) -> str:
    if not name or any(char.isspace() for char in name):
        raise InvalidOption(f"--add-host {text!r}: no host name before the address")
    return name


def read_secret(text: str, environ: Mapping[str, str]) -> tuple[str, bytes]:
    """`id=ID[,src=FILE|env=NAME][,type=file|env]` as id and value; without a source the variable ID, else the file ID.
    InvalidOption, whose text never holds the value."""
    fields = _fields(text)
    name, kind = fields.get("id", ""), fields.get("type")
    source, variable = fields.get("src") or fields.get("source"), fields.get("env")
    if not name or kind not in (None, "file", "env") or (source and variable):
        raise InvalidOption(f"--secret {text!r}: not of the form id=ID,src=FILE or id=ID,env=NAME")
    if kind == "env":
        variable, source = variable or source or name, None
    if variable is None and source is None and kind is None and name in environ:
        variable = name
    value = _from_environment(name, variable, environ) if variable else _from_file(name, source or name)
    if len(value) > _SECRET_LIMIT:
        raise InvalidOption(f"--secret {name}: larger than 500 KiB")
    return name, value


def _fields(text: str) -> dict[str, str]:
    words = next(csv.reader([text]), [])
    pairs = [word.partition("=") for word in words]
    for key, equals, _ in pairs:
        if not equals or key not in ("id", "src", "source", "env", "type"):
            raise InvalidOption(f"--secret {text!r}: key {key!r} is not known", hint="write id=ID,src=FILE or id=ID,env=NAME")
    return {key: value for key, _, value in pairs}


def _from_environment(name: str, variable: str, environ: Mapping[str, str]) -> bytes:
    if variable not in environ:
        raise InvalidOption(f"--secret {name}: {variable} is not in the environment")
    return environ[variable].encode("utf-8", "surrogateescape")


def _from_file(name: str, source: str) -> bytes:
    try:
        with Path(source).expanduser().open("rb") as stream:
            return stream.read(_SECRET_LIMIT + 1)
    except OSError as err:
        raise InvalidOption(f"--secret {name}: {source}: {(err.strerror or str(err)).lower()}") from err
