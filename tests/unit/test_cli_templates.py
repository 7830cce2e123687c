"""The subset of Go's templates that --format takes, and that the rest is refused by name."""

from __future__ import annotations

import json

import pytest

from sandbox.cli.templates import Template, go_text
from sandbox.errors import InvalidOption

FACTS = {
    "ID": "abc",
    "Names": "web",
    "State": {"Pid": 42, "Running": True, "Error": ""},
    "Args": ["-c", "ls"],
    "Labels": {"b": "2", "a": "1"},
    "Nothing": None,
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{{.ID}}", "abc"),
        ("{{ .ID }} is {{.Names}}", "abc is web"),
        (r"{{.ID}}\t{{.Names}}\n", "abc\tweb\n"),
        ("{{.State.Pid}}", "42"),
        ("{{.State.Running}}", "true"),
        ("{{.Args}}", "[-c ls]"),
        ("{{.Labels}}", "map[a:1 b:2]"),
        ("{{.Nothing}}", "<no value>"),
        ("{{json .Args}}", '["-c","ls"]'),
        ("{{json .State}}", '{"Pid":42,"Running":true,"Error":""}'),
        ("{{.Names | upper}}", "WEB"),
        ("{{upper .Names}}", "WEB"),
        ("{{.Args | json}}", '["-c","ls"]'),
        ('{{index .Labels "a"}}', "1"),
        ("{{index .Args 1}}", "ls"),
        ('{{join .Args "+"}}', "-c+ls"),
        ("{{len .Args}}", "2"),
        ("{{truncate .ID 2}}", "ab"),
        ("a {{- .ID -}} b", "aabcb"),
        ('{{"quoted }"}}', "quoted }"),
        ("plain", "plain"),
        ("", ""),
        ("{{`raw`}}", "raw"),
    ],
)
def test_rendered(text: str, shown: str) -> None:
    assert Template.parse(text).render(FACTS) == shown


def test_json_of_everything_is_one_line() -> None:
    assert json.loads(Template.parse("{{json .}}").render(FACTS)) == FACTS


@pytest.mark.parametrize(
    "text",
    [
        "{{range .Args}}{{.}}{{end}}",
        "{{if .ID}}x{{end}}",
        "{{with .ID}}",
        "{{$x := .ID}}",
        '{{printf "%s" .ID}}',
        "{{.ID",
        "{{}}",
        "{{.ID .Names}}",
        "{{.ID | }}",
    ],
)
def test_what_is_not_in_the_subset_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="template"):
        Template.parse(text)


def test_a_refusal_says_what_can_be_used() -> None:
    with pytest.raises(InvalidOption) as caught:
        Template.parse("{{range .Args}}")
    assert "json" in str(caught.value.hint)


def test_an_unknown_field_suggests_one() -> None:
    with pytest.raises(InvalidOption, match=r"no field \.Name$") as caught:
        Template.parse("{{.Name}}").render(FACTS)
    assert caught.value.hint == "did you mean .Names?"


def test_a_field_of_a_text_is_refused() -> None:
    with pytest.raises(InvalidOption, match="has no fields"):
        Template.parse("{{.ID.Pid}}").render(FACTS)


@pytest.mark.parametrize("text", ["{{len .State.Pid}}", "{{json}}", "{{index .Args 9}}"])
def test_a_function_that_cannot_be_applied_is_an_error(text: str) -> None:
    with pytest.raises(InvalidOption, match="template"):
        Template.parse(text).render(FACTS)


@pytest.mark.parametrize(("value", "text"), [(True, "true"), (None, "<no value>"), ((), "[]"), ({}, "map[]"), (1.5, "1.5")])
def test_values_are_printed_as_go_does(value: object, text: str) -> None:
    assert go_text(value) == text
