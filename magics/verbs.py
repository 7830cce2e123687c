"""`%container VERB …`: the command line's verbs, run in this process. What they tell comes back as objects, remarks are printed."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import starmap
from typing import TYPE_CHECKING, Any

from magics.display import say
from sandbox.cli.caller import Caller
from sandbox.cli.formatting import Facts, LayerForest, Lines, Table, Told
from sandbox.cli.templates import go_json
from sandbox.errors import ContainerError

if TYPE_CHECKING:
    from sandbox.cli.transferring import TransferFace

_CELL = "text-align:left;padding:1px 14px 1px 0;white-space:nowrap"


class Listed(Sequence[Mapping[str, object]]):
    """A verb's list: a table in a notebook and in a terminal; in Python a sequence of mappings with docker's keys."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table.records)

    def __getitem__(self, index: int) -> Mapping[str, object]:  # type: ignore[override]  # a slice of a list of rows is no list of ours
        return self._table.records[index]

    def __iter__(self) -> Iterator[Mapping[str, object]]:
        return iter(self._table.records)

    def __repr__(self) -> str:
        return "\n".join(self._table.lines())

    def _repr_html_(self) -> str:
        """Called by IPython's display hook."""
        head = "".join(f'<th style="{_CELL}">{html.escape(text)}</th>' for text in self._table.headers)
        rows = "".join("<tr>" + "".join(map(_html_cell, row)) + "</tr>" for row in self._table.rows)
        style = "border-collapse:collapse;margin:0;font-family:var(--jp-code-font-family,monospace);font-size:90%"
        return f'<table class="sandbox-list" style="{style}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _html_cell(text: str) -> str:
    return f'<td style="{_CELL}">{html.escape(text)}</td>'


class Described(Sequence[Mapping[str, object]]):
    """What a verb knows of one or several objects: its JSON as text; in Python a sequence of mappings, and when it is one object
    the keys of that as well."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def __len__(self) -> int:
        return len(self._facts.objects)

    def __getitem__(self, key: Any) -> Any:  # Any: a number gives an object, a text a value of the only one
        if not isinstance(key, str):
            return self._facts.objects[key]
        if len(self) != 1:
            raise KeyError(f"{key}: there are {len(self)} objects; take one by its number first")
        return self._facts.objects[0][key]

    def __repr__(self) -> str:
        return self._facts.text

    def _repr_html_(self) -> str:
        """Called by IPython's display hook."""
        style = "margin:0;max-height:30em;overflow:auto;font-size:90%"
        return f'<pre class="sandbox-facts" style="{style}">{html.escape(self._facts.text)}</pre>'


class Written(Sequence[str]):
    """Lines in the form that was asked for; in Python a sequence of texts."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines.lines

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: Any) -> Any:  # Any: a number or a slice
        return self._lines[index]

    def __repr__(self) -> str:
        return "\n".join(self._lines)


def verbs_text() -> str:
    """What `%container?` shows of the verbs."""
    from sandbox.cli.program import GROUPS, VERBS

    sections = {
        **{title: {name: verb.help for name, verb in section.items()} for title, section in VERBS.items()},
        "Of this notebook": OWN,
        "Groups": {name: f"{help}: {', '.join(own)}" for name, (help, own) in GROUPS.items()},
    }
    lines = [line for title, rows in sections.items() for line in ("", f"{title}:", *starmap(_help_line, rows.items()))]
    more = "What lists or inspects gives objects: `found = %container ps`; --format and --json make text of them."
    return "\n".join(["usage: %container VERB [ARGUMENTS]", *lines, "", more, "%container VERB --help tells more."])


def _help_line(name: str, help: str) -> str:
    return textwrap.fill(f"  {name:<10}{help}", 120, subsequent_indent=" " * 12)


OWN = {"sessions": "List the sessions of this notebook", "reset": "End sessions: their variables and files go"}


def run_verb(words: Sequence[str], transfers: Callable[[], TransferFace] | None = None) -> object:
    """Run a verb: what it has to tell as an object, None when it only printed. The last one when it tells of several things.

    `--json` makes JSON of whatever it tells; `transfers` makes what shows a pull or push. Raises the verb's own error; ContainerError
    when its exit status is not 0 (it has said why).
    """
    from sandbox.cli.program import run

    if not words or words[0] in ("-h", "--help"):
        say(verbs_text())
        return None
    told: list[Told] = []
    as_json = "--json" in words and words[0] not in PASSES_FLAGS_ON
    code = run([word for word in words if not as_json or word != "--json"], caller=Caller(told.append, transfers))
    found = [_JSON[type(each)](each) if as_json else each for each in told]
    objects = [_OBJECTS[type(each)](each) for each in found]
    if code:
        for each in objects:
            say(repr(each))
        raise ContainerError(f"%container {words[0]}: exit status {code}")
    for each in objects[:-1]:
        say(repr(each))
    return objects[-1] if objects else None


PASSES_FLAGS_ON = ("run", "exec", "create")


def _layer_map(forest: LayerForest) -> object:
    from magics.treemap import LayerMap

    return LayerMap(forest)


_OBJECTS: dict[type, Callable[[Any], object]] = {  # Any: each takes its own type
    Table: Listed, Facts: Described, LayerForest: _layer_map, Lines: Written,
}  # fmt: skip

_JSON: dict[type, Callable[[Any], Told]] = {
    Table: lambda table: Lines(tuple(go_json(record) for record in table.records)),
    Facts: lambda facts: Lines((go_json(facts.objects),)),
    LayerForest: lambda forest: Lines((go_json(forest.objects),)),
    Lines: lambda lines: lines if _is_json(lines) else Lines((go_json(lines.lines),)),
}


def _is_json(lines: Lines) -> bool:
    """Whether a verb that knows --format json has said it so."""
    return bool(lines.lines) and all(line[:1] in "[{" for line in lines.lines)
