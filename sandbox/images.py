"""What can be asked of the images of a store, in docker's shapes; and taking them away."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from msgspec.structs import replace

from sandbox import launch
from sandbox.errors import ImageError
from sandbox.image.lists import listed_images
from sandbox.image.reference import Reference
from sandbox.image.store import Image, Store
from sandbox.records import ALIVE, Records
from sandbox.runtime.init.program import DEFAULT_PATH


class ImageSummary(msgspec.Struct, frozen=True):
    """One row of `images`: an image under one of its names (or None). `size`: bytes of the files of all its layers."""

    id: str
    repository: str | None
    tag: str | None
    created: datetime | None
    size: int


class HistoryRow(msgspec.Struct, frozen=True):
    """One step of an image's history; `id` is the image's on the newest row, else None. `size`: bytes of its layer's files."""

    id: str | None
    created: datetime | None
    created_by: str
    comment: str
    size: int


class Images:
    """The images of `store`; `records` says which of them containers need."""

    def __init__(self, store: Store, records: Records) -> None:
        self._store = store
        self._records = records

    def all(self) -> list[ImageSummary]:
        """Every image, once a name, newest first; those without a name too."""
        rows = []
        for image in self._store.images():
            created, size = self._store.image_created(image.id), self._store.image_size(image)
            names: list[Reference | None] = [*self._store.names(image.id)]
            for name in names or [None]:
                repository = name.familiar_name if name else None
                rows.append(ImageSummary(image.id, repository, name.tag if name else None, created, size))
        return sorted(rows, key=lambda row: (row.created or datetime.fromtimestamp(0, UTC), row.repository or ""), reverse=True)

    def history(self, name: str) -> list[HistoryRow]:
        """What an image was made of, newest first."""
        image = self._store.find(name)
        sizes = iter(self.layer_sizes(image))
        rows = []
        for step in image.config.value.history:
            size = 0 if step.empty_layer else next(sizes, 0)
            rows.append(HistoryRow(None, _parse_time(step.created), step.created_by, step.comment, size))
        if rows:
            rows[-1] = replace(rows[-1], id=image.id)
        return rows[::-1]

    def inspect(self, name: str) -> dict[str, object]:
        """docker image inspect's shape."""
        image = self._store.find(name)
        config = image.config.value
        return {
            "Id": image.id,
            "RepoTags": self.names(image),
            "RepoDigests": self.digests(image),
            "Created": config.created or "",
            "Author": config.author or "",
            "Architecture": config.architecture,
            "Os": config.os,
            "Size": self._store.image_size(image),
            "Config": msgspec.to_builtins(config.config),
            "RootFS": {"Type": "layers", "Layers": list(config.rootfs.diff_ids)},
            "ManifestDigest": image.manifest.digest,
        }

    def names(self, image: Image) -> list[str]:
        """Its names, as docker shows them."""
        return [name.familiar for name in self._store.names(image.id)]

    def digests(self, image: Image) -> list[str]:
        """What registries call it: `NAME@sha256:…`."""
        return [Reference.parse(f"{name}@{digest}").familiar for name, digest in self._store.digests(image.id)]

    def has_program(self, image: Image, name: str) -> bool:
        """Whether the image has this program, by path or along its PATH. Nothing of the image is run."""
        tree = self._store.tree(image.top)
        env = dict(launch.split_env(image.config.value.config.env or ()))
        places = [name] if "/" in name else [f"{directory}/{name}" for directory in env.get("PATH", DEFAULT_PATH).split(":")]
        return any((found := tree.lookup(place, follow=True)) is not None and found.is_file for place in places)

    def layer_sizes(self, image: Image) -> list[int]:
        """The bytes of the files of each of its layers, lowest first."""
        return [self._store.snapshot(chain_id).size for chain_id in image.chain_ids]

    def remove(self, name: str, *, force: bool = False) -> list[str]:
        """Take a name away, and the image with its last name; docker's lines (`Untagged: …`, `Deleted: …`).

        Raises ImageError when a container needs it, or when an id has several names, unless `force`.
        """
        image = self._store.find(name)
        names = self._store.names(image.id)
        by_id = name.removeprefix("sha256:") and image.id.removeprefix("sha256:").startswith(name.removeprefix("sha256:"))
        going = names if by_id else [Reference.parse(name)]
        if by_id and len(names) > 1 and not force:
            raise ImageError(f"image {image.id.short}: has {len(names)} names", hint="remove them one by one, or use --force")
        if len(going) >= len(names):
            self._refuse_used(image, force=force)
        lines = [f"Untagged: {reference.familiar}" for reference in going if self._store.untag(reference)]
        if not self._store.names(image.id):
            self._store.remove(image.id)
            lines.append(f"Deleted: {image.id}")
        return lines

    def _refuse_used(self, image: Image, *, force: bool) -> None:
        if image.id in (listed := listed_images(self._store)) and not force:
            name = listed[image.id]
            raise ImageError(f"image {image.id.short}: the manifest list {name} names it", hint=f"sandbox manifest rm {name}")
        for record in self._records.all():
            running = self._records.state(record.id).status in ALIVE
            if record.image_id == image.id and (running or not force):
                hint = f"sandbox rm {'-f ' if running else ''}{record.name}"
                raise ImageError(f"image {image.id.short}: container {record.name} is made of it", hint=hint)

    def unused(self, *, all: bool) -> list[Image]:
        """Those that no container needs and that have no name (`all`: also those with one)."""
        used = {record.image_id for record in self._records.all()} | set(listed_images(self._store))
        return [image for image in self._store.images() if image.id not in used and (all or not self._store.names(image.id))]

    def remove_unused(self, *, all: bool) -> list[Image]:
        """Take `unused` away; what went."""
        images = self.unused(all=all)
        for image in images:
            for name in self._store.names(image.id):
                self._store.untag(name)
            self._store.remove(image.id)
        return images


def _parse_time(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
