"""-f KEY=VALUE."""

from __future__ import annotations

import pytest

from sandbox.cli.filters import has_label, is_true, name_matches, parse_filters, reference_matches
from sandbox.errors import InvalidOption

Item = dict[str, str]
TESTS = {"name": lambda item, text: name_matches(item["name"], text), "label": lambda item, text: has_label(item, text)}
WEB, JOB = {"name": "web-1", "env": "prod", "team": "a"}, {"name": "job", "env": "test"}


def passing(*texts: str) -> list[str]:
    return [item["name"] for item in filter(parse_filters(texts, TESTS), [WEB, JOB])]


def test_no_filter_passes_everything() -> None:
    assert passing() == ["web-1", "job"]


def test_the_same_key_twice_means_either() -> None:
    assert passing("name=web", "name=job") == ["web-1", "job"]


def test_different_keys_mean_both() -> None:
    assert passing("name=.", "label=env=prod") == ["web-1"]


def test_labels_must_all_be_there() -> None:
    assert passing("label=env", "label=team=a") == ["web-1"]
    assert passing("label=env", "label=team=b") == []


@pytest.mark.parametrize(("text", "message"), [("name", "not of the form"), ("nam=x", "not supported here")])
def test_a_filter_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidOption, match=message) as caught:
        parse_filters([text], TESTS)
    assert "name" in str(caught.value.hint)


def test_a_name_is_a_regular_expression_found_anywhere() -> None:
    assert name_matches("web-1", "^web")
    assert name_matches("web-1", "b-")
    assert not name_matches("web-1", "^b")
    with pytest.raises(InvalidOption, match="regular expression"):
        name_matches("x", "(")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("busybox", True), ("busy*", True), ("busybox:latest", True), ("busybox:1*", False), ("*", True), ("*/*", False), ("local*", False)],
)
def test_references_match_by_dockers_rule(pattern: str, found: bool) -> None:
    assert reference_matches("busybox", "latest", pattern) is found


def test_a_star_stops_at_a_slash() -> None:
    assert not reference_matches("localhost/python", "latest", "local*")
    assert reference_matches("localhost/python", "latest", "localhost/*")


def test_yes_and_no() -> None:
    assert is_true("true")
    assert not is_true("0")
    with pytest.raises(InvalidOption, match="not true or false"):
        is_true("maybe")
