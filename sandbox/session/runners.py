"""The runners: for each language, how an interpreter of the image becomes one that runs cells, and how it is spoken to.

To add a language: write its runner in `inside/`, add a row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any  # messages are JSON

import msgspec

from sandbox.errors import InvalidInput
from sandbox.runtime.spec import Mount
from sandbox.session import inside
from sandbox.session.inside.sandbox_runner import frames

DIRECTORY = "/.jupyter-sandbox"
"""Where the runners are mounted inside, read-only."""
CHANNEL = "3"
"""A runner's descriptor: what `Streams.channel` becomes inside."""

Pieces = Sequence[bytes | memoryview]
Encode = Callable[[Mapping[str, Any], Pieces], Pieces]


def as_frame(message: Mapping[str, Any], buffers: Pieces) -> Pieces:
    """Two lengths, JSON, buffers: for languages that can read bytes."""
    head, views = frames.pack(message, buffers)
    return (head, *views)


_FIELDS: dict[str, tuple[str, ...]] = {
    "run": ("keep", "code"),
    "answer": ("id", "given", "text"),
    "complete": ("first", "code"),
    "inspect": ("detail", "code"),
    "parse": ("first", "code"),
    "settle": ("first", "code"),
}
"""What of a message a line carries; the last is text."""


def as_line(message: Mapping[str, Any], buffers: Pieces) -> Pieces:
    """One line of words, the last escaped for `printf %b`: for shells, which can read nothing else. InvalidInput for a NUL."""
    del buffers
    fields = _FIELDS.get(message["op"])
    if fields is None:
        return ()
    *words, last = fields
    text = str(message.get(last, ""))
    if "\0" in text:
        raise InvalidInput("the cell has a NUL character, which no shell can read")
    facts = {**message, "given": "text" in message}
    return (f"{' '.join([message['op'], *(str(int(facts.get(word) or 0)) for word in words)])} {_escaped(text)}\n".encode(),)


def _escaped(text: str) -> str:
    """Without line ends, and with nothing at its ends that `read` would take off."""
    text = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    first = f"\\0{ord(text[0]):03o}{text[1:]}" if text[:1] in (" ", "\t") else text
    return f"{first[:-1]}\\0{ord(first[-1]):03o}" if first[-1:] in (" ", "\t") else first


class Runner(msgspec.Struct, frozen=True):
    """One language. `programs`: file names of interpreters it suits; `file`: the runner in DIRECTORY (empty: the directory itself);
    `words`: what follows it (`{program}`: the interpreter's name). `signalled`: interrupted by SIGINT to its process group, as from a
    terminal; otherwise by a frame. `objects`: takes --in and --out-var. `state`: what stays from cell to cell, as said to people."""

    name: str
    programs: tuple[str, ...]
    file: str
    encode: Encode = as_frame
    words: tuple[str, ...] = (CHANNEL,)
    signalled: bool = True
    objects: bool = False
    state: str = "variables and files"

    def command(self, program: Sequence[str]) -> list[str]:
        """The argv of `program` (how the interpreter is called) as a runner."""
        path = f"{DIRECTORY}/{self.file}".rstrip("/")
        return [*program, path, *(word.format(program=program[0]) for word in self.words)]


PYTHON = Runner("python", ("python", "pypy"), "__main__.py", signalled=False, objects=True)
RUNNERS: tuple[Runner, ...] = (
    PYTHON,
    Runner("bash", ("bash",), "shell.bash", as_line),
    Runner("sh", ("sh", "ash", "dash", "ksh", "mksh"), "shell.sh", as_line, (CHANNEL, "{program}")),
    Runner("node", ("node", "nodejs"), "runner.js"),
)


_READ_AND_RUN = """\
import os, sys
def read(size):
    data = b""
    while len(data) < size:
        more = os.read(int(sys.argv[1]), size - len(data))
        data += more or sys.exit()
    return data
exec(read(int(read(8))))"""
"""How Python becomes a runner in a container where ours are not mounted: it reads one from the descriptor first."""


def sent_runner(program: Sequence[str]) -> tuple[list[str], bytes]:
    """Python's runner for a container that runs already: its argv, and what its descriptor has to be sent before any frame."""
    package = Path(inside.__file__).parent / "sandbox_runner"
    sources = {file.stem: file.read_text() for file in package.glob("*.py")}
    text = _FROM_SOURCES.format(sources=sources, channel=CHANNEL, directory=DIRECTORY).encode()
    return [*program, "-c", _READ_AND_RUN, CHANNEL], b"%8d" % len(text) + text


_FROM_SOURCES = """\
import sys
from importlib.machinery import ModuleSpec
class Sources:
    def find_spec(self, name, path=None, target=None):
        package, _, part = name.partition(".")
        if package == "sandbox_runner" and (part or "__init__") in SOURCES:
            return ModuleSpec(name, self, is_package=not part)
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        part = module.__name__.partition(".")[2] or "__init__"
        exec(compile(SOURCES[part], "{directory}/sandbox_runner/%s.py" % part, "exec"), module.__dict__)
SOURCES = {sources!r}
sys.meta_path.insert(0, Sources())
from sandbox_runner.cells import main
main({channel})
"""


def runner_for(program: str) -> Runner | None:
    """The runner that suits an interpreter, by its file name (`/usr/bin/python3.12` is Python); None when there is none."""
    name = program.rsplit("/", 1)[-1].lower()
    stem = name.rstrip("0123456789.")
    return next((runner for runner in RUNNERS if name in runner.programs or stem in runner.programs), None)


def runner_mount() -> Mount:
    """The runners' directory, read-only."""
    directory = Path(inside.__file__).resolve().parent
    _compile_once(directory)
    return Mount("bind", DIRECTORY, str(directory), read_only=True)


def _compile_once(directory: Path) -> None:
    """Compile what is not: some installers leave that to the first import, but of the inside half there is none out here."""
    if sys.dont_write_bytecode:
        return
    for source in (*directory.glob("*.py"), *directory.glob("*/*.py")):
        if not Path(cache_from_source(str(source))).exists():
            with suppress(OSError):  # not ours to write: each cell compiles, 20 ms
                import py_compile

                py_compile.compile(str(source), doraise=True)
