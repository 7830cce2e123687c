"""What an ordinary user takes out of a container and puts into one has the owners that root's has: with subordinate ids, where files have
the owners themselves, and without, where they are noted beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_container_copied_attributes import facts, given, taken
from tests.support import image_verify
from tests.support.command_line import CommandLine, command_line
from tests.support.host import requires
from tests.support.ordinary_user import SYSTEM_PYTHON, OrdinaryUser, ordinary_user, packages_of

pytestmark = [requires("root", "userns", "overlay", "tool:busybox", "tool:newuidmap"), pytest.mark.xdist_group("ordinary user")]

FILE = """FROM box AS made
RUN mkdir -p /d/e /m /mine; echo text > /d/e/f; chown -R 1000:1001 /d; ln -s f /d/e/l; chown -h 5:6 /d/e/l; mkfifo /d/e/p; \\
    chown 7:8 /d/e/p; i=0; while test $i -lt 90; do ln -s x /m/a-name-longer-than-most-$i; i=$((i+1)); done; \\
    chown -h 5:6 /m/*; ln -s d /way; chown -h 3:4 /way
FROM made
RUN ln -s y /d/e/new; chown -h 11:12 /d/e/new; ln -s r /d/e/r; touch /s; chown 33:34 /s; chmod 4755 /s; rm /m/a-name-longer-than-most-7; \\
    mkdir /closed; echo x > /closed/f; chmod 555 /closed; mkdir -p /shut/in; echo y > /shut/f; cp /shut/f /shut/g; chown 5:6 /shut/g; \\
    echo z > /shut/in/h; chmod 0 /shut/f /shut/in/h; chmod 4200 /shut/g; chmod 300 /shut/in; chmod 0 /shut
COPY --from=made /d /copied
RUN echo more >> /shut/f; chmod 640 /shut/g; mkdir /shut/in/i; chmod 0 /shut/in/i /copied/e/f
"""
"""Owners of files, directories, links and pipes; of links also in a directory that two layers have. And a directory
into which its owner may not write, and files and directories that only root may read."""


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory, busybox_tar: Path) -> Iterator[CommandLine]:
    place = tmp_path_factory.mktemp("roots")
    (place / "Dockerfile").write_text(FILE)
    with command_line(place / "engine", (busybox_tar, "box")) as made:
        made.ok("build", "-q", "-t", "made", str(place))
        yield made


@pytest.fixture(scope="module", params=[True, False], ids=["with ids", "without"])
def user(request: pytest.FixtureRequest) -> Iterator[OrdinaryUser]:
    with ordinary_user(subordinate_ids=request.param) as made:
        yield made


@pytest.fixture(scope="module")
def users(user: OrdinaryUser, roots: CommandLine) -> Iterator[CommandLine]:
    """The same image, loaded by the user."""
    archive = user.home / "made.tar"
    roots.ok("save", "-o", str(archive), "made")
    env = {"PYTHONPATH": str(packages_of(user))}
    with command_line(user.home / "state", prefix=tuple(user.prefix(env)), python=SYSTEM_PYTHON) as made:
        made.ok("load", "-i", str(archive))
        yield made


@pytest.fixture
def both(roots: CommandLine, users: CommandLine) -> Iterator[tuple[CommandLine, CommandLine]]:
    """A container `box` of it, root's and the user's."""
    for sandbox in (roots, users):
        sandbox.ok("create", "--name", "box", "made", "sleep", "1000")
    yield roots, users
    for sandbox in (roots, users):
        sandbox.ok("rm", "-f", "box")


def exported(sandbox: CommandLine, out: Path) -> dict[str, object]:
    """What is exported, but for the directories in which mount points (of /etc/hostname, say), and what is copied in, come and go."""
    sandbox.ok("export", "-o", str(out), "box")
    found = facts(out.read_bytes())
    return {name: row for name, row in found.items() if name not in (".", "mine") and not name.startswith("etc")}


@pytest.mark.parametrize("status", ["created", "running"])
def test_an_export_is_what_roots_is(both: tuple[CommandLine, CommandLine], user: OrdinaryUser, tmp_path: Path, status: str) -> None:
    for sandbox in both:
        if status == "running":
            sandbox.ok("start", "box")
        sandbox.ok("cp", "-", "box:/mine", stdin=given())
    mine, theirs = exported(both[0], tmp_path / "roots.tar"), exported(both[1], user.home / f"{status}.tar")
    assert sorted(mine) == sorted(theirs)
    assert [(name, mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]] == []
    owners = {row[2:4] for row in mine.values() if isinstance(row, tuple)}
    assert owners >= {(1000, 1001), (5, 6), (7, 8), (11, 12), (33, 34), (3, 4), (13, 14)}
    assert len([name for name in mine if name.startswith("m/")]) == 89


def test_what_is_copied_out_is_what_roots_is(both: tuple[CommandLine, CommandLine]) -> None:
    for path in ("/d", "/way/e", "/way/e/l", "/s", "/way"):
        mine, theirs = (facts(taken(sandbox, f"box:{path}")) for sandbox in both)
        assert mine == theirs
        assert mine


def test_a_commit_has_the_owners_of_what_was_copied_in(both: tuple[CommandLine, CommandLine]) -> None:
    found = []
    for sandbox in both:
        sandbox.ok("cp", "-", "box:/mine", stdin=given())
        sandbox.ok("commit", "box", "committed")
        sandbox.ok("create", "--name", "again", "committed", "true")
        found.append(facts(taken(sandbox, "again:/mine/d")))
        image_verify.verify_store(sandbox.root)
        sandbox.ok("rm", "again")
        sandbox.ok("rmi", "committed")
    assert found[0] == found[1]
    assert {row[2:4] for row in found[0].values() if isinstance(row, tuple)} >= {(5, 6), (7, 8), (11, 12), (13, 14)}
