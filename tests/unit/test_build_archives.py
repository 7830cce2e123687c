"""ADD unpacks tar archives, plain and compressed, below its destination and nowhere else."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd

from sandbox.build.archives import unpack
from sandbox.build.modes import parse_mode
from sandbox.build.transfer import LayerWriter, Manner
from sandbox.errors import BuildError, UnsafeLayer

NOW = 1_700_000_000 * 10**9
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd.compress,
}


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **more: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    info.uid, info.gid = os.geteuid(), os.getegid()
    for key, value in more.items():
        setattr(info, key, value)
    return info


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


FILE = (member("dir/file"), b"content")


class Bench:
    def __init__(self, tmp_path: Path) -> None:
        self.lower = tmp_path / "lower"
        self.upper = tmp_path / "upper"
        self.lower.mkdir()
        self.upper.mkdir()
        self.writer = LayerWriter((str(self.lower),), self.upper, NOW)

    def unpack(self, data: bytes, target: str = "/x", manner: Manner = Manner()) -> bool:
        done = unpack(io.BytesIO(data), self.writer, target, manner)
        self.writer.finish()
        return done


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_archive_of_every_compression_is_unpacked(bench: Bench, compression: str) -> None:
    assert bench.unpack(COMPRESSIONS[compression](archive(FILE)))
    assert (bench.upper / "x/dir/file").read_bytes() == b"content"


@pytest.mark.parametrize("data", [b"", b"text", b"BZh is how this text begins", b"\x1f\x8bnot gzip", bytes(1024)])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_what_is_no_archive_is_left_alone(bench: Bench, compression: str, data: bytes) -> None:
    assert not bench.unpack(COMPRESSIONS[compression](data))
    assert os.listdir(bench.upper) == []


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_damaged_archive_is_an_error(bench: Bench, compression: str) -> None:
    whole = COMPRESSIONS[compression](archive((member("big"), os.urandom(2_000_000))))  # more than one block of each
    with pytest.raises(BuildError, match="damaged archive"):
        bench.unpack(whole[: len(whole) // 2])


def test_metadata_and_links_are_kept(bench: Bench) -> None:
    bench.unpack(
        archive(
            (member("d", tarfile.DIRTYPE, mode=0o2750, mtime=1000), b""),
            (member("d/f", mode=0o4755, mtime=2000), b"1"),
            (member("d/hard", tarfile.LNKTYPE, "d/f", mtime=2000), b""),
            (member("d/soft", tarfile.SYMTYPE, "/etc/passwd", mtime=3000), b""),
            (member("d/pipe", tarfile.FIFOTYPE, mode=0o600), b""),
        )
    )
    d = bench.upper / "x/d"
    assert (stat.S_IMODE(d.stat().st_mode), d.stat().st_mtime) == (0o2750, 1000)
    assert (stat.S_IMODE((d / "f").stat().st_mode), (d / "f").stat().st_mtime) == (0o4755, 2000)
    assert os.path.samefile(d / "f", d / "hard")
    assert (os.readlink(d / "soft"), (d / "soft").lstat().st_mtime) == ("/etc/passwd", 3000)
    assert stat.S_ISFIFO((d / "pipe").stat().st_mode)


def test_attributes_are_kept_but_for_overlays_own(bench: Bench) -> None:
    info = member("f")
    info.pax_headers = {"SCHILY.xattr.user.a": "1", "SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.security.selinux": "x"}
    bench.unpack(archive((info, b"")))
    assert os.listxattr(bench.upper / "x/f") == ["user.a"]


def test_directories_of_the_image_stay_and_what_the_archive_names_changes(bench: Bench) -> None:
    (bench.lower / "x/named").mkdir(parents=True)
    (bench.lower / "x/implied").mkdir()
    (bench.lower / "x/implied").chmod(0o700)
    (bench.lower / "x/named/old").write_text("old")
    members = [(member("named", tarfile.DIRTYPE, mode=0o711), b""), (member("implied/f"), b"1"), (member("named/old"), b"new")]
    bench.unpack(archive(*members))
    assert stat.S_IMODE((bench.upper / "x/named").stat().st_mode) == 0o711
    assert stat.S_IMODE((bench.upper / "x/implied").stat().st_mode) == 0o700
    assert (bench.upper / "x/named/old").read_text() == "new"


def test_member_below_a_link_of_the_image_goes_where_the_link_leads_inside(bench: Bench) -> None:
    (bench.lower / "usr/lib").mkdir(parents=True)
    (bench.lower / "lib").symlink_to("usr/lib")
    bench.unpack(archive((member("lib/file"), b"1")), "/")
    assert (bench.upper / "usr/lib/file").read_bytes() == b"1"
    assert not (bench.upper / "lib").exists()


def test_later_member_replaces_an_earlier_one(bench: Bench) -> None:
    bench.unpack(archive((member("f"), b"1"), (member("f"), b"2"), (member("l", tarfile.SYMTYPE, "f"), b""), (member("l"), b"3")))
    assert ((bench.upper / "x/f").read_bytes(), (bench.upper / "x/l").read_bytes()) == (b"2", b"3")
    assert not (bench.upper / "x/l").is_symlink()


def test_link_replaced_by_a_directory_no_longer_leads_anywhere(bench: Bench) -> None:
    bench.unpack(
        archive(
            (member("real", tarfile.DIRTYPE), b""),
            (member("l", tarfile.SYMTYPE, "real"), b""),
            (member("l/a"), b"1"),
            (member("l", tarfile.DIRTYPE), b""),
            (member("l/b"), b"2"),
        )
    )
    assert sorted(str(path.relative_to(bench.upper)) for path in bench.upper.rglob("?")) == ["x", "x/l", "x/l/b", "x/real/a"]


def test_names_like_whiteouts_are_names(bench: Bench) -> None:
    bench.unpack(archive((member("a"), b"1"), (member(".wh.a"), b"")))
    assert sorted(os.listdir(bench.upper / "x")) == [".wh.a", "a"]


def test_manner_gives_owner_to_everything(bench: Bench) -> None:
    me = (os.geteuid(), os.getegid())
    bench.unpack(archive((member("f", uid=12345 if os.geteuid() else 0), b"1")), manner=Manner(me, parse_mode("600")))
    status = (bench.upper / "x/f").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (*me, 0o644)  # --chmod is not for unpacked files


# Hostile archives


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    directory = tmp_path / "host"
    directory.mkdir()
    (directory / "canary").write_text("alive")
    return directory


@pytest.mark.parametrize("name", ["../host/canary", "a/../../host/canary", "..", "/../../host/canary"])
def test_name_that_leads_out_is_refused(bench: Bench, canary: Path, name: str) -> None:
    with pytest.raises(UnsafeLayer) as caught:
        bench.unpack(archive((member(name), b"dead")))
    assert caught.value.path == name
    assert (canary / "canary").read_text() == "alive"


def test_absolute_name_stays_below_the_destination(bench: Bench, canary: Path) -> None:
    bench.unpack(archive((member(f"{canary}/canary"), b"dead")))
    assert (canary / "canary").read_text() == "alive"
    assert (bench.upper / f"x{canary}/canary").read_bytes() == b"dead"


@pytest.mark.parametrize("target", ["{canary}", "../../../../../../../../..{canary}", "../../host"])
def test_member_below_a_link_that_leads_out_stays_in_the_image(bench: Bench, canary: Path, target: str) -> None:
    link = member("out", tarfile.SYMTYPE, target.format(canary=canary))
    bench.unpack(archive((link, b""), (member("out/canary"), b"dead")))
    assert (canary / "canary").read_text() == "alive"
    (written,) = [path for path in bench.upper.rglob("canary") if not path.is_symlink()]
    assert written.read_bytes() == b"dead"


@pytest.mark.parametrize("target", ["{canary}/canary", "../host/canary", "nothing", "dir"])
def test_hard_link_out_of_the_archive_is_refused(bench: Bench, canary: Path, target: str) -> None:
    link = member("out", tarfile.LNKTYPE, target.format(canary=canary))
    with pytest.raises(UnsafeLayer):
        bench.unpack(archive((member("dir", tarfile.DIRTYPE), b""), (link, b"")))
    assert (canary / "canary").stat().st_nlink == 1


def test_hard_link_through_a_link_that_leads_out_is_refused(bench: Bench, canary: Path) -> None:
    out = member("out", tarfile.SYMTYPE, str(canary))
    with pytest.raises(UnsafeLayer):
        bench.unpack(archive((out, b""), (member("stolen", tarfile.LNKTYPE, "out/canary"), b"")))
    assert (canary / "canary").stat().st_nlink == 1


def test_overlays_mark_of_a_removed_file_is_refused(bench: Bench) -> None:
    with pytest.raises(UnsafeLayer, match="0:0 device"):
        bench.unpack(archive((member("gone", tarfile.CHRTYPE, devmajor=0, devminor=0), b"")))


def test_the_canary_dies_where_nothing_is_checked(canary: Path) -> None:
    """The oracle of the tests above: tarfile without a filter does leave the directory."""
    (canary.parent / "y").mkdir()
    with tarfile.open(fileobj=io.BytesIO(archive((member("../host/canary"), b"dead")))) as tar:
        tar.extractall(canary.parent / "y", filter="fully_trusted")
    assert (canary / "canary").read_text() == "dead"
