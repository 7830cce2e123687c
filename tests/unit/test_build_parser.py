"""Dockerfile text becomes instructions or a DockerfileError, never anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.build import instructions as ins
from sandbox.build.dockerfile import parse, parse_triggers
from sandbox.build.source import SourceText, Span
from sandbox.errors import DockerfileError
from tests.support.dockerfile_dump import render
from tests.support.dockerfile_meaning import check_text

GOLDEN = Path(__file__).parents[1] / "golden" / "build"
CASES = sorted(path.parent for kind in ("parser", "errors") for path in (GOLDEN / kind).glob("*/Dockerfile"))


def test_golden_cases_are_found() -> None:
    assert len(CASES) > 60


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_dockerfile_reads_as_its_golden_dump(case: Path) -> None:
    text = (case / "Dockerfile").read_bytes().decode()
    assert render(text) == (case / "expected.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", [case for case in CASES if case.parent.name == "errors"], ids=lambda path: path.name)
def test_every_error_has_a_span_and_shows_its_line(case: Path) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse((case / "Dockerfile").read_bytes().decode())
    span = caught.value.span
    assert isinstance(span, Span)
    assert f"> {span.first}" in caught.value.excerpt


def test_json_nested_too_deeply_is_an_error() -> None:
    with pytest.raises(DockerfileError, match="line 2: nested too deeply"):
        parse("FROM a\nRUN " + "[" * 100_000 + "\n")


def test_the_name_of_the_text_is_in_its_errors() -> None:
    with pytest.raises(DockerfileError, match="cell line 1: unknown instruction FROMM"):
        parse("FROMM a", "cell")


def test_broken_utf8_is_an_error() -> None:
    with pytest.raises(DockerfileError, match="line 2: not text"):
        parse(b"FROM a\nRUN \xff".decode("utf-8", "surrogateescape"))


def test_triggers_of_an_image_are_instructions_with_their_own_text() -> None:
    found = parse_triggers(["COPY . /app", "RUN <<EOF\na\nEOF"])
    assert [type(instruction) for instruction, _ in found] == [ins.Copy, ins.Run]
    assert found[0][1].lines == ("COPY . /app",)


@pytest.mark.parametrize("text", ["FROM x", "MAINTAINER x", "ONBUILD RUN x"])
def test_a_trigger_an_image_may_not_have_is_an_error(text: str) -> None:
    with pytest.raises(DockerfileError, match="ONBUILD"):
        parse_triggers([text])


def test_caret_stands_under_its_word_in_a_long_line() -> None:
    text = "FROM a " + "x" * 500 + " WORD " + "y" * 500
    lines = SourceText.of(text, "Dockerfile").excerpt(Span(1, 1), "WORD").splitlines()
    assert max(map(len, lines)) < 200
    assert lines[0][lines[1].index("^") :].startswith("WORD")


WORDS = st.sampled_from(
    ["FROM a", "RUN", "COPY", "ADD", "ONBUILD", "ENV", "LABEL", "ARG", "HEALTHCHECK", "SHELL", "CMD", "EXPOSE", "VOLUME", "# escape=`",
     "# syntax=x", "--from=", "--mount=", "--interval=1s", "<<EOF", "<<-'E'", "EOF", "E", "\\", "`", "\n", "\r\n", "\t", " ", "=", "a=b",
     "[", "]", '"', "'", "$A", "${A", ",", "\\\n", "\ufeff", "é", "\u2028", "\x85", "\0", "NONE", "AS", "9<<E", "--", "#", "--link",
     "--exclude=", "--parents", "--unpack=false", "--mount=type=cache,target=/c", "--chown=a\\ b", "target=", "USER", "WORKDIR x", "/x/",
     "<<'A B'", "A B", '["a", "b"]', "STOPSIGNAL", "MAINTAINER", "# check=skip=all", "RUN <<EOF\na\nEOF\n",
     "COPY <<A <<\"B\" /x/\n1\nA\n2\nB\n"]
)  # fmt: skip


TEXTS = st.one_of(st.text(max_size=200), st.lists(WORDS, max_size=40).map(" ".join), st.lists(WORDS, max_size=40).map("".join))


@settings(max_examples=700, deadline=None)
@given(TEXTS)
def test_any_text_is_an_error_or_means_the_same_when_printed(text: str) -> None:
    for prefix in ("", "FROM a\n", "# escape=`\nFROM a\n"):
        check_text(prefix + text)


@pytest.mark.parametrize("text", ["RUN 0\\\u2028", "ARG \\ \\ \\", "ENV a=b\\ \\ \\\n", 'COPY ["<<EOF", "/x"]', "RUN -- --x"])
def test_these_once_meant_something_else_when_printed(text: str) -> None:
    assert check_text("FROM a\n" + text) is not None


@pytest.mark.parametrize("case", [case for case in CASES if case.parent.name == "parser"], ids=lambda path: path.name)
def test_golden_files_mean_the_same_when_printed(case: Path) -> None:
    assert check_text((case / "Dockerfile").read_bytes().decode()) is not None
