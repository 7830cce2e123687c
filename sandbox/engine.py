"""Engine: the one object callers hold. Joins the image store, the builder and the runtime; adds docker's defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Literal, Self

from sandbox.build.builder import BuildEvent
from sandbox.image.store import Image
from sandbox.options import RunOptions
from sandbox.runtime.spec import Completed, Usage

OnOutput = Callable[[Literal["stdout", "stderr"], bytes], None]
Status = Literal["created", "running", "exited"]


@dataclass(frozen=True)
class ImageSummary:
    """One row of `images`: an image under one of its names (or None)."""

    id: str            # config digest, sha256:…
    repository: str | None
    tag: str | None
    created: datetime | None
    size: int          # bytes of all its snapshots


@dataclass(frozen=True)
class Progress:
    """Reserved."""


class Container:
    """A container as it stands on disk; every property reads afresh, so two processes agree."""

    id: str
    name: str
    image_name: str                 # as the user wrote it
    image_id: str
    command: tuple[str, ...]        # entrypoint + cmd as run
    labels: Mapping[str, str]
    created: datetime

    @property
    def status(self) -> Status: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def started(self) -> datetime | None: ...
    @property
    def finished(self) -> datetime | None: ...
    @property
    def completed(self) -> Completed | None: ...     # without stdout/stderr
    def describe_status(self, now: datetime) -> str: ...   # docker's "Up 5 minutes" / "Exited (1) 3 seconds ago"
    def start(self) -> None: ...
    def stop(self, timeout: float = 10.0) -> None: ...       # stop signal, then SIGKILL after `timeout`
    def kill(self, signal: int = 9) -> None: ...
    def wait(self, timeout: float | None = None) -> Completed: ...   # TimeoutError
    def remove(self, *, force: bool = False) -> None: ...    # WrongState when running without force
    def logs(self, *, follow: bool = False, tail: int | None = None, since: datetime | None = None) -> Iterator[LogLine]: ...
    def exec(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, user: str | None = None, workdir: str | None = None,
             stdin: bytes | IO[bytes] | None = None, tty: bool = False, detach: bool = False, on_output: OnOutput | None = None) -> Completed: ...
    def stats(self) -> Stats: ...
    def top(self) -> list[ProcessRow]: ...
    def diff(self) -> list[tuple[Literal["A", "C", "D"], str]]: ...
    def commit(self, tag: str | None = None, *, message: str = "", author: str = "", changes: Sequence[str] = ()) -> Image: ...
    def copy_out(self, path: str) -> bytes: ...      # a tar, as docker cp CONTAINER:PATH - gives
    def copy_in(self, path: str, tar: bytes) -> None: ...
    def inspect(self) -> dict[str, object]: ...      # docker inspect's shape


class Engine:
    """Images, builds and containers below one directory.

    `root`: the state directory; default SANDBOX_ROOT, else /var/lib/jupyter-sandbox for root and
    $XDG_DATA_HOME/jupyter-sandbox for others. Engines with different roots do not see each other.
    """

    def __init__(self, root: str | Path | None = None) -> None: ...
    def close(self) -> None: ...       # ends the spawner; detached containers live on
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...

    # images
    def build(self, context: str | Path = ".", *, dockerfile: str | Path | None = None, tags: Sequence[str] = (),
              build_args: Mapping[str, str] | None = None, target: str | None = None, no_cache: bool = False,
              labels: Mapping[str, str] | None = None, network: Literal["host", "none"] = "host",
              on_event: Callable[[BuildEvent], None] | None = None) -> Image: ...
    def capture(self, tag: str, *, packages: Sequence[str] = ()) -> Image: ...
    def import_image(self, source: str | Path | IO[bytes], name: str | None = None, *, changes: Sequence[str] = (), message: str = "") -> Image: ...
    def load(self, source: str | Path | IO[bytes]) -> list[tuple[str | None, Image]]: ...
    def save(self, names: Sequence[str], target: str | Path | IO[bytes], *, format: Literal["oci", "docker"] = "docker") -> None: ...
    def image(self, name: str) -> Image: ...           # name, id or id prefix; ImageNotFound with "did you mean"
    def images(self) -> list[ImageSummary]: ...
    def tag(self, source: str, target: str) -> None: ...
    def remove_image(self, name: str, *, force: bool = False) -> list[str]: ...  # lines: "Untagged: …", "Deleted: …"

    # containers
    def run(self, image: str | Image, argv: Sequence[str] = (), *, options: RunOptions | None = None, stdin: bytes | IO[bytes] | None = None,
            on_output: OnOutput | None = None, memory: int | str | None = None, cpus: float | None = None, pids_limit: int | None = None,
            network: Literal["none", "host"] | None = None, env: Mapping[str, str] | None = None, volumes: Sequence[str] = (),
            workdir: str | None = None, user: str | None = None, timeout: float | str | None = None, name: str | None = None,
            read_only: bool = False, rm: bool = True) -> Completed: ...
    def create(self, image: str | Image, argv: Sequence[str] = (), *, options: RunOptions = RunOptions()) -> Container: ...
    def container(self, name: str) -> Container: ...   # name, id or unique id prefix
    def containers(self, *, all: bool = False) -> list[Container]: ...
    def prune(self, *, all: bool = False) -> PruneReport: ...     # stopped containers, dangling images, unused snapshots, stray state


@dataclass(frozen=True)
class LogLine:
    stream: Literal["stdout", "stderr"]
    time: datetime
    data: bytes


@dataclass(frozen=True)
class Stats:
    cpu_seconds: float | None
    cpu_percent: float | None
    memory: int | None
    memory_limit: int | None
    pids: int | None
    pids_limit: int | None


@dataclass(frozen=True)
class ProcessRow:
    user: str
    pid: int
    ppid: int
    time: str
    command: str


@dataclass(frozen=True)
class PruneReport:
    containers: tuple[str, ...]
    images: tuple[str, ...]
    snapshots: tuple[str, ...]
    reclaimed: int
