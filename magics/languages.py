"""Which program reads a cell's body, and how the body reaches it. Pure tables; the image's facts come from outside."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from sandbox.errors import InvalidInput, InvalidOption

LABEL = "org.jupyter.sandbox.lang"

# Linux refuses one argument longer than this (MAX_ARG_STRLEN, 32 pages), its final NUL included.
LONGEST_ARGUMENT = 32 * 4096 - 1

# The body is an argument, so the program's own stdin stays free. `python -c` shows no source lines in a traceback before
# 3.13; this does, and hides its own frame. The import path stays what `python -c` gives: the working directory.
_PYTHON = """\
def cell():
    import sys
    source = sys.argv.pop(1)
    def show(kind, error, frames):
        import linecache, traceback
        linecache.cache["<cell>"] = len(source), None, source.splitlines(True), "<cell>"
        while frames and frames.tb_frame.f_code.co_filename != "<cell>":
            frames = frames.tb_next
        traceback.print_exception(kind, error, frames)
    sys.excepthook = show
    scope = globals()
    del scope["cell"]
    exec(compile(source, "<cell>", "exec", dont_inherit=True), scope)
cell()"""


class Language(msgspec.Struct, frozen=True):
    """How one interpreter is started: `program` when nothing names another, `inline` the arguments before the body."""

    program: str
    inline: tuple[str, ...]


LANGUAGES: dict[str, Language] = {
    "python": Language("python3", ("-c", _PYTHON)),
    "bash": Language("bash", ("-c",)),
    "sh": Language("sh", ("-c",)),
    "dash": Language("dash", ("-c",)),
    "ash": Language("ash", ("-c",)),
    "zsh": Language("zsh", ("-c",)),
    "node": Language("node", ("-e",)),
    "deno": Language("deno", ("eval",)),
    "perl": Language("perl", ("-e",)),
    "ruby": Language("ruby", ("-e",)),
    "php": Language("php", ("-r",)),
    "awk": Language("awk", ()),
    "lua": Language("lua", ("-e",)),
    "r": Language("Rscript", ("--slave", "--no-restore", "-e")),  # as Rscript does by itself; R would greet, and echo the cell
    "julia": Language("julia", ("-e",)),
}

_ALIASES = {
    "python3": "python",
    "pypy3": "python",
    "pypy": "python",
    "javascript": "node",
    "js": "node",
    "nodejs": "node",
    "rscript": "r",
    "gawk": "awk",
    "mawk": "awk",
    "shell": "sh",
}


class ImageFacts(msgspec.Struct, frozen=True):
    """What the choice needs to know of an image; `find` says whether a program is there, along the image's PATH."""

    name: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    labels: Mapping[str, str]
    find: Callable[[str], bool]


class Invocation(msgspec.Struct, frozen=True):
    """How the body runs. `entrypoint` replaces the image's (None: the image's own stays); `body_on_stdin` when the program reads it there."""

    argv: tuple[str, ...]
    body_on_stdin: bool
    chosen: str
    """The choice and its reason, as shown: `bash (in the image)`."""
    entrypoint: str | None = None
    interpreter: tuple[str, ...] = ()
    """How the interpreter is called that reads the body: one of our runners may suit it, and then it can stay warm."""

    @property
    def python(self) -> tuple[str, ...]:
        """How Python is called when the body is Python: then our runner runs it, and shows results and plots."""
        is_python = self.interpreter and not self.body_on_stdin and language_of(self.interpreter[0]) is LANGUAGES["python"]
        return self.interpreter if is_python else ()

    @property
    def program(self) -> str:
        """The program to name in an error."""
        return self.entrypoint or (self.argv[0] if self.argv else "")


def choose(
    body: str, *, lang: str | None, argv: Sequence[str], entrypoint: str | None, facts: ImageFacts, on_stdin: bool = False
) -> Invocation:
    """The first rule that applies, in the order the documentation gives. `on_stdin`: a program of the image's that is no interpreter
    reads the body, too."""
    if lang:
        return _by_language(lang, body, "--lang", facts)
    if body.startswith("#!"):
        return _by_shebang(body)
    if argv or entrypoint:
        words = (*([entrypoint] if entrypoint else []), *argv)
        return Invocation(tuple(argv), True, f"{words[0]} (body on its stdin)", entrypoint, words)
    default = (*facts.entrypoint, *facts.command)
    if on_stdin and default and not language_of(default[0]):
        return Invocation((), True, f"{default[0]} (body on its stdin)")
    if label := facts.labels.get(LABEL):
        return _by_language(label, body, f"label {LABEL}", facts)
    if default and language_of(default[0]):
        return _inline([default[0]], body, "the image's own")
    shell = next((name for name in ("bash", "sh") if facts.find(name)), None)
    if shell is None:
        raise InvalidOption(
            f"{facts.name}: has neither bash nor sh to read the cell", hint="name a program after the image; the body is its stdin"
        )
    return _inline([shell], body, "in the image")


def choose_for_exec(body: str, *, lang: str | None, argv: Sequence[str], facts: ImageFacts) -> Invocation:
    """As `choose`, for a running container: there is no entrypoint to keep or to replace."""
    return flatten(choose(body, lang=lang, argv=argv, entrypoint=None, facts=facts))


def flatten(invocation: Invocation) -> Invocation:
    """The same with the entrypoint as the first word."""
    first = () if invocation.entrypoint is None else (invocation.entrypoint,)
    return replace(invocation, argv=(*first, *invocation.argv), entrypoint=None)


def language_of(program: str) -> Language | None:
    """The language an interpreter speaks, by its file name: `/usr/bin/python3.12` is Python."""
    name = program.rsplit("/", 1)[-1].lower()
    stem = name.rstrip("0123456789.") if name not in _ALIASES else name
    return LANGUAGES.get(_ALIASES.get(stem, stem))


def _by_language(text: str, body: str, why: str, facts: ImageFacts) -> Invocation:
    words = shlex.split(text)
    if not words:
        raise InvalidOption(f"{why}: names no program")
    language = language_of(words[0])
    if language and not facts.find(words[0]):
        words[0] = language.program
    return _inline(words, body, why)


def _by_shebang(body: str) -> Invocation:
    words = shlex.split(body.splitlines()[0][2:])
    if words and words[0].rsplit("/", 1)[-1] == "env":
        words = [word for word in words[1:] if word != "-S"]
    if not words:
        raise InvalidInput("#! line: names no program")
    if words[-1] == "-f":  # `awk -f`, `make -f`: a file has to follow
        return Invocation((*words[1:], "/dev/stdin"), True, f"{' '.join(words)} (#! line)", words[0], (*words, "/dev/stdin"))
    return _inline(words, body, "#! line")


def _inline(words: Sequence[str], body: str, why: str) -> Invocation:
    """The program with the body as an argument, or on its stdin when we do not know its flag for that or Linux has no room."""
    program, *arguments = words
    language = language_of(program)
    chosen = f"{' '.join(words)} ({why})"
    if language is None:
        return Invocation((*arguments, "/dev/stdin"), True, chosen, program, (*words, "/dev/stdin"))
    if len(body.encode()) > LONGEST_ARGUMENT and language is not LANGUAGES["python"]:
        raise InvalidInput(
            f"cell of {len(body.encode()) // 1024} KiB: longer than one argument may be (128 KiB)",
            hint=f"name the program after the image, so that the body is its stdin: IMAGE {program} …",
        )
    return Invocation((*arguments, *language.inline, body), False, chosen, program, tuple(words))
