"""`run` and `exec` of plain words, read from their tables without click: its import is a sixth of what such a command takes.

What is not plain is left to click's command of the same rows: help, abbreviated and bundled values, anything wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sandbox.cli.caller import invoked
from sandbox.cli.invocation import guarded
from sandbox.cli.programs import EXEC, exec_program, run_options, run_program
from sandbox.cli.terminal import ATTACHED
from sandbox.errors import InvalidOption
from sandbox.options import RUN, Option

Values = dict[str, Any]  # Any: what each row's converter makes


class Words(msgspec.Struct, frozen=True):
    """A command line that was understood: a row of `_VERBS`, the values of its flags by field, the words after them."""

    verb: str
    root: Path | None
    values: Values
    rest: list[str]


def run(argv: Sequence[str]) -> int | None:
    """Run this command line; its exit status, and None when that is for click to read."""
    words = read(argv)
    if words is None:
        return None
    _, _, start = _VERBS[words.verb]
    with invoked(root=words.root):
        return guarded(lambda: start(words), argv)


def read(argv: Sequence[str]) -> Words | None:
    """The command line, if it is a plain one."""
    pending, root = list(argv), None
    if len(pending) > 1 and pending[0] == "--root":
        root, pending = Path(pending[1]), pending[2:]
    if pending[:1] == ["container"]:
        pending = pending[1:]
    if not pending or pending[0] not in _VERBS:
        return None
    verb = pending.pop(0)
    rows, least, _ = _VERBS[verb]
    values: Values = {}
    while pending and pending[0].startswith("-"):
        if not _take(pending, rows, values):
            return None
    return Words(verb, root, values, pending) if len(pending) >= least else None


def _take(pending: list[str], rows: Mapping[str, Option], values: Values) -> bool:
    """Take the flag that comes first, and its value; False for what is not plain."""
    name, equals, text = pending.pop(0).partition("=")
    row = rows.get(name)
    if row is None:
        return not equals and _take_bundle(name, rows, values)
    if row.is_switch:
        values[row.field] = True
        return not equals
    if row.alone or (equals and not name.startswith("--")) or not (equals or pending):
        return False
    try:
        value = (row.convert or str)(text if equals else pending.pop(0))
    except InvalidOption:
        return False
    values[row.field] = (*values.get(row.field, ()), value) if row.repeat else value
    return True


def _take_bundle(word: str, rows: Mapping[str, Option], values: Values) -> bool:
    """`-it`: switches only."""
    found = [rows.get(f"-{letter}") for letter in word[1:]]
    if word.startswith("--") or not found or not all(row is not None and row.is_switch for row in found):
        return False
    values.update({row.field: True for row in found if row is not None})
    return True


def _run(words: Words) -> int:
    return run_program(words.rest[0], words.rest[1:], run_options(words.values), ATTACHED)


def _exec(words: Words) -> int:
    return exec_program(words.rest[0], words.rest[1:], run_options(words.values), ATTACHED)


def _by_name(rows: Sequence[Option]) -> Mapping[str, Option]:
    return {name: row for row in rows for name in row.names}


_VERBS: dict[str, tuple[Mapping[str, Option], int, Callable[[Words], int]]] = {
    "run": (_by_name(RUN), 1, _run),
    "exec": (_by_name(EXEC), 2, _exec),
}
"""Its flags, how many other words it wants at least, and what it does."""
