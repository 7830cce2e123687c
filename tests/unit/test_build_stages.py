"""Stages: only what the target needs is built, and names mean what docker makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.build.builder import BuildStarted, BuildWarning, StepDone, StepStarted
from sandbox.build.stages import host
from sandbox.errors import DockerfileError, ImageNotFound, StepFailed, UnknownStage
from sandbox.oci import RunConfig
from tests.support.building import Workshop


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path)
    made.base("base", {"base": "base image"})
    made.file("f", "from the context")
    return made


def stages(workshop: Workshop) -> tuple[str, ...]:
    (started,) = [event for event in workshop.events if isinstance(event, BuildStarted)]
    return started.stages


MANY = """
FROM base AS one
COPY f /one
FROM base AS two
COPY f /two
FROM one AS three
COPY --from=two /two /copied
FROM base AS four
RUN this never runs
FROM three
COPY f /last
"""


def test_stage_nobody_needs_is_not_built(workshop: Workshop) -> None:
    tree = workshop.tree(workshop.build(MANY))
    assert stages(workshop) == ("one", "two", "three", "4")
    assert [entry.name for entry in tree.scandir("/")] == ["base", "copied", "last", "one"]


@pytest.mark.parametrize(("target", "built"), [("one", ("one",)), ("THREE", ("one", "two", "three")), ("1", ("two",)), ("two", ("two",))])
def test_target_decides_what_is_built(workshop: Workshop, target: str, built: tuple[str, ...]) -> None:
    workshop.build(MANY, target=target)
    assert stages(workshop) == built


def test_unneeded_stage_may_name_an_image_that_is_not_here(workshop: Workshop) -> None:
    workshop.build("FROM nowhere AS x\nFROM base\nCOPY f /\n")


def test_steps_are_counted_over_all_needed_stages(workshop: Workshop) -> None:
    workshop.build(MANY)
    numbers = [(event.index, event.total) for event in workshop.events if isinstance(event, StepStarted)]
    assert sorted(numbers) == [(index, 8) for index in range(1, 9)]  # numbered as they stand, told as they happen
    assert sorted(event.index for event in workshop.events if isinstance(event, StepDone)) == list(range(1, 9))


def test_unknown_target_suggests_one(workshop: Workshop) -> None:
    with pytest.raises(UnknownStage, match="stage thre: not in Dockerfile") as caught:
        workshop.build(MANY, target="thre")
    assert caught.value.hint == "did you mean three?"


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("COPY --from=buidl /x /y", "Dockerfile line 3: --from=buidl: neither an earlier stage nor an image", "did you mean build?"),
        ("COPY --from=last /x /y", "--from=last: a stage that comes later, or this one", None),
        ("COPY --from=later /x /y", "--from=later: a stage that comes later, or this one", None),
        ("COPY --from=7 /x /y", "--from=7: neither an earlier stage nor an image", None),
    ],
)
def test_from_that_names_no_earlier_stage_is_an_error(workshop: Workshop, line: str, message: str, hint: str | None) -> None:
    with pytest.raises(UnknownStage) as caught:
        workshop.build(f"FROM base AS build\nFROM base AS last\n{line}\nFROM base AS later\n", target="last")
    assert message in str(caught.value)
    assert caught.value.hint == hint


def test_missing_base_image_is_an_error_with_its_line(workshop: Workshop) -> None:
    with pytest.raises(StepFailed, match="FROM basse: no such image") as caught:
        workshop.build("FROM basse\n")
    assert isinstance(caught.value.__cause__, ImageNotFound)
    assert caught.value.excerpt.splitlines() == ["> 1 | FROM basse", "    |      ^^^^^"]
    assert "did you mean base" in (caught.value.hint or "")


def test_stage_may_have_the_name_of_its_image(workshop: Workshop) -> None:
    tree = workshop.tree(workshop.build("FROM base AS base\nCOPY f /one\nFROM base\nCOPY f /two\n"))
    assert {entry.name for entry in tree.scandir("/")} == {"base", "one", "two"}


def test_copy_from_a_stage_by_number_and_from_an_image(workshop: Workshop) -> None:
    workshop.base("other", {"etc/conf": "other image"})
    text = "FROM base\nCOPY f /one\nFROM scratch\nCOPY --from=0 /one /x\nCOPY --from=other /etc /etc\n"
    tree = workshop.tree(workshop.build(text))
    assert (tree.read("/x"), tree.read("/etc/conf")) == (b"from the context", b"other image")


def test_child_stage_inherits_config_and_arguments(workshop: Workshop) -> None:
    text = "FROM base AS one\nARG A=1\nENV E=$A\nWORKDIR /w\nUSER u\nFROM one\nENV F=$A-$E\n"
    run = workshop.build(text).config.value.config
    assert (run.env, run.working_dir, run.user) == (["PATH=/bin", "E=1", "F=1-1"], "/w", "u")


def test_from_sees_the_arguments_before_it(workshop: Workshop) -> None:
    workshop.base("base:alpha", {"alpha": "1"})
    text = "ARG TAG=latest IMAGE=base\nFROM ${IMAGE}:$TAG\nCOPY f /f\n"
    assert workshop.tree(workshop.build(text)).lookup("/base")
    assert workshop.tree(workshop.build(text, build_args={"TAG": "alpha"})).lookup("/alpha")
    with pytest.raises(DockerfileError, match="the image's name is empty"):
        workshop.build("ARG EMPTY\nFROM $EMPTY\n")


def test_from_this_platform_is_taken_and_another_refused(workshop: Workshop) -> None:
    here = host()
    workshop.build("FROM --platform=$TARGETPLATFORM base\nFROM --platform=$BUILDPLATFORM base\nCOPY f /\n")
    workshop.build(f"FROM --platform={here.os}/{here.architecture} base\nCOPY f /\n")
    with pytest.raises(DockerfileError, match="--platform=plan9/mips: not supported on linux/"):
        workshop.build("FROM --platform=plan9/mips base\n")


# ONBUILD


def test_triggers_of_an_image_act_in_its_child_and_are_gone(workshop: Workshop) -> None:
    parent = workshop.build("FROM base\nONBUILD COPY f /on\nONBUILD ENV A=$B\nENV B=b\n", tags=("parent",))
    assert parent.config.value.config.on_build == ["COPY f /on", "ENV A=$B"]
    child = workshop.build("FROM parent\nLABEL x=y\n", tags=("child",))
    assert workshop.tree(child).read("/on") == b"from the context"
    assert child.config.value.config.on_build is None
    assert child.config.value.config.env == ["PATH=/bin", "B=b", "A=b"]
    assert [event.line for event in workshop.events if isinstance(event, StepStarted)] == [1, 1, 1, 2]
    grandchild = workshop.build("FROM child\nLABEL z=z\n")
    assert len(grandchild.config.value.history) == len(child.config.value.history) + 1


def test_triggers_of_a_stage_act_in_the_next_stage(workshop: Workshop) -> None:
    text = "FROM base AS parent\nONBUILD COPY --from=other /f /on\nFROM base AS other\nCOPY f /f\nFROM parent\n"
    assert workshop.tree(workshop.build(text)).read("/on") == b"from the context"


def test_trigger_that_fails_says_whose_it_is(workshop: Workshop) -> None:
    workshop.base("parent", {"x": ""}, RunConfig(on_build=["COPY nope /x"]))
    with pytest.raises(StepFailed, match=r"^ONBUILD COPY nope /x: nope: not in the build context") as caught:
        workshop.build("ARG A\nFROM parent\n")
    assert caught.value.excerpt.splitlines() == ["  1 | ARG A", "> 2 | FROM parent"]
    workshop.base("parent", {"x": ""}, RunConfig(on_build=["COPY --form=x nope /x"]))
    with pytest.raises(DockerfileError, match="ONBUILD trigger of the base image, line 1: COPY: unknown flag --form"):
        workshop.build("FROM parent\n")


def test_trigger_with_a_heredoc_survives_the_config(workshop: Workshop) -> None:
    workshop.build("FROM base\nONBUILD COPY <<'EOF' /x\n$A\nONBUILD no\nEOF\n", tags=("parent",))
    assert workshop.tree(workshop.build("FROM parent\n")).read("/x") == b"$A\nONBUILD no\n"


# Warnings


def test_build_arguments_nobody_takes_are_a_warning(workshop: Workshop) -> None:
    given = {"A": "1", "B": "2", "HTTP_PROXY": "x", "SOURCE_DATE_EPOCH": "0"}
    workshop.build("ARG A\nFROM base\nCOPY f /\n", build_args=given)
    assert [event for event in workshop.events if isinstance(event, BuildWarning)] == [BuildWarning("build arguments that no ARG takes: B")]


def test_empty_continuation_line_is_a_warning(workshop: Workshop) -> None:
    workshop.build("FROM base\nENV A=1 \\\n\n B=2\n")
    (warning,) = [event for event in workshop.events if isinstance(event, BuildWarning)]
    assert warning.message.startswith("NoEmptyContinuation: ")
