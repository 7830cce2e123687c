"""`--change` of commit and import: Dockerfile instructions applied to a config, without files or containers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime

from msgspec.structs import replace

from sandbox.build import instructions as ins
from sandbox.build.dockerfile import parse
from sandbox.build.expand import expand
from sandbox.build.memory import Memory
from sandbox.build.site import Origin, Site, Starts
from sandbox.build.stages import host
from sandbox.build.state import empty_state
from sandbox.build.steps import change_of
from sandbox.build.stop import Stop
from sandbox.errors import InvalidOption
from sandbox.image.store import Store
from sandbox.oci import RunConfig

_ALLOWED = (
    ins.Cmd,
    ins.Entrypoint,
    ins.Env,
    ins.Expose,
    ins.Healthcheck,
    ins.Label,
    ins.Onbuild,
    ins.StopSignal,
    ins.User,
    ins.Volume,
    ins.Workdir,
)
"""What docker takes, and HEALTHCHECK and STOPSIGNAL."""


class _NoRuntime:
    def reserve(self) -> AbstractContextManager[Starts]:
        raise AssertionError("a change of the config runs nothing")


def apply_changes(store: Store, memory: Memory, config: RunConfig, changes: Sequence[str]) -> RunConfig:
    """`config` after these instructions. Raises DockerfileError, and InvalidOption for one that would change files."""
    dockerfile = parse("\n".join(["FROM scratch", *changes]) + "\n", "--change")
    site = Site(
        store=store,
        runtime=_NoRuntime(),
        memory=memory,
        source=dockerfile.source,
        escape=dockerfile.escape,
        context=None,
        build_args={},
        global_args={},
        network="none",
        now=datetime.fromtimestamp(0, UTC),
        origin=_no_origin,
        output=lambda _stream, _data: None,
        tell=lambda _event: None,
        stop=Stop(),
    )
    state = replace(empty_state(host()), run=config)
    for instruction in dockerfile.instructions[1:]:
        if not isinstance(instruction, _ALLOWED):
            names = ", ".join(kind.__name__.upper() for kind in _ALLOWED)
            raise InvalidOption(
                f"--change {type(instruction).__name__.upper()}: changes more than the config", hint=f"these can be given: {names}"
            )
        state = change_of(state, expand(instruction, site.expander(state, instruction.span)), site).state
    return state.run


def _no_origin(name: str) -> Origin:
    raise LookupError(name)
