"""What the checks find reaches the user: `sandbox build --check`, and warnings of a build."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.build.builder import BuildWarning
from sandbox.errors import DockerfileError
from tests.support.building import Workshop
from tests.support.command_line import CommandLine

DOUBTFUL = "FROM scratch AS Up\nARG PASSWORD\nFROM scratch AS used\nCOPY f /\nWORKDIR rel\n"


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path)
    made.file("f", "x")
    return made


def warned(workshop: Workshop) -> list[tuple[int, str]]:
    return [(event.line, event.message.partition(":")[0]) for event in workshop.events if isinstance(event, BuildWarning)]


def test_a_build_warns_of_the_stages_it_needs_and_of_the_file(workshop: Workshop) -> None:
    workshop.build(DOUBTFUL)
    assert warned(workshop) == [(1, "StageNameCasing"), (5, "WorkdirRelativePath")]


def test_error_true_makes_a_finding_an_error_at_its_line(workshop: Workshop) -> None:
    with pytest.raises(DockerfileError, match="Dockerfile line 4: checks failed: WorkdirRelativePath"):
        workshop.build("# check=error=true\nFROM scratch\nCOPY f /\nWORKDIR rel\n")


def test_a_variable_of_the_base_image_is_defined(workshop: Workshop) -> None:
    workshop.base("base", {"x": ""})  # sets PATH
    workshop.build("FROM base\nENV A=$PATH B=$NOPE\n")
    assert warned(workshop) == [(2, "UndefinedVar")]


def test_check_prints_findings_and_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOUBTFUL)
    done = CommandLine(tmp_path / "root")("build", "--check", str(tmp_path))
    assert done.status == 1
    assert done.lines[0] == "Check complete, 3 warnings found!"
    assert "WARNING: SecretsUsedInArgOrEnv" in done.lines
    assert "> 5 | WORKDIR rel" in done.lines


def test_check_of_a_clean_file_exits_with_0(tmp_path: Path) -> None:
    done = CommandLine(tmp_path / "root")("build", "--check", "-", stdin=b"FROM scratch\nCOPY f /\n")
    assert (done.status, done.out) == (0, "Check complete, no warnings found.\n")
