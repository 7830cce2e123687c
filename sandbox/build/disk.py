"""What the build cache takes on disk, and taking it back: layers no image needs, the directories of cache mounts, and
what ADD fetched."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Container
from typing import Literal

import msgspec

from sandbox.build.cachemounts import CacheMounts, CacheRow
from sandbox.build.fetched import Fetched
from sandbox.build.memory import Memory
from sandbox.errors import InvalidOption
from sandbox.image.store import Store
from sandbox.options import parse_duration


class CacheUse(msgspec.Struct, frozen=True):
    """One thing in the build cache: a layer or a cache mount, the bytes in it, when a build last used it (0: long ago)."""

    id: str
    kind: Literal["layer", "cache mount", "download", "repository"]
    size: int
    used: float
    description: str


class CachePruned(msgspec.Struct, frozen=True):
    """What was removed, and the bytes that came free."""

    removed: tuple[CacheUse, ...]
    reclaimed: int


class Choice(msgspec.Struct, frozen=True):
    """What to prune: with `everything` also what is remembered of steps whose layers an image needs. `unused_for`: seconds;
    `keep`: bytes that may stay, the last used first."""

    everything: bool = False
    unused_for: float = 0.0
    keep: int = 0


def parse_filters(texts: tuple[str, ...]) -> float:
    """`until=24h` or `unused-for=24h` in seconds; InvalidOption."""
    seconds = 0.0
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in ("until", "unused-for") or not equals:
            raise InvalidOption(f"--filter {text!r}: only until= and unused-for= are possible", hint="write --filter until=24h")
        seconds = max(seconds, parse_duration(value))
    return seconds


def cache_uses(store: Store, in_use: Container[str] = ()) -> list[CacheUse]:
    """What is in the build cache and no image or container (`in_use`: their chain ids) needs, the longest unused first."""
    with Memory(store.root / "build.db") as memory:
        used = memory.last_used()
    layers = [
        CacheUse(snapshot.chain_id, "layer", snapshot.size, float(used.get(snapshot.chain_id, 0)), f"layer {snapshot.diff_id[7:19]}")
        for snapshot in store.unneeded_snapshots(in_use)
    ]
    mounts = [CacheUse(row.path.name, "cache mount", row.size, row.used, f"cache mount {row.id}") for row in _mounts(store).rows()]
    fetched = [CacheUse(row.id, row.kind, row.size, row.used, row.description) for row in Fetched(store.root).rows()]
    return sorted([*layers, *mounts, *fetched], key=lambda use: use.used)


def prune_cache(store: Store, in_use: set[str], choice: Choice, clock: Callable[[], float] = time.time) -> CachePruned:
    """Remove what was chosen; waits for builds that run. What an image or a container needs always stays."""
    with store.exclusive():
        uses = cache_uses(store, in_use)
        doomed = _chosen(uses, choice, clock())
        chains = {use.id for use in doomed if use.kind == "layer"}
        kept = {use.id for use in uses if use.kind == "layer"} - chains
        gone = {snapshot.chain_id for snapshot in store.prune_snapshots({*in_use, *kept} if in_use or kept else ())}
        mounts = {row.path.name: row for row in _mounts(store).rows()}
        removed = [use for use in doomed if use.id in gone or _removed(store, mounts.get(use.id)) or _forgot(store, use)]
        with Memory(store.root / "build.db") as memory:
            memory.forget(None if choice.everything else gone)
        if choice.everything:
            store.forget_steps()
            for left in (store.root / "flights").glob("*"):
                with contextlib.suppress(FileNotFoundError):
                    left.unlink()
    return CachePruned(tuple(removed), sum(use.size for use in removed))


def _chosen(uses: list[CacheUse], choice: Choice, now: float) -> list[CacheUse]:
    """The longest unused first, until what stays fits into `keep`."""
    left = sum(use.size for use in uses)
    found = []
    for use in uses:
        if now - use.used < choice.unused_for or (choice.keep and left <= choice.keep):
            continue
        found.append(use)
        left -= use.size
    return found


def _removed(store: Store, row: CacheRow | None) -> bool:
    if row is None:
        return False
    _mounts(store).remove(row)
    return True


def _forgot(store: Store, use: CacheUse) -> bool:
    """Remove what ADD fetched, when this is that."""
    fetched = Fetched(store.root)
    row = next((row for row in fetched.rows() if (row.kind, row.id) == (use.kind, use.id)), None)
    if row is not None:
        fetched.remove(row)
    return row is not None


def _mounts(store: Store) -> CacheMounts:
    return CacheMounts(store.root, _never_waits)


def _never_waits(_attempt: Callable[[], bool]) -> None:
    raise AssertionError("looking at caches takes no lock of theirs")
