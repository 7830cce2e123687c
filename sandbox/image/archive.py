"""Images in a tar: save, load and import of a root file system. Writing is in layout and packing, reading in loading.

What `save` writes is an OCI layout (image-spec image-layout.md) in both formats; `docker` adds docker's manifest.json
beside it. `load` reads both, and docker's old archives that only have manifest.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import IO, Literal

from sandbox.errors import InvalidImage
from sandbox.image.apply import apply_tar
from sandbox.image.layout import Named, write_archive, write_layout, written_whole
from sandbox.image.loading import Loaded, load, load_layout
from sandbox.image.packing import Packing, pack
from sandbox.image.reference import Reference
from sandbox.image.store import Image, Store
from sandbox.oci import History, ImageConfig, RootFS, RunConfig, machine

__all__ = [
    "Loaded",
    "Named",
    "Packing",
    "import_rootfs",
    "load",
    "load_layout",
    "pack",
    "save",
    "write_archive",
    "write_layout",
    "written_whole",
]

_AS_THEY_ARE = Packing()


def save(
    store: Store, images: Sequence[Named], out: IO[bytes], *, format: Literal["oci", "docker"], packing: Packing = _AS_THEY_ARE
) -> None:
    """Write images to a tar; the same images give the same bytes. ImageError when a layer is not here."""
    with store.shared():
        packed = [(reference, pack(store, image, packing)) for reference, image in images]
        write_archive(store, packed, out, docker=format == "docker")


def import_rootfs(
    store: Store, stream: IO[bytes], reference: Reference | None, *, config: RunConfig, message: str, created: datetime
) -> Image:
    """Make an image of one layer from the tar of a root file system, plain or compressed."""
    with store.shared(), store.draft() as draft:
        apply_tar(stream, draft.upper)
        snapshot = store.commit(draft, None)
        if snapshot is None:
            raise InvalidImage("import: the tar is empty")
        when = created.isoformat().replace("+00:00", "Z")
        image = store.put_image(
            ImageConfig(
                created=when,
                architecture=machine(),
                os="linux",
                config=config,
                rootfs=RootFS("layers", [str(snapshot.diff_id)]),
                history=[History(created=when, created_by="sandbox import", comment=message)],
            )
        )
        if reference is not None:
            store.tag(reference, image)
    return image
