"""The reader of layers' tars beside tarfile's own: the same entries, of whatever program."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pytest

from sandbox.errors import InvalidImage
from sandbox.image.plain import PIECE, ReadAhead
from sandbox.image.tarinput import CappedInfo, Forward, members

FIELDS = ("name", "mode", "uid", "gid", "size", "mtime", "chksum", "type", "linkname", "pax_headers")
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def _entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


ENTRIES = {
    "a file": _entry("usr/bin/x", mode=0o4755, uid=1000, gid=50, mtime=1700000000, size=700),
    "a directory": _entry("usr/lib/", tarfile.DIRTYPE, mode=0o1777),
    "a symbolic link": _entry("lib", tarfile.SYMTYPE, linkname="usr/lib"),
    "a hard link": _entry("usr/y", tarfile.LNKTYPE, linkname="usr/bin/x"),
    "a fifo": _entry("run/pipe", tarfile.FIFOTYPE),
    "a device": _entry("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
    "an empty file": _entry("empty"),
    "a name in two parts": _entry(f"{'d' * 90}/{'e' * 90}"),
    "a file before 1970": _entry("old", mtime=0),
    "a name with a strange letter": _entry("usr/ü"),
    "names of users": _entry("named", uname="someone", gname="some"),
}
ONLY_NEWER = {
    "a long name": _entry("x" * 300),
    "a long link": _entry("l", tarfile.SYMTYPE, linkname="y" * 300),
    "a large user id": _entry("large", uid=1 << 30, gid=1 << 30),
}


def _tar(format: int, *entries: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for entry in entries:
            tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    return out.getvalue()


def _ours(data: bytes) -> Iterator[tarfile.TarInfo]:
    source = Forward(io.BytesIO(data).read)
    with tarfile.open(fileobj=source, mode="r:", errors="surrogateescape", tarinfo=CappedInfo) as tar:  # type: ignore[call-overload]
        yield from members(tar)


def _theirs(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", errors="surrogateescape") as tar:
        return tar.getmembers()


@pytest.mark.parametrize(("kind", "name"), [
    *((kind, name) for kind in FORMATS for name in ENTRIES),
    *((kind, name) for kind in ("gnu", "pax") for name in ONLY_NEWER),
])  # fmt: skip
def test_a_header_means_what_tarfile_says(kind: str, name: str) -> None:
    data = _tar(FORMATS[kind], _entry("before", size=10), (ENTRIES | ONLY_NEWER)[name], _entry("after", size=10))
    ours, theirs = list(_ours(data)), _theirs(data)
    assert len(theirs) == 3
    assert [[getattr(each, field) for field in FIELDS] for each in ours] == [[getattr(each, field) for field in FIELDS] for each in theirs]


@pytest.mark.parametrize("place", [0, 100, 124, 150, 156, 345])
def test_a_header_with_another_byte_is_refused(place: int) -> None:
    data = bytearray(_tar(tarfile.USTAR_FORMAT, _entry("one", size=3)))
    data[place] ^= 1
    with pytest.raises(tarfile.ReadError):
        list(_ours(bytes(data)))


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_header_in_the_middle_is_not_the_end(damage: str) -> None:
    data = _tar(tarfile.USTAR_FORMAT, _entry("one", size=3), _entry("two"))
    wrong = data[:1500] if damage == "cut" else data[:1024] + b"T" + data[1025:]
    assert [each.name for each in _theirs(wrong)] == ["one"], "which is what tarfile makes of it"
    with pytest.raises(tarfile.ReadError):
        list(_ours(wrong))


def test_an_extension_header_without_end_is_refused() -> None:
    head = _entry("long", tarfile.GNUTYPE_LONGNAME, size=2 << 20).tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(InvalidImage, match="an extension header"):
        list(_ours(head + bytes(3 << 20)))


def test_no_entry_is_kept() -> None:
    source = Forward(io.BytesIO(_tar(tarfile.USTAR_FORMAT, *(_entry(f"f{number}") for number in range(100)))).read)
    with tarfile.open(fileobj=source, mode="r:", tarinfo=CappedInfo) as tar:  # type: ignore[call-overload]
        assert [member.name for member in members(tar)] == [f"f{number}" for number in range(100)]
        assert len(tar.members) <= 1


@pytest.mark.parametrize("size", [0, 1, 511, 512, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7])
def test_pieces_are_the_bytes_that_come(size: int) -> None:
    data = bytes(range(256)) * (4 * PIECE // 256)
    source = Forward(io.BytesIO(data).read)
    assert source.read(100) == data[:100]
    assert b"".join(source.pieces(size)) == data[100 : 100 + size] and source.tell() == 100 + size
    source.seek(100 + size + 50)
    assert source.read(9) == data[150 + size : 159 + size]
    with pytest.raises(tarfile.StreamError):
        source.seek(0)
    assert len(source.read()) == len(data) - 159 - size


def test_reading_ahead_ends_with_its_reader_and_tells_errors_to_him() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(size) or self.fail()

        def fail(self) -> bytes:
            raise OSError("gone")

    with ReadAhead(Broken(bytes(3 * PIECE))) as ahead:
        assert ahead.read(10) == bytes(10)
        thread = ahead._thread
    assert not thread.is_alive()
    with ReadAhead(Broken(b"abc")) as ahead, pytest.raises(OSError, match="gone"):
        ahead.digest()
    with ReadAhead(io.BytesIO(bytes(3 << 20)), limit=2 << 20) as ahead, pytest.raises(InvalidImage, match="more than 2 MiB unpacked"):
        ahead.digest()
