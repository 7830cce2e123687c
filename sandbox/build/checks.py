"""Warnings about a Dockerfile, without building it: BuildKit's checks, found by walking all stages in their order.

What a stage knows of its variables is worked out as a build would (`expand`), with a record of the names that were asked for
and not there. A base image nobody has here may set any variable, so above it no variable counts as undefined.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from sandbox.build import instructions as ins
from sandbox.build.context import Context
from sandbox.build.dockerfile import Dockerfile
from sandbox.build.expand import Expander, define_args, expand, global_args, overtaken, platform_args
from sandbox.build.rules import CheckOptionError, CheckOptions, Finding, finding, parse_check_options
from sandbox.build.source import did_you_mean
from sandbox.build.stages import host
from sandbox.build.state import DEFAULT_PATH
from sandbox.errors import DockerfileError, ImageNotFound, InvalidInput, InvalidReference
from sandbox.image.reference import Reference
from sandbox.image.store import Store
from sandbox.oci import ImageConfig

OPTIONS_ARG = "BUILDKIT_DOCKERFILE_CHECK"
"""The build argument that takes the place of the file's own `# check=`."""
_RESERVED = ("scratch", "context")
_ONLY_ONE = (ins.Cmd, ins.Entrypoint, ins.Healthcheck)
_SECRET = re.compile(r"(?i)(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)")
_NO_SECRET = re.compile(r"(?i)(?:_|^)(?:public|file|version)(?:_|$)")
_PLATFORM = re.compile(r"([a-z0-9_.-]+)(?:/([a-z0-9_.-]+))?(?:/[a-z0-9_.-]+)?", re.IGNORECASE)
_COMMENT = re.compile(r"\s*#(.*)")


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What a check is told beside the text: the arguments of the build and the predefined ones; `image`: the config of a base
    image that is here (None: it is not); `is_ignored`: whether .dockerignore hides a path of the context."""

    build_args: Mapping[str, str]
    predefined: Mapping[str, str]
    image: Callable[[str], ImageConfig | None] = lambda _: None
    is_ignored: Callable[[str], bool] = lambda _: False


def surroundings(build_args: Mapping[str, str], store: Store, context: Context | None) -> Surroundings:
    """What a build of this machine is surrounded by."""

    def image(name: str) -> ImageConfig | None:
        try:
            return store.find(name).config.value
        except (ImageNotFound, InvalidInput):
            return None

    hidden = context.is_hidden if context is not None else lambda _: False
    return Surroundings(build_args=build_args, predefined=platform_args(host(), host()), image=image, is_ignored=hidden)


def check(dockerfile: Dockerfile, around: Surroundings, stages: Collection[int] | None = None) -> tuple[Finding, ...]:
    """Everything the rules find that the file wants to hear of, by line; with `stages` (counted from 0) only what is in them or
    about the file as a whole. DockerfileError for options that cannot be meant."""
    options = check_options(dockerfile, around.build_args)
    found = _Walk(dockerfile, around).findings(stages)
    kept = {one for one in found if _wanted(dockerfile, options, one)}
    return tuple(sorted(kept, key=lambda one: (one.line, one.rule, one.message)))


def check_options(dockerfile: Dockerfile, build_args: Mapping[str, str]) -> CheckOptions:
    """What the file, or the build in its place, says of checks; DockerfileError."""
    text = build_args.get(OPTIONS_ARG)
    if text is None:
        return dockerfile.check
    try:
        return parse_check_options(text)
    except CheckOptionError as err:
        raise DockerfileError(f"build argument {OPTIONS_ARG}: {err}", hint=err.hint) from None


def _wanted(dockerfile: Dockerfile, options: CheckOptions, one: Finding) -> bool:
    owner = next((i for i in dockerfile.instructions if i.span.first <= one.line <= i.span.last), None)
    for comment in _comments(dockerfile, owner) if owner else ():
        if comment.startswith("check="):
            try:
                options = options.merged(parse_check_options(comment.removeprefix("check=")))
            except CheckOptionError:
                pass  # as BuildKit: a comment is only a comment
            break
    return options.wants(one.rule)


def _comments(dockerfile: Dockerfile, instruction: ins.Instruction) -> list[str]:
    """The text of the comment lines right above an instruction; the directives at the top are none."""
    found: list[str] = []
    number = instruction.span.first - 1
    while number > len(dockerfile.directives) and (match := _COMMENT.match(dockerfile.source.lines[number - 1])):
        found.insert(0, match[1].strip())
        number -= 1
    return found


class _Recorder(dict[str, str]):
    """Variables that remember which names were asked for: `hits` were there, `misses` not."""

    def __init__(self, values: Mapping[str, str]) -> None:
        super().__init__(values)
        self.hits: set[str] = set()
        self.misses: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:  # Any: dict's own signature
        """As dict, remembered."""
        (self.hits if name in self else self.misses).add(name)
        return super().get(name, default)


class _Scope(msgspec.Struct, frozen=True):
    """What is known at one place of a stage. `known`: the base image's variables are."""

    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    args: tuple[tuple[str, str | None], ...] = ()
    known: bool = True
    has_shell: bool = False
    has_workdir: bool = False


class _Walk:
    """One pass over a Dockerfile."""

    def __init__(self, dockerfile: Dockerfile, around: Surroundings) -> None:
        self._file = dockerfile
        self._around = around
        self._leading = [i for i in _before_from(dockerfile) if isinstance(i, ins.Arg)]
        self._globals = self._global_args(around.build_args)
        self._ends: dict[str, _Scope] = {}

    def findings(self, stages: Collection[int] | None) -> Iterator[Finding]:
        """Everything found, in no order."""
        yield from (finding("NoEmptyContinuation", line) for _, line in self._file.warnings)
        yield from self._casing()
        yield from self._names()
        for instruction in self._leading:
            yield from self._described("ARG", [name for name, _ in instruction.pairs], instruction)
        for index, (origin, own) in enumerate(self._file.stages()):
            found = list(self._stage(origin, own))
            if stages is None or index in stages:
                yield from found

    def _global_args(self, given: Mapping[str, str]) -> dict[str, str]:
        try:
            return global_args(self._leading, given, self._around.predefined, self._file.escape, self._file.source)
        except DockerfileError:
            return dict(self._around.predefined)  # the build will fail with it

    def _word(self, instruction: ins.Instruction) -> str:
        return self._file.source.lines[instruction.span.first - 1].split()[0]

    # the file as a whole

    def _casing(self) -> Iterator[Finding]:
        words = [(self._word(i), i.span.first) for i in self._file.instructions if not (isinstance(i, ins.Arg) and i in self._leading)]
        lower, upper = sum(word.islower() for word, _ in words), sum(word.isupper() for word, _ in words)
        wanted, name = (str.lower, "lowercase") if lower > upper else (str.upper, "uppercase")
        for word, line in words:
            if word != wanted(word):
                yield finding("ConsistentInstructionCasing", line, word, name)

    def _names(self) -> Iterator[Finding]:
        seen: set[str] = set()
        for origin, _ in self._file.stages():
            if origin.name is None:
                continue
            line, words = origin.span.first, origin.text.split()
            if words[-1] != words[-1].lower():
                yield finding("StageNameCasing", line, words[-1])
            if words[-2].isupper() != words[0].isupper() and (words[0].isupper() or words[0].islower()):
                yield finding("FromAsCasing", line, words[-2], words[0])
            if origin.name in _RESERVED:
                yield finding("ReservedStageName", line, origin.name)
            if origin.name in seen:
                yield finding("DuplicateStageName", line, origin.name)
            seen.add(origin.name)

    def _described(self, what: str, names: list[str], instruction: ins.Instruction) -> Iterator[Finding]:
        comments = _comments(self._file, instruction)
        if names and comments and comments[-1] and comments[-1].split()[0] not in names:
            yield finding("InvalidDefinitionDescription", instruction.span.first, what, names[0] if len(names) == 1 else "<arg_key>")

    # FROM

    def _stage(self, origin: ins.From, own: list[ins.Instruction]) -> Iterator[Finding]:
        yield from self._described("FROM", [origin.name] if origin.name else [], origin)
        yield from self._from(origin)
        scope = self._base(origin)
        yield from self._platform_of_base(origin)
        last: dict[type[ins.Instruction], int] = {}
        for instruction in own:
            kind = type(instruction)
            if isinstance(instruction, _ONLY_ONE):
                if kind in last:
                    yield finding("MultipleInstructionsDisallowed", last[kind], kind.__name__.upper())
                last[kind] = instruction.span.first
            scope, found = self._instruction(scope, instruction)
            yield from found
        if origin.name:
            self._ends[origin.name] = scope

    def _from(self, origin: ins.From) -> Iterator[Finding]:
        line = origin.span.first
        env = _Recorder(self._globals)
        for text in (origin.image, origin.platform or ""):
            self._try_word(env, text, origin)
        declared = {name for arg in self._leading for name, _ in arg.pairs} | set(self._globals)
        for name in sorted(env.misses - declared):
            yield finding("UndefinedArgInFrom", line, name, _suggested(name, declared, ""))
        default = self._try_word(_Recorder(self._global_args({})), origin.image, origin)
        if default is not None and not _is_image(default):
            yield finding("InvalidDefaultArgInFrom", line, origin.image)
        if origin.platform:
            yield from self._platform(origin, origin.platform)

    def _platform(self, origin: ins.From, text: str) -> Iterator[Finding]:
        env = _Recorder(self._globals)
        value = self._try_word(env, text, origin) or ""
        if env.hits == {"TARGETPLATFORM"} and not env.misses and value == self._globals.get("TARGETPLATFORM"):
            yield finding("RedundantTargetPlatform", origin.span.first, text)
        parts = _PLATFORM.fullmatch(value)
        if parts and not env.hits and not env.misses and not any(part in (origin.name or "") for part in parts.groups() if part):
            yield finding("FromPlatformFlagConstDisallowed", origin.span.first, value)

    def _platform_of_base(self, origin: ins.From) -> Iterator[Finding]:
        image = self._image(origin)
        wanted = "/".join(self._around.predefined.get(name, "") for name in ("TARGETOS", "TARGETARCH"))
        if image is not None and wanted != "/" and not origin.platform and f"{image.os}/{image.architecture}" != wanted:
            yield finding("InvalidBaseImagePlatform", origin.span.first, origin.image, f"{image.os}/{image.architecture}", wanted)

    def _image(self, origin: ins.From) -> ImageConfig | None:
        name = self._try_word(_Recorder(self._globals), origin.image, origin)
        return self._around.image(name) if name and name != "scratch" and name.lower() not in self._ends else None

    def _base(self, origin: ins.From) -> _Scope:
        name = self._try_word(_Recorder(self._globals), origin.image, origin) or ""
        if name.lower() in self._ends and name != "scratch":
            return self._ends[name.lower()]
        image = self._image(origin)
        env = {"PATH": DEFAULT_PATH}
        if image is not None:
            env |= {key: value for key, _, value in (item.partition("=") for item in image.config.env or [])}
        return _Scope(env, known=image is not None or name == "scratch", has_shell=image is not None and bool(image.config.shell))

    def _try_word(self, env: _Recorder, text: str, origin: ins.From) -> str | None:
        try:
            return Expander(env, self._file.escape, self._file.source, origin.span).word(text)
        except DockerfileError:
            return None

    # the instructions of a stage

    def _instruction(self, scope: _Scope, instruction: ins.Instruction) -> tuple[_Scope, list[Finding]]:
        env = _Recorder(dict(scope.env) | {name: value for name, value in scope.args if value is not None})
        found: list[Finding] = []
        try:
            expanded, scope = self._expanded(scope, instruction, env)
        except DockerfileError:
            return scope, found  # the build will fail with it
        rule = _RULES.get(type(instruction))
        if rule:
            found += rule(self, scope, instruction, expanded)
        if isinstance(instruction, ins.Arg):
            found += self._described("ARG", [name for name, _ in instruction.pairs], instruction)
        found += _undefined(scope, env, instruction)
        return _after(scope, expanded), found

    def _expanded(self, scope: _Scope, instruction: ins.Instruction, env: _Recorder) -> tuple[ins.Instruction, _Scope]:
        expander = Expander(env, self._file.escape, self._file.source, instruction.span)
        if isinstance(instruction, ins.Arg):
            # An ARG without a value takes the global one: that is no use of an undefined variable.
            inner = _Recorder(env)
            defined = define_args(instruction, replace(expander, env=inner), self._around.build_args, self._globals)
            for name, default in instruction.pairs:
                if default is not None and name not in self._around.build_args:
                    expander.word(default)
            names = {name for name, _ in defined}
            return instruction, replace(scope, args=(*(pair for pair in scope.args if pair[0] not in names), *defined))
        return expand(instruction, expander), scope

    def legacy(self, instruction: ins.Env | ins.Label) -> Iterator[Finding]:
        """`ENV name value`."""
        if instruction.legacy:
            yield finding("LegacyKeyValueFormat", instruction.span.first, self._word(instruction))

    def ignored(self, instruction: ins.Files, expanded: ins.Files) -> Iterator[Finding]:
        """Sources that .dockerignore hides."""
        if isinstance(expanded, ins.Copy) and expanded.origin is not None:
            return
        for source in expanded.sources:
            path = source.removeprefix("./").strip("/")
            if path and self._around.is_ignored(path):
                yield finding("CopyIgnoredFile", instruction.span.first, type(instruction).__name__.capitalize(), path)


def _before_from(dockerfile: Dockerfile) -> Iterator[ins.Instruction]:
    for instruction in dockerfile.instructions:
        if isinstance(instruction, ins.From):
            return
        yield instruction


def _is_image(name: str) -> bool:
    try:
        Reference.parse(name)
    except InvalidReference:
        return False
    return True


def _suggested(name: str, known: Iterable[str], sign: str) -> str:
    close = did_you_mean(name, sorted(known))
    return f" ({close.replace('did you mean ', f'did you mean {sign}')})" if close else ""


def _undefined(scope: _Scope, env: _Recorder, instruction: ins.Instruction) -> Iterator[Finding]:
    if scope.known:
        for name in sorted(env.misses - {name for name, _ in scope.args}):
            yield finding("UndefinedVar", instruction.span.first, name, _suggested(name, env, "$"))


def _after(scope: _Scope, expanded: ins.Instruction) -> _Scope:
    """What is known after an instruction."""
    if isinstance(expanded, ins.Env):
        pairs = dict(expanded.pairs)
        return replace(scope, env={**scope.env, **pairs}, args=overtaken(scope.args, pairs))
    if isinstance(expanded, ins.Workdir):
        return replace(scope, has_workdir=True)
    return replace(scope, has_shell=True) if isinstance(expanded, ins.Shell) else scope


def _secrets(kind: str, names: Iterable[str], line: int) -> Iterator[Finding]:
    for name in names:
        if _SECRET.search(name) and not _NO_SECRET.search(name):
            yield finding("SecretsUsedInArgOrEnv", line, kind, name)


def _env(walk: _Walk, _: _Scope, i: ins.Env, expanded: ins.Env) -> Iterator[Finding]:
    yield from walk.legacy(i)
    yield from _secrets("ENV", (name for name, _ in expanded.pairs), i.span.first)


def _command(_: _Walk, scope: _Scope, i: ins.Cmd | ins.Entrypoint, _expanded: ins.Instruction) -> Iterator[Finding]:
    if i.command.shell and not scope.has_shell:
        yield finding("JSONArgsRecommended", i.span.first, type(i).__name__.upper())


def _workdir(_: _Walk, scope: _Scope, i: ins.Workdir, expanded: ins.Workdir) -> Iterator[Finding]:
    if not scope.has_workdir and not expanded.path.startswith("/"):
        yield finding("WorkdirRelativePath", i.span.first, expanded.path)


def _expose(_: _Walk, _scope: _Scope, i: ins.Expose, expanded: ins.Expose) -> Iterator[Finding]:
    for port in expanded.ports:
        protocol = port.partition("/")[2]
        if protocol != protocol.lower():
            yield finding("ExposeProtoCasing", i.span.first, port)
        if ":" in port:
            yield finding("ExposeInvalidFormat", i.span.first, port)


_Rule = Callable[[_Walk, _Scope, Any, Any], Iterable[Finding]]  # Any: each rule takes its own class
_RULES: dict[type[ins.Instruction], _Rule] = {
    ins.Env: _env,
    ins.Label: lambda walk, _scope, i, _expanded: walk.legacy(i),
    ins.Arg: lambda _walk, _scope, i, _expanded: _secrets("ARG", (name for name, _ in i.pairs), i.span.first),
    ins.Cmd: _command,
    ins.Entrypoint: _command,
    ins.Workdir: _workdir,
    ins.Expose: _expose,
    ins.Maintainer: lambda _walk, _scope, i, _expanded: [finding("MaintainerDeprecated", i.span.first)],
    ins.Copy: lambda walk, _scope, i, expanded: walk.ignored(i, expanded),
    ins.Add: lambda walk, _scope, i, expanded: walk.ignored(i, expanded),
}
