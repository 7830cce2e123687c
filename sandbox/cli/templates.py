"""docker's `--format '{{.ID}}'`: a small, honest subset of Go's templates. What is not in it is an error that says so.

Field access (`{{.State.Pid}}`, `{{.}}`), text, and a few functions (`{{json .Config}}`, `{{index .Labels "x"}}`), also piped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

import msgspec

from sandbox.errors import InvalidOption

_ACTION = re.compile(r"\{\{(-?)(.*?)(-?)\}\}", re.DOTALL)
_WORD = re.compile(r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?\d+)|(?P<field>\.[\w.]*)|(?P<name>\w+)|(?P<pipe>\|))""")
_SUBSET = "fields such as {{.ID}}, {{json .}}, and the functions index, join, len, lower, println, split, title, truncate, upper"


def _index(value: object, *keys: object) -> object:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(str(key), "")
        elif isinstance(value, Sequence) and isinstance(key, int) and 0 <= key < len(value):
            value = value[key]
        else:
            raise InvalidOption(f"template: index: no {key!r} in {go_text(value)}")
    return value


FUNCTIONS: dict[str, Callable[..., object]] = {
    "index": _index,
    "join": lambda items, separator: str(separator).join(map(go_text, items)),
    "json": lambda value: go_json(value),
    "len": len,
    "lower": lambda text: str(text).lower(),
    "println": lambda *values: " ".join(map(go_text, values)) + "\n",
    "split": lambda text, separator: str(text).split(separator),
    "title": lambda text: str(text).title(),
    "truncate": lambda text, length: str(text)[:length],
    "upper": lambda text: str(text).upper(),
}


class Call(msgspec.Struct, frozen=True):
    """One command of a pipeline: a function with operands, or a single operand when `function` is None."""

    function: str | None
    operands: tuple[object, ...]


class Path(msgspec.Struct, frozen=True):
    """An operand that is looked up: `.State.Pid`."""

    names: tuple[str, ...]


Part = str | tuple[Call, ...]


class Template(msgspec.Struct, frozen=True):
    """A parsed template. `parse` raises InvalidOption for anything outside the subset."""

    parts: tuple[Part, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        r"""`\t` and `\n` outside the braces are a tab and a line end, as in docker."""
        parts: list[Part] = []
        place = 0
        trim_next = ""
        for match in _ACTION.finditer(text):
            parts.append(_plain(text[place : match.start()], trim_next, match[1]))
            parts.append(_pipeline(match[2]))
            place, trim_next = match.end(), match[3]
        rest = text[place:]
        if "{{" in rest:
            raise InvalidOption(f"template {text!r}: unclosed {{{{")
        return cls((*parts, _plain(rest, trim_next, "")))

    def render(self, item: object) -> str:
        """The text for one item (a mapping, or anything `{{.}}` and `{{json .}}` can print)."""
        return "".join(part if isinstance(part, str) else go_text(_run(part, item)) for part in self.parts)

    @property
    def fields(self) -> tuple[str, ...]:
        """The first names of all fields used, in order."""
        calls = [call for part in self.parts if not isinstance(part, str) for call in part]
        return tuple(p.names[0] for call in calls for p in call.operands if isinstance(p, Path) and p.names)


def _plain(text: str, trim_left: str, trim_right: str) -> str:
    text = text.replace("\\t", "\t").replace("\\n", "\n")
    text = text.lstrip() if trim_left else text
    return text.rstrip() if trim_right else text


def _pipeline(text: str) -> tuple[Call, ...]:
    """The commands between two braces."""
    calls: list[Call] = []
    for words in _split_pipes(text):
        first, *rest = words
        if isinstance(first, str) and first in FUNCTIONS:
            calls.append(Call(first, tuple(map(_operand, rest))))
        elif rest or (calls and not isinstance(first, str)):
            raise InvalidOption(f"template {{{{{text}}}}}: not understood", hint=f"--format takes {_SUBSET}")
        else:
            calls.append(Call(None, (_operand(first),)))
    return tuple(calls)


class _Literal(tuple[object]):
    """A quoted text or number, told apart from a bare word."""


def _split_pipes(text: str) -> list[list[object]]:
    commands: list[list[object]] = [[]]
    place = 0
    while text[place:].strip():
        match = _WORD.match(text, place)
        if not match:
            raise InvalidOption(f"template {{{{{text}}}}}: not understood at {text[place:].strip()!r}", hint=f"--format takes {_SUBSET}")
        place = match.end()
        if match["pipe"]:
            commands.append([])
        else:
            commands[-1].append(_word(match))
    if not all(commands):
        raise InvalidOption(f"template {{{{{text}}}}}: nothing to print", hint=f"--format takes {_SUBSET}")
    return commands


def _word(match: re.Match[str]) -> object:
    if match["text"]:
        quoted = match["text"]
        return _Literal((quoted[1:-1] if quoted[0] == "`" else json.loads(quoted, strict=False),))
    if match["number"]:
        return _Literal((int(match["number"]),))
    if match["field"]:
        return Path(tuple(name for name in match["field"].split(".") if name))
    return match["name"]


def _operand(word: object) -> object:
    if isinstance(word, str):
        raise InvalidOption(f"template: {word!r} is not supported", hint=f"--format takes {_SUBSET}")
    return word[0] if isinstance(word, _Literal) else word


def _run(calls: Sequence[Call], item: object) -> object:
    value: object = None
    for number, call in enumerate(calls):
        operands = [_look_up(item, o.names) if isinstance(o, Path) else o for o in call.operands]
        if call.function is None:
            value = operands[0]
            continue
        value = _apply(call.function, operands + ([value] if number else []))
    return value


def _apply(name: str, operands: Sequence[object]) -> object:
    try:
        return FUNCTIONS[name](*operands)
    except (TypeError, ValueError) as err:
        raise InvalidOption(f"template: {name}: cannot be applied to {', '.join(map(go_text, operands)) or 'nothing'}") from err


def _look_up(item: object, names: Sequence[str]) -> object:
    for name in names:
        if not isinstance(item, Mapping):
            raise InvalidOption(f"template: .{name}: {go_text(item)} has no fields")
        if name not in item:
            near = get_close_matches(name, list(item), n=1)
            raise InvalidOption(f"template: no field .{name}", hint=f"did you mean .{near[0]}?" if near else f"fields: {', '.join(item)}")
        item = item[name]
    return item


def go_json(value: object) -> str:
    """JSON on one line, as Go writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=_as_dict)


def _as_dict(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__}: no JSON")


def go_text(value: object) -> str:
    """A value as Go's templates print it: `true`, `[a b]`, `map[k:v]`, `<no value>`."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{go_text(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, list | tuple):
        return "[" + " ".join(map(go_text, value)) + "]"
    return str(value)
