"""A magic line as words: shell quoting, with `{expr}` and `$name` filled in from Python.

IPython's own expansion is switched off for our magics: there one unknown `$NAME` leaves the whole line unexpanded, and
`{{.ID}}` becomes `{.ID}`. Here each piece stands alone, single quotes protect (so `sh -c 'echo $HOME'` reaches the
container as written), `{{…}}` stays, and a value with spaces stays one word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sandbox.errors import InvalidOption

_PIECE = re.compile(
    r"""(?P<space>\s+)
      | '(?P<single>[^']*)'
      | "(?P<double>(?:\\.|[^"\\])*)"
      | \\(?P<escaped>.)
      | (?P<verbatim>\{\{.*?\}\}|\{\}|\$\$)
      | (?P<expr>\{[^{}]*\})
      | (?P<name>\$(?:\{[A-Za-z_]\w*\}|[A-Za-z_]\w*))
      | (?P<bare>[^\s'"\\{$]+|[{$])
      | (?P<open>['"\\])""",
    re.VERBOSE | re.DOTALL,
)
_INSIDE_DOUBLE = re.compile(
    r"""\\(?P<escaped>["\\$`])|(?P<verbatim>\{\{.*?\}\}|\{\}|\$\$)|(?P<expr>\{[^{}\\]*\})|(?P<name>\$(?:\{[A-Za-z_]\w*\}|[A-Za-z_]\w*))"""
)

Lookup = Callable[[str], object]


class Namespace:
    """What `{expr}` and `$name` mean: the user's variables first, then the environment."""

    def __init__(self, variables: Mapping[str, Any], environ: Mapping[str, str], *, expressions: bool = True) -> None:  # Any: a namespace
        self._variables = variables
        self._environ = environ
        self._expressions = expressions

    def value(self, name: str) -> str | None:
        """The variable or environment variable of that name as text; None when there is neither."""
        if name in self._variables:
            return str(self._variables[name])
        return self._environ.get(name)

    def evaluate(self, expression: str) -> str | None:
        """The expression's value as text; None when it is no Python expression (then it was never meant as one), or none is evaluated."""
        if not self._expressions:
            return None
        try:
            code = compile(expression.strip(), "<magic line>", "eval")
        except SyntaxError:
            return None
        try:
            return str(eval(code, dict(self._variables)))
        except Exception as err:  # whatever the user's expression raises is the user's to see, as one line
            raise InvalidOption(f"{{{expression}}}: {type(err).__name__}: {err}", hint="write {{…}} to keep braces as they are") from err


def split_line(line: str, namespace: Namespace) -> list[str]:
    """The words of a magic line, quotes removed and expansion done; InvalidOption when a quote is left open."""
    words: list[str] = []
    word: str | None = None
    for match in _PIECE.finditer(line):
        kind, text = _kind(match)
        if kind == "space":
            words.extend([] if word is None else [word])
            word = None
            continue
        if kind == "open":
            raise InvalidOption(f"{line[match.start() :].strip()}: {_OPEN[text]}")
        word = (word or "") + _EXPAND[kind](text, namespace)
    return words + ([] if word is None else [word])


_OPEN = {"'": "quote ' is never closed", '"': 'quote " is never closed', "\\": "nothing follows the backslash"}


def _kind(match: re.Match[str]) -> tuple[str, str]:
    kind = match.lastgroup or "bare"
    return kind, match[kind]


def _expand_expression(text: str, namespace: Namespace) -> str:
    value = namespace.evaluate(text[1:-1])
    return text if value is None else value


def _expand_name(text: str, namespace: Namespace) -> str:
    value = namespace.value(text.strip("${}"))
    return text if value is None else value


def _expand_double(text: str, namespace: Namespace) -> str:
    def replace(match: re.Match[str]) -> str:
        kind, piece = _kind(match)
        return _EXPAND[kind](piece, namespace)

    return _INSIDE_DOUBLE.sub(replace, text)


def _keep(text: str, namespace: Namespace) -> str:
    return text


def _keep_verbatim(text: str, namespace: Namespace) -> str:
    return "$" if text == "$$" else text


_EXPAND: dict[str, Callable[[str, Namespace], str]] = {
    "single": _keep,
    "escaped": _keep,
    "bare": _keep,
    "verbatim": _keep_verbatim,
    "double": _expand_double,
    "expr": _expand_expression,
    "name": _expand_name,
}


def join_continuations(line: str, body: str) -> tuple[str, str, int]:
    """A magic line that ends in a backslash goes on in the cell's next line, as in a shell.

    Returns the whole line, what is left of the body, and how many lines of the cell the magic line took.
    """
    taken, rest = 1, body
    while _ends_in_backslash(line) and rest:
        following, _, rest = rest.partition("\n")
        line = line.rstrip()[:-1] + " " + following
        taken += 1
    if _ends_in_backslash(line):
        line = line.rstrip()[:-1]
    return line, rest, taken


def _ends_in_backslash(line: str) -> bool:
    stripped = line.rstrip()
    return (len(stripped) - len(stripped.rstrip("\\"))) % 2 == 1


def first_words(body: str) -> Iterator[str]:
    """The first word of each line of a Dockerfile body that is neither blank nor a comment."""
    for line in body.splitlines():
        if (stripped := line.strip()) and not stripped.startswith("#"):
            yield stripped.split(None, 1)[0]
