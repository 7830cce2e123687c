"""docker's tables, JSON lines, ages and sizes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from sandbox.cli.formatting import Field, Listing, age_text, aligned, duration_text, memory_text, quoted, shortened, size_text
from sandbox.errors import InvalidOption

Person = tuple[str, str]
PEOPLE: Listing[Person] = Listing([Field("Name", "NAME", lambda p: p[0]), Field("ID", "PERSON ID", lambda p: p[1])], ["ID", "Name"])
ROWS = [("ada", "1"), ("a very long name", "2")]


def test_columns_are_padded_by_three_and_at_least_ten_wide_but_the_last_is_not() -> None:
    assert aligned([["ID", "CREATED BY", "X"], ["1", "somebody or other", "y"]]) == [
        "ID        CREATED BY          X",
        "1         somebody or other   y",
    ]


def test_a_table_has_headings() -> None:
    assert list(PEOPLE.lines(ROWS, None)) == ["PERSON ID   NAME", "1           ada", "2           a very long name"]


def test_an_empty_table_still_has_headings() -> None:
    assert list(PEOPLE.lines([], None)) == ["PERSON ID   NAME"]


def test_json_is_one_object_a_line_with_sorted_keys() -> None:
    lines = list(PEOPLE.lines(ROWS, "json"))
    assert lines[0] == '{"ID":"1","Name":"ada"}'
    assert [json.loads(line)["ID"] for line in lines] == ["1", "2"]


def test_a_template_makes_a_line_each_without_headings() -> None:
    assert list(PEOPLE.lines(ROWS, "{{.Name}}:{{.ID}}")) == ["ada:1", "a very long name:2"]


def test_a_table_template_has_the_headings_of_its_fields() -> None:
    assert list(PEOPLE.lines(ROWS, r"table {{.Name}}\t{{.ID}}")) == [
        "NAME               PERSON ID",
        "ada                1",
        "a very long name   2",
    ]


def test_json_of_the_whole_row_in_a_template() -> None:
    assert list(PEOPLE.lines(ROWS[:1], "{{json .}}")) == ['{"ID":"1","Name":"ada"}']


def test_a_field_that_is_not_there_is_refused_even_in_headings() -> None:
    with pytest.raises(InvalidOption, match=r"no field \.Nmae"):
        list(PEOPLE.lines([], "table {{.Nmae}}"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"), (119, "About a minute"),
        (120, "2 minutes"), (3599, "59 minutes"), (3600, "About an hour"), (5399, "About an hour"), (5400, "2 hours"),
        (86400, "24 hours"), (47.4 * 3600, "47 hours"),
        (48 * 3600, "2 days"), (13 * 86400, "13 days"), (14 * 86400, "2 weeks"), (59 * 86400, "8 weeks"), (60 * 86400, "2 months"),
        (729 * 86400, "24 months"), (730 * 86400, "2 years"),
    ],
)  # fmt: skip
def test_durations_in_dockers_words(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_an_age_nobody_knows_is_not_available() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert age_text(None, now) == "N/A"
    assert age_text(now - timedelta(minutes=5), now) == "5 minutes ago"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0B"), (999, "999B"), (1000, "1kB"), (4261578, "4.26MB"), (123456789, "123MB"), (1.2e9, "1.2GB")]
)
def test_sizes_are_decimal(size: float, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(("size", "text"), [(512, "512B"), (1024, "1KiB"), (1572864, "1.5MiB"), (67108864, "64MiB")])
def test_memory_is_binary(size: float, text: str) -> None:
    assert memory_text(size) == text


def test_shortened_and_quoted() -> None:
    assert shortened("a" * 20, 20) == "a" * 20
    assert shortened("a" * 21, 20) == "a" * 19 + "…"
    assert quoted('sh -c "x"') == '"sh -c \\"x\\""'
