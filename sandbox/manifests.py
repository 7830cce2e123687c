"""What Engine does with manifest lists: indexes that name an image for each platform, made here and pushed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from sandbox.errors import ImageNotFound, InvalidInput, InvalidOption
from sandbox.image import lists
from sandbox.image.lists import Entry, ManifestList
from sandbox.image.packing import Packing
from sandbox.image.reference import Reference
from sandbox.image.store import Image, Store
from sandbox.oci import CONFIG_TYPE, DOCKER_CONFIG, MANIFEST_TYPE, Descriptor, ImageConfig, Index, Manifest, Platform, decode
from sandbox.runtime.init import journal

if TYPE_CHECKING:
    from sandbox.image.copying.copy import Copied
    from sandbox.image.copying.destinations import Destination
    from sandbox.image.copying.places import Place
    from sandbox.image.copying.sources import Source
    from sandbox.image.registry.access import Access, Terms
    from sandbox.image.registry.progress import OnTransfer, Teller
    from sandbox.image.registry.repository import RawManifest

_CONFIG_LIMIT = 8 << 20


class Note(msgspec.Struct, frozen=True):
    """What is said of an entry instead of what its image says: parts of its platform, and annotations."""

    os: str | None = None
    architecture: str | None = None
    variant: str | None = None
    os_version: str | None = None
    os_features: tuple[str, ...] = ()
    annotations: Mapping[str, str] = {}

    def on(self, descriptor: Descriptor) -> Descriptor:
        """The descriptor with this said of it."""
        known = descriptor.platform or Platform("", "")
        platform = Platform(
            self.architecture or known.architecture,
            self.os or known.os,
            os_version=self.os_version or known.os_version,
            os_features=[*self.os_features] or known.os_features,
            variant=self.variant or known.variant,
        )
        notes = {**(descriptor.annotations or {}), **self.annotations}
        return replace(descriptor, platform=platform if platform.architecture and platform.os else None, annotations=notes or None)


class Manifests:
    """The manifest lists of one engine. Registries' code is imported by the first call that speaks to one."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> list[ManifestList]:
        """Every list, by name."""
        return lists.all_lists(self._store)

    def create(
        self,
        name: str,
        images: Sequence[str] = (),
        *,
        amend: bool = False,
        everything: bool = False,
        annotations: Mapping[str, str] | None = None,
        terms: Terms | None = None,
    ) -> ManifestList:
        """A new list of these images (see `add`); ImageError when its name is taken, unless `amend`."""
        found = [entry for image in images for entry in self._entries(image, everything=everything, terms=terms)]
        made = lists.create_list(self._store, name, dict(annotations or {}) or None, amend=amend)
        for entry in found:
            made = self._changed(name, lambda old, entry=entry: old.with_entry(entry))  # type: ignore[misc]  # the loop's own entry
        return made

    def add(
        self, name: str, image: str, note: Note | None = None, *, everything: bool = False, terms: Terms | None = None
    ) -> list[Descriptor]:
        """Put an image into a list: of the store, else of a registry (`docker://NAME`: of a registry in any case); of an index this
        machine's, or with `everything` all. An entry of the same platform is replaced. ImageNotFound, NotInRegistry, InvalidOption."""
        lists.find_list(self._store, name)
        said, given = note or Note(), self._entries(image, everything=everything, terms=terms)
        found = [replace(entry, descriptor=said.on(entry.descriptor)) for entry in given]
        for entry in found:
            self._changed(name, lambda old, entry=entry: old.with_entry(entry))  # type: ignore[misc]  # the loop's own entry
        return [entry.descriptor for entry in found]

    def annotate(self, name: str, wanted: str, note: Note) -> Descriptor:
        """Say something else of an entry (by digest, image or name). ImageNotFound, ImageError."""
        made: list[Descriptor] = []

        def change(old: ManifestList) -> ManifestList:
            entry = old.find(self._identity(wanted))
            made.append(note.on(entry.descriptor))
            changed = replace(entry, descriptor=made[0])
            return replace(old, entries=tuple(changed if each is entry else each for each in old.entries))

        self._changed(name, change)
        return made[0]

    def remove_entry(self, name: str, wanted: str) -> None:
        """Take an entry (by digest, image or name) out of a list. ImageNotFound, ImageError."""
        self._changed(name, lambda old: old.without(old.find(self._identity(wanted))))

    def remove(self, name: str) -> None:
        """Forget a list; images stay. ImageNotFound."""
        lists.change_list(self._store, name, lambda _: None)

    def document(self, name: str, *, terms: Terms | None = None) -> bytes:
        """The index of a list as it is here; else what a registry has under this name. ImageNotFound, NotInRegistry."""
        from sandbox.image.copying.sources import RegistrySource, index_of
        from sandbox.image.registry.access import Access, Terms

        bare = name.removeprefix("docker://")
        if bare == name:
            try:
                found = lists.find_list(self._store, name)
                return index_of([entry.descriptor for entry in found.entries], found.annotations).raw
            except ImageNotFound:
                pass
        with Access(os.environ, terms or Terms()) as access:
            return RegistrySource(access, Reference.parse(bare)).top().raw

    def push(
        self,
        name: str,
        target: str | None = None,
        *,
        packing: Packing | None = None,
        terms: Terms | None = None,
        on_event: OnTransfer | None = None,
    ) -> Copied:
        """Send a list and all its images to a registry (its own name), or to another place (see sandbox.image.copying.places); what a
        registry has already is not sent. ImageNotFound, InvalidOption, RegistryError."""
        from sandbox.image.copying.destinations import open_destination
        from sandbox.image.copying.places import STORE, parse_place
        from sandbox.image.registry.access import Access, Terms
        from sandbox.image.registry.progress import Teller, ignore

        found = lists.find_list(self._store, name)
        if not found.entries:
            raise InvalidOption(f"manifest list {found.name}: is empty", hint=f"sandbox manifest add {found.name} IMAGE")
        place = parse_place(target or f"docker://{found.name}")
        if place.transport == STORE:  # podman and docker mean a registry by a bare name
            place = parse_place(f"docker://{place.name}")
        tell = Teller(on_event or ignore)
        with (
            Access(os.environ, terms or Terms()) as access,
            open_destination(self._store, access, place, tell) as destination,
            self._store.shared(),
        ):
            if destination.refusal is not None:
                raise destination.refusal
            pushed = _push(self._store, access, found, destination, packing or Packing("gzip"), tell)
        journal.note(str(self._store.root), "image", "push", str(place))
        return pushed

    def _changed(self, name: str, action: Callable[[ManifestList], ManifestList]) -> ManifestList:
        made = lists.change_list(self._store, name, action)
        assert made is not None
        return made

    def _identity(self, wanted: str) -> str:
        """A name of the store as its image's id; anything else as it is."""
        try:
            return str(self._store.find(wanted).id)
        except (ImageNotFound, InvalidInput):
            return wanted

    def _entries(self, text: str, *, everything: bool, terms: Terms | None) -> list[Entry]:
        from sandbox.image.copying.places import DOCKER, STORE, parse_place

        place = parse_place(text)
        if place.transport == STORE:
            try:
                return [_of_store(self._store.find(place.name))]
            except ImageNotFound:
                if text.startswith("store:"):
                    raise
        elif place.transport != DOCKER:
            raise InvalidOption(f"{text}: lists hold images of the store and of registries", hint=f"sandbox image copy {text} store:NAME")
        return _of_registry(place, everything=everything, terms=terms)


def _of_store(image: Image) -> Entry:
    manifest, config = image.manifest, image.config.value
    platform = Platform(config.architecture, config.os, variant=config.variant)
    kind = manifest.value.media_type or MANIFEST_TYPE
    return Entry(Descriptor(kind, str(manifest.digest), len(manifest.raw), platform=platform), image=str(image.id))


def _of_registry(place: Place, *, everything: bool, terms: Terms | None) -> list[Entry]:
    from sandbox.image.copying.sources import RegistrySource
    from sandbox.image.registry.access import Access, Terms
    from sandbox.image.registry.platforms import choose, this_platform

    reference = Reference.parse(place.name)
    with Access(os.environ, terms or Terms()) as access:
        source = RegistrySource(access, reference)
        top = source.top()
        if not top.is_index:
            return [_entry(reference, Descriptor(top.media_type, str(top.digest), len(top.raw), platform=_platform(source, top)))]
        manifests = decode(Index, top.raw).value.manifests
        chosen = manifests if everything else [choose(manifests, this_platform(), reference.familiar)]
        return [_entry(reference, descriptor) for descriptor in chosen]


def _entry(reference: Reference, descriptor: Descriptor) -> Entry:
    return Entry(descriptor, reference=f"{reference.name}@{descriptor.digest}")


def _platform(source: Source, top: RawManifest) -> Platform | None:
    """What the image's config says; None when it is no image's."""
    described = decode(Manifest, top.raw).value.config
    if described.media_type not in (CONFIG_TYPE, DOCKER_CONFIG) or described.size > _CONFIG_LIMIT:
        return None
    with source.blob(described) as stream:
        config = decode(ImageConfig, stream.read()).value
    return Platform(config.architecture, config.os, variant=config.variant)


def _push(store: Store, access: Access, found: ManifestList, destination: Destination, packing: Packing, tell: Teller) -> Copied:
    from sandbox.image.copying.copy import Copied, copy_image
    from sandbox.image.copying.sources import RegistrySource, StoreSource, index_of
    from sandbox.image.registry.progress import TransferDone

    begun, manifests = time.monotonic(), []
    for entry in found.entries:
        is_here = bool(entry.image)
        source = StoreSource(store, entry.image, packing) if is_here else RegistrySource(access, Reference.parse(entry.reference))
        manifest = source.top()
        copy_image(source, destination, manifest, tell, found.name)
        destination.manifest(manifest)
        known = {"media_type": manifest.media_type, "digest": str(manifest.digest), "size": len(manifest.raw)}
        manifests.append(replace(entry.descriptor, **known))
    index = index_of(manifests, found.annotations)
    destination.top(index)
    tell(TransferDone(index.digest, tell.moved, time.monotonic() - begun))
    return Copied(index.digest, len(index.raw), len(manifests))
