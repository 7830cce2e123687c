"""Manifest lists in the making: indexes of images that are here or in a registry, kept under names of their own until pushed.

What an image of the store is called in the index is known only when it leaves (its layers may be compressed then), so a list
remembers the image, and the digest it has here.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from sandbox.errors import ImageError, ImageNotFound
from sandbox.image.reference import Reference
from sandbox.image.store import Store
from sandbox.oci import Descriptor


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One image of a list: what the index says of it, and where it is: `image` (an id of the store) or `reference` (in a registry)."""

    descriptor: Descriptor
    image: str = ""
    reference: str = ""


class ManifestList(msgspec.Struct, frozen=True, omit_defaults=True):
    """A list; a platform may be in it once."""

    name: str
    entries: tuple[Entry, ...] = ()
    annotations: dict[str, str] | None = None

    def with_entry(self, entry: Entry) -> ManifestList:
        """With this one, instead of any of the same digest or platform."""
        return replace(self, entries=(*(old for old in self.entries if not _is_replaced(old.descriptor, entry.descriptor)), entry))

    def find(self, wanted: str) -> Entry:
        """The entry of this digest (or the beginning of one), image id or reference. ImageError names what there is."""
        bare = wanted.removeprefix("sha256:")
        found = [entry for entry in self.entries if wanted == entry.reference or any(_begins(text, bare) for text in _ids(entry))]
        if len(found) == 1:
            return found[0]
        known = ", ".join(entry.descriptor.digest[:19] for entry in self.entries)
        count = f"begins {len(found)} digests" if found else "not in it"
        raise ImageError(f"manifest list {self.name}: {wanted}: {count}", hint=f"there is {known}" if known else "it is empty")

    def without(self, entry: Entry) -> ManifestList:
        """The list without this entry."""
        return replace(self, entries=tuple(old for old in self.entries if old != entry))


def _is_replaced(old: Descriptor, new: Descriptor) -> bool:
    return old.digest == new.digest or (new.platform is not None and new.platform == old.platform)


def _ids(entry: Entry) -> tuple[str, str]:
    return entry.descriptor.digest.removeprefix("sha256:"), entry.image.removeprefix("sha256:")


def _begins(identifier: str, text: str) -> bool:
    return bool(identifier) and len(text) >= 4 and identifier.startswith(text)


_DECODER = msgspec.json.Decoder(ManifestList)
_ENCODER = msgspec.json.Encoder(enc_hook=str)


def all_lists(store: Store) -> list[ManifestList]:
    """Every list, by name."""
    return [_DECODER.decode(document) for _, document in store.lists()]


def find_list(store: Store, name: str) -> ManifestList:
    """The list of this name. ImageNotFound, InvalidReference."""
    wanted = Reference.parse(name)
    for found in all_lists(store):
        if found.name == wanted.familiar:
            return found
    raise _no_list(name)


def _no_list(name: str) -> ImageNotFound:
    return ImageNotFound(f"{name}: no such manifest list", hint="`sandbox manifest ls` lists what there is")


def create_list(store: Store, name: str, annotations: dict[str, str] | None, *, amend: bool) -> ManifestList:
    """An empty list; with `amend` one that is there stays. ImageError when the name is taken."""
    made = [ManifestList(Reference.parse(name).familiar, annotations=annotations)]

    def change(document: str | None) -> str:
        if document is not None and not amend:
            raise ImageError(f"{name}: a manifest list of this name is there", hint="--amend adds to it; sandbox manifest rm removes it")
        if document is not None:
            made[0] = _DECODER.decode(document)
        return _text(made[0])

    store.change_list(made[0].name, change)
    return made[0]


def change_list(store: Store, name: str, action: Callable[[ManifestList], ManifestList | None]) -> ManifestList | None:
    """What `action` makes of the list of this name takes its place; None: it goes. ImageNotFound, and what `action` raises."""
    made: list[ManifestList | None] = []

    def change(document: str | None) -> str | None:
        if document is None:
            raise _no_list(name)
        made.append(action(_DECODER.decode(document)))
        return None if made[0] is None else _text(made[0])

    store.change_list(Reference.parse(name).familiar, change)
    return made[0]


def _text(value: ManifestList) -> str:
    return _ENCODER.encode(value).decode()


def listed_images(store: Store) -> dict[str, str]:
    """Image id → name of a list that has it: such an image is in use."""
    return {entry.image: found.name for found in all_lists(store) for entry in found.entries if entry.image}
