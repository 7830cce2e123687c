"""What the unpacker gives away is what it made, and not what a container's program put in its place."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.runtime.init.unpack import _Extraction
from tests.support.host import requires

pytestmark = requires("root")


@pytest.fixture
def extraction() -> Iterator[_Extraction]:
    empty = io.BytesIO(bytes(1024))
    with tarfile.open(fileobj=empty, mode="r|") as tar:
        yield _Extraction(tar, "/", notes=False)


def give_away(extraction: _Extraction, place: Path) -> os.stat_result:
    """To 5:6, what stands where a link was just made."""
    member = tarfile.TarInfo(place.name)
    member.type, member.uid, member.gid = tarfile.SYMTYPE, 5, 6
    parent = os.open(place.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        extraction._give_away(member, str(place.parent), parent, place.name)
    finally:
        os.close(parent)
    return place.lstat()


def test_a_link_gets_its_owner(extraction: _Extraction, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    found = give_away(extraction, tmp_path / "link")
    assert (found.st_uid, found.st_gid) == (5, 6)


def test_a_file_that_was_put_in_a_links_place_keeps_its_owner(extraction: _Extraction, tmp_path: Path) -> None:
    (tmp_path / "link").write_text("secret")
    with pytest.raises(OSError, match="something else in its place"):
        give_away(extraction, tmp_path / "link")
    assert (tmp_path / "link").stat().st_uid == 0
