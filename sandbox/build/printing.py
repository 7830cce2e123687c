"""A parsed Dockerfile as text again: one line an instruction (heredocs apart), no comments, JSON lists where words could be
read in two ways. Parsing the text gives the same instructions, spans and texts apart; printing those gives the same text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from sandbox.build import instructions as ins
from sandbox.build.dockerfile import Dockerfile

_QUOTED_IN_FLAG = frozenset(" \t\n\v\f\r\x85\xa0\"'")
_DURATIONS = ("interval", "timeout", "start_period", "start_interval")


def to_text(dockerfile: Dockerfile) -> str:
    """The whole file, its directives first."""
    printer = _Printer(dockerfile.escape)
    lines = [f"# {name}={value}" for name, value in dockerfile.directives]
    lines += [printer.instruction(i) for i in dockerfile.instructions]
    return "\n".join(lines) + "\n"


class _Printer(msgspec.Struct, frozen=True):
    escape: str

    def instruction(self, i: ins.Instruction) -> str:
        """One instruction with the bodies of its heredocs."""
        return _PRINT[type(i)](self, i)

    def line(self, name: str, flags: Iterable[tuple[str, str | None]], rest: str) -> str:
        """Name, flags (None: not given) and the rest; `--` before a rest that would read as a flag."""
        words = [f"--{flag}={self._flag(value)}" for flag, value in flags if value is not None]
        line = " ".join([name, *words, *(["--"] if rest.startswith("--") else []), *([rest] if rest else [])])
        if line[-1].isspace():
            line += self.escape  # the word ends in an escaped blank, which would be stripped; at the end of words this means nothing
        # An escape character at the end would join the next line; a form feed after it is stripped without being a continuation.
        return line + "\f" if line.endswith(self.escape) else line

    def _flag(self, value: str) -> str:
        return "".join(self.escape + char if char in _QUOTED_IN_FLAG or char == self.escape or char.isspace() else char for char in value)

    def command(self, command: ins.Command) -> str:
        return command.argv[0] if command.shell else _json(command.argv)

    def plain(self, name: str, rest: str) -> str:
        return self.line(name, (), rest)


def _json(words: Iterable[str]) -> str:
    return json.dumps(list(words), ensure_ascii=False)


def _bodies(heredocs: Iterable[ins.Heredoc]) -> str:
    return "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in heredocs)


def _marker(heredoc: ins.Heredoc) -> str:
    if heredoc.expand:
        return "<<" + "".join("\\" + char if not (char.isalnum() or char in "_.-") else char for char in heredoc.name)
    if "'" not in heredoc.name:
        return f"<<'{heredoc.name}'"
    return '<<"' + "".join("\\" + char if char in '"\\$' else char for char in heredoc.name) + '"'


def _on(value: bool | None) -> str | None:
    return None if value is None else str(value).lower()


def _from(p: _Printer, i: ins.From) -> str:
    return p.line("FROM", [("platform", i.platform)], f"{i.image} AS {i.name}" if i.name else i.image)


def _run(p: _Printer, i: ins.Run) -> str:
    network = i.network if i.network != "default" else None
    security = i.security if i.security != "sandbox" else None
    flags = [("network", network), ("security", security), *(("mount", mount.text) for mount in i.mount_texts)]
    return p.line("RUN", flags, p.command(i.command)) + _bodies(i.heredocs)


def _files(p: _Printer, name: str, i: ins.Files, more: list[tuple[str, str | None]]) -> str:
    excludes = [("exclude", pattern) for pattern in i.excludes]
    flags = [*more, ("chown", i.chown), ("chmod", i.chmod), ("link", "true" if i.link else None), *excludes]
    if not i.heredocs:
        return p.line(name, flags, _json([*i.sources, i.destination]))
    return p.line(name, flags, " ".join([*i.sources, *map(_marker, i.heredocs), i.destination])) + _bodies(i.heredocs)


def _copy(p: _Printer, i: ins.Copy) -> str:
    return _files(p, "COPY", i, [("from", i.origin), ("parents", "true" if i.parents else None)])


def _add(p: _Printer, i: ins.Add) -> str:
    return _files(p, "ADD", i, [("checksum", i.checksum), ("keep-git-dir", _on(i.keep_git_dir)), ("unpack", _on(i.unpack))])


def _pairs(p: _Printer, i: ins.Env | ins.Label) -> str:
    separator = " " if i.legacy else "="
    return p.plain(type(i).__name__.upper(), " ".join(f"{name}{separator}{value}" for name, value in i.pairs))


def _arg(p: _Printer, i: ins.Arg) -> str:
    return p.plain("ARG", " ".join(name if default is None else f"{name}={default}" for name, default in i.pairs))


def _healthcheck(p: _Printer, i: ins.Healthcheck) -> str:
    if i.command is None:
        return "HEALTHCHECK NONE"
    times = [(name.replace("_", "-"), f"{value}ns") for name in _DURATIONS if (value := getattr(i, name))]
    return p.line("HEALTHCHECK", [*times, *([("retries", str(i.retries))] if i.retries else [])], f"CMD {p.command(i.command)}")


_PRINT: dict[type[ins.Instruction], Callable[[_Printer, Any], str]] = {  # Any: each prints its own class
    ins.From: _from,
    ins.Run: _run,
    ins.Copy: _copy,
    ins.Add: _add,
    ins.Env: _pairs,
    ins.Label: _pairs,
    ins.Arg: _arg,
    ins.Workdir: lambda p, i: p.plain("WORKDIR", i.path),
    ins.User: lambda p, i: p.plain("USER", i.user),
    ins.Expose: lambda p, i: p.plain("EXPOSE", " ".join(i.ports)),
    ins.Volume: lambda p, i: p.plain("VOLUME", _json(i.paths)),
    ins.Cmd: lambda p, i: p.plain("CMD", p.command(i.command)),
    ins.Entrypoint: lambda p, i: p.plain("ENTRYPOINT", p.command(i.command)),
    ins.Shell: lambda p, i: p.plain("SHELL", _json(i.argv)),
    ins.StopSignal: lambda p, i: p.plain("STOPSIGNAL", i.signal),
    ins.Healthcheck: _healthcheck,
    ins.Onbuild: lambda p, i: f"ONBUILD {p.instruction(i.trigger)}",
    ins.Maintainer: lambda p, i: p.plain("MAINTAINER", i.name),
}
