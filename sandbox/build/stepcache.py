"""What is remembered of steps: found by key, made once, kept.

A step's cache key is a digest over the chain id it starts from and the step's inputs (`Change.inputs`): text after
expansion, environment and ARGs, user, working directory, shell, and for COPY the digest of exactly the files it names.
So a key hits whenever the same thing would be done to the same files, whatever the Dockerfile's earlier lines were.

The time a step was made is remembered with its key (`Memory.created`) and goes into the history again: a build from the
cache gives the very config of the build that filled it, hence the same image id.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager

import msgspec

from sandbox.build.cachesources import Imported, Record
from sandbox.build.memory import Memory
from sandbox.build.state import BuildState, Change
from sandbox.build.times import fix_times
from sandbox.build.transfer import clone_layer
from sandbox.image.flights import Flights
from sandbox.image.store import Draft, Store
from sandbox.oci import Digest


class Outcome(msgspec.Struct, frozen=True):
    """What a change led to: the root file system after it, when that was made, whether it was remembered."""

    chain_id: Digest | None
    created: str
    cached: bool


class StepCache(msgspec.Struct):
    """The steps one build may take from the cache or must make. Thread-safe.

    `now`: the time of what is made, as the history has it. `slot`: entered while a step is at work. `epoch`: the time all
    files get (times.fix_times), which is then part of every key. `imported`: what --cache-from brought. `used`: the steps taken
    or made, with the stage they belong to.
    """

    store: Store
    memory: Memory
    flights: Flights
    now: str
    slot: Callable[[], AbstractContextManager[object]]
    epoch: int | None
    imported: Imported
    used: list[tuple[int, Record]] = msgspec.field(default_factory=list)
    _made: dict[str, Outcome] = msgspec.field(default_factory=dict)
    _build: str = msgspec.field(default_factory=lambda: os.urandom(4).hex())

    def outcome(self, state: BuildState, change: Change, *, redo: bool, stage: int, from_host: bool) -> Outcome:
        """Where the change leads from this state: as remembered, else by doing it, once however many want it at the same time.
        With `redo` only what this build has made itself counts as remembered. `from_host`: it brings files of the host."""
        key = self._key(state.top, change.inputs)
        return _Want(self, key, state, change, redo, stage, from_host).outcome()

    def _key(self, parent: str | None, inputs: tuple[str, ...]) -> str:
        salt = () if self.epoch is None else ("epoch", str(self.epoch))
        return cache_key(parent, (*salt, *inputs))


class _Want(msgspec.Struct, frozen=True):
    """One step that is wanted."""

    cache: StepCache
    key: str
    state: BuildState
    change: Change
    redo: bool
    stage: int
    from_host: bool

    def outcome(self) -> Outcome:
        known = self._remembered(self.key)
        if known is not None:
            return known
        if self.change.make is None:
            return self._done(self.key)
        cache = self.cache
        with cache.flights.hold(f"{self.key}-{cache._build}" if self.redo else self.key):
            known = self._remembered(self.key)  # somebody else was first
            if known is not None:
                return known
            with cache.slot():
                return self._exact()

    def _exact(self) -> Outcome:
        if self.change.precise is None:
            return self._done(self.key)
        exact = self.cache._key(self.state.top, self.change.precise())
        outcome = self._remembered(exact) or self._done(exact)
        self._remember(self.key, outcome)
        return outcome

    def _remembered(self, key: str) -> Outcome | None:
        cache = self.cache
        if self.redo:
            return cache._made.get(key)
        created = cache.memory.created(key)
        if self.change.make is None:
            found = Outcome(self.state.top, created, cached=True) if created else None
        else:
            step = cache.store.cached_step(key)
            found = Outcome(step.chain_id, created or cache.now, cached=True) if step else None
        found = found or self._imported(key)
        if found is not None:
            self._use(key, found)
        return found

    def _imported(self, key: str) -> Outcome | None:
        record = self.cache.imported.find(key, self.state.top)
        if record is None:
            return None
        chain_id = self.state.top if self.change.make is None else Digest(record.chain_id) if record.chain_id else None
        outcome = Outcome(chain_id, record.created, cached=True)
        self._remember(key, outcome)
        return outcome

    def _done(self, key: str) -> Outcome:
        """Do it, and remember it."""
        outcome = Outcome(self.state.top, self.cache.now, cached=False)
        if self.change.make is not None:
            outcome = self._linked() if self.change.linked else self._made_of(self.change.make)
        self._remember(key, outcome)
        return outcome

    def _made_of(self, make: Callable[[Draft], None]) -> Outcome:
        cache = self.cache
        with cache.store.draft() as draft:
            make(draft)
            if cache.epoch is not None:
                fix_times(draft.upper, cache.epoch, every=self.from_host)
            snapshot = cache.store.commit(draft, self.state.top)
        return Outcome(snapshot.chain_id if snapshot else self.state.top, cache.now, cached=False)

    def _linked(self) -> Outcome:
        """The layer of a COPY --link: what was made above another parent serves here too."""
        cache, change = self.cache, self.change
        assert change.make is not None
        key = cache._key("any parent", change.precise() if change.precise else change.inputs)
        known = None if self.redo else cache.store.cached_step(key)
        if known is not None and known.chain_id is not None:
            layer, created = cache.store.snapshot(known.chain_id).path, cache.memory.created(key)
            outcome = self._made_of(lambda draft: clone_layer(layer, draft.upper))
            return Outcome(outcome.chain_id, created or cache.now, cached=True)
        outcome = self._made_of(change.make)
        if outcome.chain_id != self.state.top:
            self._remember(key, outcome)
        return outcome

    def _remember(self, key: str, outcome: Outcome) -> None:
        # The time first: whoever finds the step must find its time.
        self.cache.memory.remember_created(key, outcome.created)
        if self.change.make is not None:
            self.cache.store.remember_step(key, self.state.top, outcome.chain_id)
        self.cache._made[key] = Outcome(outcome.chain_id, outcome.created, cached=True)
        self._use(key, outcome)

    def _use(self, key: str, outcome: Outcome) -> None:
        made_layer = outcome.chain_id is not None and outcome.chain_id != self.state.top
        diff_id = self.cache.store.snapshot(outcome.chain_id).diff_id if made_layer and outcome.chain_id else None
        parent, chain_id = _text(self.state.top), _text(outcome.chain_id)
        self.cache.used.append((self.stage, Record(key, outcome.created, parent, chain_id, _text(diff_id))))
        if outcome.chain_id is not None:
            self.cache.memory.touch(outcome.chain_id)


def _text(digest: Digest | None) -> str | None:
    return None if digest is None else str(digest)


def cache_key(parent: str | None, inputs: tuple[str, ...]) -> str:
    """The name under which a step is remembered: every part with its length, so that no two lists read the same."""
    total = hashlib.sha256(b"sandbox build 1\n")
    for part in (parent or "", *inputs):
        data = part.encode("utf-8", "surrogateescape")
        total.update(b"%d:" % len(data))
        total.update(data)
    return total.hexdigest()
