"""Image references: docker's grammar (github.com/distribution/reference), with the defaults filled once, at parse time.

Own grammar rather than docker-image-py: that library costs 18 ms of import (its `regex` alone 11) on the path of every
`run`, for the two expressions below. The tests hold this one against the library.
"""

from __future__ import annotations

import re

import msgspec
from msgspec.structs import replace

from sandbox.errors import InvalidImage, InvalidReference
from sandbox.oci import Digest
from sandbox.patterns import Pattern

DEFAULT_REGISTRY = "docker.io"
_NAME_LIMIT = 255
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY = Pattern(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_REPOSITORY = Pattern(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = Pattern(r"[\w][\w.-]{0,127}", re.ASCII)
_IDENTIFIER = Pattern(r"[a-f0-9]{64}")


class Reference(msgspec.Struct, frozen=True):
    """Where an image is named: `registry/repository`, with a tag, a digest or both (never neither)."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Take docker's short or full form; docker.io, library/ and latest are filled in. Raises InvalidReference."""
        if _IDENTIFIER.fullmatch(text):
            raise InvalidReference(f"{text}: 64 hexadecimal digits are an image id, not a name", hint="choose another name")
        rest, digest = _split_digest(text)
        rest, tag = _split_tag(rest)
        registry, repository = _split_registry(rest)
        _check(text, registry, repository, tag)
        return cls(registry, repository, tag if tag or digest else "latest", digest)

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar_name(self) -> str:
        """`name` in docker's short form: without docker.io and library/."""
        if self.registry != DEFAULT_REGISTRY:
            return self.name
        short = self.repository.removeprefix("library/")
        return short if "/" not in short else self.repository

    @property
    def familiar(self) -> str:
        """docker's short form: `busybox:latest`, `localhost/python:latest`."""
        return self.familiar_name + self._suffix

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def with_tag(self, tag: str) -> Reference:
        """The same repository under another tag, without a digest."""
        if not _TAG.fullmatch(tag):
            raise InvalidReference(f"tag {tag!r}: not letters, digits, '_', '.' and '-', at most 128")
        return replace(self, tag=tag, digest=None)

    def __str__(self) -> str:
        return self.name + self._suffix


def _split_digest(text: str) -> tuple[str, str | None]:
    rest, at, digest = text.partition("@")
    if not at:
        return rest, None
    try:
        return rest, Digest.parse(digest)
    except InvalidImage as err:
        raise InvalidReference(f"{text}: {err}", hint="a digest is sha256: and 64 hexadecimal digits") from err


def _split_tag(text: str) -> tuple[str, str | None]:
    head, slash, last = text.rpartition("/")
    name, colon, tag = last.partition(":")
    return (head + slash + name, tag) if colon else (text, None)


def _split_registry(name: str) -> tuple[str, str]:
    """docker's rule: the first component is a registry when it looks like a host (a dot, a port, capitals, `localhost`)."""
    first, slash, rest = name.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first or first != first.lower()):
        registry, repository = (DEFAULT_REGISTRY if first == "index.docker.io" else first), rest
    else:
        registry, repository = DEFAULT_REGISTRY, name
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}"
    return registry, repository


def _check(text: str, registry: str, repository: str, tag: str | None) -> None:
    if text != text.strip() or not text:
        raise InvalidReference(f"{text!r}: not an image name", hint="write NAME[:TAG]")
    if not _REGISTRY.fullmatch(registry):
        raise InvalidReference(f"{text}: {registry!r} is not a registry's host name", hint="write [HOST[:PORT]/]NAME[:TAG]")
    if repository != repository.lower():
        raise InvalidReference(f"{text}: a repository name must be lower case", hint=f"try {text.lower()}")
    if not _REPOSITORY.fullmatch(repository):
        raise InvalidReference(
            f"{text}: {repository.removeprefix('library/')!r} is not a repository name",
            hint="lower case letters and digits, separated by '.', '_', '-' or '/'",
        )
    if len(repository) > _NAME_LIMIT:
        raise InvalidReference(f"{text[:40]}…: a repository name has at most {_NAME_LIMIT} characters")
    if tag is not None and not _TAG.fullmatch(tag):
        raise InvalidReference(f"{text}: {tag!r} is not a tag", hint="letters, digits, '_', '.' and '-', at most 128")
