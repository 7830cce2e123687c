"""What has happened to an engine's containers, images, volumes and networks: `events`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from sandbox import logs
from sandbox.runtime.init import journal

_TICK = 0.1
"""Seconds between two looks for what is new."""


class Event(msgspec.Struct, frozen=True):
    """`action` (docker's words: create, start, die …) was done to the `id` of this `type` (container, image, volume, network)."""

    nanoseconds: int
    type: str
    action: str
    id: str
    attributes: Mapping[str, str]

    @property
    def time(self) -> datetime:
        """When, to the microsecond."""
        return datetime.fromtimestamp(self.nanoseconds / 1e9, UTC)


def events(root: Path, *, since: datetime | None = None, until: datetime | None = None, follow: bool = False) -> Iterator[Event]:
    """From `since` on (None: what is written down, with `follow` only what comes), to `until`; with `follow` until then, or for ever."""

    def lives() -> bool:
        time.sleep(_TICK)
        return until is None or datetime.now(UTC) < until

    begun = datetime.now(UTC)
    oldest = since or (begun if follow else datetime.fromtimestamp(0, UTC))
    for batch in logs.batches(root / journal.NAME, lives if follow else None):
        for raw in batch:
            row = json.loads(raw)
            event = Event(row["time"], row["type"], row["action"], row["id"], row["attributes"])
            if event.time >= oldest and (until is None or event.time <= until):
                yield event
