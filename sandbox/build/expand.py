"""$VAR in instructions, by BuildKit's rules: which words of which instruction expand, and what a variable is worth there.

The word grammar (quotes, escapes, ${v:-w}, ${v#p}, ${v/p/r} …) is e2b-dockerfile-utils' port of BuildKit's shell lexer.
CMD, ENTRYPOINT, SHELL, HEALTHCHECK and ONBUILD are not in the table: their shell, or a later build, expands them; of RUN only
--mount expands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from e2b_dockerfile_utils import ShellLex
from msgspec.structs import replace

from sandbox.build import instructions as ins
from sandbox.build.mounts import MountError, RunMount, parse_mount
from sandbox.build.source import SourceText, Span
from sandbox.oci import Platform

PROXY_ARGS = tuple(name for scheme in ("http", "https", "ftp", "no", "all") for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper()))
"""Arguments a RUN sees without an ARG; undeclared they enter neither the history nor a cache key."""

_T = TypeVar("_T")
_F = TypeVar("_F", bound=ins.Files)


class Expander(msgspec.Struct, frozen=True):
    """Expands the words of one instruction; a DockerfileError names the instruction's line."""

    env: Mapping[str, str]
    escape: str
    source: SourceText
    span: Span

    def word(self, text: str) -> str:
        """One word: variables, quotes and escapes; white space stays."""
        return self._checked(text, self._lexer().process_word)

    def words(self, text: str) -> list[str]:
        """As `word`, then split at the white space a variable brought in."""
        return self._checked(text, self._lexer().process_words)

    def body(self, text: str) -> str:
        """A heredoc's body: variables only, quotes are text. It escapes with a backslash, whatever the file does."""
        return self._checked(text, ShellLex("\\", skip_process_quotes=True, env=self.env, skip_unset_env=False).process_word)

    def _lexer(self) -> ShellLex:
        return ShellLex(self.escape, env=self.env, skip_unset_env=False)

    def _checked(self, text: str, process: Callable[[str], _T]) -> _T:
        try:
            return process(text)
        except ValueError as err:
            message = str(err).removeprefix(f"failed to process {text!r}: ").removeprefix("syntax error: ")
            raise self.source.error(message, self.span, word=text) from None


def expand(instruction: ins.Instruction, expander: Expander) -> ins.Instruction:
    """The instruction with every word expanded that expands in it; the same one when none does."""
    rule = _RULES.get(type(instruction))
    return rule(instruction, expander) if rule else instruction


def _from(i: ins.From, x: Expander) -> ins.From:
    return replace(i, image=x.word(i.image), platform=x.word(i.platform) if i.platform else None)


def _files(i: _F, x: Expander) -> _F:
    return replace(
        i,
        sources=tuple(map(x.word, i.sources)),
        destination=x.word(i.destination),
        heredocs=tuple(replace(h, content=x.body(h.content)) if h.expand else h for h in i.heredocs),
        chown=x.word(i.chown) if i.chown else None,
        chmod=x.word(i.chmod) if i.chmod else None,
        excludes=tuple(map(x.word, i.excludes)),
    )


def _add(i: ins.Add, x: Expander) -> ins.Add:
    return replace(_files(i, x), checksum=x.word(i.checksum) if i.checksum else None)


def _run(i: ins.Run, x: Expander) -> ins.Run:
    return replace(i, mounts=tuple(_mount(mount.text, x) for mount in i.mount_texts)) if i.mount_texts else i


def _mount(text: str, x: Expander) -> RunMount:
    try:
        return parse_mount(text, x.word)
    except MountError as err:
        raise x.source.error(f"RUN: --mount: {err}", x.span, word=err.word, hint=err.hint) from None


def _pairs(i: ins.Env | ins.Label, x: Expander) -> ins.Env | ins.Label:
    return replace(i, pairs=tuple((x.word(name), x.word(value)) for name, value in i.pairs))


def _ports(i: ins.Expose, x: Expander) -> ins.Expose:
    return replace(i, ports=tuple(port for word in i.ports for port in x.words(word)))


_RULES: dict[type[ins.Instruction], Callable[[Any, Expander], ins.Instruction]] = {  # Any: each rule takes its own class
    ins.From: _from,
    ins.Run: _run,
    ins.Copy: _files,
    ins.Add: _add,
    ins.Env: _pairs,
    ins.Label: _pairs,
    ins.Expose: _ports,
    ins.Volume: lambda i, x: replace(i, paths=tuple(map(x.word, i.paths))),
    ins.Workdir: lambda i, x: replace(i, path=x.word(i.path)),
    ins.User: lambda i, x: replace(i, user=x.word(i.user)),
    ins.StopSignal: lambda i, x: replace(i, signal=x.word(i.signal)),
}


# -- arguments ---------------------------------------------------------------------------------------------------------


def platform_args(target: Platform, build: Platform) -> dict[str, str]:
    """BuildKit's predefined TARGET… and BUILD… arguments."""
    found: dict[str, str] = {}
    for prefix, platform in (("TARGET", target), ("BUILD", build)):
        name = "/".join(part for part in (platform.os, platform.architecture, platform.variant) if part)
        values = {"PLATFORM": name, "OS": platform.os, "ARCH": platform.architecture, "VARIANT": platform.variant or ""}
        found |= {prefix + key: value for key, value in values.items()}
    return found


def define_args(
    arg: ins.Arg, expander: Expander, given: Mapping[str, str], inherited: Mapping[str, str]
) -> tuple[tuple[str, str | None], ...]:
    """What an ARG instruction defines, in order: the build's value, else the expanded default, else the value from before
    the first FROM, else nothing (None). A name defined earlier in the same instruction is seen by the later ones."""
    env = dict(expander.env)
    found: list[tuple[str, str | None]] = []
    for raw_name, default in arg.pairs:
        inner = replace(expander, env=env)
        name = inner.word(raw_name)
        if name in given:
            value: str | None = given[name]
        elif default is not None:
            value = inner.word(default)
        else:
            value = inherited.get(name)
        if value is not None:
            env[name] = value
        found.append((name, value))
    return tuple(found)


def global_args(
    args: Iterable[ins.Arg], given: Mapping[str, str], predefined: Mapping[str, str], escape: str, source: SourceText
) -> dict[str, str]:
    """The arguments before the first FROM, with the predefined ones: what FROM sees, and what a stage's bare ARG takes over."""
    found = {name: given.get(name, value) for name, value in predefined.items()}
    for arg in args:
        for name, value in define_args(arg, Expander(found, escape, source, arg.span), given, found):
            if value is not None:
                found[name] = value
    return found


def scope(env: Mapping[str, str], args: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """What a word sees within a stage: an ARG that has a value hides an ENV from before it, as BuildKit has it; `overtaken`
    sees to the ENV that comes after an ARG. A later ARG wins over an earlier one."""
    return dict(env) | {name: value for name, value in args if value is not None}


def overtaken(args: Iterable[tuple[str, str | None]], env: Mapping[str, str]) -> tuple[tuple[str, str | None], ...]:
    """The arguments after an ENV instruction that set `env`: of one name, the ENV's value counts from here on."""
    return tuple((name, env.get(name, value)) for name, value in args)
