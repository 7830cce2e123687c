"""How registries are reached by one command: servers, credentials, TLS; connections are made once and shared."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import msgspec

from sandbox.errors import RegistryError
from sandbox.guarded import Guarded
from sandbox.image.reference import Reference
from sandbox.image.registry.credentials import Credential, CredentialFiles
from sandbox.image.registry.hosts import Endpoint, RegistriesConf, registry_endpoint
from sandbox.image.registry.repository import Connection, Repository
from sandbox.image.registry.tokens import Authorizer
from sandbox.image.registry.wire import Patience, Wire


class Terms(Guarded, frozen=True):
    """What a command says of how registries are reached. `tls_verify` None: as configured; `credential` instead of any file's."""

    hidden = ("credential",)

    tls_verify: bool | None = None
    authfile: Path | None = None
    credential: Credential | None = None
    patience: Patience = msgspec.field(default_factory=Patience)

    @property
    def insecure(self) -> bool | None:
        """As registries.conf says it."""
        return None if self.tls_verify is None else not self.tls_verify


class Access:
    """Opens repositories. A context manager: leaving it closes the connections. Thread-safe."""

    def __init__(self, environ: Mapping[str, str], terms: Terms = Terms()) -> None:
        home = Path(environ.get("HOME") or Path.home())
        self.terms = terms
        self.stop = threading.Event()
        self.wire = Wire(environ, terms.patience, self.stop)
        self.files = CredentialFiles(environ, home, terms.authfile)
        self.conf = RegistriesConf.read(environ, home)
        self._connections: dict[tuple[Endpoint, bool], Connection] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop.set()
        self.wire.close()

    def sources(self, reference: Reference) -> list[Repository]:
        """Where to pull from, mirrors first. The credential of a command's own is for the last, which is the registry itself."""
        *mirrors, own = self.conf.sources(reference, insecure=self.terms.insecure)
        return [*(self._repository(mirror, "pull", is_mirror=True) for mirror in mirrors), self._repository(own, "pull")]

    def destination(self, reference: Reference) -> Repository:
        """Where to push to."""
        return self._repository(self.conf.destination(reference, insecure=self.terms.insecure), "pull,push")

    def registry(self, name: str) -> Repository:
        """A registry itself, for what is about no repository."""
        endpoint = registry_endpoint(name, self.conf.tables, insecure=self.terms.insecure)
        return self._repository(endpoint, "pull")

    def _repository(self, endpoint: Endpoint, actions: str, *, is_mirror: bool = False) -> Repository:
        def credential() -> Credential | None:
            given = None if is_mirror else self.terms.credential
            return given or self.files.find(endpoint.registry, endpoint.repository)

        with self._lock:
            if (endpoint, is_mirror) not in self._connections:
                authorizer = Authorizer(self.wire, f"https://{endpoint.host}", not endpoint.insecure, credential)
                self._connections[endpoint, is_mirror] = Connection(endpoint, self.wire, authorizer)
            return Repository(self._connections[endpoint, is_mirror], endpoint.repository, actions)

    def poll(self, attempt: Callable[[], bool]) -> None:
        """Try until it succeeds, or everything stops. RegistryError."""
        while not attempt():
            if self.stop.wait(0.02):
                raise RegistryError("transfer: stopped")
