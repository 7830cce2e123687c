"""`cp` into containers: what a tar says of its entries is kept, what cannot be is an error, and no link leads out."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.host import requires

pytestmark = [requires("userns", "overlay"), pytest.mark.anybody]

TIME = 1_000_000_000
NET_RAW = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
"""A security.capability (linux/capability.h, version 2): cap_net_raw+ep."""
ROWS = [  # name, kind, mode, owner, link, attributes
    ("d", tarfile.DIRTYPE, 0o1750, (5, 6), "", {"user.of": "a directory"}),
    ("d/file", tarfile.REGTYPE, 0o640, (7, 8), "", {"user.of": "a file"}),
    ("d/set", tarfile.REGTYPE, 0o6755, (9, 10), "", {}),
    ("d/able", tarfile.REGTYPE, 0o755, (0, 0), "", {"security.capability": NET_RAW.decode("utf-8", "surrogateescape")}),
    ("d/again", tarfile.LNKTYPE, 0o640, (7, 8), "d/file", {}),
    ("d/link", tarfile.SYMTYPE, 0o777, (11, 12), "/nowhere", {}),
    ("d/pipe", tarfile.FIFOTYPE, 0o622, (13, 14), "", {}),
    ("d/closed", tarfile.DIRTYPE, 0o500, (15, 16), "", {}),
    ("d/closed/file", tarfile.REGTYPE, 0o400, (15, 16), "", {}),
]


def tar_of(*members: tarfile.TarInfo, content: bytes = b"content") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode, made.mtime = kind, link, 0o644, TIME
    return made


def given() -> bytes:
    """A tar of `ROWS`."""
    members = []
    for number, (name, kind, mode, owner, link, attributes) in enumerate(ROWS):
        made = member(name, kind, link)
        made.mode, (made.uid, made.gid), made.mtime = mode, owner, TIME + number
        made.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in attributes.items()}
        members.append(made)
    return tar_of(*members)


def facts(data: bytes) -> dict[str, object]:
    """All that a tar says of its entries; of several names of one file, which of them is the link does not matter."""
    found: dict[str, object] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for each in tar:
            source = tar.getmember(each.linkname) if each.islnk() else each
            file = tar.extractfile(source) if source.isreg() else None
            attributes = {key: value for key, value in source.pax_headers.items() if key.startswith("SCHILY.")}
            row = (source.type, source.mode, source.uid, source.gid, source.mtime, source.linkname, attributes, file and file.read())
            found[each.name] = row
    return found


def taken(sandbox: CommandLine, path: str) -> bytes:
    """`cp NAME:PATH -`."""
    return subprocess.run(sandbox.argv("cp", path, "-"), stdout=subprocess.PIPE, check=True).stdout


@pytest.fixture
def box(sandbox: CommandLine) -> CommandLine:
    """With a container `box` that does not run."""
    sandbox.ok("create", "--name", "box", "busybox", "sleep", "1000")
    return sandbox


@pytest.mark.parametrize("status", ["created", "running", "paused"])
def test_what_a_tar_says_of_its_entries_is_what_the_container_has(box: CommandLine, status: str) -> None:
    if status != "created":
        box.ok("start", "box")
    if status == "paused":
        box.ok("pause", "box")
    for _ in range(2):  # what is in the way is replaced
        done = box.ok("cp", "-", "box:/tmp", stdin=given())
        assert done.err == ""
    assert facts(taken(box, "box:/tmp/d")) == facts(given())
    assert box.ok("ps", "-a", "--format", "{{.State}}").lines == [status]


def test_facts_of_tars_that_differ_differ() -> None:
    """The twin."""
    other = given().replace(b"a directory", b"a direktory")
    assert facts(other) != facts(given())
    assert set(facts(other)) == {row[0] for row in ROWS}


def test_a_program_sees_them_too(box: CommandLine) -> None:
    box.ok("start", "box")
    box.ok("cp", "-", "box:/tmp", stdin=given())
    seen = box.ok("exec", "box", "sh", "-c", "cd /tmp/d; stat -c '%a %Y %h %n' . file set again pipe; readlink link; cat closed/file")
    assert seen.lines == [
        "1750 1000000000 3 .", "640 1000000001 2 file", "6755 1000000002 1 set", "640 1000000001 2 again", "622 1000000006 1 pipe",
        "/nowhere", "content",
    ]  # fmt: skip


def test_files_of_this_machine_keep_times_links_and_attributes_and_become_roots(box: CommandLine, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("x")
    (tree / "file").chmod(0o750)
    os.setxattr(tree / "file", "user.of", b"a file")
    os.link(tree / "file", tree / "again")
    (tree / "link").symlink_to("file")
    for path in (tree / "link", tree / "file", tree):
        os.utime(path, (TIME, TIME), follow_symlinks=False)
    if os.geteuid() == 0:
        os.chown(tree / "file", 1000, 1000)
        os.chmod(tree / "file", 0o750)
    box.ok("cp", str(tree), "box:/tmp")
    found = facts(taken(box, "box:/tmp/tree"))
    file = (tarfile.REGTYPE, 0o750, 0, 0, TIME, "", {"SCHILY.xattr.user.of": "a file"}, b"x")
    assert found["tree/file"] == found["tree/again"] == file
    assert found["tree/link"] == (tarfile.SYMTYPE, 0o777, 0, 0, TIME, "file", {}, None)
    box.ok("cp", "-a", f"{tree}/.", "box:/tmp/tree")
    kept = facts(taken(box, "box:/tmp/tree"))["tree/file"]
    owner = (1000, 1000) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    assert kept == (*file[:2], *owner, *file[4:])


def test_a_compressed_tar_is_unpacked(box: CommandLine) -> None:
    box.ok("cp", "-", "box:/tmp", stdin=gzip.compress(given()))
    assert facts(taken(box, "box:/tmp/d")) == facts(given())


def test_the_holes_of_a_sparse_file_stay(box: CommandLine, tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.seek(64 << 20)
        file.write(b"end")
    tar = subprocess.run(["tar", "-C", tmp_path, "-Scf", "-", "sparse"], stdout=subprocess.PIPE, check=True).stdout
    assert len(tar) < 1 << 20
    box.ok("cp", "-", "box:/tmp", stdin=tar)
    box.ok("start", "box")
    size, blocks = box.ok("exec", "box", "stat", "-c", "%s %b", "/tmp/sparse").out.split()
    assert int(size) == (64 << 20) + 3
    assert int(blocks) < 100
    assert box.ok("exec", "box", "tail", "-c", "3", "/tmp/sparse").out == "end"


DEVICE = member("null", tarfile.CHRTYPE)
DEVICE.devmajor, DEVICE.devminor = 1, 3
OUTSIDE = member("../outside")
OVER = member("full")
UNDER = member("f", tarfile.DIRTYPE)
FAR = member("far")
FAR.uid = 3_000_000
REFUSED = {
    "device": (DEVICE, "null: a device node cannot be made in a container"),
    "outside": (OUTSIDE, "../outside: outside of the directory"),
    "file over a directory": (OVER, "full: a directory and something else"),
    "directory over a file": (UNDER, "f: a directory and something else"),
    "nobody's owner": (FAR, "far: its owner 3000000:0 is not among the ids"),
    "link to nothing": (member("hard", tarfile.LNKTYPE, "nothing"), "hard: no such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_made_is_an_error_that_names_it(box: CommandLine, name: str) -> None:
    box.ok("cp", "-", "box:/tmp", stdin=tar_of(member("full", tarfile.DIRTYPE), member("full/x"), member("f")))
    wrong, told = REFUSED[name]
    done = box("cp", "-", "box:/tmp", stdin=tar_of(member("before"), wrong))
    assert done.status == 1
    assert told in done.err


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(box: CommandLine, damage: str) -> None:
    data = tar_of(member("one"), member("two"))
    done = box("cp", "-", "box:/tmp", stdin=data[:1500] if damage == "cut" else data[:1024] + b"T" + data[1025:])
    assert done.status == 1
    assert ("truncated header" if damage == "cut" else "bad checksum") in done.err


def test_attributes_that_nobody_may_give_are_told(box: CommandLine) -> None:
    odd = member("odd")
    odd.pax_headers = {"SCHILY.xattr.trusted.x": "1", "SCHILY.xattr.user.kept": "2", "SCHILY.xattr.user.sandbox.owner": "7:7"}
    done = box.ok("cp", "-", "box:/tmp", stdin=tar_of(odd))
    assert "trusted.x" in done.err
    assert facts(taken(box, "box:/tmp/odd"))["odd"] == (
        tarfile.REGTYPE, 0o644, 0, 0, TIME, "", {"SCHILY.xattr.user.kept": "2"}, b"content",
    )  # fmt: skip


def test_a_link_on_the_way_is_followed_inside_and_the_last_one_is_replaced(box: CommandLine) -> None:
    box.ok("start", "box")
    box.ok("exec", "box", "sh", "-c", "mkdir /real; ln -s /real /tmp/way; echo old > /real/old; ln -s /real/old /tmp/last")
    box.ok("cp", "-", "box:/tmp", stdin=tar_of(member("way/new"), member("last"), member("made/up/file")))
    seen = box.ok("exec", "box", "sh", "-c", "cat /real/new /real/old; test -L /tmp/last || cat /tmp/last; stat -c %a:%u /tmp/made/up")
    assert seen.out == "contentold\ncontent755:0\n"


def test_a_file_that_is_mounted_in_the_container_is_written_as_it_is(box: CommandLine) -> None:
    box.ok("start", "box")
    box.ok("cp", "-", "box:/etc", stdin=tar_of(member("hostname")))
    assert box.ok("exec", "box", "cat", "/etc/hostname").out == "content"


TRAP = "ln -s /proc/self/fd /tmp/d; ln -s /proc/self/fd/0 /tmp/0"
"""Where a tar is unpacked, links to what the process that unpacks has open: the tar itself, a file of the host's."""


def test_no_link_leads_to_what_the_unpacker_has_open(box: CommandLine, tmp_path: Path) -> None:
    canary = tmp_path / "canary.tar"
    canary.write_bytes(tar_of(member("d/0"), member("0")))
    canary.chmod(0o666)
    before = canary.read_bytes()
    box.ok("start", "box")
    box.ok("exec", "box", "sh", "-c", TRAP)
    for path in ("/tmp", "/tmp/d"):
        with canary.open("rb") as stdin:
            done = subprocess.run(box.argv("cp", "-", f"box:{path}"), stdin=stdin, capture_output=True, check=False)
        assert done.returncode == 1
    assert canary.read_bytes() == before


def test_such_a_link_leads_to_it_when_it_is_followed(box: CommandLine, tmp_path: Path) -> None:
    """The twin: from inside, the magic link opens the host's file for writing."""
    canary = tmp_path / "canary.tar"
    canary.write_bytes(b"alive")
    canary.chmod(0o666)
    box.ok("start", "box")
    box.ok("exec", "box", "sh", "-c", TRAP)
    with canary.open("rb") as stdin:
        subprocess.run(box.argv("exec", "-i", "box", "sh", "-c", "echo dead > /tmp/0"), stdin=stdin, check=True)
    assert canary.read_bytes() == b"dead\n"
