"""Where a build stands between two steps, and what a step wants done. Values only; the builder acts on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from msgspec.structs import replace

from sandbox.build import expand
from sandbox.image.store import Draft
from sandbox.oci import Digest, History, ImageConfig, Platform, RootFS, RunConfig, whole_history

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHELL = ("/bin/sh", "-c")


class BuildState(msgspec.Struct, frozen=True):
    """An image as far as it is built: its config, its layers, its history; and the ARGs in scope of the stage.

    `run` is never changed in place. `has_cmd`: this stage has set CMD, so a later ENTRYPOINT does not clear it.
    """

    platform: Platform
    run: RunConfig
    top: Digest | None = None
    diff_ids: tuple[str, ...] = ()
    history: tuple[History, ...] = ()
    author: str | None = None
    created: str | None = None
    args: tuple[tuple[str, str | None], ...] = ()
    has_cmd: bool = False

    @property
    def env(self) -> dict[str, str]:
        """The image's environment."""
        return {name: value for name, _, value in (item.partition("=") for item in self.run.env or [])}

    @property
    def scope(self) -> dict[str, str]:
        """What a word of the Dockerfile sees, and what a RUN has in its environment."""
        return expand.scope(self.env, self.args)

    @property
    def workdir(self) -> str:
        """The directory steps work in."""
        return self.run.working_dir or "/"

    @property
    def shell(self) -> tuple[str, ...]:
        """What runs shell forms."""
        return tuple(self.run.shell or DEFAULT_SHELL)

    def with_run(self, run: RunConfig) -> BuildState:
        """The same with another `config.config`."""
        return replace(self, run=run)

    def image_config(self) -> ImageConfig:
        """The config document of the image this is."""
        return ImageConfig(
            created=self.created,
            author=self.author,
            architecture=self.platform.architecture,
            os=self.platform.os,
            variant=self.platform.variant,
            config=self.run,
            rootfs=RootFS("layers", list(self.diff_ids)),
            history=list(self.history),
        )


def empty_state(platform: Platform) -> BuildState:
    """`FROM scratch`: no layer; a PATH and a working directory, as BuildKit gives them."""
    return BuildState(platform, RunConfig(env=[f"PATH={DEFAULT_PATH}"], working_dir="/"))


def state_of(config: ImageConfig, top: Digest | None) -> BuildState:
    """A base image as the state its child starts from."""
    return BuildState(
        platform=Platform(config.architecture, config.os, variant=config.variant),
        run=config.config,
        top=top,
        diff_ids=tuple(config.rootfs.diff_ids),
        history=tuple(whole_history(config)),
        author=config.author,
        created=config.created,
    )


def with_env(run: RunConfig, pairs: Mapping[str, str]) -> RunConfig:
    """The environment with these set: a known name keeps its place."""
    merged = {name: value for name, _, value in (item.partition("=") for item in run.env or [])} | dict(pairs)
    return msgspec.structs.replace(run, env=[f"{name}={value}" for name, value in merged.items()])


class Change(msgspec.Struct, frozen=True):
    """What a step comes to.

    `state`: the state after it, but for the layer and the history. `created_by`: its history entry. `inputs`: what its
    result depends on beside the root file system it starts from, as text; these make the cache key. `precise`: the same said
    more exactly and dearer to compute, asked only when nothing is remembered for `inputs`. `make` fills the layer; None: no layer.
    `linked`: the layer is the same above any parent (COPY --link), so it may be taken from what was made above another.
    """

    state: BuildState
    created_by: str
    inputs: tuple[str, ...]
    precise: Callable[[], tuple[str, ...]] | None = None
    make: Callable[[Draft], None] | None = None
    linked: bool = False
