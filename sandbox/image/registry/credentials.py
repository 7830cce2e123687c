"""Names and passwords for registries: docker's config.json, podman's auth.json, and the credential helpers either may name.

Read in podman's order (containers-auth.json(5)), then docker's file. Written to one file, which nobody else may read; with a
helper configured the password goes there and not into the file. Secrets are never part of a representation or a message.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal  # Any: other programs' JSON, kept as it is

import msgspec

from sandbox.errors import RegistryError
from sandbox.guarded import Guarded
from sandbox.image.reference import DEFAULT_REGISTRY

_HUB = "https://index.docker.io/v1/"
_TOKEN_USER = "<token>"
_HELPER_SECONDS = 60


class Credential(Guarded, frozen=True):
    """Who we are at a registry. `is_token`: the secret is an identity token and there is no password."""

    hidden = ("secret",)

    user: str
    secret: str
    is_token: bool = False


class _HelperReply(msgspec.Struct, rename={"user": "Username", "secret": "Secret"}):
    user: str = ""
    secret: str = ""


_REPLY = msgspec.json.Decoder(_HelperReply)


class CredentialFiles(msgspec.Struct, frozen=True):
    """The files that hold credentials. `only`: the one file of --authfile, instead of all others."""

    environ: Mapping[str, str]
    home: Path
    only: Path | None = None

    def find(self, registry: str, repository: str = "") -> Credential | None:
        """Who we are at this registry, the most particular entry first; None: nobody. RegistryError for a file that cannot be read."""
        for path in self.paths():
            config = _read(path)
            if (found := _in_config(config, registry, repository, self.environ)) is not None:
                return found
        return None

    def paths(self) -> list[Path]:
        """Where credentials may be, in the order they are looked for."""
        if self.only is not None:
            return [self.only]
        if given := self.environ.get("REGISTRY_AUTH_FILE"):
            return [Path(given)]
        runtime = self.environ.get("XDG_RUNTIME_DIR")
        config = Path(self.environ.get("XDG_CONFIG_HOME") or self.home / ".config")
        podman = [Path(runtime, "containers/auth.json")] if runtime else []
        return [*podman, config / "containers/auth.json", self._docker()]

    def _docker(self) -> Path:
        return Path(self.environ.get("DOCKER_CONFIG") or self.home / ".docker") / "config.json"

    @property
    def written(self) -> Path:
        """The file that `store` writes: the one that was named, else docker's."""
        return self.paths()[0] if len(self.paths()) == 1 else self._docker()

    def store(self, registry: str, credential: Credential) -> str:
        """Keep a credential; where it is now, as a person reads it. RegistryError."""
        path = self.written
        config = _read(path)
        helper = _helper(config, registry)
        if helper is not None:
            body = {"ServerURL": _key(registry), "Username": _TOKEN_USER if credential.is_token else credential.user}
            _ask(helper, "store", json.dumps({**body, "Secret": credential.secret}), self.environ)
            entry: dict[str, str] = {}
        elif credential.is_token:
            entry = {"auth": _encoded(credential.user, ""), "identitytoken": credential.secret}
        else:
            entry = {"auth": _encoded(credential.user, credential.secret)}
        auths = {key: value for key, value in _auths(config).items() if key not in _keys(registry)}
        _write(path, {**config, "auths": {**auths, _key(registry): entry}})
        return f"credential helper {helper}" if helper else str(path)

    def erase(self, registry: str) -> list[str]:
        """Forget the credentials of a registry, wherever they are; the places. RegistryError."""
        places = []
        for path in self.paths():
            config = _read(path)
            helper = _helper(config, registry)
            if helper is not None and _from_helper(helper, registry, self.environ) is not None:
                _ask(helper, "erase", _key(registry), self.environ)
                places.append(f"credential helper {helper}")
            kept = {key: value for key, value in _auths(config).items() if key not in _keys(registry)}
            if kept != _auths(config):
                _write(path, {**config, "auths": kept})
                places.append(str(path))
        return places

    def registries(self) -> list[str]:
        """Every registry some file knows."""
        names = (key for path in self.paths() for key in _auths(_read(path)))
        return sorted({DEFAULT_REGISTRY if key == _HUB else key for key in names})


def _in_config(config: Mapping[str, Any], registry: str, repository: str, environ: Mapping[str, str]) -> Credential | None:
    helper = _helper(config, registry)
    if helper is not None and (found := _from_helper(helper, registry, environ)) is not None:
        return found
    auths = _auths(config)
    for key in [*_namespaces(registry, repository), *_keys(registry)]:
        if (entry := auths.get(key)) and (found := _from_entry(entry, key)) is not None:
            return found
    return None


def _namespaces(registry: str, repository: str) -> Iterator[str]:
    """podman's keys that name a part of a registry, the longest first."""
    parts = repository.split("/") if repository else []
    for count in range(len(parts), 0, -1):
        yield "/".join([registry, *parts[:count]])


def _keys(registry: str) -> list[str]:
    """How docker and podman may have written one registry."""
    hub = [_HUB, "index.docker.io", "registry-1.docker.io"] if registry == DEFAULT_REGISTRY else []
    return [registry, *hub, *(f"{scheme}{registry}{path}" for scheme in ("https://", "http://") for path in ("", "/", "/v1/", "/v2/"))]


def _key(registry: str) -> str:
    return _HUB if registry == DEFAULT_REGISTRY else registry


def _from_entry(entry: Any, key: str) -> Credential | None:
    if not isinstance(entry, dict):
        return None
    user, secret = str(entry.get("username") or ""), str(entry.get("password") or "")
    if auth := entry.get("auth"):
        try:
            user, _, secret = base64.b64decode(str(auth), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise RegistryError(f"credentials of {key}: damaged", hint=f"sandbox login {key}") from None
    if token := entry.get("identitytoken"):
        return Credential(user, str(token), is_token=True)
    secret = secret.rstrip("\0")
    return Credential(user, secret) if user or secret else None


def _auths(config: Mapping[str, Any]) -> dict[str, Any]:
    auths = config.get("auths")
    return auths if isinstance(auths, dict) else {}


def _helper(config: Mapping[str, Any], registry: str) -> str | None:
    """docker's credHelpers for one registry, its credsStore for all."""
    helpers = config.get("credHelpers")
    if isinstance(helpers, dict):
        for key in _keys(registry):
            if isinstance(found := helpers.get(key), str) and found:
                return found
    store = config.get("credsStore")
    return store if isinstance(store, str) and store else None


def _from_helper(helper: str, registry: str, environ: Mapping[str, str]) -> Credential | None:
    answer = _ask(helper, "get", _key(registry), environ)
    if answer is None:
        return None
    try:
        reply = _REPLY.decode(answer)
    except msgspec.DecodeError:
        raise RegistryError(f"credential helper {helper}: its answer cannot be read") from None  # the text may hold the secret
    if reply.user == _TOKEN_USER:
        return Credential("", reply.secret, is_token=True)
    return Credential(reply.user, reply.secret)


def _ask(helper: str, action: Literal["get", "store", "erase"], given: str, environ: Mapping[str, str]) -> bytes | None:
    """docker-credential-helpers' protocol; None when it has nothing. RegistryError."""
    if "/" in helper or helper.startswith("."):
        raise RegistryError(f"credential helper {helper!r}: not a name")
    program = shutil.which(f"docker-credential-{helper}", path=environ.get("PATH"))
    if program is None:
        raise RegistryError(f"credential helper {helper}: docker-credential-{helper} is not installed")
    try:
        done = subprocess.run([program, action], input=given.encode(), capture_output=True, timeout=_HELPER_SECONDS, env=dict(environ))
    except (OSError, subprocess.TimeoutExpired) as err:
        raise RegistryError(f"credential helper {helper}: {type(err).__name__}") from None
    if done.returncode == 0:
        return done.stdout
    said = (done.stdout + done.stderr).decode(errors="replace").strip()
    if action == "get" and "credentials not found" in said.lower():
        return None
    lines = said.splitlines() if action != "store" else []
    raise RegistryError(f"credential helper {helper}: {action} failed{f' ({lines[0][:200]})' if lines else ''}")


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes() or b"{}")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as err:
        raise RegistryError(f"{path}: cannot be read ({type(err).__name__})", hint="it holds credentials as JSON") from None
    if not isinstance(config, dict):
        raise RegistryError(f"{path}: not a file of credentials")
    return config


def _write(path: Path, config: Mapping[str, Any]) -> None:
    """Whole, and for its owner only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.urandom(6).hex()}")
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as out:
            json.dump(config, out, indent="\t")
            out.write("\n")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _encoded(user: str, secret: str) -> str:
    return base64.b64encode(f"{user}:{secret}".encode()).decode()
