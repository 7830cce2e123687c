"""Reading ELF files and finding libraries as the loader does, on files made here and on the host's own."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from sandbox.image import capture_elf
from sandbox.image.capture_elf import Linker, host_linker, read_elf, strip_debug

_ORDERS = {"little": "<", "big": ">"}


def make_elf(
    path: Path,
    *,
    needed: tuple[str, ...] = (),
    rpath: str = "",
    runpath: str = "",
    machine: int = 62,
    bits: int = 64,
    order: str = "little",
) -> Path:
    """Write a file whose header and dynamic section are a real one's; it has no code."""
    sign, wide = _ORDERS[order], bits == 64
    strings = b"\0"
    entries: list[tuple[int, int]] = []
    for tag, text in (*((1, name) for name in needed), *(((15, rpath),) if rpath else ()), *(((29, runpath),) if runpath else ())):
        entries.append((tag, len(strings)))
        strings += text.encode() + b"\0"
    header, program = (64, 56) if wide else (52, 32)
    dynamic_at = header + 2 * program
    strings_at = dynamic_at + (len(entries) + 3) * (16 if wide else 8)
    entries += [(5, strings_at), (10, len(strings)), (0, 0)]
    dynamic = b"".join(struct.pack(sign + ("qQ" if wide else "iI"), *entry) for entry in entries)
    end = strings_at + len(strings)

    def segment(kind: int, offset: int, size: int) -> bytes:
        fields = (kind, 4, offset, offset, offset, size, size, 8) if wide else (kind, offset, offset, offset, size, size, 4, 4)
        return struct.pack(sign + ("IIQQQQQQ" if wide else "IIIIIIII"), *fields)

    ident = b"\x7fELF" + bytes((2 if wide else 1, 1 if order == "little" else 2, 1)) + bytes(9)
    rest = struct.pack(sign + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"), 3, machine, 1, 0, header, 0, 0, header, program, 2, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ident + rest + segment(1, 0, end) + segment(2, dynamic_at, len(dynamic)) + dynamic + strings)
    return path


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("bits", [32, 64])
def test_needed_and_search_paths_are_read(tmp_path: Path, bits: int, order: str) -> None:
    elf = read_elf(
        make_elf(tmp_path / "a", needed=("libx.so.1", "liby.so"), rpath="/r", runpath="$ORIGIN/../lib:/opt/b", bits=bits, order=order)
    )
    assert elf is not None
    assert elf.needed == ("libx.so.1", "liby.so")
    assert (elf.rpath, elf.runpath) == (("/r",), ("$ORIGIN/../lib", "/opt/b"))


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"#!/bin/sh\n", b"\x7fELF\x02\x01" + bytes(40), b"\x7fELF\x09\x01" + bytes(200)])
def test_what_is_no_readable_elf_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert read_elf(tmp_path / "a") is None


def test_a_truncated_elf_is_none(tmp_path: Path) -> None:
    whole = make_elf(tmp_path / "a", needed=("libx.so",)).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "b").write_bytes(whole[:length])
        cut = read_elf(tmp_path / "b")
        assert cut is None or "libx.so" not in cut.needed


def test_origin_in_runpath_is_the_directory_of_the_asker(tmp_path: Path) -> None:
    program = read_elf(make_elf(tmp_path / "bin/a", needed=("libx.so",), runpath="$ORIGIN/../lib"))
    wanted = make_elf(tmp_path / "lib/libx.so")
    assert program is not None
    assert Linker({}, ()).find("libx.so", program) == str(wanted)


def test_runpath_hides_rpath_and_what_was_inherited(tmp_path: Path) -> None:
    make_elf(tmp_path / "r/libx.so")
    program = read_elf(make_elf(tmp_path / "a", rpath=str(tmp_path / "r"), runpath=str(tmp_path / "none")))
    assert program is not None
    assert Linker({}, ()).find("libx.so", program, inherited=(str(tmp_path / "r"),)) is None


def test_a_library_of_another_machine_is_passed_over(tmp_path: Path) -> None:
    make_elf(tmp_path / "arm/libx.so", machine=183)
    make_elf(tmp_path / "small/libx.so", bits=32)
    wanted = make_elf(tmp_path / "right/libx.so")
    program = read_elf(make_elf(tmp_path / "a"))
    assert program is not None
    linker = Linker({"libx.so": (str(tmp_path / "arm/libx.so"),)}, (str(tmp_path / "small"), str(tmp_path / "right")))
    assert linker.find("libx.so", program) == str(wanted)


def test_closure_follows_libraries_and_passes_rpath_down(tmp_path: Path) -> None:
    make_elf(tmp_path / "lib/libx.so", needed=("liby.so", "libx.so"))
    make_elf(tmp_path / "lib/liby.so", needed=("libgone.so",))
    program = read_elf(make_elf(tmp_path / "bin/a", needed=("libx.so",), rpath="$ORIGIN/../lib"))
    assert program is not None
    closure = Linker({}, ()).closure([program])
    assert sorted(closure.libraries) == [str(tmp_path / "lib/libx.so"), str(tmp_path / "lib/liby.so")]
    assert closure.missing == {"libgone.so"}


def test_closure_of_a_host_program_is_what_the_loader_says() -> None:
    program = read_elf(os.path.realpath("/bin/ls"))
    assert program is not None
    assert program.interpreter is not None
    said = subprocess.run([program.interpreter, "--list", program.path], capture_output=True, text=True, check=True).stdout
    expected = {os.path.realpath(word) for line in said.splitlines() for word in line.split() if word.startswith("/")}
    found = {os.path.realpath(path) for path in host_linker().closure([program]).libraries}
    assert expected == found | {os.path.realpath(program.interpreter)}


def test_the_cache_leaves_out_libraries_for_newer_processors(tmp_path: Path) -> None:
    header = b"glibc-ld.so.cache1.1" + struct.pack("=II", 2, 0) + bytes(20)
    strings = b"libx.so\0/new/libx.so\0/plain/libx.so\0"
    base = len(header) + 2 * 24
    entries = struct.pack("=iIIIQ", 3, base, base + 8, 0, 1 << 62) + struct.pack("=iIIIQ", 3, base, base + 21, 0, 0)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/ld.so.cache").write_bytes(header + entries + strings)
    assert host_linker(str(tmp_path)).cache == {"libx.so": ("/plain/libx.so",)}


def make_sections(path: Path) -> bytes:
    """An ELF file with one section in memory, one of debug information and the names."""
    body = make_elf(path, needed=("libx.so",)).read_bytes()
    debug, names = b"d" * 1000, b"\0.text\0.debug_info\0.shstrtab\0"
    offsets = (len(body), len(body) + len(debug))
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", *section)
        for section in (
            (0,) * 10,
            (1, 1, 2, 0, 64, len(body) - 64, 0, 0, 1, 0),
            (7, 1, 0, 0, offsets[0], len(debug), 0, 0, 1, 0),
            (19, 3, 0, 0, offsets[1], len(names), 0, 0, 1, 0),
        )
    )
    data = bytearray(body + debug + names + table)
    struct.pack_into("<Q", data, 40, offsets[1] + len(names))
    struct.pack_into("<HHH", data, 58, 64, 4, 3)
    path.write_bytes(data)
    return bytes(data)


def test_debug_sections_go_and_what_is_in_memory_stays(tmp_path: Path) -> None:
    data = make_sections(tmp_path / "a")
    stripped = strip_debug(data)
    assert b"d" * 1000 in data
    assert b"dddd" not in stripped
    (tmp_path / "b").write_bytes(stripped)
    before, after = read_elf(tmp_path / "a"), read_elf(tmp_path / "b")
    assert before is not None
    assert after is not None
    assert after.needed == before.needed == ("libx.so",)
    offset, count, names = struct.unpack_from("<Q", stripped, 40)[0], *struct.unpack_from("<HH", stripped, 60)
    assert (count, names) == (3, 2)
    table = [struct.unpack_from("<IIQQQQIIQQ", stripped, offset + 64 * index) for index in range(count)]
    text = stripped[table[names][4] : table[names][4] + table[names][5]]
    assert text[table[1][0] :].startswith(b".text\0")
    assert strip_debug(stripped) == stripped


def test_a_file_without_debug_sections_or_with_a_strange_table_is_left_alone(tmp_path: Path) -> None:
    plain = make_elf(tmp_path / "a").read_bytes()
    assert strip_debug(plain) == plain
    odd = bytearray(make_sections(tmp_path / "b"))
    struct.pack_into("<H", odd, 60, 9999)
    assert strip_debug(bytes(odd)) == odd
    assert strip_debug(b"text .debug_info\0") == b"text .debug_info\0"


def test_reading_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a program was started")

    for name in ("posix_spawn", "fork", "execve"):
        monkeypatch.setattr(capture_elf.os, name, refuse)
    assert read_elf(make_elf(tmp_path / "a", needed=("libx.so",))) is not None
