"""Text → instructions. The grammar is e2b-dockerfile-utils' port of BuildKit's parser (`grammar.py` is around it).

What the library leaves to us: typed instructions, flags checked against their instruction, ONBUILD's inside (with heredocs),
the parser directives, and errors a person can act on. A new instruction is one class in `instructions.py` and one row here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

import msgspec
from e2b_dockerfile_utils import DockerfileInstruction, chomp_heredoc_content, parse_heredoc
from msgspec.structs import replace

from sandbox.build import instructions as ins
from sandbox.build.grammar import check_options_of, directives_of, read_tree, source_of, unwrap_onbuild
from sandbox.build.mounts import MountError, MountText, read_mount
from sandbox.build.rules import CheckOptions
from sandbox.build.source import SourceText, Span, did_you_mean

_STAGE_NAME = re.compile(r"[a-z][a-z0-9._-]*")
_NETWORKS = ("none", "host", "default")
_SECURITY = ("sandbox", "insecure")
_PLAIN = re.compile(r"(?!\.$)[\w./-]+")  # otherwise it is checked again when its variables are known
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_NANOSECONDS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


class Dockerfile(msgspec.Struct, frozen=True):
    """A parsed Dockerfile. `escape` is its escape character, `directives` the parser directives by lower-case name,
    `check` what `# check=` says, `warnings` (message, line) pairs of empty continuation lines."""

    source: SourceText
    instructions: tuple[ins.Instruction, ...]
    escape: str = "\\"
    directives: tuple[tuple[str, str], ...] = ()
    warnings: tuple[tuple[str, int], ...] = ()
    check: CheckOptions = msgspec.field(default_factory=CheckOptions)

    def stages(self) -> list[tuple[ins.From, list[ins.Instruction]]]:
        """Each FROM with the instructions up to the next."""
        parts: list[tuple[ins.From, list[ins.Instruction]]] = []
        for instruction in self.instructions:
            if isinstance(instruction, ins.From):
                parts.append((instruction, []))
            elif parts:
                parts[-1][1].append(instruction)
        return parts


def parse(text: str, name: str = "Dockerfile") -> Dockerfile:
    """Parse and check a whole Dockerfile; raises DockerfileError with the line, a caret and what was expected."""
    source = source_of(text, name)
    instructions, escape, directives, warnings = _parse_all(source)
    _check_order(source, instructions)
    return Dockerfile(source, instructions, escape, directives, warnings, check_options_of(source, dict(directives).get("check")))


def parse_triggers(texts: Iterable[str]) -> tuple[tuple[ins.Instruction, SourceText], ...]:
    """The ONBUILD triggers a base image keeps, each with its own text, in which its span counts; DockerfileError."""
    found: list[tuple[ins.Instruction, SourceText]] = []
    for text in texts:
        source = source_of(text, "ONBUILD trigger of the base image,")
        for instruction in _parse_all(source)[0]:
            _check_trigger(source, instruction)
            found.append((instruction, source))
    return tuple(found)


_Parsed = tuple[tuple[ins.Instruction, ...], str, tuple[tuple[str, str], ...], tuple[tuple[str, int], ...]]


def _parse_all(source: SourceText) -> _Parsed:
    directives = directives_of(source)
    text, onbuild_lines = unwrap_onbuild(source)
    ast = read_tree(text, source, _ROWS)
    found = []
    for node in ast.instructions:
        raw = _Raw(source, node, Span(node.start_line, node.end_line), ast.escape_token)
        found.append(_wrap_onbuild(raw) if node.start_line in onbuild_lines else _ROWS[node.name].make(_checked(raw)))
    warnings = tuple((w.message[:1].lower() + w.message[1:], w.line) for w in ast.warnings)
    return tuple(found), ast.escape_token, directives, warnings


# -- one instruction ---------------------------------------------------------------------------------------------------


class _Raw(msgspec.Struct, frozen=True):
    """An instruction as the library hands it out, with its flags parsed once `_checked`."""

    source: SourceText
    node: DockerfileInstruction
    span: Span
    escape: str
    flags: Mapping[str, str | None] = msgspec.field(default_factory=dict)
    lists: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def args(self) -> list[str]:
        return self.node.args

    @property
    def text(self) -> str:
        return self.node.original.strip()

    def fail(self, message: str, word: str | None = None, hint: str | None = None) -> NoReturn:
        """Raise for this instruction; `word` is what the caret stands under."""
        raise self.source.error(f"{self.name}: {message}", self.span, word=word, hint=hint)

    def some(self, what: str) -> tuple[str, ...]:
        """All arguments, at least one."""
        if not self.args:
            self.fail(f"expected {what}", word="")
        return tuple(self.args)

    def is_on(self, name: str) -> bool | None:
        """A switch: None when it is not given."""
        return self.flags[name] in (None, "true") if name in self.flags else None

    def single(self, what: str) -> str:
        """The rest of the line as one argument."""
        return self.some(what)[0]


class _Flag(msgspec.Struct, frozen=True):
    """A flag of one instruction. `reason`: why it cannot be used; `switch`: takes no value or true/false; `repeat`: it may
    be given more than once, and is one of `_Raw.lists`."""

    reason: str | None = None
    switch: bool = False
    repeat: bool = False


def _checked(raw: _Raw) -> _Raw:
    """The flags against the instruction's row."""
    known = _ROWS[raw.name].flags
    flags: dict[str, str | None] = {}
    lists: dict[str, tuple[str, ...]] = {}
    for word in raw.node.flags:
        name, equals, value = word.removeprefix("--").partition("=")
        flag = known.get(name)
        if flag is None:
            _unknown_flag(raw, name)
        shown = f"--{name}"
        if flag.reason:
            raw.fail(f"{shown}: {flag.reason}", word=shown)
        if not equals and not flag.switch:
            raw.fail(f"{shown}: expected a value", word=shown, hint=f"write {shown}=VALUE")
        if flag.switch and equals and value not in ("true", "false"):
            raw.fail(f"{shown}={value}: expected true or false", word=value or shown)
        if flag.repeat:
            lists[name] = (*lists.get(name, ()), value)
        elif name in flags:
            raw.fail(f"{shown}: given twice", word=shown)
        else:
            flags[name] = value if equals else None
    return replace(raw, flags=flags, lists=lists)


def _unknown_flag(raw: _Raw, name: str) -> NoReturn:
    shown = f"--{name}"
    owners = [other for other, row in _ROWS.items() if name in row.flags]
    if owners:
        raw.fail(f"{shown} is a flag of {' and '.join(owners)}", word=shown)
    known = _ROWS[raw.name].flags
    hint = did_you_mean(shown, [f"--{flag}" for flag in known])
    if hint is None:
        hint = f"{raw.name} takes " + " ".join(f"--{flag}" for flag in known) if known else f"{raw.name} takes no flags"
    raw.fail(f"unknown flag {shown}", word=shown, hint=hint)


def _wrap_onbuild(raw: _Raw) -> ins.Onbuild:
    trigger = _ROWS[raw.name].make(_checked(raw))
    _check_trigger(raw.source, trigger)
    bodies = "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in raw.node.heredocs)
    return ins.Onbuild(raw.span, f"ONBUILD {raw.text}", trigger, raw.text + bodies)


def _check_trigger(source: SourceText, trigger: ins.Instruction) -> None:
    if isinstance(trigger, (ins.From, ins.Maintainer, ins.Onbuild)):
        word = trigger.text.split()[0]
        raise source.error(f"ONBUILD {word.upper()}: not allowed as a trigger", trigger.span, word=word)


def _from(raw: _Raw) -> ins.From:
    words = raw.args
    if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
        raw.fail("expected an image, or an image AS a name", word=words[1] if len(words) > 1 else "", hint="FROM image [AS name]")
    if not words[0]:
        raw.fail("expected an image", word="")
    name = words[2].lower() if len(words) == 3 else None
    if name is not None and not _STAGE_NAME.fullmatch(name):
        raw.fail(f"stage name {words[2]}: expected a letter, then letters, digits, . _ -", word=words[2])
    return ins.From(raw.span, raw.text, words[0], name, raw.flags.get("platform"))


def _command(raw: _Raw, args: list[str]) -> ins.Command:
    return ins.Command(tuple(args), shell=not raw.node.json)


def _run(raw: _Raw) -> ins.Run:
    network = raw.flags.get("network") or "default"
    if network not in _NETWORKS:
        raw.fail(f"--network={network}: expected none, host or default", word=network, hint=did_you_mean(network, _NETWORKS))
    security = raw.flags.get("security") or "sandbox"
    if security not in _SECURITY:
        raw.fail(f"--security={security}: expected sandbox or insecure", word=security, hint=did_you_mean(security, _SECURITY))
    mounts = tuple(_mount(raw, text) for text in raw.lists.get("mount", ()))
    raw.some("a command")
    return ins.Run(raw.span, raw.text, _command(raw, raw.args), _heredocs(raw), network, security, mounts)


def _mount(raw: _Raw, text: str) -> MountText:
    try:
        return read_mount(text)
    except MountError as err:
        raw.fail(f"--mount: {err}", word=err.word, hint=err.hint)


def _heredocs(raw: _Raw) -> tuple[ins.Heredoc, ...]:
    return tuple(ins.Heredoc(h.name, chomp_heredoc_content(h.content) if h.chomp else h.content, h.expand) for h in raw.node.heredocs)


_Files = tuple[tuple[str, ...], str, tuple[ins.Heredoc, ...]]


def _files(raw: _Raw) -> _Files:
    """Sources, destination and heredocs of COPY and ADD."""
    if len(raw.args) < 2:
        raw.fail("expected at least one source and a destination", word="", hint=f"{raw.name} source… destination")
    *sources, destination = raw.args
    heredocs = _heredocs(raw)
    plain = [word for word in sources if not (heredocs and _is_heredoc(word))]
    if heredocs and (_is_heredoc(destination) or len(sources) - len(plain) != len(heredocs)):
        raw.fail("expected heredocs as sources, then a destination", word="<<", hint=f"{raw.name} <<NAME destination")
    if len(sources) > 1 and not destination.endswith("/") and _PLAIN.fullmatch(destination):
        raw.fail("expected a destination that ends with / for more than one source", word=destination, hint=f"write {destination}/")
    return tuple(plain), destination, heredocs


def _is_heredoc(word: str) -> bool:
    try:
        return parse_heredoc(word) is not None
    except ValueError:
        return False


def _copy(raw: _Raw) -> ins.Copy:
    sources, destination, heredocs = _files(raw)
    origin = raw.flags.get("from")
    if origin is not None and "$" in origin:
        raw.fail("--from: variables are not expanded here", word=origin, hint="name a stage with FROM, where they are, and copy from it")
    if origin is not None and heredocs:
        raw.fail("--from: a heredoc comes from no stage", word="--from")
    return ins.Copy(raw.span, raw.text, sources, destination, heredocs, *_manner(raw), origin or None, raw.is_on("parents") or False)


def _add(raw: _Raw) -> ins.Add:
    sources, destination, heredocs = _files(raw)
    switches = raw.is_on("keep-git-dir"), raw.is_on("unpack")
    return ins.Add(raw.span, raw.text, sources, destination, heredocs, *_manner(raw), raw.flags.get("checksum"), *switches)


def _manner(raw: _Raw) -> tuple[str | None, str | None, bool, tuple[str, ...]]:
    """--chown, --chmod, --link and --exclude."""
    return raw.flags.get("chown"), raw.flags.get("chmod"), raw.is_on("link") or False, raw.lists.get("exclude", ())


def _pairs(raw: _Raw) -> tuple[tuple[str, str], ...]:
    """The library's flat name, value, delimiter triples."""
    raw.some("name=value")
    pairs = tuple(zip(raw.args[::3], raw.args[1::3], strict=True))
    for name, _ in pairs:
        if not name:
            raw.fail("expected a name before =", word="=")
    return pairs


def _is_legacy(raw: _Raw) -> bool:
    return raw.args[2] == ""


def _arg(raw: _Raw) -> ins.Arg:
    pairs: list[tuple[str, str | None]] = []
    for word in raw.some("a name, or name=default"):
        name, equals, value = word.partition("=")
        if not name:
            raw.fail("expected a name before =", word=word)
        pairs.append((name, value if equals else None))
    return ins.Arg(raw.span, raw.text, tuple(pairs))


def _volume(raw: _Raw) -> ins.Volume:
    paths = raw.some("a path")
    if not all(path.strip() for path in paths):
        raw.fail("expected a path, got an empty one", word='""')
    return ins.Volume(raw.span, raw.text, paths)


def _exec_or_shell(raw: _Raw) -> ins.Command:
    if not raw.node.json:
        raw.some("a command")
    return _command(raw, raw.args)


def _shell(raw: _Raw) -> ins.Shell:
    if not raw.node.json or not raw.args:
        word = raw.args[0] if raw.args else ""
        raw.fail("expected a JSON list", word=word, hint='SHELL ["/bin/sh", "-c"]')
    return ins.Shell(raw.span, raw.text, tuple(raw.args))


def _healthcheck(raw: _Raw) -> ins.Healthcheck:
    kind, *rest = raw.some("CMD command, or NONE")
    if kind.upper() == "NONE":
        if rest or raw.flags:
            raw.fail("NONE takes nothing more", word=rest[0] if rest else "--")
        return ins.Healthcheck(raw.span, raw.text, None)
    if kind.upper() != "CMD":
        raw.fail(f"expected CMD or NONE, got {kind}", word=kind, hint=did_you_mean(kind, ("CMD", "NONE")))
    if not rest:
        raw.fail("expected a command after CMD", word="")
    retries = raw.flags.get("retries") or "0"
    if not (retries.isascii() and retries.isdigit() and len(retries) < 10):
        raw.fail(f"--retries={retries}: expected a whole number", word=retries)
    return ins.Healthcheck(
        raw.span,
        raw.text,
        _command(raw, rest),
        interval=_duration(raw, "interval"),
        timeout=_duration(raw, "timeout"),
        start_period=_duration(raw, "start-period"),
        start_interval=_duration(raw, "start-interval"),
        retries=int(retries),
    )


def _duration(raw: _Raw, name: str) -> int:
    """A flag in Go's notation (1m30s) as nanoseconds; docker refuses what is above zero and below a millisecond."""
    text = raw.flags.get(name)
    if text is None or text == "0":
        return 0
    parts = list(_DURATION_PART.finditer(text))
    if not parts or "".join(p[0] for p in parts) != text or len(text) > 30:
        raw.fail(f"--{name}={text}: expected a duration", word=text or f"--{name}", hint="write 30s, 1m30s or 500ms")
    total = sum(int(float(p[1]) * _NANOSECONDS[p[2]]) for p in parts)
    if 0 < total < 10**6:
        raw.fail(f"--{name}={text}: shorter than 1ms", word=text)
    return total


def _onbuild_alone(raw: _Raw) -> NoReturn:
    """`unwrap_onbuild` has taken every ONBUILD that has something after it."""
    nested = raw.text.split()[1:2]
    if nested:
        raw.fail("not allowed as a trigger of ONBUILD", word=raw.text.split()[0])
    raw.fail("expected an instruction", word="")


class _Row(msgspec.Struct, frozen=True):
    """How an instruction is made from its words, and the flags it takes."""

    make: Callable[[_Raw], ins.Instruction]
    flags: Mapping[str, _Flag]


_SWITCH = _Flag(switch=True)
_LIST = _Flag(repeat=True)
_MANNER = {"chown": _Flag(), "chmod": _Flag(), "link": _SWITCH, "exclude": _LIST}
_NO_DEVICES = "not supported: a build's containers get no devices of the host"
_HEALTH = {name: _Flag() for name in ("interval", "timeout", "start-period", "start-interval", "retries")}
_ROWS: dict[str, _Row] = {
    "FROM": _Row(_from, {"platform": _Flag()}),
    "RUN": _Row(_run, {"mount": _LIST, "network": _Flag(), "security": _Flag(), "device": _Flag(_NO_DEVICES)}),
    "COPY": _Row(_copy, {"from": _Flag(), **_MANNER, "parents": _SWITCH}),
    "ADD": _Row(_add, {**_MANNER, "checksum": _Flag(), "keep-git-dir": _SWITCH, "unpack": _SWITCH}),
    "ENV": _Row(lambda raw: ins.Env(raw.span, raw.text, _pairs(raw), _is_legacy(raw)), {}),
    "ARG": _Row(_arg, {}),
    "WORKDIR": _Row(lambda raw: ins.Workdir(raw.span, raw.text, raw.single("a path")), {}),
    "USER": _Row(lambda raw: ins.User(raw.span, raw.text, raw.single("a user")), {}),
    "LABEL": _Row(lambda raw: ins.Label(raw.span, raw.text, _pairs(raw), _is_legacy(raw)), {}),
    "EXPOSE": _Row(lambda raw: ins.Expose(raw.span, raw.text, raw.some("a port")), {}),
    "VOLUME": _Row(_volume, {}),
    "CMD": _Row(lambda raw: ins.Cmd(raw.span, raw.text, _exec_or_shell(raw)), {}),
    "ENTRYPOINT": _Row(lambda raw: ins.Entrypoint(raw.span, raw.text, _exec_or_shell(raw)), {}),
    "SHELL": _Row(_shell, {}),
    "STOPSIGNAL": _Row(lambda raw: ins.StopSignal(raw.span, raw.text, raw.single("a signal")), {}),
    "HEALTHCHECK": _Row(_healthcheck, _HEALTH),
    "ONBUILD": _Row(_onbuild_alone, {}),
    "MAINTAINER": _Row(lambda raw: ins.Maintainer(raw.span, raw.text, raw.single("a name")), {}),
}

FLAGS: Mapping[str, tuple[str, ...]] = {name: tuple(f"--{flag}" for flag in row.flags) for name, row in sorted(_ROWS.items())}
"""Every instruction, and the flags it takes."""


def _check_order(source: SourceText, instructions: tuple[ins.Instruction, ...]) -> None:
    """At least one FROM, and nothing but ARG before the first."""
    if not instructions:
        raise source.error("no instructions", Span(1, 1), hint="begin with FROM image")
    for instruction in instructions:
        if isinstance(instruction, ins.From):
            return
        if not isinstance(instruction, ins.Arg):
            word = instruction.text.split()[0]
            raise source.error(f"expected FROM before {word.upper()}", instruction.span, word=word, hint="begin with FROM image")
    last = Span(len(source.lines), len(source.lines)) if instructions[-1].span.last >= len(source.lines) else instructions[-1].span
    raise source.error("expected FROM after ARG", last, word="", hint="begin a stage with FROM image")
