"""A layer directory written as the tar that its diff_id promises: a second writer, which shares no code with the product's.

ustar headers, PAX records only where ustar cannot hold a value, entries in the order of a walk by name, overlayfs' marks
as whiteouts.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

_TYPES = {stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFDIR: b"5", stat.S_IFIFO: b"6"}
_OPAQUE = "user.overlay.opaque"
_OURS = ("user.overlay.", "user.sandbox.")
_MEANT = {"user.sandbox.capability": "security.capability"}


def layer_tar(upper: Path, lowers: list[Path]) -> Iterator[bytes]:
    """The pieces of the layer's tar; `lowers` are the directories below it, lowest first."""
    seen: dict[int, bytes] = {}
    yield from _directory(os.fsencode(upper), b"", [os.fsencode(lower) for lower in lowers], seen)
    yield bytes(1024)


def _directory(top: bytes, inside: bytes, lowers: list[bytes], seen: dict[int, bytes]) -> Iterator[bytes]:
    for base in sorted(os.listdir(os.path.join(top, inside))):
        name = os.path.join(inside, base)
        path = os.path.join(top, name)
        status = os.lstat(path)
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            yield _header(os.path.join(inside, b".wh." + base), b"0", (0, 0, 0, 0, 0), b"", (0, 0), {})
        elif not stat.S_ISSOCK(status.st_mode):
            yield from _entry(name, path, status, seen)
            if stat.S_ISDIR(status.st_mode):
                if _OPAQUE in os.listxattr(path) and _shown(lowers, name):
                    yield _header(name + b"/.wh..wh..opq", b"0", (0, 0, 0, 0, 0), b"", (0, 0), {})
                yield from _directory(top, name, lowers, seen)


def _shown(lowers: list[bytes], name: bytes) -> bool:
    """Whether the layers below show a directory of this name."""
    for lower in reversed(lowers):
        place, hidden = lower, False
        for part in name.split(b"/"):
            place = os.path.join(place, part)
            if not os.path.lexists(place):
                break
            status = os.lstat(place)
            if not stat.S_ISDIR(status.st_mode):
                return False
            hidden = hidden or _OPAQUE in os.listxattr(place)
        else:
            return True
        if hidden:
            return False
    return False


def unpacked(archive: Path, into: Path) -> Path:
    """All of a tar that a test made; Debian 12's Python knows no filters yet."""
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(into, filter="data")
        else:
            tar.extractall(into)
    return into


def owner(path: bytes, status: os.stat_result) -> tuple[int, int]:
    """Whose it is in the image. In an ordinary user's store all is theirs, and stands for root's, or for those of whom is noted at the
    file itself, or, for what can hold no attribute, at its directory."""
    if not _is_noted(path):
        return status.st_uid, status.st_gid
    directory, name = os.path.split(path)
    if stat.S_IFMT(status.st_mode) in (stat.S_IFREG, stat.S_IFDIR):
        note = _attribute(path, "user.sandbox.owner")
    else:
        default, *rows = _attribute(directory, "user.sandbox.owners").split(b"\0")
        note = {row.partition(b" ")[2]: row.partition(b" ")[0] for row in rows}.get(name, default)
    uid, gid = (note or b"0:0").split(b":")[:2]
    return int(uid), int(gid)


def mode(path: bytes, status: os.stat_result) -> int:
    """Its permissions in the image: in an ordinary user's store those that would shut the user out are noted."""
    here = stat.S_IMODE(status.st_mode)
    if not _is_noted(path) or stat.S_IFMT(status.st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        return here
    noted = _attribute(path, "user.sandbox.owner").split(b":")[2:]
    opened = 0o700 if stat.S_ISDIR(status.st_mode) else 0o400
    return int(noted[0], 8) if noted and int(noted[0], 8) | opened == here else here


def _is_noted(path: bytes) -> bool:
    """Whether this is in the store of an ordinary user."""
    store = path.partition(b"/snapshots/")[0]
    return store != path and os.lstat(store).st_uid != 0


def _attribute(path: bytes, name: str) -> bytes:
    return os.getxattr(path, name) if name in os.listxattr(path) else b""


def _entry(name: bytes, path: bytes, status: os.stat_result, seen: dict[int, bytes]) -> Iterator[bytes]:
    kind = stat.S_IFMT(status.st_mode)
    numbers = (mode(path, status), *owner(path, status), 0, status.st_mtime_ns // 10**9)
    device = (os.major(status.st_rdev), os.minor(status.st_rdev)) if kind in (stat.S_IFCHR, stat.S_IFBLK) else (0, 0)
    if kind == stat.S_IFREG and status.st_nlink > 1 and seen.setdefault(status.st_ino, name) != name:
        yield _header(name, b"1", numbers, seen[status.st_ino], device, {})
    elif kind == stat.S_IFREG:
        content = Path(os.fsdecode(path)).read_bytes()
        yield _header(name, b"0", (*numbers[:3], len(content), numbers[4]), b"", device, _attributes(path))
        yield content + bytes(-len(content) % 512)
    elif kind == stat.S_IFDIR:
        yield _header(name + b"/", b"5", numbers, b"", device, _attributes(path))
    else:
        target = os.readlink(path) if kind == stat.S_IFLNK else b""
        yield _header(name, _TYPES[kind], numbers, target, device, {})


def _attributes(path: bytes) -> dict[bytes, bytes]:
    found = {_MEANT.get(name, name): os.getxattr(path, name) for name in os.listxattr(path)}
    kept = {n: v for n, v in found.items() if n == "security.capability" or (n.startswith("user.") and not n.startswith(_OURS))}
    return {b"SCHILY.xattr." + os.fsencode(name): value for name, value in kept.items()}


def _header(
    name: bytes, kind: bytes, numbers: tuple[int, int, int, int, int], link: bytes, device: tuple[int, int], records: dict[bytes, bytes]
) -> bytes:
    records = dict(records)
    prefix, short = b"", name
    if len(name) > 100:
        cuts = [i for i, byte in enumerate(name[:-1]) if byte == 0x2F and i <= 155 and len(name) - i - 1 <= 100]
        if cuts:
            prefix, short = name[: cuts[-1]], name[cuts[-1] + 1 :]
        else:
            records[b"path"], short = name, name[:100]
    if len(link) > 100:
        records[b"linkpath"] = link
    fields = list(numbers)
    for index, (key, digits) in enumerate(((b"", 7), (b"uid", 7), (b"gid", 7), (b"size", 11), (b"mtime", 11))):
        if not 0 <= fields[index] < 8**digits:
            records[key], fields[index] = str(fields[index]).encode(), 0
    block = _block(short, kind, fields, link[:100], device, prefix)
    if not records:
        return block
    body = b"".join(_record(key, value) for key, value in sorted(records.items()))
    title = b"PaxHeaders.0/" + os.path.basename(name.rstrip(b"/"))[:80]
    return _block(title, b"x", [0o644, 0, 0, len(body), 0], b"", (0, 0), b"") + body + bytes(-len(body) % 512) + block


def _block(name: bytes, kind: bytes, numbers: list[int], link: bytes, device: tuple[int, int], prefix: bytes) -> bytes:
    block = bytearray(512)

    def put(offset: int, data: bytes) -> None:
        block[offset : offset + len(data)] = data

    put(0, name)
    for offset, digits, number in zip((100, 108, 116, 124, 136), (7, 7, 7, 11, 11), numbers, strict=True):
        put(offset, f"{number:0{digits}o}".encode())
    put(148, b" " * 8)
    put(156, kind + link)
    put(257, b"ustar\x0000")
    put(329, f"{device[0]:07o}\0{device[1]:07o}".encode())
    put(345, prefix)
    put(148, f"{sum(block):06o}\0 ".encode())
    return bytes(block)


def _record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest
