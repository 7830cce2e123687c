"""docker's flag values as sandbox.options reads them."""

from __future__ import annotations

import signal

import pytest

from sandbox import options
from sandbox.errors import InvalidOption


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("512", 512), ("512b", 512), ("1k", 1024), ("64m", 64 << 20), ("64M", 64 << 20), ("64mb", 64 << 20),
        ("1.5g", 3 << 29), ("2GiB", 2 << 30), ("-1", -1),
    ],
)  # fmt: skip
def test_sizes_are_binary_and_any_case(text: str, size: int) -> None:
    assert options.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "12q", "-5", "1 2", "1.2.3g", "0x10", "١٢x"])
def test_a_size_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidOption, match="not a number") as caught:
        options.parse_size(text)
    assert caught.value.hint == "write 512m or 2g"


@pytest.mark.parametrize(("text", "seconds"), [("5", 5), ("5s", 5), ("1m30s", 90), ("500ms", 0.5), ("1h", 3600), ("1.5h", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert options.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "5x", "1m x", "-5s", "5s "[:2] + "!"])
def test_a_duration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="duration"):
        options.parse_duration(text)


@pytest.mark.parametrize("text", ["TERM", "SIGTERM", "term", "15"])
def test_a_signal_has_a_name_or_a_number(text: str) -> None:
    assert options.parse_signal(text) == signal.SIGTERM


@pytest.mark.parametrize("text", ["", "0", "65", "NOPE", "_DFL", "SIG_IGN", "-9"])
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="not known"):
        options.parse_signal(text)


@pytest.mark.parametrize(
    ("text", "parsed"), [("nofile=1024", ("nofile", 1024, 1024)), ("nofile=1:2", ("nofile", 1, 2)), ("core=-1", ("core", -1, -1))]
)
def test_ulimits(text: str, parsed: tuple[str, int, int]) -> None:
    assert options.parse_ulimit(text) == parsed


@pytest.mark.parametrize("text", ["nofile", "nofile=", "=1", "nofile=1:2:3"])
def test_what_is_no_ulimit_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="ulimit"):
        options.parse_ulimit(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x", ""])
def test_cpus_are_above_zero(text: str) -> None:
    with pytest.raises(InvalidOption):
        options.parse_positive(text)


@pytest.mark.parametrize(("rows", "made"), [(options.RUN, options.RunOptions()), (options.BUILD, options.BuildOptions())])
def test_every_row_fills_a_field_and_no_flag_is_twice(rows: tuple[options.Option, ...], made: object) -> None:
    names = [name for row in rows for name in row.names]
    assert len(names) == len(set(names))
    for row in rows:
        default = getattr(made, row.field)
        assert isinstance(default, tuple) == row.repeat, row.field
        assert (default is False) == row.is_switch, row.field


ENV_FILE = "\n".join([
    "# a comment",
    "",
    "PLAIN=1",
    "   INDENTED=kept",
    'QUOTED="with quotes"',
    "TRAILING=blanks  ",
    "HASH=a # no comment",
    "EMPTY=",
    "EQUALS=a=b",
    "FROM_HERE",
    "NOT_HERE",
])  # fmt: skip


def test_an_env_file_is_read_by_dockers_rules() -> None:
    lines = options.parse_env_file(ENV_FILE)
    assert options.with_environment(lines, {"FROM_HERE": "outside"}) == (
        "PLAIN=1",
        "INDENTED=kept",
        'QUOTED="with quotes"',
        "TRAILING=blanks  ",
        "HASH=a # no comment",
        "EMPTY=",
        "EQUALS=a=b",
        "FROM_HERE=outside",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [("A=1\n=x", "line 2: no variable name"), ("A B=1", "line 1: variable 'A B' contains blanks"), ("A =1", "contains blanks")],
)
def test_a_bad_env_file_line_is_named(text: str, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        options.parse_env_file(text)


def test_windows_line_ends_are_no_part_of_a_value() -> None:
    assert options.parse_env_file("A=1\r\nB=2\r\n") == ("A=1", "B=2")


def test_a_bare_name_takes_its_value_from_here_or_is_left_out() -> None:
    assert options.with_environment(["A=1", "B", "C"], {"B": "", "A": "no"}) == ("A=1", "B=")


def test_an_environment_entry_without_a_name_is_refused() -> None:
    with pytest.raises(InvalidOption, match="no variable name"):
        options.with_environment(["=x"], {})
