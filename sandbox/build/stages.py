"""A Dockerfile's stages as a graph: which ones the target needs, what each starts from, which steps it has.

Everything that can be wrong about names (of stages and of images) is found here, before the first step runs.
"""

from __future__ import annotations

import platform as host_platform
from collections.abc import Callable, Mapping

import msgspec
from msgspec.structs import replace

from sandbox.build import instructions as ins
from sandbox.build.context import Context
from sandbox.build.dockerfile import Dockerfile, parse_triggers
from sandbox.build.expand import Expander, expand
from sandbox.build.namedcontexts import NamedContext, canonical
from sandbox.build.source import SourceText, Span, did_you_mean
from sandbox.errors import ImageNotFound, InvalidInput, RegistryError, StepFailed, UnknownStage
from sandbox.image.store import Image
from sandbox.oci import Platform

_ARCHITECTURES = {
    "x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386", "i386": "386",
    "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64",
}  # fmt: skip
_VARIANTS = {"armv7l": "v7", "armv6l": "v6"}


OriginKind = int | Image | Context
"""What --from can mean: an earlier stage, an image, a directory."""


class Step(msgspec.Struct, frozen=True):
    """One instruction to perform. `source` is the text it stands in: an image's ONBUILD trigger has its own, and then `span`,
    its place in the Dockerfile, is that of the FROM which brought it."""

    instruction: ins.Instruction
    source: SourceText
    escape: str
    span: Span
    text: str


class Stage(msgspec.Struct, frozen=True):
    """One FROM and what follows. `base`: the index of an earlier stage, an image, or None for scratch (and for a directory:
    its files are then the first step). `origins`: what the names of --from mean here. `steps`: the triggers of the base, then
    its own."""

    index: int
    origin: ins.From
    base: int | Image | None
    steps: tuple[Step, ...]
    origins: Mapping[str, OriginKind] = msgspec.field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its name, or its number."""
        return self.origin.name or str(self.index)

    @property
    def needs(self) -> frozenset[int]:
        """The stages that must be built before."""
        return frozenset(other for other in (self.base, *self.origins.values()) if isinstance(other, int))


def origins_of(instruction: ins.Instruction) -> tuple[str, ...]:
    """The stages, images and contexts an instruction reads from, by name."""
    if isinstance(instruction, ins.Run):
        return instruction.origins
    return (instruction.origin,) if isinstance(instruction, ins.Copy) and instruction.origin is not None else ()


def host() -> Platform:
    """This machine, in the image specification's words."""
    machine = host_platform.machine()
    return Platform(_ARCHITECTURES.get(machine, machine), "linux", variant=_VARIANTS.get(machine))


def plan_stages(
    dockerfile: Dockerfile,
    target: str | None,
    global_args: Mapping[str, str],
    find_image: Callable[[str], Image],
    contexts: Mapping[str, NamedContext] = {},
) -> tuple[Stage, ...]:
    """The stages the target needs (default: the last), each after those it needs. UnknownStage, StepFailed, DockerfileError.

    `contexts`: named contexts by canonical name. As in BuildKit one of a stage's name replaces the stage.
    """
    return _Planner(dockerfile, global_args, find_image, contexts).plan(target)


class _Planner:
    def __init__(
        self,
        dockerfile: Dockerfile,
        global_args: Mapping[str, str],
        find_image: Callable[[str], Image],
        contexts: Mapping[str, NamedContext],
    ) -> None:
        self._contexts = contexts
        self._dockerfile = dockerfile
        self._source = dockerfile.source
        self._global_args = global_args
        self._find_image = find_image
        self._parts = dockerfile.stages()
        self._names = [origin.name for origin, _ in self._parts]

    def plan(self, target: str | None) -> tuple[Stage, ...]:
        found: dict[int, Stage] = {}
        wanted = [self._target(target)]
        while wanted:
            index = wanted.pop()
            if index not in found:
                found[index] = self._stage(index)
                wanted += found[index].needs
        return tuple(found[index] for index in sorted(found))  # a stage can only need earlier ones

    def _target(self, target: str | None) -> int:
        if target is None:
            return len(self._parts) - 1
        if (index := self._earlier(target, len(self._parts))) is not None:
            return index
        names = [name for name in self._names if name]
        hint = did_you_mean(target, names) or (f"stages: {', '.join(names)}" if names else "no stage has a name")
        raise UnknownStage(f"stage {target}: not in {self._source.name}", hint=hint)

    def _earlier(self, name: str, before: int) -> int | None:
        """The last stage of this name, or the one of this number, before another."""
        for index in reversed(range(before)):
            if self._names[index] == name.lower():
                return index
        return int(name) if name.isascii() and name.isdigit() and len(name) < 6 and int(name) < before else None

    def _stage(self, index: int) -> Stage:
        origin, own = self._parts[index]
        expanded = expand(origin, Expander(self._global_args, self._dockerfile.escape, self._source, origin.span))
        assert isinstance(expanded, ins.From)
        replaced = self._contexts.get(canonical(origin.name)) if origin.name else None
        if replaced is not None:
            return self._entered(index, expanded, replaced, ())
        self._check_platform(expanded)
        base = self._base(expanded, index)
        return self._entered(index, expanded, base, tuple(self._step(instruction) for instruction in own))

    def _entered(self, index: int, origin: ins.From, base: OriginKind | None, own: tuple[Step, ...]) -> Stage:
        if not isinstance(base, Context):
            steps = self._triggers(base, origin) + own
            return Stage(index, origin, base, steps, self._origins(steps, index))
        name = origin.name if origin.name and canonical(origin.name) in self._contexts else origin.image
        copy = ins.Copy(origin.span, f"COPY --from={name} / /", ("/",), "/", origin=name)
        return Stage(index, origin, None, (self._step(copy), *own), {**self._origins(own, index), name: base})

    def _step(self, instruction: ins.Instruction) -> Step:
        return Step(instruction, self._source, self._dockerfile.escape, instruction.span, instruction.text)

    def _base(self, origin: ins.From, index: int) -> OriginKind | None:
        if not origin.image:
            raise self._source.error("FROM: the image's name is empty", origin.span, hint="give the ARG a default")
        if origin.image == "scratch":
            return None
        for earlier in reversed(range(index)):
            if self._names[earlier] == origin.image.lower():
                return earlier
        if (named := self._contexts.get(canonical(origin.image))) is not None:
            return named
        return self._image(origin.image, origin, f"FROM {origin.image}")

    def _triggers(self, base: int | Image | None, origin: ins.From) -> tuple[Step, ...]:
        """ONBUILD of the base: it acts here, once."""
        if isinstance(base, Image):
            texts = base.config.value.config.on_build or []
            return tuple(Step(i, source, "\\", origin.span, f"ONBUILD {i.text}") for i, source in parse_triggers(texts))
        if base is None:
            return ()
        triggers = [i for i in self._parts[base][1] if isinstance(i, ins.Onbuild)]
        return tuple(replace(self._step(i.trigger), text=i.text) for i in triggers)

    def _origins(self, steps: tuple[Step, ...], index: int) -> dict[str, OriginKind]:
        found: dict[str, OriginKind] = {}
        for step in steps:
            for name in origins_of(step.instruction):
                if name not in found:
                    found[name] = self._named(name, step.instruction, index)
        return found

    def _named(self, name: str, instruction: ins.Instruction, index: int) -> OriginKind:
        if (earlier := self._earlier(name, index)) is not None:
            return earlier
        if (named := self._contexts.get(canonical(name))) is not None:
            return named
        flag = "--from" if isinstance(instruction, ins.Copy) else "--mount from"
        return self._image(name, instruction, f"{flag}={name}")

    def _image(self, name: str, instruction: ins.Instruction, what: str) -> Image:
        try:
            return self._find_image(name)
        except (ImageNotFound, InvalidInput, RegistryError) as err:
            stages = [known for known in self._names if known]
            hint = did_you_mean(name, stages) if stages else None
            if name.lower() in stages or hint or name.isdigit():
                later = name.lower() in stages
                message = "a stage that comes later, or this one" if later else "neither an earlier stage nor an image here"
                raise UnknownStage(f"{self._where(instruction)}: {what}: {message}", hint=None if later else hint) from err
            reason = "no such image" if isinstance(err, ImageNotFound) else str(err)
            excerpt = self._source.excerpt(instruction.span, name)
            raise StepFailed(
                f"{what}: {reason}", span=instruction.span, instruction=instruction.text, excerpt=excerpt, hint=err.hint
            ) from err

    def _where(self, instruction: ins.Instruction) -> str:
        return f"{self._source.name} {instruction.span}"

    def _check_platform(self, origin: ins.From) -> None:
        """Only this machine's platform is built for."""
        if origin.platform:
            here = host()
            names = {f"{here.os}/{here.architecture}", "/".join(filter(None, (here.os, here.architecture, here.variant)))}
            if origin.platform.lower() not in names:
                message = f"FROM: --platform={origin.platform}: not supported on {here.os}/{here.architecture}"
                raise self._source.error(message, origin.span, word="--platform")
