"""How errors look on stderr, and which exit status they give."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from sandbox.build.events import StepError
from sandbox.build.source import Span
from sandbox.cli.build import build_args, build_input, key_values, place_of
from sandbox.cli.failures import error_lines, show_error, step_details, system_text, verb_of
from sandbox.errors import DockerfileError, ImageNotFound, InvalidOption, SandboxError, StepFailed


def test_an_error_is_its_message_and_its_hint() -> None:
    assert error_lines(ImageNotFound("busybx: no such image", hint="did you mean busybox?")) == [
        "sandbox: busybx: no such image",
        "hint: did you mean busybox?",
    ]


def test_a_dockerfile_error_shows_its_excerpt_before_the_hint() -> None:
    error = DockerfileError("Dockerfile line 1: FORM: unknown instruction", excerpt="> 1 | FORM x\n    | ^", hint="did you mean FROM?")
    assert error_lines(error)[1:] == ["  > 1 | FORM x", "      | ^", "hint: did you mean FROM?"]


FAILED = StepFailed(
    "RUN make: exit code 2",
    span=Span(3, 3),
    instruction="RUN make",
    excerpt="  2 | COPY . .\n> 3 | RUN make\n  4 | CMD x",
    output="one\n\n" + "".join(f"line {n}\n" for n in range(20)),
)


def test_a_failed_step_shows_its_place_its_lines_and_the_last_ten_it_printed() -> None:
    lines = step_details(FAILED, place="Dockerfile line 3 of 4 | step 3/4")
    assert lines[:5] == ["  Dockerfile line 3 of 4 | step 3/4", "    2 | COPY . .", "  > 3 | RUN make", "    4 | CMD x", "  last output:"]
    assert lines[5:] == [f"    line {n}" for n in range(10, 20)]


def test_the_last_output_is_what_a_terminal_would_show_of_it() -> None:
    error = StepFailed("RUN x: exit code 1", output="10%\r100%\n\x1b[31mred\x1b[0m\n")
    assert step_details(error, place="") == ["  last output:", "    100%", "    red"]


def test_the_place_names_line_step_stage_and_time(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile.web"
    file.write_text("a\nb\nc\nd\n")
    failed = StepError(3, 5, "base", "RUN make", 3, 4.2, "x")
    assert place_of(FAILED, failed, file) == "Dockerfile.web line 3 of 4 | step 3/5 | stage base | after 4.2 s"
    assert place_of(FAILED, None, "a\nb\nc") == "Dockerfile line 3 of 3"


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["run", "x"], 125),
        (["--root", "run", "create", "x"], 125),
        (["container", "run", "x"], 125),
        (["ps"], 1),
        (["rm", "run"], 1),
        ([], 1),
    ],
)
def test_an_engine_error_gives_125_for_run_and_1_elsewhere(argv: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_error(SandboxError("no"), argv) == status
    assert capsys.readouterr().err == "sandbox: no\n"


def test_the_verb_is_found_behind_global_options() -> None:
    assert verb_of(["--root", "/x", "-D", "image", "ls"]) == "ls"
    assert verb_of(["--root=/x", "ps"]) == "ps"
    assert verb_of([]) is None


def test_system_errors_name_the_file_first(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as caught:
        (tmp_path / "x.tar").open()
    assert system_text(caught.value) == f"{tmp_path}/x.tar: no such file or directory"


def test_build_args_without_a_value_come_from_here_or_not_at_all() -> None:
    assert build_args(["A=1", "B", "C", "D="], {"B": "outside"}) == {"A": "1", "B": "outside", "D": ""}


def test_labels_need_a_key() -> None:
    assert key_values(["a=b=c", "d"], "label") == {"a": "b=c", "d": ""}
    with pytest.raises(InvalidOption, match="no key"):
        key_values(["=x"], "label")


class Stdin:
    """Standard input with these bytes."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def test_a_context_of_a_dash_reads_the_dockerfile_and_has_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Stdin(b"FROM scratch\n"))
    with build_input("-", None) as (directory, dockerfile):
        assert list(directory.iterdir()) == []
        assert dockerfile == "FROM scratch\n"
    assert not directory.exists()


def test_a_dockerfile_of_a_dash_keeps_the_context(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.stdin", Stdin(b"FROM scratch\n"))
    with build_input(str(tmp_path), "-") as (directory, dockerfile):
        assert (directory, dockerfile) == (tmp_path, "FROM scratch\n")


def test_bad_build_input_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.stdin", Stdin(b"\x1f\x8b\xff"))
    for context, file, message in [
        ("-", "other", "stdin"),
        ("-", None, "not UTF-8"),
        (str(tmp_path / "nope"), None, "not a directory"),
        (str(tmp_path), None, "Dockerfile: no such file"),
        (str(tmp_path), "other", "other: no such file"),
    ]:
        with pytest.raises(SandboxError, match=message), build_input(context, file):
            pytest.fail("was accepted")
