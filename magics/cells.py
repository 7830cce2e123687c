"""Magic line + body → BuildCell or RunCell. Pure: nothing runs, no file is read, IPython is not imported.

Every option is one row: docker's own come from `sandbox.options`, a notebook's from the tables below; the parser, `--help`
and completion are made from the rows. To add an option: add a row (and the field it fills).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from magics.words import first_words
from sandbox.errors import InvalidOption
from sandbox.options import BUILD, RUN, BuildOptions, Option, RunOptions

Values = dict[str, Any]  # Any: each row's converter has a type of its own; a field's type is checked by its dataclass


@dataclass(frozen=True)
class CellOptions:
    """What only a cell has: where its output goes and how its body is read."""

    help: bool = False
    keep: bool = False
    lang: str | None = None
    out: str | None = None
    err: str | None = None
    stdin: str | None = None
    stats: bool = True
    raise_error: bool = True
    terminal: bool = False


@dataclass(frozen=True)
class BuildCell:
    """A `%%dockerfile` cell. `first_line` is the number of the body's first line in the cell (the magic line is 1)."""

    body: str
    options: BuildOptions
    context: str = "."
    output: str | None = None
    help: bool = False
    first_line: int = 2

    @property
    def begins_image(self) -> bool:
        """Whether the body stands alone; otherwise it goes on from the cell built before."""
        return next(first_words(self.body), "").upper() in ("FROM", "ARG")


@dataclass(frozen=True)
class RunCell:
    """A `%%container` or `%%sandbox` cell: the body runs in a fresh container of `image`."""

    image: str
    argv: tuple[str, ...]
    body: str
    options: RunOptions
    cell: CellOptions


@dataclass(frozen=True)
class ExecOptions:
    """`docker exec`'s options, parsed."""

    env: tuple[str, ...] = ()
    user: str | None = None
    workdir: str | None = None


@dataclass(frozen=True)
class ExecCell:
    """A `%%container exec` cell: the body runs in the running container `container`."""

    container: str
    argv: tuple[str, ...]
    body: str
    options: ExecOptions
    cell: CellOptions


HELP = Option(("-h", "--help"), "help", "show this", convert=None)

CELL_ROWS: tuple[Option, ...] = (
    Option(("--lang", "--shell"), "lang", "language or program that reads the body", "LANG"),
    Option(("--out",), "out", "put stdout into a Python variable", "VAR"),
    Option(("--err",), "err", "put stderr into a Python variable", "VAR"),
    Option(("--stdin",), "stdin", "the program's stdin: a Python variable or @FILE", "VAR|@FILE"),
    Option(("--no-stats",), "no_stats", "no usage line after the cell", convert=None),
    Option(("--stats",), "stats", "a usage line after the cell (the default)", convert=None),
    Option(("--no-raise-error",), "no_raise_error", "a failure does not stop Run All", convert=None),
    HELP,
)

_NOT_IN_A_CELL = ("rm", "detach", "interactive", "tty", "hostname")

RUN_ROWS: tuple[Option, ...] = (
    *(row for row in RUN if row.field not in _NOT_IN_A_CELL),
    Option(("--hostname",), "hostname", "host name inside", "NAME"),
    Option(("--rm",), "rm", "remove the container when it ends (the default in a cell)", convert=None),
    Option(("--keep",), "keep", "keep the container when it ends", convert=None),
    Option(("-d", "--detach", "--bg"), "detach", "run in the background; `_` is the container", convert=None),
    Option(
        ("-it", "-ti", "-t", "--tty", "--interactive"), "terminal", "accepted; a cell has no terminal, so it does nothing", convert=None
    ),
    *CELL_ROWS,
)

EXEC_ROWS: tuple[Option, ...] = (
    *(row for row in RUN if row.field in ("env", "user", "workdir")),
    Option(
        ("-it", "-ti", "-t", "--tty", "--interactive"), "terminal", "accepted; a cell has no terminal, so it does nothing", convert=None
    ),
    *CELL_ROWS,
)

BUILD_ROWS: tuple[Option, ...] = (
    *(row for row in BUILD if row.field not in ("file", "pull")),
    Option(("-o",), "output", "put the image into a Python variable", "VAR"),
    HELP,
)

LATER: dict[str, str] = {
    "-i": "input variables",
    "--in": "input variables",
    "-o": "output variables",
    "--out-var": "output variables",
    "--session": "sessions",
    "--save-files": "files as rich results",
    "--pickle": "objects in and out",
    "--trust": "objects in and out",
    "-p": "published ports",
    "--publish": "published ports",
    "--mount": "docker's long form of mounts",
    "--dns": "container networks",
    "--gpus": "GPUs",
    "--stop-timeout": "a stop time-out of its own",
    "--pull": "registries",
    "--platform": "other platforms",
    "--secret": "build secrets",
    "--build-context": "named build contexts",
    "--kernel": "kernels of an image",
    "--file": "files made of Python variables",
}
"""Flags of the grammar that another piece of work brings: refused by name, never ignored."""

_INSTEAD = {
    "-p": "use --network host",
    "--publish": "use --network host",
    "--mount": "use -v SRC:DST",
    "-i": "use --stdin VAR to give the program text",
    "--in": "use --stdin VAR to give the program text",
    "-o": "use --out VAR to keep stdout",
    "--out-var": "use --out VAR to keep stdout",
    "--file": "write the file into the notebook's directory",
}

_CANNOT_MEAN = {"-f": ("-f: the cell's body is the Dockerfile", "use %container build -f FILE CONTEXT")}

SANDBOX_PRESET = (
    "--network",
    "none",
    "--read-only",
    "--cap-drop",
    "ALL",
    "-m",
    "512m",
    "--pids-limit",
    "128",
    "--timeout",
    "60s",
    "--tmpfs",
    "/tmp",
)
"""What `%%sandbox` puts before the flags of the line; a flag on the line wins."""


def parse_build(words: Sequence[str], body: str, *, first_line: int = 2) -> BuildCell:
    """The `%%dockerfile` cell these words and this body mean; InvalidOption otherwise."""
    values, rest = parse_words(words, BUILD_ROWS, interspersed=True)
    if len(rest) > 1:
        raise InvalidOption(f"{rest[1]}: only one CONTEXT is possible", hint=f"the context is {rest[0]}")
    own = _pop(values, "output", "help")
    options = replace(BuildOptions(), **values)
    return BuildCell(body, options, rest[0] if rest else ".", own.get("output"), bool(own.get("help")), first_line)


def parse_run(words: Sequence[str], body: str, *, magic: str = "%%container") -> RunCell:
    """The `%%container` (or `%%sandbox`) cell these words and this body mean; InvalidOption otherwise."""
    preset = SANDBOX_PRESET if magic == "%%sandbox" else ()
    values, rest = parse_words([*preset, *words], RUN_ROWS, interspersed=False)
    cell = _cell_options(values)
    if not rest and not cell.help:
        raise InvalidOption("no image named", hint=f"write {magic} IMAGE, or {magic} --help")
    if values.pop("rm", False) and cell.keep:
        raise InvalidOption("--rm and --keep: one or the other")
    options = replace(RunOptions(), rm=not cell.keep, **values)
    if options.detach and (cell.out or cell.err or cell.stdin):
        raise InvalidOption("-d: a background container has no --out, --err or --stdin", hint="read `_.logs()` later")
    image, *argv = rest or ("",)
    return RunCell(image, tuple(argv), body, options, cell)


def parse_exec(words: Sequence[str], body: str) -> ExecCell:
    """The `%%container exec` cell these words and this body mean; InvalidOption otherwise."""
    values, rest = parse_words(words, EXEC_ROWS, interspersed=False)
    cell = _cell_options(values)
    if not rest and not cell.help:
        raise InvalidOption("no container named", hint="write %%container exec NAME; %container ps lists them")
    name, *argv = rest or ("",)
    return ExecCell(name, tuple(argv), body, replace(ExecOptions(), **values), cell)


def _cell_options(values: Values) -> CellOptions:
    own = _pop(values, "help", "keep", "lang", "out", "err", "stdin", "terminal")
    quiet = bool(values.pop("no_stats", False)) and not values.pop("stats", False)
    values.pop("stats", None)
    return replace(CellOptions(), stats=not quiet, raise_error=not values.pop("no_raise_error", False), **own)


def _pop(values: Values, *names: str) -> Values:
    return {name: values.pop(name) for name in names if name in values}


def parse_words(words: Sequence[str], rows: Sequence[Option], *, interspersed: bool) -> tuple[Values, list[str]]:
    """The values of the flags, by field, and the other words. With `interspersed` flags may stand after them, as in docker
    build; otherwise the first other word ends the flags, as in docker run. Raises InvalidOption."""
    by_name = {name: row for row in rows for name in row.names}
    values: Values = {}
    rest: list[str] = []
    pending = list(words)
    while pending:
        word = pending.pop(0)
        if word == "--":
            return values, rest + pending
        if not word.startswith("-") or word == "-":
            rest.append(word)
            if not interspersed:
                return values, rest + pending
            continue
        for row, name, text in _flags(word, by_name):
            _store(values, row, name, text, pending)
    return values, rest


def _flags(word: str, by_name: Mapping[str, Option]) -> Iterable[tuple[Option, str, str | None]]:
    """The flag or flags of one word: `--a`, `--a=b`, `-a`, `-ab` (value or bundled switches)."""
    name, equals, text = word.partition("=")
    if word in by_name:
        return [(by_name[word], word, None)]
    if name in by_name and equals and (name.startswith("--") or not by_name[name].is_switch):
        return [(by_name[name], name, text)]
    short = word[:2]
    if word.startswith("--") or short not in by_name:
        raise _unknown(name if word.startswith("--") else short if short in LATER | _CANNOT_MEAN else name, by_name)
    if not by_name[short].is_switch:
        return [(by_name[short], short, word[2:])]
    return [(by_name[short], short, None), *_flags("-" + word[2:], by_name)]


def _unknown(name: str, by_name: Mapping[str, Option]) -> InvalidOption:
    if name in _CANNOT_MEAN:
        message, hint = _CANNOT_MEAN[name]
        return InvalidOption(message, hint=hint)
    if name in LATER:
        return InvalidOption(f"{name}: not supported yet ({LATER[name]})", hint=_INSTEAD.get(name))
    near = difflib.get_close_matches(name, by_name, n=1)
    return InvalidOption(f"{name}: no such option", hint=f"did you mean {near[0]}?" if near else "--help lists them")


def _store(values: Values, row: Option, name: str, text: str | None, pending: list[str]) -> None:
    if row.convert is None:
        values[row.field] = _switch(name, text)
        return
    if text is None:
        if not pending:
            raise InvalidOption(f"{name}: wants a value ({row.metavar or 'TEXT'})")
        text = pending.pop(0)
    try:
        value = row.convert(text)
    except InvalidOption as err:
        raise InvalidOption(f"{name}: {err}", hint=err.hint) from err
    values[row.field] = (*values.get(row.field, ()), value) if row.repeat else value


def _switch(name: str, text: str | None) -> bool:
    if text not in (None, "true", "false"):
        raise InvalidOption(f"{name}={text}: takes true or false")
    return text != "false"


@dataclass(frozen=True)
class Usage:
    """The head of a magic's `--help`."""

    synopsis: str
    about: str
    rows: tuple[Option, ...]


HELP_TEXTS: dict[str, Usage] = {
    "%%dockerfile": Usage(
        "%%dockerfile [FLAGS] [CONTEXT]",
        "Build the cell's body. CONTEXT is a directory (default: the notebook's own). A body that does not begin with FROM or\n"
        "ARG goes on from the cell built before; running a cell again replaces its layers.",
        BUILD_ROWS,
    ),
    "%%container": Usage(
        "%%container [FLAGS] IMAGE [CMD…]\n       %%container exec [FLAGS] NAME [CMD…]",
        "Run the cell's body in a fresh container, removed afterwards (--keep keeps it). With CMD the body is its stdin; else the\n"
        "language is --lang, the #! line, the image's label org.jupyter.sandbox.lang, its entrypoint, bash or sh.",
        RUN_ROWS,
    ),
    "%%container exec": Usage("%%container exec [FLAGS] NAME [CMD…]", "Run the cell's body in a running container.", EXEC_ROWS),
    "%%sandbox": Usage(
        "%%sandbox [FLAGS] IMAGE [CMD…]",
        "%%container, locked down: " + " ".join(SANDBOX_PRESET) + "\nA flag on the line wins over these.",
        RUN_ROWS,
    ),
}


def help_text(magic: str) -> str:
    """What `MAGIC --help` shows."""
    usage = HELP_TEXTS[magic]
    lefts = [_left(row) for row in usage.rows]
    width = max(map(len, lefts)) + 2
    lines = [f"  {left:<{width}}{row.help}" for left, row in zip(lefts, usage.rows, strict=True)]
    return "\n".join([f"usage: {usage.synopsis}", "", usage.about, "", *lines])


def _left(row: Option) -> str:
    return ", ".join(row.names) + (f" {row.metavar}" if row.metavar else "")
