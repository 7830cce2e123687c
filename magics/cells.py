"""Magic line + body → RunCell or ExecCell. Pure: nothing runs, no file is read, IPython is not imported.

Every option is one row: docker's own come from `sandbox.options`, a notebook's from the tables below; the parser, `--help`
and completion are made from the rows. To add an option: add a row (and the field it fills).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from magics.flags import HELP, Usage, Values, take
from magics.flags import parse_words as parse_words
from sandbox.errors import InvalidOption
from sandbox.options import RUN, Option, RunOptions


class CellOptions(msgspec.Struct, frozen=True):
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
    session: str | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    pickle: bool = False
    trust: bool = False
    save_files: str | None = None
    proc: str | None = None
    on_stdin: bool = False
    """docker's -i: the body is the stdin of the image's own program."""

    @property
    def only_python(self) -> str:
        """A flag given that only a Python body understands; empty when there is none."""
        asked = {"--in": self.inputs, "--out-var": self.outputs, "--pickle": self.pickle, "--trust": self.trust}
        return next((flag for flag, value in asked.items() if value), "")


class RunCell(msgspec.Struct, frozen=True):
    """A `%%container` or `%%sandbox` cell: the body runs in a fresh container of `image`."""

    image: str
    argv: tuple[str, ...]
    body: str
    options: RunOptions
    cell: CellOptions
    first_line: int = 2
    locked: bool = False
    """A `%%sandbox` cell: no HTML of its own is shown."""


class ExecOptions(msgspec.Struct, frozen=True):
    """`docker exec`'s options, parsed."""

    env: tuple[str, ...] = ()
    user: str | None = None
    workdir: str | None = None


class ExecCell(msgspec.Struct, frozen=True):
    """A `%%container exec` cell: the body runs in the running container `container`."""

    container: str
    argv: tuple[str, ...]
    body: str
    options: ExecOptions
    cell: CellOptions
    first_line: int = 2


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


def _names(text: str) -> tuple[str, ...]:
    """`a,b` as variable names."""
    names = tuple(each.strip() for each in text.split(","))
    if odd := next((name for name in names if not name.isidentifier()), None):
        raise InvalidOption(f"{odd!r} is no variable name", hint="write names with commas between them: a,b")
    return names


VALUE_ROWS: tuple[Option, ...] = (
    Option(("-i", "--in"), "inputs", "variables to hand in (Python)", "a,b", _names, repeat=True),
    Option(("-o", "--out-var"), "outputs", "variables to take out (Python)", "a,b", _names, repeat=True),
    Option(("--pickle",), "pickle", "hand in by pickle what nothing else can carry", convert=None),
    Option(("--trust",), "trust", "unpickle what comes out: it can run code here", convert=None),
)
OBJECT_ROWS: tuple[Option, ...] = (
    *VALUE_ROWS,
    Option(("--session",), "session", "run in a warm interpreter of that name: variables, files and working directory stay", "NAME"),
    Option(("--save-files",), "save_files", "save what the cell leaves in /out into this directory", "DIR"),
    Option(("--proc",), "proc", "with -d: put the container into a Python variable", "VAR"),
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
    *OBJECT_ROWS,
    *CELL_ROWS,
)

EXEC_ROWS: tuple[Option, ...] = (
    *(row for row in RUN if row.field in ("env", "user", "workdir")),
    Option(
        ("-it", "-ti", "-t", "--tty", "--interactive"), "terminal", "accepted; a cell has no terminal, so it does nothing", convert=None
    ),
    *VALUE_ROWS,
    *CELL_ROWS,
)


def _as_docker(rows: Sequence[Option]) -> tuple[Option, ...]:
    """The rows with docker's -i."""
    return (
        *(row for row in rows if row.field not in ("terminal", "inputs")),
        Option(("-i", "--interactive"), "on_stdin", "the cell's body is the program's stdin", convert=None),
        Option(("-it", "-ti", "-t", "--tty"), "terminal", "accepted; a cell has no terminal, so it does nothing", convert=None),
        Option(("--in",), "inputs", "variables to hand in (Python)", "a,b", _names, repeat=True),
    )


DOCKER_ROWS = _as_docker(RUN_ROWS)
DOCKER_EXEC_ROWS = _as_docker(EXEC_ROWS)
"""`%%docker run` and `%%docker exec`."""

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


def parse_run(words: Sequence[str], body: str, *, magic: str = "%%container", first_line: int = 2) -> RunCell:
    """The `%%container` (or `%%sandbox`) cell these words and this body mean; InvalidOption otherwise."""
    preset = SANDBOX_PRESET if magic == "%%sandbox" else ()
    rows = DOCKER_ROWS if magic == "%%docker run" else RUN_ROWS
    values, rest = parse_words([*preset, *words], rows, interspersed=False)
    if preset and len(values["network"]) > 1:  # the line's own replace it
        values["network"] = values["network"][1:]
    cell = _cell_options(values)
    if not rest and not cell.help and not cell.session:
        raise InvalidOption("no image named", hint=f"write {magic} IMAGE, or {magic} --help")
    rm = bool(values.pop("rm", False))
    if rm and cell.keep:
        raise InvalidOption("--rm and --keep: one or the other")
    _refuse_contradictions(cell)
    # In the background it stays as docker's does, or its handle could not tell how it ended.
    options = replace(RunOptions(), rm=rm or not (cell.keep or values.get("detach")), **values)
    if options.detach and (cell.out or cell.err or cell.stdin or cell.save_files or cell.session or cell.only_python):
        raise InvalidOption(
            "-d: a background container has no --out, --err, --stdin, --in, --out-var, --session or --save-files",
            hint="read `_.logs()` later",
        )
    if cell.proc and not options.detach:
        raise InvalidOption("--proc: names a container in the background", hint="add -d")
    image, *argv = rest or ("",)
    return RunCell(image, tuple(argv), body, options, cell, first_line, locked=magic == "%%sandbox")


def _refuse_contradictions(cell: CellOptions) -> None:
    if cell.session and cell.stdin:
        raise InvalidOption("--session: cannot be used with --stdin", hint="hand it in as a variable: --in")


def parse_exec(words: Sequence[str], body: str, *, magic: str = "%%container", first_line: int = 2) -> ExecCell:
    """The `%%container exec` (or `%%docker exec`) cell these words and this body mean; InvalidOption otherwise."""
    values, rest = parse_words(words, DOCKER_EXEC_ROWS if magic == "%%docker exec" else EXEC_ROWS, interspersed=False)
    cell = _cell_options(values)
    if not rest and not cell.help:
        raise InvalidOption("no container named", hint="write %%container exec NAME; %container ps lists them")
    name, *argv = rest or ("",)
    return ExecCell(name, tuple(argv), body, replace(ExecOptions(), **values), cell, first_line)


def _cell_options(values: Values) -> CellOptions:
    own = take(values, "help", "keep", "lang", "out", "err", "stdin", "terminal", "session", "pickle", "trust", "save_files", "proc", "on_stdin")
    own.update({name: tuple(each for group in values.pop(name, ()) for each in group) for name in ("inputs", "outputs")})
    quiet = bool(values.pop("no_stats", False)) and not values.pop("stats", False)
    values.pop("stats", None)
    return replace(CellOptions(), stats=not quiet, raise_error=not values.pop("no_raise_error", False), **own)


USAGES: dict[str, Usage] = {
    "%%container": Usage(
        "%%container [FLAGS] IMAGE [CMD…]\n       %%container exec [FLAGS] NAME [CMD…]",
        "Run the cell's body in a fresh container, removed afterwards (--keep keeps it). With CMD the body is its stdin; else the\n"
        "language is --lang, the #! line, the image's label org.jupyter.sandbox.lang, its entrypoint, bash or sh.",
        RUN_ROWS,
    ),
    "%%container exec": Usage("%%container exec [FLAGS] NAME [CMD…]", "Run the cell's body in a running container.", EXEC_ROWS),
    "%%docker exec": Usage("%%docker exec [FLAGS] NAME [CMD…]", "%%container exec, with docker's -i.", DOCKER_EXEC_ROWS),
    "%%docker run": Usage(
        "%%docker run [FLAGS] IMAGE [CMD…]", "%%container, with docker's -i: the body is the stdin of the image's own program.", DOCKER_ROWS
    ),
    "%%sandbox": Usage(
        "%%sandbox [FLAGS] IMAGE [CMD…]",
        "%%container, locked down: " + " ".join(SANDBOX_PRESET) + "\nA flag on the line wins over these.",
        RUN_ROWS,
    ),
}
