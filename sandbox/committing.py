"""Make an image of what a container changed (`commit`)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sandbox.build.changes import apply_changes
from sandbox.build.memory import Memory
from sandbox.build.times import now
from sandbox.errors import SetupFailed
from sandbox.image.apply import apply_tar
from sandbox.image.layers import write_tar
from sandbox.image.reference import Reference
from sandbox.image.store import Image, Store
from sandbox.launch import split_env
from sandbox.oci import Digest, History, ImageConfig, RootFS, RunConfig
from sandbox.records import Record, State
from sandbox.runtime.host_ca import is_ours
from sandbox.runtime.init import files, owned
from sandbox.runtime.spec import Rootfs


class Words(msgspec.Struct, frozen=True):
    """What `commit` is told about the image: its history's message, its author, Dockerfile instructions (`--change`)."""

    message: str = ""
    author: str = ""
    changes: Sequence[str] = ()


def commit(root: Path, store: Store, record: Record, state: State, tag: str | None, words: Words) -> Image:
    """The image: the container's own image and one layer more; named `tag` if given. DockerfileError for a wrong change."""
    base = store.find(record.image_id).config.value
    chain = Digest(record.chain) if record.chain else None
    with store.shared(), store.draft() as draft:
        _take(record.spec.rootfs, draft.upper, root)
        files.remove_stubs(str(draft.upper), state.facts.get("stubs", []))
        snapshot = store.commit(draft, chain)
        config = _config(root, store, base.config, record, words.changes)
        image = store.put_image(_committed(base, record, snapshot.diff_id if snapshot else None, words, config))
        if tag:
            store.tag(Reference.parse(tag), image)
    return image


def _take(rootfs: Rootfs, into: Path, scratch: Path) -> None:
    """A copy of what the container changed, in an empty directory."""
    if os.geteuid() != 0 and owned.needs_harvest(rootfs.upper):  # while it runs, its other users' files are out of our reach
        if not owned.spawn("copy", rootfs.upper, str(into)):
            raise SetupFailed("commit: the files of its users could not be copied", hint="stop the container first")
        return
    with tempfile.TemporaryFile(dir=scratch) as copy:
        write_tar(rootfs.upper, copy, rootfs.lowers)
        copy.seek(0)
        apply_tar(copy, into)


def _committed(base: ImageConfig, record: Record, diff_id: str | None, words: Words, config: RunConfig) -> ImageConfig:
    created = now(os.environ).isoformat().replace("+00:00", "Z")
    command = " ".join(record.spec.process.argv)
    step = History(created=created, created_by=command, author=words.author, comment=words.message, empty_layer=diff_id is None)
    return ImageConfig(
        created=created,
        author=words.author or base.author,
        architecture=base.architecture,
        os=base.os,
        variant=base.variant,
        config=config,
        rootfs=RootFS("layers", [*base.rootfs.diff_ids, *([diff_id] if diff_id else [])]),
        history=[*base.history, step],
    )


def _config(root: Path, store: Store, base: RunConfig, record: Record, changes: Sequence[str]) -> RunConfig:
    """The image's, with what the container was started with, after the Dockerfile instructions of `changes`."""
    process = record.spec.process
    before = dict(split_env(base.env or ()))
    env = {name: before.get(name) if is_ours(value) else value for name, value in process.env}  # --host-ca is no matter of an image
    config = msgspec.structs.replace(
        base,
        env=[f"{name}={value}" for name, value in env.items() if value is not None],
        user=process.user,
        working_dir=process.cwd if process.cwd != "/" else base.working_dir,
    )
    return changed_config(root, store, config, changes)


def changed_config(root: Path, store: Store, config: RunConfig, changes: Sequence[str]) -> RunConfig:
    """`config` after Dockerfile instructions (`--change`); DockerfileError."""
    if not changes:
        return config
    with Memory(root / "build.db") as memory:
        return apply_changes(store, memory, config, changes)
