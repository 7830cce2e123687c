"""What Engine does with archives: import, load, save; over sandbox.image.archive."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal

from sandbox.build.times import now
from sandbox.errors import SandboxError
from sandbox.image.reference import Reference
from sandbox.image.store import Image, Store
from sandbox.oci import RunConfig
from sandbox.runtime.init import journal


class Archives:
    """Archives on behalf of one engine. What reads and writes them is imported by the first call."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def import_rootfs(self, source: str | Path | IO[bytes], name: str | None, *, changes: Sequence[str], message: str) -> Image:
        """An image of one layer."""
        from sandbox.committing import changed_config
        from sandbox.image.archive import import_rootfs

        config = changed_config(self._store.root, self._store, RunConfig(), changes)
        reference = Reference.parse(name) if name else None
        with _opened(source) as stream:
            image = import_rootfs(self._store, stream, reference, config=config, message=message, created=now(os.environ))
        self._note("import", image, reference.familiar if reference else "")
        return image

    def load(self, source: str | Path | IO[bytes]) -> list[tuple[str | None, Image]]:
        """Names and images."""
        from sandbox.image import archive

        with _opened(source) as stream:
            loaded = archive.load(self._store, stream)
        for name, image in loaded:
            self._note("load", image, name or "")
        return loaded

    def save(
        self,
        names: Sequence[str],
        target: str | Path | IO[bytes],
        *,
        format: Literal["oci", "docker"],
        compression: Literal["none", "gzip", "zstd"] | None,
        level: int | None,
    ) -> None:
        """As Engine.save."""
        from sandbox.image import archive

        images = [(_reference_of(name), self._store.find(name)) for name in names]
        packing = archive.Packing(compression, force=True, level=level)
        if not isinstance(target, str | Path):
            archive.save(self._store, images, target, format=format, packing=packing)
            return
        with archive.written_whole(Path(target)) as out:
            archive.save(self._store, images, out, format=format, packing=packing)

    def _note(self, action: str, image: Image, name: str) -> None:
        journal.note(str(self._store.root), "image", action, str(image.id), {"name": name})


def _opened(source: str | Path | IO[bytes]) -> IO[bytes]:
    """The stream; one given open is left to its owner to close in any case."""
    if not isinstance(source, str | Path):
        return source
    try:
        return Path(source).open("rb")
    except OSError as err:
        raise SandboxError(f"{source}: {(err.strerror or str(err)).lower()}") from err


def _reference_of(name: str) -> Reference | None:
    """The reference when `name` is one, None for an id."""
    bare = name.removeprefix("sha256:")
    if len(bare) >= 12 and set(bare) <= set("0123456789abcdef"):
        return None
    return Reference.parse(name)
