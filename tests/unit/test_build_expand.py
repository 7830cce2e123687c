"""Words of a Dockerfile expand as BuildKit expands them, and only where it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.build import instructions as ins
from sandbox.build.dockerfile import parse
from sandbox.build.expand import Expander, define_args, expand, global_args, overtaken, platform_args, scope
from sandbox.build.source import SourceText, Span
from sandbox.errors import DockerfileError
from sandbox.oci import Platform

TABLE = Path(__file__).parents[1] / "golden" / "build" / "expansion.txt"
ENV = {"X": "foobarbaz", "E": "", "H": "한국어", "P": "/usr/lib:/lib", "S": "two words"}
LINUX = Platform("amd64", "linux")


def table() -> list[tuple[str, str]]:
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return [(word.strip(), expected.strip()) for word, _, expected in (line.partition(" |") for line in lines)]


def expander(env: dict[str, str] = ENV, text: str = "FROM a", escape: str = "\\") -> Expander:
    return Expander(env, escape, SourceText.of(text, "Dockerfile"), Span(1, 1))


def expanded(word: str) -> str:
    try:
        return expander(text=f"ENV A={word}").word(word)
    except DockerfileError as err:
        return "error: " + str(err).removeprefix("Dockerfile line 1: ")


def test_the_table_is_read() -> None:
    assert len(table()) > 60


@pytest.mark.parametrize(("word", "expected"), table())
def test_word_expands_as_the_table_says(word: str, expected: str) -> None:
    assert expanded(word) == expected


BUILDKIT_ENV = {"PWD": "/home", "SHELL": "bash", "KOREAN": "한국어", "NULL": ""}


def rows(name: str) -> list[list[str]]:
    """The lines of a golden table, split at their bars."""
    lines = TABLE.with_name(name).read_text(encoding="utf-8").splitlines()
    return [[part.strip() for part in line.split(" |")] for line in lines if line.strip() and not line.startswith("#")]


def result(word: str, env: dict[str, str]) -> str:
    try:
        return expander(env, text=f"ENV A={word}").word(word)
    except DockerfileError:
        return "error"


@pytest.mark.parametrize(("word", "expected"), rows("expansion-buildkit.txt"))
def test_word_expands_as_buildkits_table_says(word: str, expected: str) -> None:
    assert result(word, BUILDKIT_ENV) == expected


@pytest.mark.parametrize(("variables", "word", "expected"), rows("expansion-patterns.txt"))
def test_pattern_expands_as_in_buildkits_cases(variables: str, word: str, expected: str) -> None:
    env = dict(pair.split("=", 1) for pair in variables.split(";") if pair)
    assert result(word, env) == expected


def word_cases() -> list[tuple[dict[str, str], str, list[str]]]:
    env: dict[str, str] = {}
    cases = []
    for line in TABLE.with_name("words.txt").read_text(encoding="utf-8").splitlines():
        text = line.replace("␣", " ")
        if line.startswith("ENV "):
            name, _, value = text.removeprefix("ENV ").partition("=")
            env = {**env, name: value}
        elif line and not line.startswith("#"):
            words, _, expected = text.partition(" | ")
            cases.append((env, words, expected.split(",")))
    return cases


@pytest.mark.parametrize(("env", "line", "expected"), word_cases())
def test_line_splits_as_buildkits_table_says(env: dict[str, str], line: str, expected: list[str]) -> None:
    try:
        assert expander(env, text=f"EXPOSE {line}").words(line) == expected
    except DockerfileError:
        assert expected == ["error"]


def test_the_tables_are_read() -> None:
    assert (len(rows("expansion-buildkit.txt")) > 100, len(rows("expansion-patterns.txt")) > 30, len(word_cases()) > 18) == (True,) * 3


def test_an_error_points_at_the_word() -> None:
    with pytest.raises(DockerfileError) as caught:
        expander(text="ENV A=${U:?no}").word("${U:?no}")
    assert caught.value.excerpt.splitlines()[1].index("^") == caught.value.excerpt.splitlines()[0].index("$")


def test_the_escape_directive_changes_the_escape_character() -> None:
    assert expander(escape="`").word("a\\b`$X") == "a\\b$X"


def test_words_split_what_a_variable_brought_unless_quoted() -> None:
    assert expander().words('$S "$S" a') == ["two", "words", "two words", "a"]


def test_quotes_in_a_heredoc_are_text() -> None:
    assert expander().body("'$X' \"$E\"\n") == "'foobarbaz' \"\"\n"


def instruction(line: str) -> ins.Instruction:
    return parse(f"FROM a\n{line}\n").instructions[1]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ENV A=$X B$X=1", (("A", "foobarbaz"), ("Bfoobarbaz", "1"))),
        ("ENV A=b A2=$A", (("A", "b"), ("A2", ""))),  # the environment before the instruction counts
        ("ENV A $X and more", (("A", "foobarbaz and more"),)),
        ("LABEL $X=$S", (("foobarbaz", "two words"),)),
    ],
)
def test_pairs_expand(line: str, expected: object) -> None:
    found = expand(instruction(line), expander())
    assert isinstance(found, (ins.Env, ins.Label))
    assert found.pairs == expected


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ("WORKDIR /a/$X", "path", "/a/foobarbaz"),
        ("USER $X:$E", "user", "foobarbaz:"),
        ("STOPSIGNAL ${U:-SIGINT}", "signal", "SIGINT"),
        ("VOLUME /$X $S", "paths", ("/foobarbaz", "two words")),
        ("EXPOSE $S 1", "ports", ("two", "words", "1")),
        ("COPY --chown=$X --chmod=$E a$X $S/", "sources", ("afoobarbaz",)),
        ("COPY --chown=$X a $S/", "destination", "two words/"),
        ("COPY --chown=$X a b", "chown", "foobarbaz"),
        ("COPY --from=x $X b", "sources", ("foobarbaz",)),
        ("ADD --chmod=${U:-755} a b", "chmod", "755"),
        ('COPY ["$X", "b c"]', "destination", "b c"),
    ],
)
def test_words_of_these_instructions_expand(line: str, field: str, expected: object) -> None:
    assert getattr(expand(instruction(line), expander()), field) == expected


@pytest.mark.parametrize(
    "line",
    ["RUN echo $X", 'RUN ["$X"]', "CMD $X", "ENTRYPOINT $X", 'SHELL ["$X"]', "HEALTHCHECK CMD $X", "ONBUILD ENV A=$X", "MAINTAINER $X"],
)
def test_these_instructions_do_not_expand(line: str) -> None:
    before = instruction(line)
    assert expand(before, expander()) == before


def test_heredoc_of_copy_expands_unless_its_name_is_quoted() -> None:
    parsed = parse("FROM a\nCOPY <<A <<'B' /x/\n$X\nA\n$X\nB\n").instructions[1]
    found = expand(parsed, expander())
    assert isinstance(found, ins.Copy)
    assert [heredoc.content for heredoc in found.heredocs] == ["foobarbaz\n", "$X\n"]


# ARG


def globals_of(text: str, given: dict[str, str]) -> dict[str, str]:
    parsed = parse(text + "\nFROM a\n")
    args = [i for i in parsed.instructions if isinstance(i, ins.Arg)]
    return global_args(args, given, platform_args(LINUX, LINUX), "\\", parsed.source)


def defined(line: str, given: dict[str, str], inherited: dict[str, str], env: dict[str, str] | None = None) -> dict[str, str | None]:
    arg = instruction(line)
    assert isinstance(arg, ins.Arg)
    return dict(define_args(arg, expander(env or {}), given, inherited))


def test_arguments_before_from_see_each_other_and_the_given_values() -> None:
    found = globals_of("ARG A=1\nARG B=$A-x C", {"A": "2"})
    assert (found["A"], found["B"], found.get("C")) == ("2", "2-x", None)


def test_predefined_platform_arguments() -> None:
    found = globals_of("ARG D=x-$TARGETARCH", {})
    assert found["D"] == "x-amd64"
    assert (found["TARGETPLATFORM"], found["BUILDOS"], found["TARGETVARIANT"]) == ("linux/amd64", "linux", "")


def test_given_value_wins_over_default_and_default_over_inherited() -> None:
    assert defined("ARG A=default", {"A": "given"}, {"A": "inherited"}) == {"A": "given"}
    assert defined("ARG A=default", {}, {"A": "inherited"}) == {"A": "default"}
    assert defined("ARG A", {}, {"A": "inherited"}) == {"A": "inherited"}
    assert defined("ARG A", {}, {}) == {"A": None}


def test_later_names_of_one_arg_see_the_earlier() -> None:
    assert defined("ARG A=1 B=${A}2", {}, {}) == {"A": "1", "B": "12"}
    assert defined("ARG A=1 B=${A}2", {}, {}, env={"A": "env"}) == {"A": "1", "B": "12"}
    assert defined("ARG A B=${A}2", {}, {}, env={"A": "env"}) == {"A": None, "B": "env2"}


def test_arg_hides_env_and_the_later_arg_wins_over_the_earlier() -> None:
    assert scope({"A": "env", "C": "env"}, [("A", "arg"), ("B", "1"), ("B", "2"), ("C", None)]) == {"A": "arg", "B": "2", "C": "env"}


def test_an_env_after_an_arg_takes_over() -> None:
    args = overtaken([("A", "arg"), ("B", "arg"), ("C", None)], {"A": "env", "C": "env"})
    assert args == (("A", "env"), ("B", "arg"), ("C", "env"))
