"""ELF files as capture needs them: which libraries a file asks for, where the loader would find them, and two edits
that keep every offset (dropping debug sections, replacing a path in place).

Nothing is ever executed: `ldd` runs the program's own loader, so it is no way to look at a file.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

log = logging.getLogger(__name__)

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 10, 15, 29
_SHF_ALLOC, _SHT_NOBITS = 2, 8
_STRINGS_CAP = 64 << 20
_CACHE_MAGIC = b"glibc-ld.so.cache1.1"
_CACHE_HEADER, _CACHE_ENTRY = 48, struct.Struct("=iIIIQ")


class _Layout(NamedTuple):
    """Where the fields are in 32 and 64 bit files: (header, program header, dynamic entry, section header)."""

    header: str
    program: str
    dynamic: str
    section: str


_LAYOUTS = {1: _Layout("HHIIIIIHHHHHH", "IIIIIIII", "iI", "IIIIIIIIII"), 2: _Layout("HHIQQQIHHHHHH", "IIQQQQQQ", "qQ", "IIQQQQIIQQ")}


class _Segment(NamedTuple):
    type: int
    offset: int
    address: int
    size: int


class Elf(msgspec.Struct, frozen=True):
    """What the dynamic loader would read of one file. `machine` is (class, byte order, e_machine): libraries must agree in it."""

    path: str
    machine: tuple[int, int, int]
    interpreter: str | None
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]


def read_elf(path: str | Path) -> Elf | None:
    """Read a file's dynamic section; None when it is not an ELF file, or a damaged one (packages ship such as test data)."""
    try:
        with open(path, "rb", buffering=0) as file:
            return _parse(str(path), file.fileno())
    except (struct.error, ValueError, IndexError, KeyError) as err:
        log.debug("%s: not a readable ELF file: %s", path, err)
        return None


def _parse(path: str, fd: int) -> Elf | None:
    ident = os.pread(fd, 16, 0)
    if ident[:4] != b"\x7fELF":
        return None
    layout, order = _LAYOUTS[ident[4]], "<" if ident[5] == 1 else ">"
    header = _unpack(fd, order + layout.header, 16)
    segments = list(_segments(fd, order + layout.program, header[4], header[9]))
    interpreter = next((os.pread(fd, s.size, s.offset).rstrip(b"\0").decode() for s in segments if s.type == _PT_INTERP), None)
    dynamic = list(_dynamic(fd, order + layout.dynamic, segments))
    strings = _strings(fd, segments, dict(dynamic))

    def texts(tag: int) -> list[str]:
        return [os.fsdecode(strings[value : strings.index(b"\0", value)]) for key, value in dynamic if key == tag]

    def paths(tag: int) -> tuple[str, ...]:
        return tuple(p for text in texts(tag) for p in text.split(":") if p)

    return Elf(path, (ident[4], ident[5], header[1]), interpreter, tuple(texts(_DT_NEEDED)), paths(_DT_RPATH), paths(_DT_RUNPATH))


def _unpack(fd: int, form: str, offset: int) -> tuple[int, ...]:
    return struct.unpack(form, os.pread(fd, struct.calcsize(form), offset))


def _segments(fd: int, form: str, offset: int, count: int) -> Iterator[_Segment]:
    for fields in struct.iter_unpack(form, os.pread(fd, struct.calcsize(form) * count, offset)):
        # 64 bit files have the flags second, 32 bit files seventh.
        yield _Segment(fields[0], *((fields[2], fields[3], fields[5]) if "Q" in form else (fields[1], fields[2], fields[4])))


def _dynamic(fd: int, form: str, segments: Iterable[_Segment]) -> Iterator[tuple[int, int]]:
    for segment in segments:
        if segment.type == _PT_DYNAMIC:
            data = os.pread(fd, segment.size, segment.offset)
            for tag, value in struct.iter_unpack(form, data[: len(data) - len(data) % struct.calcsize(form)]):
                if tag == _DT_NULL:
                    return
                yield tag, value


def _strings(fd: int, segments: Iterable[_Segment], dynamic: Mapping[int, int]) -> bytes:
    address = dynamic.get(_DT_STRTAB)
    for segment in segments:
        if address is not None and segment.type == _PT_LOAD and segment.address <= address < segment.address + segment.size:
            return os.pread(fd, min(dynamic[_DT_STRSZ], _STRINGS_CAP), address - segment.address + segment.offset)
    return b""


# -- what the loader does -------------------------------------------------------------------------------------------


class Linker(msgspec.Struct, frozen=True):
    """The loader's search of this host, in ld.so(8)'s order; LD_LIBRARY_PATH is the user's and does not count."""

    cache: Mapping[str, tuple[str, ...]]
    directories: tuple[str, ...]

    def find(self, name: str, asker: Elf, inherited: tuple[str, ...] = ()) -> str | None:
        """Path of the library `asker` means by `name`; `inherited`: RPATHs of what loaded it."""
        if "/" in name:
            return name if _fits(name, asker) else None
        own = asker.runpath or (*asker.rpath, *inherited)
        candidates = [os.path.join(_expand(directory, asker), name) for directory in own]
        candidates += self.cache.get(name, ())
        candidates += [os.path.join(directory, name) for directory in self.directories]
        return next((os.path.normpath(c) for c in candidates if _fits(c, asker)), None)

    def closure(self, roots: Iterable[Elf], inherited: tuple[str, ...] = ()) -> Closure:
        """Everything the roots need, without the roots, and the names nobody has."""
        found: dict[str, Elf] = {}
        missing: set[str] = set()
        queue = [(root, inherited) for root in roots]
        while queue:
            elf, above = queue.pop()
            passed = above if elf.runpath else (*inheritable(elf), *above)
            for name in elf.needed:
                path = self.find(name, elf, above)
                library = read_elf(path) if path and path not in found else None
                if path is None:
                    missing.add(name)
                elif library:
                    found[path] = library
                    queue.append((library, passed))
        return Closure(found, frozenset(missing))


class Closure(msgspec.Struct, frozen=True):
    """Libraries by the path the loader would open, and names that were not found."""

    libraries: Mapping[str, Elf]
    missing: frozenset[str]


def inheritable(elf: Elf) -> tuple[str, ...]:
    """The directories in which the loader also looks for what this file's libraries need (DT_RPATH, its $ORIGIN filled in)."""
    return () if elf.runpath else tuple(_expand(path, elf) for path in elf.rpath)


def _expand(directory: str, asker: Elf) -> str:
    origin = os.path.dirname(asker.path)
    return re.sub(r"\$(?:ORIGIN|\{ORIGIN\})", lambda _: origin, directory)


def _fits(path: str, asker: Elf) -> bool:
    elf = read_elf(path) if os.path.isfile(path) else None
    return elf is not None and elf.machine == asker.machine


def host_linker(root: str = "/") -> Linker:
    """The loader's configuration of this host: glibc's cache and the directories every loader knows."""
    return Linker(
        _read_cache(Path(root, "etc/ld.so.cache")),
        (*_musl_directories(Path(root, "etc")), "/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib"),
    )


def _musl_directories(etc: Path) -> tuple[str, ...]:
    return tuple(d for file in sorted(etc.glob("ld-musl-*.path")) for d in re.split(r"[:\s]+", file.read_text()) if d)


def _read_cache(path: Path) -> dict[str, tuple[str, ...]]:
    """Names to paths; entries for newer CPUs (glibc-hwcaps) are left out, since the image may run elsewhere."""
    data = path.read_bytes() if path.is_file() else b""
    base = data.find(_CACHE_MAGIC)
    if base < 0:
        return {}
    data = data[base:]
    (count,) = struct.unpack_from("=I", data, len(_CACHE_MAGIC))
    names: dict[str, tuple[str, ...]] = {}
    for index in range(count):
        _, key, value, _, hwcap = _CACHE_ENTRY.unpack_from(data, _CACHE_HEADER + index * _CACHE_ENTRY.size)
        name, target = (os.fsdecode(data[at : data.index(b"\0", at)]) for at in (key, value))
        if hwcap == 0:
            names[name] = (*names.get(name, ()), target)
    return names


# -- edits ----------------------------------------------------------------------------------------------------------


def strip_debug(data: bytes) -> bytes:
    """Without debug information and symbol table, as `strip` leaves it; unchanged when there is none or the layout is unusual.

    A Python built from source carries three times its size in debug sections, and the build machine's paths in them.
    """
    if data[:4] != b"\x7fELF" or b".debug_info\0" not in data:
        return data
    try:
        return _strip(data)
    except (struct.error, ValueError, KeyError) as err:
        log.debug("not stripped: %s", err)
        return data


def _strip(data: bytes) -> bytes:
    layout, order = _LAYOUTS[data[4]], "<" if data[5] == 1 else ">"
    header_form, section_form = order + layout.header, struct.Struct(order + layout.section)
    header = list(struct.unpack_from(header_form, data, 16))
    table, names = _sections(data, section_form, header), header[12]
    kept = 1 + max(i for i, s in enumerate(table) if s[2] & _SHF_ALLOC)
    end = max(s[4] + (0 if s[1] == _SHT_NOBITS else s[5]) for s in table[:kept])
    if any(not s[2] & _SHF_ALLOC for s in table[1:kept]) or any(s[4] < end for s in table[kept:]):
        return data
    text = data[table[names][4] : table[names][4] + table[names][5]]
    shrunk = bytearray(data[:end]) + text
    shrunk += bytes(-len(shrunk) % 16)
    header[5], header[11], header[12] = len(shrunk), kept + 1, kept
    table[names][4] = end
    for section in (*table[:kept], table[names]):
        shrunk += section_form.pack(*section)
    struct.pack_into(header_form, shrunk, 16, *header)
    return bytes(shrunk)


def _sections(data: bytes, form: struct.Struct, header: list[int]) -> list[list[int]]:
    offset, count = header[5], header[11]
    if not offset or not count:
        raise ValueError("no section table")
    return [list(form.unpack_from(data, offset + index * form.size)) for index in range(count)]
