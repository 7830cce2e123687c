"""`--build-context NAME=…`: directories and images that FROM, --from and --mount from= know by a name of the build's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from sandbox.build.context import Context
from sandbox.errors import BuildError, InvalidInput, InvalidOption, InvalidReference
from sandbox.image.reference import Reference
from sandbox.image.store import Image, Store

IMAGE, LAYOUT = "docker-image://", "oci-layout://"
_REMOTE = ("http://", "https://", "git://", "git@", "ssh://", "target:")

NamedContext = Image | Context
"""What a name stands for."""


def open_contexts(
    requests: Mapping[str, str], store: Store, find_image: Callable[[str], Image], opened: ExitStack
) -> dict[str, NamedContext]:
    """Each name and what it stands for; directories stay open as long as `opened`. InvalidOption, BuildError, ImageNotFound."""
    return {canonical(name): _open(name, value, store, find_image, opened) for name, value in requests.items()}


def canonical(name: str) -> str:
    """Names mean the same however an image's reference is written: alpine, alpine:latest, docker.io/library/alpine."""
    try:
        return str(Reference.parse(name))
    except InvalidReference:
        return name.lower()


def _open(name: str, value: str, store: Store, find_image: Callable[[str], Image], opened: ExitStack) -> NamedContext:
    if not name or not value:
        raise InvalidOption(f"--build-context {name}={value}: not of the form name=directory")
    if value.startswith(IMAGE):
        return find_image(value.removeprefix(IMAGE))
    if value.startswith(LAYOUT):
        return _load_layout(value.removeprefix(LAYOUT), store)
    if value.startswith(_REMOTE):
        hint = f"directories, {IMAGE}NAME and {LAYOUT}DIRECTORY are"
        raise InvalidOption(f"--build-context {name}={value}: remote contexts are not supported", hint=hint)
    return opened.enter_context(Context(Path(value)))


def _load_layout(text: str, store: Store) -> Image:
    """The image of an OCI layout directory: the one of this tag or digest, or the only one."""
    from sandbox.image.loading import load_layout  # only this kind needs it

    directory, wanted = _split(text)
    if not (directory / "oci-layout").is_file():
        raise InvalidOption(f"{LAYOUT}{text}: not an OCI layout", hint="it is a directory that holds oci-layout, index.json and blobs")
    loaded = load_layout(store, directory)
    images = {image.id: image for name, image in loaded if wanted is None or _is_wanted(name, image, wanted)}
    if len(images) != 1:
        what = f"{len(images)} images" if wanted is None else f"{len(images)} images of {wanted}"
        raise BuildError(f"{LAYOUT}{text}: {what}, expected one", hint="name it: DIRECTORY:TAG or DIRECTORY@DIGEST")
    return next(iter(images.values()))


def _split(text: str) -> tuple[Path, str | None]:
    """A directory, and the tag or digest behind it."""
    if "@" in text:
        directory, _, digest = text.partition("@")
        return Path(directory), digest
    head, colon, tag = text.rpartition(":")
    return (Path(head), tag) if colon and "/" not in tag else (Path(text), None)


def _is_wanted(name: str | None, image: Image, wanted: str) -> bool:
    return wanted in (image.manifest.digest, image.id) or (name is not None and (name == wanted or _tag_of(name) == wanted))


def _tag_of(name: str) -> str | None:
    try:
        return Reference.parse(name).tag
    except InvalidInput:
        return None
