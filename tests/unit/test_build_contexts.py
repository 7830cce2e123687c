"""Named contexts: what a name may stand for, and what it replaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.build.settings import Settings
from sandbox.errors import BuildError, ImageNotFound, InvalidOption
from sandbox.image.layout import write_layout
from sandbox.image.reference import Reference
from tests.support.building import Script, Workshop


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path, Script(lambda *_: 0))
    made.base("base", {"base": "base image"})
    made.base("other", {"other": "other image"})
    return made


def names(workshop: Workshop, text: str, **contexts: str) -> list[str]:
    tree = workshop.tree(workshop.build(text, settings=Settings(contexts=contexts)))
    return [entry.name for entry in tree.scandir("/")]


def test_an_image_stands_for_a_base_however_that_is_written(workshop: Workshop) -> None:
    assert names(workshop, "FROM docker.io/library/alpine:latest\nRUN x\n", alpine="docker-image://other") == ["other", "x"]


def test_a_layout_is_a_base(workshop: Workshop, tmp_path: Path) -> None:
    image = workshop.store.find("other")
    write_layout(workshop.store, [(Reference.parse("other:1"), image)], tmp_path / "layout")
    for place in ("", ":1", f"@{image.manifest.digest}"):
        assert names(workshop, "FROM x\nRUN y\n", x=f"oci-layout://{tmp_path}/layout{place}") == ["other", "y"]
    with pytest.raises(BuildError, match="0 images of 2"):
        names(workshop, "FROM x\n", x=f"oci-layout://{tmp_path}/layout:2")


def test_a_stage_of_the_name_is_replaced(workshop: Workshop) -> None:
    text = "FROM base AS tools\nRUN never\nFROM base\nCOPY --from=tools / /\n"
    assert names(workshop, text, tools="docker-image://other") == ["base", "other"]


def test_a_directory_is_a_base_without_what_it_ignores(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name, content in (("kept", ""), ("dropped", ""), (".dockerignore", "dropped\n.dockerignore\n")):
        (tmp_path / "d" / name).write_text(content)
    assert names(workshop, "FROM d\nRUN y\n", d=str(tmp_path / "d")) == ["kept", "y"]


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("docker-image://nope", ImageNotFound),
        ("oci-layout:///nowhere", InvalidOption),
        ("https://x/y.git", InvalidOption),
        ("/nowhere", BuildError),
    ],
)
def test_places_that_are_none(workshop: Workshop, place: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        names(workshop, "FROM x\n", x=place)
    assert workshop.events == []
