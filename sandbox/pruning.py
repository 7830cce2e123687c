"""Take away what nothing needs any more: stopped containers, unused images and layers, what a kill left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from sandbox.errors import WrongState
from sandbox.image.store import Store
from sandbox.images import Images
from sandbox.outplaces import abandoned
from sandbox.records import Record, Records
from sandbox.runtime.init import files
from sandbox.runtime.twins import sweep
from sandbox.starting import Starter

if TYPE_CHECKING:
    from sandbox.runtime.network.networks import Networks


class PruneReport(msgspec.Struct, frozen=True):
    """What `prune` removed: ids of containers, images and snapshots, and the bytes that came free."""

    containers: tuple[str, ...]
    images: tuple[str, ...]
    snapshots: tuple[str, ...]
    reclaimed: int


class Pruner:
    """Prunes one engine."""

    def __init__(self, store: Store, records: Records, images: Images, starter: Starter, networks: Callable[[], Networks]) -> None:
        self._store = store
        self._records = records
        self._images = images
        self._starter = starter
        self._networks = networks

    def everything(self, *, all: bool = False) -> PruneReport:
        """Remove stopped containers, images without a name (`all`: without a container), unused snapshots and everything stray."""
        with self._store.exclusive():
            removed = self._remove_exited()
            self._starter.sweep_groups(set(self._stray_ids()))
            for container_id in self._stray_ids():
                self._records.remove(container_id, [])
            for grave in self._records.graves():
                files.remove_tree(str(grave))
            for place in abandoned(self._store.root):
                files.remove_tree(str(place))
            self._records.give_up_stale_names()
        self._networks().prune()
        return replace(self.images(all=all), containers=tuple(record.id for record in removed))

    def containers(self) -> PruneReport:
        """Remove stopped containers only."""
        return PruneReport(tuple(record.id for record in self._remove_exited()), (), (), 0)

    def _remove_exited(self) -> list[Record]:
        """Those that were removed; one that somebody starts in this moment is not."""
        removed = []
        for record in self._records.all():
            if self._records.state(record.id).status == "exited":
                with contextlib.suppress(WrongState):
                    self._starter.remove(record)
                    removed.append(record)
        return removed

    def images(self, *, all: bool = False) -> PruneReport:
        """Remove images without a name (`all`: without a container) and what only they needed."""
        images = self._images.remove_unused(all=all)
        snapshots = self._store.prune_snapshots(self.chains_in_use())
        sweep(self._store.root, self._store.snapshot_names())
        ids = tuple(image.id for image in images)
        return PruneReport((), ids, tuple(s.chain_id for s in snapshots), sum(s.size for s in snapshots))

    def chains_in_use(self) -> set[str]:
        """The layer stacks that containers are made of."""
        return {record.chain for record in self._records.all() if record.chain}

    def _stray_ids(self) -> Iterable[str]:
        """Directories of no living container: build steps and runs whose supervisor was killed, creations cut short."""
        known = {record.id for record in self._records.all()}
        return [i for i in self._records.ids() if i not in known and not self._records.is_supervised(i)]
