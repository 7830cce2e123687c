"""Volumes outlive containers, begin with the image's files, and go when they are told to: by the command line, with real containers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.engine import Engine
from tests.support.command_line import CommandLine, command_line
from tests.support.host import requires

pytestmark = pytest.mark.anybody


@pytest.fixture
def sandbox(tmp_path: Path, busybox_tar: Path) -> Iterator[CommandLine]:
    with command_line(tmp_path / "engine") as made:
        made.ok("import", str(busybox_tar), "busybox")
        context = tmp_path / "context"
        context.mkdir()
        (context / "Dockerfile").write_text(
            "FROM busybox\nRUN mkdir -p /data/in && echo image > /data/in/file && chown -R 5:6 /data\nVOLUME /data\n"
        )
        made.ok("build", "-t", "has", str(context))
        yield made


def volumes(sandbox: CommandLine, *flags: str) -> list[str]:
    return sandbox.ok("volume", "ls", "-q", *flags).lines


def run(sandbox: CommandLine, *words: str) -> str:
    return sandbox.ok("run", "--rm", *words).out


def test_a_named_volume_is_shared_and_kept(sandbox: CommandLine) -> None:
    assert sandbox.ok("volume", "create", "--label", "a=b", "data").out == "data\n"
    run(sandbox, "-v", "data:/d", "busybox", "sh", "-c", "echo 1 > /d/one; chown 7 /d/one")
    assert run(
        sandbox, "--mount", "type=volume,src=data,dst=/e,readonly", "busybox", "sh", "-c", "stat -c %u /e/one; touch /e/x 2>&1; true"
    ) == ("7\ntouch: /e/x: Read-only file system\n")
    facts = sandbox.json("volume", "inspect", "data")[0]
    assert (facts["Labels"], Path(facts["Mountpoint"], "one").read_text()) == ({"a": "b"}, "1\n")
    assert sandbox.ok("volume", "rm", "data").out == "data\n"
    assert sandbox("volume", "inspect", "data").status == 1
    assert not Path(facts["Mountpoint"]).exists()


def test_an_empty_directory_of_the_image_brings_its_owner(sandbox: CommandLine, tmp_path: Path) -> None:
    text = "FROM busybox\nRUN mkdir -m 700 /data && chown 65534:65534 /data\nUSER nobody\nVOLUME /data\n"
    (tmp_path / "context/Dockerfile").write_text(text)
    sandbox.ok("build", "-t", "owner", str(tmp_path / "context"))
    for _ in range(2):
        assert run(sandbox, "-v", "own:/data", "owner", "sh", "-c", "echo x >> /data/file; stat -c '%u %a' /data") == "65534 700\n"


def test_the_first_use_brings_the_images_files(sandbox: CommandLine) -> None:
    show = ("sh", "-c", "stat -c '%u %g' /data/in; cat /data/in/file")
    assert run(sandbox, "-v", "fresh:/data", "has", *show) == "5 6\nimage\n"
    sandbox.ok("volume", "create", "empty")
    assert run(sandbox, "-v", "empty:/data", "has", *show) == "5 6\nimage\n"
    assert run(sandbox, "-v", "bare:/data:nocopy", "has", "ls", "/data") == ""
    assert run(sandbox, "--mount", "src=other,target=/data,volume-nocopy", "has", "ls", "/data") == ""
    run(sandbox, "-v", "mine:/d", "busybox", "touch", "/d/mine")
    assert run(sandbox, "-v", "mine:/data", "has", "ls", "/data") == "mine\n"


@requires("root")  # who writes into the volume from outside
def test_whoever_was_killed_while_filling_is_made_up_for(sandbox: CommandLine) -> None:
    run(sandbox, "-v", "fresh:/data", "has", "true")
    place = Path(sandbox.json("volume", "inspect", "fresh")[0]["Mountpoint"])
    (place / "in/file").write_text("half")
    (place.parent / "filling").touch()
    assert run(sandbox, "-v", "fresh:/data", "has", "cat", "/data/in/file") == "image\n"
    (place / "in/file").write_text("written")
    assert run(sandbox, "-v", "fresh:/data", "has", "cat", "/data/in/file") == "written"


def test_volumes_without_a_name_stay_unless_they_are_asked_away(sandbox: CommandLine) -> None:
    sandbox.ok("run", "--name", "one", "has", "sh", "-c", "echo mine >> /data/in/file")
    (name,) = volumes(sandbox)
    mount = sandbox.json("inspect", "one")[0]["Mounts"][0]
    assert (mount["Type"], mount["Name"], mount["Destination"]) == ("volume", name, "/data")
    assert volumes(sandbox, "-f", "dangling=false") == [name]
    busy = sandbox("volume", "rm", name)
    assert (busy.status, "container one has it" in busy.err) == (1, True)
    sandbox.ok("rm", "one")
    assert volumes(sandbox, "-f", "dangling=true") == [name]
    assert run(sandbox, "-v", f"{name}:/d", "busybox", "cat", "/d/in/file") == "image\nmine\n"
    sandbox.ok("run", "--name", "two", "has", "true")
    sandbox.ok("rm", "-v", "two")
    assert volumes(sandbox) == [name]
    sandbox.ok("volume", "create", "named")
    assert name in sandbox.ok("volume", "prune", "-f").out
    assert volumes(sandbox) == ["named"]
    sandbox.ok("volume", "prune", "-af")
    assert volumes(sandbox) == []


def test_the_volumes_of_another_container(sandbox: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/note").write_text("noted\n")
    flags = ("-v", "kept:/data", "-v", "/own", "-v", f"{tmp_path / 'here'}:/here:ro", "--tmpfs", "/scratch")
    sandbox.ok("run", "--name", "first", *flags, "busybox", "sh", "-c", "echo one > /data/x; echo two > /own/y; echo z > /scratch/z")
    script = "cat /data/x /own/y /here/note; ls -d /scratch 2>&1; touch /here/w 2>&1; echo more > /data/z"
    heard = run(sandbox, "--volumes-from", "first", "busybox", "sh", "-c", script)
    assert heard.startswith("one\ntwo\nnoted\nls: /scratch: No such file")
    assert "Read-only file system" in heard
    refused = sandbox("run", "--rm", "--volumes-from", "first:ro", "busybox", "sh", "-c", "cat /data/z; touch /data/w")
    assert (refused.out, "Read-only file system" in refused.err) == ("more\n", True)
    mine = ("--volumes-from", "first", "-v", "other:/data", "busybox", "ls", "/data")
    assert run(sandbox, *mine) == ""  # what is said itself wins

    sandbox.ok("create", "--name", "second", "--volumes-from", "first", "busybox", "cat", "/own/y")
    sandbox.ok("rm", "-v", "first")
    assert sandbox.ok("start", "-a", "second").out == "two\n"  # the second has its volume still
    sandbox.ok("rm", "-v", "second")
    assert volumes(sandbox) == ["kept", "other"]


@pytest.mark.parametrize(("text", "words"), [("nobody", "nobody: no such container"), ("going:rx", "going:rx"), ("going", "goes with it")])
def test_volumes_of_nobody_or_of_one_that_takes_them_along(sandbox: CommandLine, text: str, words: str) -> None:
    sandbox.ok("run", "-d", "--rm", "--name", "going", "-v", "/own", "busybox", "sleep", "1000")
    done = sandbox("run", "--rm", "--volumes-from", text, "busybox", "true")
    assert (done.status, words in done.err) == (125, True), done.err
    sandbox.ok("rm", "-f", "going")


def test_a_container_that_cannot_be_made_leaves_no_volume(sandbox: CommandLine, tmp_path: Path) -> None:
    done = sandbox("create", "--mount", f"type=bind,src={tmp_path}/none,dst=/d", "-v", "/e", "has", "true")
    assert (done.status, "does not exist" in done.err) == (125, True)
    done = sandbox("create", "-v", "/e", "--mount", f"type=bind,src={tmp_path}/none,dst=/d", "has", "true")
    assert done.status == 125
    assert volumes(sandbox) == []
    sandbox.ok("create", "-v", "/e", "has", "true")
    assert len(volumes(sandbox)) == 2


def test_nothing_is_left_of_a_run_that_is_removed(sandbox: CommandLine) -> None:
    run(sandbox, "has", "touch", "/data/x")
    assert volumes(sandbox) == []


def test_a_bind_mount_of_what_is_not_there(sandbox: CommandLine, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    done = sandbox("run", "--rm", "--mount", f"type=bind,source={missing},target=/d", "busybox", "true")
    assert (done.status, "does not exist" in done.err, missing.exists()) == (125, True, False)
    run(sandbox, "-v", f"{missing}:/d", "busybox", "touch", "/d/x")
    assert (missing / "x").exists()
    assert run(sandbox, "--mount", f"type=bind,src={missing},dst=/d,ro=true", "busybox", "ls", "/d") == "x\n"


def test_a_tmpfs_by_mount(sandbox: CommandLine) -> None:
    shown = run(
        sandbox, "--mount", "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=0700", "busybox", "sh", "-c", "stat -c %a /t; df -k /t | tail -1"
    )
    assert shown.split()[0] == "700"
    assert "1024" in shown.split()


@pytest.mark.parametrize(
    "flags",
    [
        ("--mount", "type=nfs,dst=/d"),
        ("--mount", "type=bind,src=relative,dst=/d"),
        ("--mount", "type=volume,src=a/b,dst=/d"),
        ("--mount", "type=volume,src=ab,dst=d"),
        ("--mount", "type=volume,src=ab,dst=/d,size=1"),
        ("--mount", "type=volume,src=ab,dst=/d,readonly=maybe"),
        ("--mount", "type=bind,src=/tmp,dst=/d,bind-propagation=shared"),
        ("-v", "ab:/d:z"),
        ("-v", "ab:/d:rslave"),
        ("-v", "/tmp:/d:rslave,rprivate"),
        ("-v", "ab:/d", "--tmpfs", "/d"),
    ],
)
def test_mounts_that_make_no_sense_are_refused(sandbox: CommandLine, flags: tuple[str, ...]) -> None:
    done = sandbox("run", "--rm", *flags, "busybox", "true")
    assert done.status == 125
    assert volumes(sandbox) == []


def test_the_api_has_volumes_too(sandbox: CommandLine) -> None:
    with Engine(sandbox.root) as engine:
        made = engine.volumes.create(labels={"x": "y"})
        assert made.anonymous
        assert [each.name for each in engine.volumes.all()] == [made.name]
        names, freed = engine.volumes.prune()
        assert (names, freed > 0) == ([made.name], True)
    rows = json.loads(sandbox.ok("system", "df", "--format", "json").out.splitlines()[2])
    assert (rows["Type"], rows["TotalCount"]) == ("Local Volumes", "0")
