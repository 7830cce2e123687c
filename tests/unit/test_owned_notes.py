"""What an ordinary user's files note: as it was after harvest and restore, also twice, and whatever a program put in a note's place."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sandbox.image.owners import LINKS_NOTE, NOTE, links_noted, mode_of, owner_of
from sandbox.runtime.init import owned
from tests.support.host import requires

pytestmark = requires("root")
FORGED = (b"", b"x", b"5", b"5:", b"5:6:7:8", b"5:6:9", b"-1:5", b"5:99999999999", b"\xff:\xff", b"0:0:-7")


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """Files as a container leaves them, which root's own process sees as its namespace would."""
    made = tmp_path / "upper"
    (made / "shut/in").mkdir(parents=True)
    for name, owner, mode in (("file", 5, 0o640), ("none", 0, 0), ("own", 7, 0o4200), ("shut/f", 0, 0o755), ("shut/in/g", 9, 0o44)):
        (made / name).write_text(name)
        os.chown(made / name, owner, owner)
        (made / name).chmod(mode)
    (made / "link").symlink_to("file")
    os.lchown(made / "link", 3, 3)
    (made / "shut/in").chmod(0o500)
    (made / "shut").chmod(0)
    return made


def facts(top: Path) -> dict[str, tuple[int, int, str]]:
    rows = [(path, path.lstat()) for path in sorted(top.rglob("*"))]
    return {str(path.relative_to(top)): (row.st_uid, row.st_gid, stat.filemode(row.st_mode)) for path, row in rows}


def test_harvest_and_restore_give_what_was(top: Path) -> None:
    before = facts(top)
    assert owned.needs_harvest(str(top))
    owned.harvest(str(top))
    assert {row[:2] for row in facts(top).values()} == {(0, 0)}
    assert all(row[2][1] == "r" for row in facts(top).values())
    assert {name: row[2] for name, row in facts(top).items() if row[2].startswith("d")} == {"shut": "drwx------", "shut/in": "drwx------"}
    assert not owned.needs_harvest(str(top))
    owned.restore(str(top))
    assert facts(top) == before
    assert all(not os.listxattr(path, follow_symlinks=False) for path in top.rglob("*"))


@pytest.mark.parametrize("calls", range(1, 30))
def test_harvest_and_restore_that_were_killed_go_on(top: Path, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    (top / "own").chmod(0o200)  # a set-user-id bit that chown(2) took is not given again
    before, left = facts(top), [calls]

    class Killed(Exception):
        pass

    for name in ("setxattr", "removexattr", "lchown", "chmod"):

        def killed(*args: object, _do: object = getattr(os, name), **options: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return _do(*args, **options)  # type: ignore[operator]

        monkeypatch.setattr(os, name, killed)
    for job in (owned.harvest, owned.restore):
        left[0] = calls
        try:
            job(str(top))
        except Killed:
            job(str(top))
    assert facts(top) == before


@pytest.mark.parametrize("forged", FORGED)
def test_a_note_that_a_program_made_up_does_no_harm(top: Path, monkeypatch: pytest.MonkeyPatch, forged: bytes) -> None:
    before = facts(top)
    os.setxattr(top / "file", NOTE, forged)
    os.setxattr(top / "shut", NOTE, forged)
    os.setxattr(top, LINKS_NOTE, forged)
    owned.harvest(str(top))
    owned.restore(str(top))
    assert facts(top) == before
    os.setxattr(top / "none", NOTE, forged)
    os.setxattr(top, LINKS_NOTE, forged + b"\0" + forged + b" link")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # as who has noted
    assert owner_of(bytes(top / "none"), (top / "none").lstat()) == (0, 0)
    assert mode_of(bytes(top / "none"), (top / "none").lstat()) == 0
    assert links_noted(str(top)) == ((0, 0), {b"link": (0, 0)})


def test_a_note_counts_only_as_long_as_the_mode_is_the_noted_one(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owned.harvest(str(top))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    place = top / "own"
    assert (owner_of(bytes(place), place.lstat()), mode_of(bytes(place), place.lstat())) == ((7, 7), 0o4200)
    place.chmod(0o666)
    assert mode_of(bytes(place), place.lstat()) == 0o666
