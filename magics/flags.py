"""The flags of a magic line, by rows: docker's from `sandbox.options`, a notebook's own from the cells' tables."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from sandbox.errors import InvalidOption
from sandbox.options import Option

Values = dict[str, Any]  # Any: each row's converter has a type of its own; a field's type is checked by its dataclass

HELP = Option(("-h", "--help"), "help", "show this", convert=None)

LATER: dict[str, str] = {
    "--gpus": "GPUs",
    "--platform": "programs of other platforms",
}
"""Flags of docker's that are not built: refused by name, never ignored."""

_INSTEAD = {
    "--gpus": "--device /dev/NAME gives a device of the host",
    "--platform": "`%container pull --platform` brings an image of another one",
}

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
        raise _unknown(name if word.startswith("--") else short if short in LATER else name, by_name)
    if not by_name[short].is_switch:
        return [(by_name[short], short, word[2:])]
    return [(by_name[short], short, None), *_flags("-" + word[2:], by_name)]


def _unknown(name: str, by_name: Mapping[str, Option]) -> InvalidOption:
    if name in LATER:
        return InvalidOption(f"{name}: not supported ({LATER[name]})", hint=_INSTEAD.get(name))
    near = difflib.get_close_matches(name, by_name, n=1)
    return InvalidOption(f"{name}: no such option", hint=f"did you mean {near[0]}?" if near else "--help lists them")


def _store(values: Values, row: Option, name: str, text: str | None, pending: list[str]) -> None:
    if row.convert is None:
        values[row.field] = text if row.metavar and text else _switch(name, text)
        return
    if text is None and row.alone:
        text = row.alone
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


def take(values: Values, *names: str) -> Values:
    """These values, taken out."""
    return {name: values.pop(name) for name in names if name in values}


class Usage(msgspec.Struct, frozen=True):
    """The head of a magic's `--help`."""

    synopsis: str
    about: str
    rows: tuple[Option, ...]

    def text(self) -> str:
        """What `--help` shows."""
        lefts = [_left(row) for row in self.rows]
        width = max(map(len, lefts), default=0) + 2
        lines = [f"  {left:<{width}}{row.help}" for left, row in zip(lefts, self.rows, strict=True)]
        return "\n".join([f"usage: {self.synopsis}", "", self.about, *([""] if lines else []), *lines])


def _left(row: Option) -> str:
    return ", ".join(row.names) + (f"{'' if row.is_switch else ' '}{row.metavar}" if row.metavar else "")
