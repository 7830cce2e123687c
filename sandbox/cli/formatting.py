"""Rows of docker's lists: columns, widths, `--format json`, templates, and how docker writes sizes and ages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Generic, TypeVar

import click
import msgspec

from sandbox.cli.caller import caller_here
from sandbox.cli.templates import Template, go_json

Item = TypeVar("Item")
_MINIMUM, _GAP = 10, 3  # docker's tabwriter


class Field(msgspec.Struct, Generic[Item], frozen=True):
    """One thing a list can show: docker's key for it, the heading of its column, its text."""

    key: str
    header: str
    value: Callable[[Item], str]


class Row(Mapping[str, object], Generic[Item]):
    """One item as a mapping from docker's keys to texts, each made when asked for."""

    def __init__(self, fields: Mapping[str, Field[Item]], item: Item) -> None:
        self._fields, self._item = fields, item

    def __getitem__(self, key: str) -> str:
        return self._fields[key].value(self._item)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._fields))

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return repr(dict(self))


class Table(msgspec.Struct, frozen=True):
    """A list as a caller in this process gets it instead of text: headings, cells, and each item as docker's keys and texts."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    records: tuple[Mapping[str, object], ...]

    def lines(self) -> list[str]:
        """The table as the terminal shows it."""
        return aligned([self.headers, *self.rows])


class Facts(msgspec.Struct, frozen=True):
    """What is known of some objects, each as docker's JSON has it, and the text that says it."""

    objects: tuple[Mapping[str, object], ...]
    text: str


class LayerForest(Facts, frozen=True):
    """Layers, each with those that stand on it as `Children`, which a notebook also draws."""


class Lines(msgspec.Struct, frozen=True):
    """Lines in a form that was asked for: a template's, JSON's, names."""

    lines: tuple[str, ...]


Told = Table | Facts | Lines
"""What a verb has to say, when it is more than a remark."""


def show(told: Told) -> None:
    """Give it to whoever called `run` in this process and asked for objects, else print it."""
    if caller := caller_here():
        caller.take(told)
        return
    for line in text_lines(told):
        click.echo(line)


def text_lines(told: Told) -> Sequence[str]:
    """It as the terminal shows it."""
    if isinstance(told, Table):
        return told.lines()
    return (told.text,) if isinstance(told, Facts) else told.lines


class Listing(Generic[Item]):
    """A kind of list: all its fields, and which of them are columns when nothing is said."""

    def __init__(self, fields: Sequence[Field[Item]], columns: Sequence[str]) -> None:
        self.fields = {field.key: field for field in fields}
        self.columns = tuple(columns)

    def lines(self, items: Iterable[Item], format: str | None, *, columns: Sequence[str] | None = None) -> Iterator[str]:
        """The list in `format`: None or `table`, `json`, `table TEMPLATE` or a template."""
        rows = (Row(self.fields, item) for item in items)
        if format == "json":
            yield from (go_json(row) for row in rows)
        elif format is None or format == "table":
            yield from self.table(rows, columns or self.columns).lines()
        elif format.startswith("table "):
            yield from self._template_table(rows, Template.parse(format.removeprefix("table ").lstrip()))
        else:
            template = Template.parse(format)
            yield from (template.render(row) for row in rows)

    def table(self, rows: Iterable[Row[Item]], columns: Sequence[str]) -> Table:
        """The rows in these columns."""
        headers = tuple(self.fields[key].header for key in columns)
        records = tuple(rows)
        return Table(headers, tuple(tuple(row[key] for key in columns) for row in records), records)

    def _template_table(self, rows: Iterable[Row[Item]], template: Template) -> list[str]:
        headers = {key: field.header for key, field in self.fields.items()}
        texts = [template.render(headers), *(template.render(row) for row in rows)]
        return aligned([text.split("\t") for text in texts])

    def show(self, items: Iterable[Item], format: str | None, *, columns: Sequence[str] | None = None) -> None:
        """Print the list, or give it to a caller in this process."""
        if format in (None, "table"):
            show(self.table((Row(self.fields, item) for item in items), columns or self.columns))
        else:
            show(Lines(tuple(self.lines(items, format, columns=columns))))


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """The cells of each column one below the other, as docker's tabwriter puts them; the last column is not padded."""
    count = max((len(row) for row in table), default=0)
    widths = [max(_MINIMUM, *(len(row[i]) + _GAP for row in table if i < len(row) - 1), 0) for i in range(count)]
    return ["".join(cell.ljust(widths[i]) if i < len(row) - 1 else cell for i, cell in enumerate(row)) for row in table]


_AGES: tuple[tuple[float, str, float], ...] = (
    # below this many seconds, said so, in units of so many seconds
    (60, "{} seconds", 1),
    (120, "About a minute", 1),
    (3600, "{} minutes", 60),
    (5400, "About an hour", 1),
    (48 * 3600 - 1800, "{} hours", 3600),
    (14 * 86400, "{} days", 86400),
    (60 * 86400, "{} weeks", 7 * 86400),
    (730 * 86400, "{} months", 30 * 86400),
)


def duration_text(seconds: float) -> str:
    """docker's `5 minutes`, `About an hour`, `3 weeks`."""
    if seconds < 1:
        return "Less than a second"
    if seconds < 2:
        return "1 second"
    for limit, text, unit in _AGES:
        if seconds < limit:
            amount = seconds / unit + (0.5 if unit == 3600 else 0)  # docker rounds hours and cuts the others
            return text.format(int(amount))
    return f"{int(seconds // (365 * 86400))} years"


def age_text(then: datetime | None, now: datetime) -> str:
    """`5 minutes ago`; `N/A` when nobody knows."""
    return "N/A" if then is None else f"{duration_text((now - then).total_seconds())} ago"


def time_text(moment: datetime | None) -> str:
    """docker's CreatedAt: `2026-11-24 00:05:00 +0000 UTC`."""
    if moment is None:
        return "N/A"
    local = moment.astimezone()
    return local.strftime("%Y-%m-%d %H:%M:%S %z %Z")


def seconds_text(seconds: float) -> str:
    """`0.4 s`, `12.0 s`, `3 min 5 s`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def size_text(size: float, precision: int = 3) -> str:
    """Decimal, as docker writes an image's size: `4.26MB`."""
    return _scaled(size, 1000, ("B", "kB", "MB", "GB", "TB", "PB"), precision)


def memory_text(size: float) -> str:
    """Binary, as docker stats writes memory: `1.5MiB`."""
    return _scaled(size, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"), 4)


def _scaled(size: float, base: int, units: Sequence[str], precision: int) -> str:
    value, place = float(size), 0
    while value >= base and place < len(units) - 1:
        value, place = value / base, place + 1
    text = f"{value:.{precision}g}"
    return f"{float(text):g}{units[place]}"


def shortened(text: str, length: int) -> str:
    """At most `length` characters, the last one `…` when something is missing."""
    return text if len(text) <= length else text[: length - 1] + "…"


def quoted(text: str) -> str:
    """In double quotes, as Go's strconv.Quote writes a command."""
    return json.dumps(text, ensure_ascii=False)


def labels_text(labels: Mapping[str, str]) -> str:
    """`a=b,c=d`."""
    return ",".join(f"{key}={value}" for key, value in labels.items())


def short_id(identifier: str) -> str:
    """The first 12 hex digits."""
    return identifier.removeprefix("sha256:")[:12]
