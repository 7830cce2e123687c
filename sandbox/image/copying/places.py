"""Where an image can be, as skopeo writes it (containers-transports(5)): `docker://NAME`, `oci:DIR[:NAME]`, `oci-archive:FILE[:NAME]`,
`docker-archive:FILE[:NAME]`, `dir:DIR`; and `store:NAME`, or a name alone, for the engine's own."""

from __future__ import annotations

from difflib import get_close_matches

import msgspec

from sandbox.errors import InvalidOption

DOCKER, OCI, OCI_ARCHIVE, DOCKER_ARCHIVE, DIRECTORY, STORE = "docker", "oci", "oci-archive", "docker-archive", "dir", "store"
_WITH_PATH = (OCI, OCI_ARCHIVE, DOCKER_ARCHIVE, DIRECTORY)
_HINT = "write docker://NAME, oci:DIR[:NAME], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME], dir:DIR or store:NAME"


class Place(msgspec.Struct, frozen=True):
    """A place: its transport, the `path` of those that are files, the `name` of the image there ("": none)."""

    transport: str
    path: str = ""
    name: str = ""

    def __str__(self) -> str:
        if self.transport == DOCKER:
            return f"docker://{self.name}"
        return ":".join(filter(None, (self.transport, self.path, self.name)))


def parse_place(text: str) -> Place:
    """The place this text means. InvalidOption."""
    transport, colon, rest = text.partition(":")
    if transport == DOCKER and rest.startswith("//"):
        return _named(text, DOCKER, rest.removeprefix("//"))
    if colon and transport in _WITH_PATH:
        path, _, name = rest.partition(":")
        if not path or (transport == DIRECTORY and name):
            raise InvalidOption(f"{text}: names no {'directory' if transport in (OCI, DIRECTORY) else 'file'}", hint=_HINT)
        return Place(transport, path, name)
    if "://" in text or "-archive:" in text or text.startswith(("containers-storage:", "docker-daemon:")):
        near = get_close_matches(transport, (DOCKER, *_WITH_PATH, STORE), n=1)
        raise InvalidOption(f"{text}: {transport} is no transport here", hint=f"did you mean {near[0]}? {_HINT}" if near else _HINT)
    return _named(text, STORE, rest if transport == STORE and colon else text)


def _named(text: str, transport: str, name: str) -> Place:
    if not name:
        raise InvalidOption(f"{text}: names no image", hint=_HINT)
    return Place(transport, name=name)
