"""Which servers a name means: containers' registries.conf (containers-registries.conf(5), version 2) and docker's rules.

A `[[registry]]` table rewrites names that begin with its prefix, blocks them, allows them to be spoken to without TLS, and
lists mirrors that are asked first when pulling. Short names mean docker.io, as in docker; `unqualified-search-registries` and
`short-name-mode` are read past.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from sandbox.errors import InvalidOption, RegistryError
from sandbox.image.reference import DEFAULT_REGISTRY, Reference
from sandbox.image.registry.wire import is_local

_HUB_SERVER = "registry-1.docker.io"


class _Mirror(msgspec.Struct, rename="kebab"):
    location: str = ""
    insecure: bool = False
    pull_from_mirror: Literal["all", "digest-only", "tag-only"] = "all"


class _Table(msgspec.Struct, rename="kebab"):
    prefix: str = ""
    location: str = ""
    insecure: bool = False
    blocked: bool = False
    mirror_by_digest_only: bool = False
    mirror: list[_Mirror] = []

    @property
    def head(self) -> str:
        """What names begin with."""
        return self.prefix or self.location


class _File(msgspec.Struct):
    registry: list[_Table] = []


msgspec.convert({"registry": [{"mirror": [{}]}]}, _File)  # a first use in one thread: see sandbox.oci


class Endpoint(msgspec.Struct, frozen=True):
    """A repository on a server. `host`: where requests go; `registry`: what it is called, by which credentials are found.
    `insecure`: certificates are not verified and plain HTTP is spoken when TLS is not; loopback may do the latter anyway."""

    host: str
    registry: str
    repository: str
    insecure: bool = False

    @property
    def may_be_plain(self) -> bool:
        """Whether HTTP without TLS is tried when TLS is not spoken."""
        return self.insecure or is_local(_without_port(self.host))


class RegistriesConf(msgspec.Struct, frozen=True):
    """The `[[registry]]` tables in force."""

    tables: tuple[_Table, ...] = ()

    @classmethod
    def read(cls, environ: Mapping[str, str], home: Path) -> RegistriesConf:
        """From the file CONTAINERS_REGISTRIES_CONF names, else this user's or the system's, with their `.d` directories.
        InvalidOption for a file that cannot be understood."""
        tables: dict[str, _Table] = {}
        for path in _files(environ, home):
            tables |= {table.head: table for table in _parsed(path).registry if table.head}
        return cls(tuple(tables.values()))

    def sources(self, reference: Reference, *, insecure: bool | None = None) -> list[Endpoint]:
        """Where to pull it from, in the order to try. `insecure`: of --tls-verify, None: as configured. RegistryError when blocked."""
        table = self._table(reference)
        if table is None:
            return [_endpoint(reference.name, False if insecure is None else insecure)]
        _refuse_blocked(table, reference)
        mirrors = [mirror for mirror in table.mirror if _serves(mirror, table, reference)]
        found = [_endpoint(_moved(reference, table, mirror.location), mirror.insecure) for mirror in mirrors if mirror.location]
        return [*found, self._own(reference, table, insecure)]

    def destination(self, reference: Reference, *, insecure: bool | None = None) -> Endpoint:
        """Where to push it: never a mirror. RegistryError when blocked."""
        table = self._table(reference)
        if table is None:
            return _endpoint(reference.name, False if insecure is None else insecure)
        _refuse_blocked(table, reference)
        return self._own(reference, table, insecure)

    def _own(self, reference: Reference, table: _Table, insecure: bool | None) -> Endpoint:
        return _endpoint(_moved(reference, table, table.location or table.prefix), table.insecure if insecure is None else insecure)

    def _table(self, reference: Reference) -> _Table | None:
        fitting = [table for table in self.tables if _begins(reference, table.head)]
        return max(fitting, key=lambda table: len(table.head), default=None)


def _files(environ: Mapping[str, str], home: Path) -> list[Path]:
    if given := environ.get("CONTAINERS_REGISTRIES_CONF"):
        return [Path(given)]
    user = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "containers"
    base = next((path for path in (user / "registries.conf", Path("/etc/containers/registries.conf")) if path.is_file()), None)
    parts = [part for directory in (Path("/etc/containers"), user) for part in sorted((directory / "registries.conf.d").glob("*.conf"))]
    return [*([base] if base else []), *parts]


def _parsed(path: Path) -> _File:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
        return msgspec.convert({"registry": document.get("registry", [])}, _File)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as err:
        raise InvalidOption(f"{path}: {err}", hint="containers-registries.conf(5) describes it") from err


def _begins(reference: Reference, head: str) -> bool:
    if head.startswith("*."):
        return _without_port(reference.registry).endswith(head[1:])
    tag = f":{reference.tag}" if reference.tag else ""
    name = reference.name
    return name == head or name.startswith(f"{head}/") or name + tag == head


def _moved(reference: Reference, table: _Table, location: str) -> str:
    """The name with its prefix replaced."""
    if table.head.startswith("*.") and not table.location:
        return reference.name
    head = reference.registry if table.head.startswith("*.") else table.head
    return location + reference.name[len(head) :]


def _serves(mirror: _Mirror, table: _Table, reference: Reference) -> bool:
    kind = "digest-only" if table.mirror_by_digest_only else mirror.pull_from_mirror
    return kind == "all" or (kind == "digest-only") == (reference.digest is not None)


def _refuse_blocked(table: _Table, reference: Reference) -> None:
    if table.blocked:
        raise RegistryError(f"{reference.name}: blocked by registries.conf")


def _endpoint(name: str, insecure: bool) -> Endpoint:
    registry, _, repository = name.partition("/")
    host = _HUB_SERVER if registry == DEFAULT_REGISTRY else registry
    return Endpoint(host, registry, repository, insecure)


def registry_endpoint(registry: str, sources: Sequence[_Table] = (), *, insecure: bool | None = None) -> Endpoint:
    """A registry without a repository: what login speaks to."""
    configured = any(table.insecure for table in sources if table.head == registry)
    return _endpoint(f"{registry}/", configured if insecure is None else insecure)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
