"""Cells of a session: in a warm interpreter of any language, with /out and state that stay from cell to cell."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
from msgspec.structs import replace

from magics import display, failures
from magics.cells import RunCell
from magics.display import Bundle
from magics.languages import ImageFacts, Invocation, flatten
from magics.notebook import Notebook
from magics.outfiles import Seen
from magics.python_cells import IDLE_SECONDS, CellFront, Ended, code_of, list_sessions, run_in
from magics.untrusted import harmless, without_pages
from magics.verbs import Listed
from sandbox.engine import Engine
from sandbox.errors import InvalidOption
from sandbox.image.store import Image
from sandbox.options import RunOptions
from sandbox.outplaces import OutPlace
from sandbox.runtime.spec import Mount
from sandbox.session.runners import Runner, runner_for
from sandbox.session.session import Session, Sessions


class Reader(msgspec.Struct, frozen=True):
    """Which warm program reads a cell of a session, and what it reads. A language without a runner of its own is called by a shell
    that stays: its files and the working directory do too."""

    program: tuple[str, ...]
    runner: Runner
    body: str


class Begun(msgspec.Struct, frozen=True):
    """How a session was begun: the program that reads its cells, the flags of its container, how that was chosen."""

    program: tuple[str, ...]
    options: RunOptions
    chosen: tuple[Image, ImageFacts, Invocation]

    def refuse_others(self, name: str, asked: RunOptions) -> None:
        """InvalidOption for a flag its container was not made with."""
        usual = RunOptions()
        for field in RunOptions.__struct_fields__:
            if field not in _OF_EACH_CELL and getattr(asked, field) not in (getattr(usual, field), getattr(self.options, field)):
                flag = f"--{field.replace('_', '-')}"
                raise InvalidOption(
                    f"session {name}: was begun with another {flag}, or none",
                    hint=f"%container reset {name} ends it; another name begins another one",
                )


_OF_EACH_CELL = ("timeout", "rm", "entrypoint")


class WarmCells:
    """The sessions of one notebook."""

    def __init__(self, notebook: Notebook) -> None:
        self._notebook = notebook
        self._sessions = Sessions()
        self._begun: dict[str, Begun] = {}
        self._places: dict[str, tuple[OutPlace, Seen]] = {}

    def close(self) -> None:
        """End them all."""
        self._sessions.close()
        for name in list(self._places):
            self._forget(name)

    def run(self, engine: Engine, image: Image, cell: RunCell, invocation: Invocation, facts: ImageFacts, mounts: Sequence[Mount]) -> Ended:
        """Run the cell in its session, started when it is the first."""
        reader = reader_of(cell, invocation, facts)
        code = code_of(replace(cell, body=reader.body), self._notebook.variables)
        invocation = replace(invocation, chosen=shlex.join(invocation.interpreter))
        session = self._session(engine, cell, reader, mounts, (image, facts, invocation))
        cell = replace(cell, options=replace(self._begun[session.name].options, timeout=cell.options.timeout))
        with self._notebook.streams(cell.cell, may_clear=reader.runner.objects) as streams:
            front = CellFront(streams, self._notebook.may_ask(), safe(cell))
            try:
                return run_in(session, cell, code, front, invocation, facts)
            except KeyboardInterrupt as err:
                if session.status == "idle":
                    failures.show_as(err, [f"KeyboardInterrupt: stopped; session {session.name} keeps its state"])
                raise

    def with_image(self, cell: RunCell) -> RunCell:
        """`--session NAME` without an image goes on in the image it has, and with the program it has."""
        name = cell.cell.session
        found = self._sessions.find(name) if name else None
        if not cell.image and found is None:
            raise InvalidOption(f"session {name}: not there yet", hint="name an image after it")
        if found is None or not name:
            return cell
        cell = replace(cell, image=cell.image or found.image)
        if _names_program(cell):
            return cell
        return replace(cell, cell=replace(cell.cell, lang=shlex.join(self._begun[name].program)))

    def begun_with(self, cell: RunCell) -> tuple[Image, ImageFacts, Invocation] | None:
        """What was chosen for the session's first cell, for one that says nothing else; None when it has to be chosen anew."""
        name = cell.cell.session or ""
        session, begun = self._sessions.find(name), self._begun.get(name)
        if session is None or begun is None or session.status != "idle" or session.image != cell.image:
            return None
        reads_itself = begun.chosen[2].interpreter == begun.program  # else a shell, which calls what the first cell named
        return begun.chosen if reads_itself and not _names_other(cell, begun) else None

    def place(self, engine: Engine, name: str) -> tuple[OutPlace, Seen]:
        """/out of a session, and the files of it already shown."""
        if name not in self._places:
            self._places[name] = (OutPlace(engine.root), {})
        return self._places[name]

    def reset(self, names: Sequence[str]) -> None:
        """`%container reset NAME…`."""
        if not names:
            raise InvalidOption("no session named", hint="%container sessions lists them")
        for name in names:
            if not self._sessions.remove(name):
                known = ", ".join(session.name for session in self._sessions) or "none"
                raise InvalidOption(f"session {name}: not there", hint=f"sessions: {known}")
            self._forget(name)
            display.say(f"session {name}: its variables and files are gone")

    def listed(self, words: Sequence[str]) -> Listed:
        """`%container sessions`."""
        if words:
            raise InvalidOption(f"{words[0]}: %container sessions takes no arguments")
        return list_sessions(self._sessions)

    def names(self) -> list[str]:
        """The sessions there are."""
        return [session.name for session in self._sessions]

    def _session(
        self, engine: Engine, cell: RunCell, reader: Reader, mounts: Sequence[Mount], chosen: tuple[Image, ImageFacts, Invocation]
    ) -> Session:
        """The session of that name; one of another image or program is not replaced in silence."""
        name = cell.cell.session or ""
        found = self._sessions.find(name)
        if found is None:
            label = f"org.jupyter.sandbox.session={name}"
            options = replace(cell.options, timeout=None, label=(*cell.options.label, label))
            launch = partial(engine.interpreter, chosen[0], reader.program, options=options, mounts=mounts, runner=reader.runner)
            self._begun[name] = Begun(reader.program, cell.options, chosen)
            return self._sessions.add(Session(name, cell.image, launch, idle=IDLE_SECONDS))
        if found.image != cell.image:
            raise InvalidOption(f"session {name}: is of image {found.image}", hint=f"%container reset {name} ends it")
        begun = self._begun[name]
        if begun.program != reader.program:
            ours = shlex.join(begun.program)
            raise InvalidOption(f"session {name}: runs {ours}, not {shlex.join(reader.program)}", hint="take another name for this one")
        begun.refuse_others(name, cell.options)
        return found

    def _forget(self, name: str) -> None:
        place = self._places.pop(name, (None, Seen()))[0]
        if place is not None:
            place.close()


def _names_program(cell: RunCell) -> bool:
    return bool(cell.cell.lang or cell.argv or cell.options.entrypoint or cell.body.startswith("#!"))


def _names_other(cell: RunCell, begun: Begun) -> bool:
    """Whether it names a program; `with_image` has named the session's own where it did not."""
    return _names_program(replace(cell, cell=replace(cell.cell, lang=None))) or cell.cell.lang != shlex.join(begun.program)


def reader_of(cell: RunCell, invocation: Invocation, facts: ImageFacts) -> Reader:
    """Who reads the cell: the runner of its language, else a shell of the image that calls the program; InvalidOption without one."""
    program = invocation.interpreter
    runner = runner_for(program[0]) if program else None
    if runner is not None:
        return Reader(program, runner, cell.body)
    shell = next((name for name in ("bash", "sh") if facts.find(name)), "")
    runner = runner_for(shell) if shell else None
    if runner is None:
        raise InvalidOption(f"--session: {facts.name} has no shell to keep {invocation.program} in", hint="leave out --session")
    command, text = shlex.join(flatten(invocation).argv), cell.body.removesuffix("\n")
    body = f"{command} <<'__SANDBOX_CELL__'\n{text}\n__SANDBOX_CELL__" if invocation.body_on_stdin else command
    return Reader((shell,), runner, body)


def safe(cell: RunCell) -> Callable[[Bundle], Bundle]:
    """What makes the displays of this cell harmless."""
    return without_pages if cell.locked else harmless
