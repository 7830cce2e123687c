"""What Engine does with registries: pull, push, log in; one meaning each, over sandbox.image.registry."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeVar

from msgspec.structs import replace

from sandbox.errors import ImageNotFound, InvalidOption
from sandbox.image.reference import DEFAULT_REGISTRY, Reference
from sandbox.image.store import Image, Store
from sandbox.runtime.init import journal

if TYPE_CHECKING:
    from sandbox.image.copying.copy import Copied
    from sandbox.image.packing import Packing
    from sandbox.image.registry.access import Terms
    from sandbox.image.registry.progress import OnTransfer
    from sandbox.image.registry.pulling import Pulled
    from sandbox.image.registry.pushing import Pushed
    from sandbox.image.registry.searching import Found

Made = TypeVar("Made")
PullPolicy = Literal["missing", "always", "never"]


class Transfers:
    """Registries on behalf of one engine. The HTTP client is imported by the first call."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def pull(self, name: str, *, platform: str | None, all_tags: bool, terms: Terms | None, on_event: OnTransfer | None) -> list[Pulled]:
        """Every image that came."""
        from sandbox.image.registry.access import Access, Terms
        from sandbox.image.registry.platforms import parse_platform
        from sandbox.image.registry.progress import ignore
        from sandbox.image.registry.pulling import pull, pull_all

        reference = Reference.parse(name)
        if all_tags and (reference.digest or ":" in name.rpartition("/")[2]):
            raise InvalidOption(f"{name}: -a brings every tag", hint="leave out the tag")
        wanted = parse_platform(platform) if platform else None
        with Access(os.environ, terms or Terms()) as access:
            if all_tags:
                pulled = pull_all(self._store, access, reference, platform=wanted, on_event=on_event or ignore)
            else:
                pulled = [pull(self._store, access, reference, platform=wanted, on_event=on_event or ignore)]
        journal.note(str(self._store.root), "image", "pull", name)
        return pulled

    def push(self, name: str, target: str | None, *, packing: Packing, terms: Terms | None, on_event: OnTransfer | None) -> Pushed:
        """Send the image `name` under the name `target`, or its own."""
        from sandbox.image.registry.access import Access, Terms
        from sandbox.image.registry.progress import ignore
        from sandbox.image.registry.pushing import push

        reference = Reference.parse(target or name)
        image = self._store.find(name)
        with Access(os.environ, terms or Terms()) as access:
            pushed = push(self._store, access, image, reference, packing, on_event=on_event or ignore)
        journal.note(str(self._store.root), "image", "push", target or name)
        return pushed

    def ensure(
        self,
        name: str,
        policy: PullPolicy,
        *,
        platform: str | None = None,
        terms: Terms | None = None,
        on_event: OnTransfer | None = None,
    ) -> Image:
        """The image of this name, pulled when the policy asks for it; ImageNotFound, RegistryError."""
        if policy != "always":
            try:
                return self._store.find(name)
            except ImageNotFound:
                if policy == "never" or is_local_name(name):
                    raise
        return self.pull(name, platform=platform, all_tags=False, terms=terms, on_event=on_event)[0].image

    def wanted(self, image: str | Image, policy: str | None, make: Callable[[], Made], on_event: OnTransfer | None = None) -> Made:
        """What `make` makes of an image, pulled first when that is asked for. Without a policy only what names its registry is
        pulled, and only when it is missing. ImageNotFound, RegistryError."""
        if not isinstance(image, str) or policy == "never":
            return make()
        if policy == "always":
            self.ensure(image, "always", on_event=on_event)
            return make()
        try:
            return make()
        except ImageNotFound:
            if is_local_name(image) or (policy is None and Reference.parse(image).registry == DEFAULT_REGISTRY):
                raise
        self.ensure(image, "missing", on_event=on_event)
        return make()

    def copy(
        self,
        source: str,
        target: str,
        *,
        everything: bool,
        platform: str | None,
        packing: Packing,
        terms: Terms | None,
        target_terms: Terms | None,
        on_event: OnTransfer | None,
    ) -> Copied:
        """From any place to any other (sandbox.image.copying.places)."""
        from sandbox.image.copying.copy import Copied, copy
        from sandbox.image.copying.destinations import open_destination
        from sandbox.image.copying.places import DOCKER, STORE, parse_place
        from sandbox.image.copying.sources import open_source
        from sandbox.image.registry.access import Access, Terms
        from sandbox.image.registry.platforms import parse_platform
        from sandbox.image.registry.progress import Teller, ignore
        from sandbox.image.registry.pulling import pull

        here, there = parse_place(source), parse_place(target)
        wanted = parse_platform(platform) if platform else None
        told = on_event or ignore
        with Access(os.environ, terms or Terms()) as access:
            if (here.transport, there.transport, everything) == (DOCKER, STORE, False):  # it unpacks while it fetches
                name, own = Reference.parse(there.name), Reference.parse(here.name)
                pulled = pull(self._store, access, own, name=name, platform=wanted, on_event=told)
                copied = Copied(pulled.image.manifest.digest, len(pulled.image.manifest.raw), 1)
            else:
                tell = Teller(told)
                with (
                    Access(os.environ, target_terms or Terms()) as other,
                    open_source(self._store, access, here, packing) as opened,
                    open_destination(self._store, other, there, tell) as destination,
                ):
                    copied = copy(opened, destination, tell, source, everything=everything, platform=wanted)
        journal.note(str(self._store.root), "image", "copy", str(here), {"to": str(there)})
        return copied

    def search(self, term: str, *, limit: int, terms: Terms | None) -> list[Found]:
        """See Engine.search."""
        from sandbox.image.registry.access import Access, Terms
        from sandbox.image.registry.searching import search

        with Access(os.environ, terms or Terms()) as access:
            return search(access, term, limit)

    def tags(self, name: str, *, terms: Terms | None) -> list[str]:
        """Every tag of a repository."""
        from sandbox.image.registry.access import Access, Terms
        from sandbox.image.registry.searching import tags

        with Access(os.environ, terms or Terms()) as access:
            return tags(access, name)

    def login(self, registry: str, user: str, password: str, *, terms: Terms | None) -> str:
        """Try the credential; where it is kept."""
        from sandbox.image.registry.access import Access, Terms
        from sandbox.image.registry.credentials import Credential

        credential = Credential(user, password)
        with Access(os.environ, replace(terms or Terms(), credential=credential)) as access:
            access.registry(registry).check_login()
            return access.files.store(registry, credential)


def is_local_name(name: str) -> bool:
    """Whether no registry can have it: an image id, or a name below localhost (without a port), which is for what was built here."""
    bare = name.removeprefix("sha256:")
    if name.startswith("sha256:") or (len(bare) >= 12 and set(bare) <= set("0123456789abcdef")):
        return True
    return Reference.parse(name).registry == "localhost"
