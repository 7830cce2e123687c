"""`system df`: what images, containers, volumes and the build cache take on disk."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from sandbox.cli.flags import verb
from sandbox.cli.formatting import Field, Listing, age_text, size_text
from sandbox.cli.images import format_option
from sandbox.cli.invocation import engine
from sandbox.engine import Engine

if TYPE_CHECKING:
    from sandbox.build.disk import CacheUse


class Kind(msgspec.Struct, frozen=True):
    """One kind of thing: how many there are, how many are in use, the bytes of all and of those that could go."""

    name: str
    total: int
    active: int
    size: int
    reclaimable: int

    @property
    def share(self) -> str:
        """docker's `1.2MB (40%)`."""
        return f"{size_text(self.reclaimable)} ({100 * self.reclaimable // self.size}%)" if self.size else "0B"


KINDS: Listing[Kind] = Listing(
    [
        Field("Type", "TYPE", lambda k: k.name),
        Field("TotalCount", "TOTAL", lambda k: str(k.total)),
        Field("Active", "ACTIVE", lambda k: str(k.active)),
        Field("Size", "SIZE", lambda k: size_text(k.size)),
        Field("Reclaimable", "RECLAIMABLE", lambda k: k.share),
    ],
    ["Type", "TotalCount", "Active", "Size", "Reclaimable"],
)


class CacheLine(msgspec.Struct, frozen=True):
    """One row of the build cache."""

    use: CacheUse
    now: datetime


CACHE: Listing[CacheLine] = Listing(
    [
        Field("ID", "CACHE ID", lambda c: c.use.id.removeprefix("sha256:")[:12]),
        Field("CacheType", "CACHE TYPE", lambda c: c.use.kind),
        Field("Size", "SIZE", lambda c: size_text(c.use.size)),
        Field(
            "LastUsedSince", "LAST USED", lambda c: age_text(datetime.fromtimestamp(c.use.used, UTC), c.now) if c.use.used else "unknown"
        ),
        Field("Description", "DESCRIPTION", lambda c: c.use.description),
    ],
    ["ID", "CacheType", "Size", "LastUsedSince", "Description"],
)


@verb("df")
@click.option("-v", "--verbose", is_flag=True, help="Also list what is in the build cache.")
@format_option
def df(verbose: bool, format: str | None) -> None:
    """Show what is on disk, and what of it could go."""
    with engine() as opened:
        uses = opened.cache_uses()
        KINDS.show([_images(opened), _containers(opened), _volumes(opened), _cache(uses)], format)
    if verbose and format in (None, "table"):
        click.echo("\nBuild cache:\n")
        CACHE.show([CacheLine(use, datetime.now(UTC)) for use in uses], None)


def _images(opened: Engine) -> Kind:
    """Layers that several images have count once; an image is active while a container of it is there."""
    images = {row.id: opened.image(row.id) for row in opened.images()}
    active = {container.image_id for container in opened.containers(all=True)}
    sizes = {chain: size for image in images.values() for chain, size in zip(image.chain_ids, opened.layer_sizes(image), strict=True)}
    held = {chain for name, image in images.items() if name in active for chain in image.chain_ids}
    free = sum(size for chain, size in sizes.items() if chain not in held)
    return Kind("Images", len(images), len(active & set(images)), sum(sizes.values()), free)


def _containers(opened: Engine) -> Kind:
    found = [
        (container.status == "running", _size(opened.root / "containers" / container.id / "upper"))
        for container in opened.containers(all=True)
    ]
    running = [size for is_running, size in found if is_running]
    total = sum(size for _, size in found)
    return Kind("Containers", len(found), len(running), total, total - sum(running))


def _volumes(opened: Engine) -> Kind:
    found = [(bool(opened.volumes.users(each.name)), _size(opened.volumes.data(each.name))) for each in opened.volumes.all()]
    used = [size for is_used, size in found if is_used]
    total = sum(size for _, size in found)
    return Kind("Local Volumes", len(found), len(used), total, total - sum(used))


def _cache(uses: Iterable[CacheUse]) -> Kind:
    sizes = [use.size for use in uses]
    return Kind("Build Cache", len(sizes), 0, sum(sizes), sum(sizes))


def _size(directory: Path) -> int:
    from sandbox.build.cachemounts import size_of

    return size_of(directory)
