"""What Tab offers for arguments and for the values of flags. Shells ask through click's own completion, and so does a notebook,
with `Names` of its own kernel as click's object.

To offer something for a flag: a row in `_VALUES` by the field it fills (flags that take one of some words offer these by themselves).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import click
import msgspec

from sandbox.errors import SandboxError
from sandbox.options import Choice, Option

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from sandbox.engine import Engine

Listing = Callable[[], Iterable[str]]


class Names(msgspec.Struct, frozen=True):
    """What there is to name, each asked for only when it is needed. Sessions and variables are a notebook's."""

    images: Listing = tuple
    containers: Listing = tuple
    networks: Listing = tuple
    volumes: Listing = tuple
    manifests: Listing = tuple
    sessions: Listing = tuple
    variables: Listing = tuple


def names_in(opened: Callable[[], AbstractContextManager[Engine]], *, sessions: Listing = tuple, variables: Listing = tuple) -> Names:
    """The names that an engine knows."""

    def ask(question: Callable[[Engine], Iterable[str]]) -> Listing:
        def answer() -> Iterable[str]:
            try:
                with opened() as engine:
                    return list(question(engine))
            except (SandboxError, OSError):  # a state directory of another version, or not ours: the verb itself will say so
                return ()

        return answer

    return Names(
        images=ask(lambda engine: map(_image_name, ((each.repository, each.tag) for each in engine.images() if each.repository))),
        containers=ask(lambda engine: (each.name for each in engine.containers(all=True))),
        networks=ask(lambda engine: (each.name for each in engine.networks.all())),
        volumes=ask(lambda engine: (each.name for each in engine.volumes.all())),
        manifests=ask(lambda engine: (str(each.name) for each in engine.manifests.all())),
        sessions=sessions,
        variables=variables,
    )


def _image_name(image: tuple[object, object]) -> str:
    """`python`, not `python:latest`."""
    repository, tag = image
    return str(repository) if tag == "latest" else f"{repository}:{tag}"


Source = Callable[[Names], Iterable[str]]
Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


def offering(source: Source, *, listed: bool = False) -> Complete:
    """click's `shell_complete` for one of the source's words, or with `listed` for several of them with commas between."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001 (click's signature)
        from click.shell_completion import CompletionItem

        before, comma, last = incomplete.rpartition(",") if listed else ("", "", incomplete)
        return [CompletionItem(before + comma + word) for word in sorted(set(source(_names(ctx)))) if word.startswith(last)]

    return complete


def _names(ctx: click.Context) -> Names:
    """The notebook's that asks; a shell has an engine of its own."""
    found = ctx.find_object(Names)
    return found or names_in(lambda: _engine(ctx))


def _engine(ctx: click.Context) -> Engine:
    """Of `--root`, as far as the words on the line tell: no verb is invoked."""
    from sandbox.engine import Engine

    return Engine(ctx.find_root().params.get("root"))


def _capabilities(names: Names) -> Iterable[str]:  # noqa: ARG001 (a source)
    from sandbox.runtime.init.names import CAPABILITIES

    return ["ALL", *CAPABILITIES]


def _words(*words: str) -> Source:
    return lambda names: words


def _paths(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001 (click's signature)
    """Files of this machine: the shell knows them better."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


_VALUES: dict[str, Complete] = {
    **dict.fromkeys(("env_file", "file", "metadata_file", "save_files"), _paths),
    "network": offering(lambda names: ["none", "host", "bridge", *names.networks(), *(f"container:{name}" for name in names.containers())]),
    "volume": offering(lambda names: names.volumes()),
    "volumes_from": offering(lambda names: names.containers()),
    "tag": offering(lambda names: names.images()),
    "restart": offering(_words("no", "on-failure", "always", "unless-stopped")),
    "security_opt": offering(_words("no-new-privileges", "seccomp=unconfined")),
    "cap_add": offering(_capabilities),
    "cap_drop": offering(_capabilities),
    "stop_signal": offering(lambda names: (each.name for each in signal.Signals)),
    "env": offering(lambda names: [*os.environ, *names.variables()]),
    "build_arg": offering(lambda names: [*os.environ, *names.variables()]),
    # of a notebook's cells
    "session": offering(lambda names: names.sessions()),
    "inputs": offering(lambda names: names.variables(), listed=True),
    "outputs": offering(lambda names: names.variables(), listed=True),
    **dict.fromkeys(("out", "err", "stdin", "proc", "output"), offering(lambda names: names.variables())),
}


def values_of(row: Option) -> Complete | None:
    """What is offered for the flag's value; None for whatever click has for its type."""
    if isinstance(row.convert, Choice):
        return offering(_words(*row.convert.words))
    return _VALUES.get(row.field)


complete_images = offering(lambda names: names.images())
complete_containers = offering(lambda names: names.containers())
complete_networks = offering(lambda names: names.networks())
complete_volumes = offering(lambda names: names.volumes())
complete_manifests = offering(lambda names: names.manifests())
complete_everything = offering(lambda names: [*names.containers(), *names.images(), *names.networks(), *names.volumes()])
complete_places = offering(lambda names: [f"{name}:" for name in names.containers()])


def offered(program: click.Command, words: Sequence[str], incomplete: str, names: Names) -> list[CompletionItem]:
    """What may stand at the end of the command line `words`, where `incomplete` is begun already."""
    from click.shell_completion import ShellComplete

    return ShellComplete(program, {"obj": names}, program.name or "", "").get_completions(list(words), incomplete)
