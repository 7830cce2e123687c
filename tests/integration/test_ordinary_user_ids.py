"""An ordinary user's containers have other users, too, where the user has subordinate ids: owners are real, and nothing is left that
only root could remove. Without such ids everything inside is root's, and the doctor says so."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import Engine
from sandbox.runtime.init import subids
from tests.support import image_verify
from tests.support.command_line import command_line
from tests.support.host import requires
from tests.support.ordinary_user import OrdinaryUser, Say, give_subordinate_ids, ordinary_user, others_files, speaker, state

pytestmark = [requires("root", "userns", "overlay", "tool:busybox", "tool:newuidmap"), pytest.mark.xdist_group("ordinary user")]

LINKS = "ln -s f /d/e/l; chown -h 5:6 /d/e/l; mkfifo -m 600 /d/e/p; chown 7:8 /d/e/p; ln -s f /d/e/r; chown -h 0:0 /d/e/r"
CLOSED = "touch /f /g; chown 33 /f; mkdir /k; touch /k/f; chmod 0 /f /g /k/f /k"
MAKE = (
    f"mkdir -p /d/e; echo secret > /d/e/f; chown -R 1000:1001 /d; {LINKS}; chmod 700 /d; {CLOSED};"
    " touch /s; chown 33:34 /s; chmod 4755 /s"
)
SHOW = "stat -c '%a %u %g %n' /d /d/e /d/e/f /d/e/l /d/e/p /d/e/r /s /f /g /k"
SHOWN = """700 1000 1001 /d
755 1000 1001 /d/e
644 1000 1001 /d/e/f
777 5 6 /d/e/l
600 7 8 /d/e/p
777 0 0 /d/e/r
4755 33 34 /s
0 33 0 /f
0 0 0 /g
0 0 0 /k
"""
CHANGES = (
    "mkdir -p /d/own; touch /d/own/f; ln /d/own/f /d/own/g; chown -R 5:6 /d; ln -s x /d/l; chown -h 9:9 /d/l; chmod 700 /d/own;"
    " touch /s; chown 7 /s; rm /etc/passwd; mkfifo /f; cat /f"
)
STATS = "stat -c '%u %g %h' /d/own/f /d/l /s"
OF_MANY_OWNERS = f"""FROM box AS made
RUN {MAKE}
RUN mkdir /m; i=0; while test $i -lt 200; do ln -s x /m/a-name-longer-than-most-$i; i=$((i+1)); done; chown -h 5:6 /m/*; \\
    ln -s x /m/of-7; chown -h 7:7 /m/of-7; ln -s x /m/of-root; ln /m/of-7 /m/linked
RUN mkdir -p /shut/in; echo a > /shut/f; echo b > /shut/in/g; chown 5:6 /shut/in/g; chmod 4000 /shut/in/g; \\
    chmod 200 /shut/f; chmod 0 /shut/in /shut
FROM box
COPY --from=made /d /d
COPY --from=made /m /m
COPY --from=made --chown=9:9 /m /n
COPY --from=made /shut /shut
RUN echo c >> /shut/f; chmod 644 /shut/in/g; chmod 0 /shut
RUN ln -s y /d/e/new; chown -h 11:12 /d/e/new; rm /d/e/l; mv /m/of-7 /m/moved; chown -h 13 /m/of-root
"""
"""Links of one owner, of several, and of so many names that they do not fit into an attribute. And files that
only root may read."""


@pytest.fixture(scope="module")
def say(ordinary_user: OrdinaryUser, busybox_tar: Path) -> Iterator[Say]:
    """`sandbox WORDS…` as a user with subordinate ids, with busybox as the image `box`."""
    run = speaker(ordinary_user, busybox_tar)
    yield run
    assert run("ps", "-aq").stdout == ""


@pytest.fixture
def without(busybox_tar: Path) -> Iterator[Say]:
    """The same as one who has none."""
    with ordinary_user(subordinate_ids=False) as user:
        yield speaker(user, busybox_tar)


def wait_gone(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([fd], [], [])
    os.close(fd)


def test_owners_are_real_inside_and_the_users_outside(say: Say, ordinary_user: OrdinaryUser) -> None:
    assert say("run", "--name", "kept", "box", "sh", "-c", f"{MAKE}; {SHOW}", check=True).stdout == SHOWN
    assert others_files(ordinary_user) == []
    try:
        again = say("start", "-a", "kept", check=True)  # its own files came back with their owners
        assert again.stdout == SHOWN
        assert say("commit", "kept", "made", check=True).returncode == 0
    finally:
        say("rm", "kept", check=True)
    try:
        assert say("run", "--rm", "made", "sh", "-c", SHOW, check=True).stdout == SHOWN
        assert say("run", "--rm", "-u", "1000", "made", "cat", "/d/e/f", check=True).stdout == "secret\n"
        assert say("run", "--rm", "-u", "7", "made", "cat", "/d/e/f").returncode == 1
    finally:
        say("rmi", "-f", "made", check=True)
        say("prune", "-f", check=True)
    assert others_files(ordinary_user) == []


def test_an_exec_may_be_another_user_and_chown(say: Say) -> None:
    say("run", "-d", "--name", "sleeper", "-u", "1000", "box", "sleep", "1000", check=True)
    try:
        done = say("exec", "-u", "0", "sleeper", "sh", "-c", "id -u; touch /tmp/x; chown 5:6 /tmp/x; stat -c '%u %g' /tmp/x", check=True)
        assert done.stdout == "0\n5 6\n"
        assert say("exec", "sleeper", "id", "-u", check=True).stdout == "1000\n"
    finally:
        say("rm", "-f", "sleeper", check=True)


def test_one_that_runs_can_be_committed_and_copied_into(say: Say, ordinary_user: OrdinaryUser) -> None:
    given = ordinary_user.home / "given"
    given.write_text("given\n")
    say("run", "-d", "--name", "runs", "box", "sh", "-c", CHANGES, check=True)
    try:
        say("exec", "runs", "sh", "-c", "until test -p /f; do :; done", check=True)
        say("cp", str(given), "runs:/d/given", check=True)
        say("commit", "runs", "committed", check=True)
        done = say("run", "--rm", "committed", "sh", "-c", f"{STATS}; cat /d/given; ! ls /etc/passwd", check=True)
        assert done.stdout == "5 6 2\n9 9 1\n7 0 1\ngiven\n"
        assert "/d/own/f" in say("diff", "runs", check=True).stdout
    finally:
        say("rm", "-f", "runs", check=True)
    say("rmi", "-f", "committed", check=True)


def test_a_layer_leaves_with_the_owners_that_a_step_gave(say: Say, ordinary_user: OrdinaryUser) -> None:
    context = ordinary_user.home / "ids-context"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM box\nRUN {MAKE}\nUSER 1000:1001\nRUN echo more > /d/g\nCMD {SHOW}; stat -c '%u %g' /d/g\n")
    say("build", "-t", "built", str(context), check=True)
    assert say("run", "--rm", "built", check=True).stdout == f"{SHOWN}1000 1001\n"
    left = ordinary_user.home / "left.tar"
    say("save", "--format", "oci", "-o", str(left), "built", check=True)
    with Engine(ordinary_user.home / "roots") as engine:  # root's, in which nothing is noted
        engine.load(left)
        done = engine.run("built", ["sh", "-c", f"{SHOW}; stat -c '%u %g' /d/g"])
        assert done.stdout.decode() == f"{SHOWN}1000 1001\n"
        for container in engine.containers(all=True):
            container.remove(force=True)
    say("rmi", "-f", "built", check=True)
    say("prune", "-f", check=True)
    owned = [path for path in (state(ordinary_user) / "owned").glob("*/*") if path.is_dir()]
    assert owned == []


def test_a_layers_digest_is_the_one_that_root_gets(say: Say, ordinary_user: OrdinaryUser, busybox_tar: Path) -> None:
    context = ordinary_user.home / "digest-context"
    context.mkdir()
    (context / "Dockerfile").write_text(OF_MANY_OWNERS)
    words = ("--build-arg", "SOURCE_DATE_EPOCH=1700000000", str(context))
    say("build", "-q", "-t", "users", *words, check=True)
    users = json.loads(say("inspect", "-f", "{{json .RootFS.Layers}}", "users", check=True).stdout)
    with command_line(ordinary_user.home / "roots-own", (busybox_tar, "box")) as root:
        root.ok("build", "-q", "-t", "roots", *words)
        assert users[1:] == root.json("inspect", "-f", "{{json .RootFS.Layers}}", "roots")[1:]
    assert image_verify.broken(state(ordinary_user)) == []
    say("rmi", "-f", "users", check=True)
    say("prune", "-f", check=True)


@pytest.mark.parametrize("how", ["rm", "prune", "start"])
def test_what_a_killed_supervisor_left_can_be_dealt_with(say: Say, ordinary_user: OrdinaryUser, how: str) -> None:
    before = set(others_files(ordinary_user))  # of layers that other tests' images have
    script = f"test -e /s || {{ {MAKE}; exec sleep 1000; }}; {SHOW}"
    say("run", "-d", "--name", "killed", "box", "sh", "-c", script, check=True)
    pid = int(say("inspect", "-f", "{{.State.Pid}}", "killed", check=True).stdout)
    say("exec", "killed", "sh", "-c", "until test -u /s; do :; done", check=True)
    assert not before.issuperset(others_files(ordinary_user))
    os.kill(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
    wait_gone(pid)
    if how == "start":
        assert say("start", "-a", "killed", check=True).stdout == SHOWN
    say(*{"prune": ("prune", "-f")}.get(how, ("rm", "killed")), check=True)
    assert say("ps", "-aq").stdout == ""
    assert before.issuperset(others_files(ordinary_user))


def test_a_volume_keeps_its_owners_and_goes(say: Say, ordinary_user: OrdinaryUser) -> None:
    say("run", "--rm", "-v", "data:/v", "box", "sh", "-c", "mkdir -m 700 /v/own; touch /v/own/f; chown -R 5:6 /v/own", check=True)
    assert say("run", "--rm", "-u", "5", "-v", "data:/v", "box", "stat", "-c", "%u %g", "/v/own/f", check=True).stdout == "5 6\n"
    assert others_files(ordinary_user) != []
    say("volume", "rm", "data", check=True)
    assert others_files(ordinary_user) == []


def test_without_subordinate_ids_all_is_roots_and_the_doctor_says_so(say: Say, without: Say) -> None:
    assert without("run", "--rm", "box", "sh", "-c", "cat /proc/self/uid_map", check=True).stdout.split()[2] == "1"
    assert "chown" in without("run", "--rm", "box", "chown", "5:6", "/tmp").stderr
    assert "✗ subordinate ids" in without("doctor").stdout
    assert "usermod" in without("doctor").stdout
    assert "✓ subordinate ids" in say("doctor").stdout


def test_ids_that_newuidmap_does_not_grant_are_an_error(busybox_tar: Path) -> None:
    with ordinary_user(subordinate_ids=False) as user:
        run = speaker(user, busybox_tar)
        give_subordinate_ids(user, (1 << 32) - 100)  # no such ids
        done = run("run", "--rm", "box", "true")
        assert (done.returncode, "/etc/subuid" in done.stderr) == (125, True)
        assert run("ps", "-aq").stdout == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("somebody:100:5\n", None),
        ("{me}:1000:70000\n", (1000, 65535)),
        ("{me}:1000:10\nroot:2000:50\n0:3000:20\n", (2000, 50)),
        ("# a remark\nroot:x:y\n\nroot:7:8\n", (7, 8)),
    ],
)
def test_the_largest_range_is_taken(tmp_path: Path, text: str, expected: tuple[int, int] | None) -> None:
    for name in ("subuid", "subgid"):
        (tmp_path / name).write_text(text.format(me="root"))
    found = subids.find(0, 0, etc=str(tmp_path))
    assert (found and tuple(found["uid"][1][1:])) == expected
