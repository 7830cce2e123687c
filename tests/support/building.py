"""A store with a small base image, and a builder in front of it, for tests of the build without the Engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from sandbox.build.builder import Builder, BuildEvent, BuildRequest, StepDone
from sandbox.build.settings import Settings
from sandbox.build.site import OnOutput, Runs, Started, Starts
from sandbox.image.reference import Reference
from sandbox.image.store import Image, Store
from sandbox.image.tree import Tree
from sandbox.oci import ImageConfig, RootFS, RunConfig
from sandbox.runtime.plan import Handling
from sandbox.runtime.spec import Completed, ContainerSpec, Network

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\nbroken:x:a:b\n"
GROUP = "root:x:0:\nstaff:x:50:\napp:x:1001:\n"

_MADE = 1_700_000_000
"""When the files of a base were made."""


class NothingRuns:
    """A runtime for builds without RUN."""

    def reserve(self) -> AbstractContextManager[Starts]:
        return nullcontext(self)

    def start(self, spec: ContainerSpec, handling: Handling) -> Started:
        raise AssertionError(f"nothing should run, least of all {spec.process.argv} ({handling})")


@dataclass
class Workshop:
    """Builds in `root`, with a context directory beside the store; `events` are those of the last build."""

    root: Path
    runtime: Runs = field(default_factory=NothingRuns)
    events: list[BuildEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.context = self.root / "context"
        self.context.mkdir(parents=True)
        self.store = Store(self.root / "store")

    def base(
        self, name: str, files: Mapping[str, str], config: RunConfig | None = None, fill: Callable[[Path], object] = lambda _: None
    ) -> Image:
        """An image of one layer with these files, and what `fill` puts there. In every workshop it is the same: times are no clock's."""
        with self.store.draft() as draft:
            write_files(draft.upper, files)
            fill(draft.upper)
            for place in (draft.upper, *draft.upper.rglob("*")):
                os.utime(place, (_MADE, _MADE), follow_symlinks=False)
            snapshot = self.store.commit(draft, None)
        assert snapshot is not None
        made = self.store.put_image(
            ImageConfig(
                architecture="amd64", os="linux", config=config or RunConfig(env=["PATH=/bin"]), rootfs=RootFS("layers", [snapshot.diff_id])
            )
        )
        self.store.tag(Reference.parse(name), made)
        return made

    def file(self, name: str, content: str = "") -> Path:
        """A file of the context."""
        write_files(self.context, {name: content})
        return self.context / name

    def build(
        self,
        dockerfile: str,
        *,
        build_args: Mapping[str, str] | None = None,
        target: str | None = None,
        no_cache: bool = False,
        now: datetime = NOW,
        tags: tuple[str, ...] = (),
        labels: Mapping[str, str] | None = None,
        context: bool = True,
        network: Network = "host",
        dockerfile_path: Path | None = None,
        settings: Settings | None = None,
    ) -> Image:
        """Build a Dockerfile's text."""
        self.events.clear()
        request = BuildRequest(
            dockerfile=dockerfile,
            now=now,
            context=self.context if context else None,
            dockerfile_path=dockerfile_path,
            tags=tags,
            build_args=build_args or {},
            target=target,
            no_cache=no_cache,
            labels=labels or {},
            network=network,
            settings=settings or Settings(),
        )
        return Builder(self.store, self.runtime, self.events.append).build(request)

    def tree(self, image: Image) -> Tree:
        """What is in an image."""
        return self.store.tree(image.top)

    def cached(self) -> list[bool]:
        """Of the last build, which steps were remembered (FROM left out)."""
        return [event.cached for event in self.events if isinstance(event, StepDone) and not event.text.upper().startswith("FROM")]


def fill_busybox(root: Path) -> None:
    """The host's static busybox and its applets, in an image's root."""
    program = shutil.which("busybox")
    assert program is not None, "busybox: not installed"
    for name in ("bin", "tmp", "root", "proc", "sys", "dev"):
        (root / name).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    shutil.copy(program, root / "bin/busybox")
    for applet in subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")


def write_files(root: Path, files: Mapping[str, str]) -> None:
    """Files below a directory; a name that ends with / is a directory."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_text(content)


@dataclass
class Script:
    """A runtime without Linux: each RUN calls `behave` with its command and the event that a signal sets; its exit code."""

    behave: Callable[[str, threading.Event], int]
    signals: list[int] = field(default_factory=list)

    container_id = "0" * 64

    def reserve(self) -> AbstractContextManager[Starts]:
        return nullcontext(self)

    def start(self, spec: ContainerSpec, handling: Handling) -> Scripted:
        return Scripted(self, spec.process.argv[-1], Path(spec.rootfs.upper))


@dataclass
class Scripted:
    """One started program of a Script: it leaves a file named after its command."""

    script: Script
    command: str
    upper: Path
    ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.ended.set()

    def signal(self, number: int) -> None:
        self.script.signals.append(number)
        self.ended.set()

    def wait(self, on_output: OnOutput | None = None) -> Completed:
        if on_output:
            on_output("stdout", self.command.encode() + b"\n")
        code = self.script.behave(self.command, self.ended)
        (self.upper / self.command.replace(" ", "-")).write_text(self.command)
        return Completed(exit_code=code)
