"""A step is done again exactly when something it depends on has changed, and the cache gives back the same image."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sandbox.build.builder import BuildDone, StepDone
from sandbox.build.stepcache import cache_key
from sandbox.errors import BuildError, InvalidInput, InvalidReference, StepFailed
from sandbox.image.reference import Reference
from tests.support.building import GROUP, NOW, PASSWD, Workshop

LATER = datetime(2027, 1, 1, tzinfo=UTC)


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path)
    made.base("base", {"etc/passwd": PASSWD, "etc/group": GROUP})
    for name in ("a", "b", "dir/c", "dir/sub/d"):
        made.file(name, name)
    return made


TEXT = """FROM base
ENV A=1
WORKDIR /app
COPY a b ./
COPY dir dir/
LABEL x=y
COPY --chmod=600 a /last
"""


def rebuilt(workshop: Workshop, text: str = TEXT, **how: object) -> str:
    """The cached steps of a build as a string: c cached, x done."""
    workshop.build(text, **how)  # type: ignore[arg-type]
    return "".join("c" if cached else "x" for cached in workshop.cached())


def test_unchanged_build_is_cached_and_gives_the_same_image_whenever(workshop: Workshop) -> None:
    first = workshop.build(TEXT)
    assert workshop.cached() == [False] * 6
    second = workshop.build(TEXT, now=LATER)
    assert workshop.cached() == [True] * 6
    assert second.id == first.id
    assert second.manifest.digest == first.manifest.digest


@pytest.mark.parametrize(
    ("line", "changed", "expected"),
    [
        ("ENV A=1", "ENV A=2", "xcccxc"),  # a COPY is keyed by the files below and its own, not by the environment
        ("WORKDIR /app", "WORKDIR /other", "cxxxxx"),
        ("COPY a b ./", "COPY a ./", "ccxxxx"),
        ("COPY dir dir/", "COPY dir other/", "cccxxx"),
        ("LABEL x=y", "LABEL x=z", "ccccxc"),
        ("COPY --chmod=600 a /last", "COPY --chmod=644 a /last", "cccccx"),
    ],
)
def test_changed_line_redoes_itself_and_what_builds_upon_it(workshop: Workshop, line: str, changed: str, expected: str) -> None:
    workshop.build(TEXT)
    assert rebuilt(workshop, TEXT.replace(line, changed)) == expected
    assert rebuilt(workshop) == "cccccc"


def test_mtime_does_not_count(workshop: Workshop) -> None:
    workshop.build(TEXT)
    for path in workshop.context.rglob("*"):
        os.utime(path, (1, 1))
    assert rebuilt(workshop) == "cccccc"


@pytest.mark.parametrize(
    "change",
    [
        lambda context: (context / "dir/c").write_text("other"),
        lambda context: (context / "dir/c").chmod(0o600),
        lambda context: (context / "dir/sub").chmod(0o700),
        lambda context: (context / "dir/c").rename(context / "dir/e"),
        lambda context: (context / "dir/new").write_text(""),
        lambda context: (context / "dir/new").mkdir(),
        lambda context: (context / "dir/new").symlink_to("c"),
        lambda context: (context / "dir/c").unlink(),
    ],
    ids=["content", "mode", "directory mode", "name", "new file", "new directory", "new link", "removed"],
)
def test_what_counts_of_a_file_redoes_its_copy(workshop: Workshop, change: object) -> None:
    workshop.build(TEXT)
    change(workshop.context)  # type: ignore[operator]
    assert rebuilt(workshop)[:4] == "cccx"


def test_link_target_counts(workshop: Workshop) -> None:
    link = workshop.context / "dir/link"
    link.symlink_to("c")
    workshop.build(TEXT)
    link.unlink()
    link.symlink_to("sub")
    assert rebuilt(workshop)[:4] == "cccx"


def test_files_no_copy_names_do_not_count_and_are_not_read(workshop: Workshop) -> None:
    workshop.build(TEXT)
    workshop.file("unrelated", "x")
    (workshop.context / "unrelated").chmod(0)
    assert rebuilt(workshop) == "cccccc"


def test_ignored_files_do_not_count(workshop: Workshop) -> None:
    workshop.file(".dockerignore", "dir/sub\n")
    workshop.build(TEXT)
    workshop.file("dir/sub/d", "other")
    assert rebuilt(workshop) == "cccccc"
    workshop.file(".dockerignore", "")
    assert rebuilt(workshop)[:4] == "cccx"


def test_ignore_file_beside_the_dockerfile_counts(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "My.dockerignore").write_text("dir/sub\n")
    image = workshop.build(TEXT, dockerfile_path=tmp_path / "My")
    assert [entry.name for entry in workshop.tree(image).scandir("/app/dir")] == ["c"]


def test_without_the_cache_everything_is_done_and_remembered_anew(workshop: Workshop) -> None:
    workshop.build(TEXT)
    fresh = workshop.build(TEXT, no_cache=True, now=LATER)
    assert workshop.cached() == [False] * 6
    assert fresh.config.value.created == "2027-01-01T00:00:00.000000Z"
    assert workshop.build(TEXT).id == fresh.id


def test_same_layer_through_another_text_is_found(workshop: Workshop) -> None:
    workshop.build(TEXT)
    assert rebuilt(workshop, TEXT.replace("COPY a b ./", "ARG WHAT=a\nCOPY $WHAT ./b ./"))[:4] == "ccxc"


def test_copy_from_a_rebuilt_stage_is_cached_when_its_files_are_the_same(workshop: Workshop) -> None:
    text = "FROM base AS one\nCOPY a /out\nCOPY b /noise\nFROM base\nCOPY --from=one /out /out\n"
    workshop.build(text)
    workshop.file("b", "changed")
    assert rebuilt(workshop, text) == "cxc"
    assert rebuilt(workshop, text) == "ccc"
    workshop.file("a", "changed")
    assert rebuilt(workshop, text) == "xxx"


def test_pruned_layer_is_made_again(workshop: Workshop) -> None:
    image = workshop.build(TEXT)
    workshop.store.remove(image.id)
    workshop.store.prune_snapshots()
    assert rebuilt(workshop) == "cxxxcx"
    assert workshop.tree(workshop.build(TEXT)).read("/last") == b"a"


def test_lost_memory_costs_the_times_only(workshop: Workshop) -> None:
    workshop.build(TEXT)
    for path in (workshop.root / "store").glob("build.db*"):
        path.unlink()
    assert rebuilt(workshop, now=LATER) == "xcccxc"


def test_source_date_epoch_is_the_time_of_everything(workshop: Workshop) -> None:
    image = workshop.build(TEXT, build_args={"SOURCE_DATE_EPOCH": "1000000000"})
    times = {entry.created for entry in image.config.value.history[1:]} | {image.config.value.created}
    assert times == {"2001-09-09T01:46:40.000000Z"}
    assert workshop.tree(image).stat("/app").stat.st_mtime == 1_000_000_000
    with pytest.raises(InvalidInput, match="SOURCE_DATE_EPOCH=soon: not a number"):
        workshop.build(TEXT, build_args={"SOURCE_DATE_EPOCH": "soon"})


def test_labels_of_the_build_are_on_the_image_only(workshop: Workshop) -> None:
    image = workshop.build(TEXT, labels={"x": "1", "v": "2"})
    assert image.config.value.config.labels == {"x": "1", "v": "2"}
    assert len(image.config.value.history) == 7
    assert workshop.build(TEXT).config.value.config.labels == {"x": "y"}


def test_layers_history_and_diff_ids_agree(workshop: Workshop) -> None:
    image = workshop.build(TEXT)
    layers = [entry for entry in image.config.value.history if not entry.empty_layer]
    assert len(layers) == len(image.config.value.rootfs.diff_ids) == len(image.manifest.value.layers)


def test_tags_are_set_and_a_bad_one_is_refused_before_anything_is_done(workshop: Workshop) -> None:
    image = workshop.build(TEXT, tags=("app:1", "localhost/app"))
    assert workshop.store.find("app:1").id == workshop.store.find("localhost/app:latest").id == image.id
    (done,) = [event for event in workshop.events if isinstance(event, BuildDone)]
    assert done.tags == ("docker.io/library/app:1", "localhost/app:latest")
    with pytest.raises(InvalidReference):
        workshop.build(TEXT, tags=("Not A Name",))
    assert workshop.events == []


def test_failed_build_keeps_its_last_good_state_and_tags_nothing(workshop: Workshop) -> None:
    with pytest.raises(StepFailed) as caught:
        workshop.build(TEXT + "COPY nope /\n", tags=("app:1",))
    assert "look inside: sandbox run --rm -it build:failed sh" in (caught.value.hint or "")
    kept = workshop.store.find("build:failed")
    assert workshop.tree(kept).read("/last") == b"a"
    assert kept.config.value.config.working_dir == "/app"
    assert [str(reference) for reference, _ in workshop.store.references() if "app" in str(reference)] == []


def test_failed_or_finished_build_leaves_no_draft(workshop: Workshop) -> None:
    workshop.build(TEXT)
    with pytest.raises(StepFailed):
        workshop.build("FROM base\nCOPY --chmod=bad a /x\n")
    with pytest.raises(StepFailed):
        workshop.build("FROM base\nCOPY dir /etc/passwd\n")
    assert list((workshop.root / "store/drafts").iterdir()) == []


def test_bytes_of_a_layer_are_told(workshop: Workshop) -> None:
    workshop.build("FROM base\nENV A=1\nCOPY a b /x/\n")
    assert [event.bytes for event in workshop.events if isinstance(event, StepDone)] == [0, 0, 2]


def test_keys_do_not_run_into_each_other() -> None:
    lists = [(None, ("a", "b")), (None, ("ab",)), (None, ("a", "", "b")), ("a", ("b",)), ("", ("a", "b", "")), (None, ("1:a",))]
    assert len({cache_key(*parts) for parts in lists}) == len(lists)


def test_now_is_in_the_config(workshop: Workshop) -> None:
    assert workshop.build(TEXT).config.value.created == NOW.isoformat(timespec="microseconds").replace("+00:00", "Z")


def test_failed_tag_is_an_ordinary_reference() -> None:
    assert str(Reference.parse("build:failed")) == "docker.io/library/build:failed"


@pytest.mark.parametrize("value", ["a\0b", "\udcff"])
def test_value_that_is_no_text_is_refused(workshop: Workshop, value: str) -> None:
    with pytest.raises(InvalidInput, match="build argument 'A': not text"):
        workshop.build(TEXT, build_args={"A": value})
    with pytest.raises(InvalidInput, match="label 'A': not text"):
        workshop.build(TEXT, labels={"A": value})


def test_damaged_memory_is_a_plain_error(workshop: Workshop) -> None:
    (workshop.root / "store/build.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(BuildError, match="build cache: file is not a database"):
        workshop.build(TEXT)
