"""SOURCE_DATE_EPOCH: the same input gives the same manifest, wherever and whenever it is built."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sandbox.build.times import fix_times
from tests.support.building import NOW, PASSWD, Script, Workshop

EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}
LATER = datetime(2030, 1, 1, tzinfo=UTC)
TEXT = """FROM base AS tools
RUN make tools
FROM base
WORKDIR /app
COPY dir f ./
RUN make app
COPY --from=tools /make-tools /t/
COPY <<EOF /heredoc
text
EOF
LABEL a=b
"""


def built(place: Path, *, age: int, build_args: dict[str, str], now: datetime) -> str:
    """The manifest's digest; the context's files are written in another order and get other times in each place."""
    workshop = Workshop(place, Script(lambda *_: 0))

    def settled(root: Path) -> None:
        for path in (root / "etc/passwd", root / "etc"):
            os.utime(path, (1_600_000_000, 1_600_000_000))

    workshop.base("base", {"etc/passwd": PASSWD}, fill=settled)
    for name in ("f", "dir/a", "dir/b/c") if age else ("dir/b/c", "f", "dir/a"):
        path = workshop.file(name, name)
        os.utime(path, (age, age))
    os.utime(workshop.context / "dir/b", (age, age))
    return workshop.build(TEXT, build_args=build_args, now=now, no_cache=True).manifest.digest


def test_two_builds_in_different_places_give_the_same_manifest(tmp_path: Path) -> None:
    one = built(tmp_path / "one", age=0, build_args=EPOCH, now=NOW)
    assert built(tmp_path / "somewhere/else", age=1_900_000_000, build_args=EPOCH, now=LATER) == one


def test_without_it_they_differ(tmp_path: Path) -> None:
    one = built(tmp_path / "one", age=0, build_args={}, now=NOW)
    assert built(tmp_path / "two", age=1_900_000_000, build_args={}, now=LATER) != one


def test_another_time_is_another_layer(tmp_path: Path) -> None:
    one = built(tmp_path / "one", age=0, build_args=EPOCH, now=NOW)
    assert built(tmp_path / "two", age=0, build_args={"SOURCE_DATE_EPOCH": "1700000001"}, now=NOW) != one


@pytest.mark.parametrize(("every", "expected"), [(True, (50, 50, 50)), (False, (10, 50, 50))], ids=["host's files", "a program's"])
def test_times_are_set_or_capped(tmp_path: Path, every: bool, expected: tuple[int, int, int]) -> None:
    for name, age in (("old", 10), ("new", 90)):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (age, age))
    (tmp_path / "link").symlink_to("/nowhere")
    fix_times(tmp_path, 50, every=every)
    assert tuple(int((tmp_path / name).lstat().st_mtime) for name in ("old", "new", "link")) == expected


def test_a_step_of_another_time_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, Script(lambda *_: 0))
    workshop.base("base", {"base": ""})
    text = "FROM base\nRUN make\n"
    workshop.build(text)
    image = workshop.build(text, build_args=EPOCH)
    assert workshop.cached() == [False]
    assert workshop.tree(image).stat("/make").stat.st_mtime <= 1_700_000_000
    workshop.build(text, build_args=EPOCH)
    assert workshop.cached() == [True]
