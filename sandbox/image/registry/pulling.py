"""An image from a registry into the store: layers fetched at the same time, each verified while it is read, unpacked while it comes.

Layers are unpacked from files that the fetching threads still write, as many at once as there are processors; one that depends on
what lies below it waits for that, and each is taken into the store after the ones below.
Nothing has a name before everything is here: what fails leaves at most files that the next pull goes on with.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Literal, NoReturn, TypeVar

import msgspec
from msgspec.structs import replace

from sandbox.errors import ImageNotFound, InvalidImage, NotInRegistry, RegistryError
from sandbox.image.compression import compression_of
from sandbox.image.durability import Writeback
from sandbox.image.flights import Flights
from sandbox.image.reference import Reference
from sandbox.image.registry.access import Access
from sandbox.image.registry.fetching import Fetcher
from sandbox.image.registry.platforms import choose, fits, platform_text, this_platform
from sandbox.image.registry.progress import BlobProgress, OnTransfer, Teller, TransferDone, TransferStarted, TransferWarning, ignore
from sandbox.image.registry.repository import RawManifest, Repository
from sandbox.image.store import Image, Store
from sandbox.oci import (
    CONFIG_TYPE,
    DOCKER_CONFIG,
    Descriptor,
    Digest,
    Document,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    chain_ids,
    decode,
    oci_layer,
)

Answered = TypeVar("Answered")
PullPolicy = Literal["missing", "always", "never"]

_CONFIGS = (CONFIG_TYPE, DOCKER_CONFIG, "application/octet-stream")
_CONFIG_LIMIT = 8 << 20
_AT_ONCE = 4
_MOST_LAYERS = 500
_DEPTH = 3
_FOREIGN = ("foreign", "nondistributable")


class Pulled(msgspec.Struct, frozen=True):
    """What a pull brought: `digest` is what the registry calls it (of the index, when there is one); `is_new`: whether the name meant
    another image, or none, before."""

    reference: Reference
    digest: Digest
    image: Image
    is_new: bool


class _Found(msgspec.Struct, frozen=True):
    """A manifest in a registry: under `top` (the name's own document) the one for the platform."""

    top: RawManifest
    manifest: Document[Manifest]
    config: Document[ImageConfig]
    sources: Sequence[Repository]


def pull(
    store: Store,
    access: Access,
    reference: Reference,
    *,
    name: Reference | None = None,
    platform: Platform | None = None,
    on_event: OnTransfer = ignore,
) -> Pulled:
    """Bring an image here, and name it (`name`: as this and not as there). NotInRegistry, Unauthorized, DigestMismatch, InvalidImage,
    UnsafeLayer, RateLimited, RegistryError: then no name has changed."""
    begun, tell = time.monotonic(), Teller(on_event)
    with store.shared():
        found = _find(access, reference, platform, tell)
        manifest = found.manifest.value
        tell(TransferStarted("pull", reference.familiar, tuple((layer.digest, layer.size) for layer in manifest.layers)))
        with closing(Fetcher(store, access, found.sources, tell)) as fetcher:
            _Layers(store, access, fetcher, tell).bring(found)
        image = store.put_documents(found.manifest, found.config)
        named = name or (replace(reference, tag=None) if reference.digest else reference)
        is_new = _image_of(store, named) != image.id
        store.tag(named, image)
        store.note_digest(reference.name, found.top.digest, image)
    limit = found.sources[0].connection.limit
    tell(TransferDone(found.top.digest, tell.moved, time.monotonic() - begun, limit))
    return Pulled(named, found.top.digest, image, is_new)


def _image_of(store: Store, reference: Reference) -> str | None:
    try:
        return store.find(str(reference)).id
    except ImageNotFound:
        return None


def pull_all(
    store: Store, access: Access, reference: Reference, *, platform: Platform | None = None, on_event: OnTransfer = ignore
) -> list[Pulled]:
    """Every tag of a repository (`-a`)."""
    tags = from_any(access.sources(reference), lambda source: source.tags())[0]
    if not tags:
        raise NotInRegistry(f"{reference.familiar_name}: has no tags")
    return [pull(store, access, reference.with_tag(tag), platform=platform, on_event=on_event) for tag in tags]


def from_any(sources: Sequence[Repository], action: Callable[[Repository], Answered]) -> tuple[Answered, Sequence[Repository]]:
    """The first answer, and the sources from the one that gave it on; the last one's error."""
    for place, source in enumerate(sources):
        try:
            return action(source), sources[place:]
        except RegistryError:
            if place == len(sources) - 1:
                raise
    raise AssertionError("no source")


def _find(access: Access, reference: Reference, platform: Platform | None, tell: Teller) -> _Found:
    name = reference.digest or reference.tag or "latest"
    top, sources = from_any(access.sources(reference), lambda source: source.manifest(name))
    wanted, raw = platform or this_platform(), top
    for _ in range(_DEPTH):
        if not raw.is_index:
            break
        chosen = choose(decode(Index, raw.raw).value.manifests, wanted, reference.familiar)
        raw = sources[0].manifest(Digest.parse(chosen.digest))
        if len(raw.raw) != chosen.size:
            raise InvalidImage(f"{reference.familiar}: its index says {chosen.size} bytes of {chosen.digest[:19]}…, it has {len(raw.raw)}")
    manifest = decode(Manifest, raw.raw)
    check_manifest(manifest.value, raw.media_type, reference.familiar)
    config = decode(ImageConfig, sources[0].read_blob(manifest.value.config, _CONFIG_LIMIT))
    check_config(config.value, manifest.value, reference.familiar)
    # Of an index its own word counts, as in docker: `manifest annotate` is for images that do not say what they are.
    _check_platform(config.value, None if top.is_index else platform, reference, tell)
    return _Found(top, manifest, config, sources)


def check_manifest(manifest: Manifest, media_type: str, what: str) -> None:
    """That it is an image, and that all of it can be had here. InvalidImage."""
    if "index" in media_type or "list" in media_type:
        raise InvalidImage(f"{what}: indexes within indexes, too deep")
    kind = manifest.config.media_type
    if kind not in _CONFIGS:
        raise InvalidImage(f"{what}: no image but a {kind}", hint="this engine runs container images only")
    if len(manifest.layers) > _MOST_LAYERS:
        raise InvalidImage(f"{what}: {len(manifest.layers)} layers; Linux stacks at most {_MOST_LAYERS}")
    refuse_foreign(manifest, what)
    for layer in manifest.layers:
        if not oci_layer(layer).media_type.startswith("application/vnd.oci.image.layer.v1.tar"):
            raise InvalidImage(f"{what}: layer {layer.digest[:19]}… is of the unknown kind {layer.media_type}")
        compression_of(layer.media_type)


def refuse_foreign(manifest: Manifest, what: str) -> None:
    """InvalidImage for layers that are not where their manifest is."""
    for layer in manifest.layers:
        Digest.parse(layer.digest)
        if any(word in layer.media_type for word in _FOREIGN):
            raise InvalidImage(f"{what}: layer {layer.digest[:19]}… is foreign: it lies elsewhere and may not be distributed")


def check_config(config: ImageConfig, manifest: Manifest, what: str) -> None:
    """Before anything is fetched. InvalidImage."""
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        counts = f"{len(manifest.layers)} layers in the manifest, {len(config.rootfs.diff_ids)} diff_ids in the config"
        raise InvalidImage(f"{what}: {counts}")


def _check_platform(config: ImageConfig, wanted: Platform | None, reference: Reference, tell: Teller) -> None:
    offered = Platform(config.architecture, config.os, variant=config.variant)
    if fits(offered, wanted or this_platform()):
        return
    if wanted is not None:
        raise NotInRegistry(f"{reference.familiar}: no image for {platform_text(wanted)}", hint=f"there is {platform_text(offered)}")
    tell(TransferWarning(f"{reference.familiar} is for {platform_text(offered)}; this machine is {platform_text(this_platform())}"))


class _Step(msgspec.Struct, frozen=True):
    """One layer of a stack."""

    layer: Descriptor
    diff_id: Digest
    chain_id: Digest
    parent: Digest | None


def _steps(layers: Sequence[Descriptor], diff_ids: Sequence[str]) -> Iterator[_Step]:
    stack = chain_ids(diff_ids)
    for layer, diff_id, chain_id, parent in zip(layers, diff_ids, stack, [None, *stack[:-1]], strict=True):
        yield _Step(layer, Digest.parse(diff_id), chain_id, parent)


def _processors() -> int:
    return max(1, len(os.sched_getaffinity(0)))


class _Layers(msgspec.Struct):
    """Brings the layers of one image."""

    store: Store
    access: Access
    fetcher: Fetcher
    tell: Teller

    def bring(self, found: _Found) -> None:
        layers = found.manifest.value.layers
        missing = {layer.digest: layer for layer in layers if not self.store.has_blob(layer.digest)}
        for layer in layers:
            if layer.digest not in missing:
                self.tell(BlobProgress(layer.digest, "present", layer.size, layer.size))
        with (
            Writeback(self.store.root) as writeback,
            ThreadPoolExecutor(_AT_ONCE, "pull") as pool,
            ThreadPoolExecutor(_processors(), "unpack") as unpackers,
        ):
            fetches = {digest: pool.submit(self.fetcher.fetch, layer) for digest, layer in missing.items()}
            try:
                applies: list[Future[None]] = []
                steps = list(_steps(layers, found.config.value.rootfs.diff_ids))
                for step in steps:
                    # In order: what a layer waits for is done, or another thread is at it.
                    below = applies[-1].result if applies else bool
                    applies.append(unpackers.submit(self._apply, step, below, step.layer.digest in missing))
                    if step is not steps[-1]:
                        applies[-1].add_done_callback(lambda _: writeback.begin())
                for future in (*applies, *fetches.values()):
                    future.result()
            except BaseException as err:  # noqa: BLE001 (raised again below)
                self.access.stop.set()
                for executor in (pool, unpackers):
                    executor.shutdown(cancel_futures=True)
                _raise_cause(err, fetches.values())

    def _apply(self, step: _Step, wait_parent: Callable[[], object], is_coming: bool) -> None:
        """The snapshot of a layer above its parent; made by one of those who want it."""
        layer, diff_id = step.layer, step.diff_id
        with Flights(self.store.root, self.access.poll).hold(f"layer-{step.chain_id.hex}"):
            if self._has(step.chain_id):
                if is_coming:
                    self.fetcher.growing(layer).wait_whole()
                self.store.note_layer(diff_id, oci_layer(layer))
            elif is_coming:
                try:
                    with self.fetcher.reader(layer) as stream:
                        self.store.apply_stream(step.parent, layer, stream, diff_id=diff_id, wait_parent=wait_parent)
                except InvalidImage:
                    self.fetcher.growing(layer).wait_whole()  # bytes that are not the layer's are no tar: then that is what is raised
                    raise
            else:
                self.store.apply_layer(step.parent, layer, diff_id=diff_id, wait_parent=wait_parent)
        self.tell(BlobProgress(layer.digest, "done", layer.size, layer.size))

    def _has(self, chain_id: str) -> bool:
        try:
            self.store.snapshot(chain_id)
        except ImageNotFound:
            return False
        return True


def _raise_cause(err: BaseException, fetches: Iterable[Future[None]]) -> NoReturn:
    """What stopped the others, and not how they stopped."""
    for fetch in fetches:
        if fetch.done() and not fetch.cancelled() and (cause := fetch.exception()) is not None and "stopped" not in str(cause):
            raise cause from None if cause is err else err
    raise err
