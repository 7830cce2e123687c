"""What a build is asked for, and what of it can be refused before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from sandbox.build.settings import Settings
from sandbox.errors import InvalidInput, InvalidOption
from sandbox.runtime.spec import Network

EPOCH = "SOURCE_DATE_EPOCH"
"""The build argument that fixes every time (reproducible-builds.org/docs/source-date-epoch)."""


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to build. `dockerfile` is its text; `dockerfile_path`, when it came from a file, gives <Dockerfile>.dockerignore;
    `name` is what messages call it (default: the path's name). `context` None: nothing to COPY from. `now` is the time in
    history and config, unless the build argument SOURCE_DATE_EPOCH gives another. `target`: the stage, default the last."""

    dockerfile: str
    now: datetime
    context: Path | None = None
    dockerfile_path: Path | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()
    build_args: Mapping[str, str] = msgspec.field(default_factory=dict)
    target: str | None = None
    no_cache: bool = False
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    network: Network = "host"
    settings: Settings = msgspec.field(default_factory=Settings)

    @property
    def ignore_file(self) -> Path | None:
        """<Dockerfile>.dockerignore, where that would be."""
        path = self.dockerfile_path
        return path.with_name(path.name + ".dockerignore") if path else None

    @property
    def epoch(self) -> int | None:
        """The time everything gets, in seconds; None when times are those of the build. InvalidInput."""
        text = self.build_args.get(EPOCH)
        if not text:
            return None
        if not (text.isascii() and text.isdigit() and len(text) < 12):
            raise InvalidInput(f"build argument {EPOCH}={text}: not a number of seconds")
        return int(text)

    @property
    def time(self) -> datetime:
        """The time in history and config."""
        return self.now if self.epoch is None else datetime.fromtimestamp(self.epoch, UTC)


def read_dockerfile(context: Path | None, dockerfile: str | Path | None) -> tuple[str, Path | None]:
    """Its text, and the file that came from: `dockerfile` is one or the other, by default CONTEXT/Dockerfile. InvalidOption."""
    if isinstance(dockerfile, str):
        return dockerfile, None
    path = dockerfile if dockerfile is not None else (context / "Dockerfile" if context is not None else None)
    if path is None:
        raise InvalidOption("no Dockerfile and no context", hint="give dockerfile= its text")
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape"), path
    except OSError as err:
        raise InvalidOption(f"{path}: {(err.strerror or str(err)).lower()}", hint="name the Dockerfile with -f FILE") from err


def with_epoch(build_args: Mapping[str, str], timestamp: int | None, environ: Mapping[str, str]) -> dict[str, str]:
    """As buildx does, SOURCE_DATE_EPOCH of the environment is a build argument; --timestamp is another word for it."""
    epoch = environ.get(EPOCH)
    given = {**({EPOCH: epoch} if epoch else {}), **build_args}
    return given if timestamp is None else {**given, EPOCH: str(timestamp)}


def check_text(request: BuildRequest) -> None:
    """Values from a command line may hold bytes that are not UTF-8; neither a config nor an environment can. InvalidInput."""
    for what, values in (("build argument", request.build_args), ("label", request.labels)):
        for name, value in values.items():
            if "\0" in value or any("\ud800" <= char <= "\udfff" for char in name + value):
                raise InvalidInput(f"{what} {name!a}: not text: it holds a NUL or broken UTF-8")
