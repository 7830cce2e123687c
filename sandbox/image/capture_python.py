"""The Python part of a capture: what an interpreter says of itself, its standard library, and moving it to another prefix.

Python finds its prefix by landmark (`lib/pythonX.Y/os.py` beside `bin/`), so a copy works anywhere. What remembers the old
place is edited: RUNPATHs, `sysconfig` data, shebangs, and `co_filename` in compiled files.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import os
import posixpath
import re
import struct
import subprocess
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from sandbox.errors import ImageError, InvalidInput
from sandbox.image.capture_elf import strip_debug
from sandbox.image.capture_plan import Edit, Plan

log = logging.getLogger(__name__)

PROBE_TIMEOUT = 60.0

# Runs in the interpreter to be captured, whatever its version: plain Python 3.8.
_PROBE = """
import json, os, platform, site, sys, sysconfig
try:
    import _ssl
    ssl_paths = list(_ssl.get_default_verify_paths()[1::2])
except ImportError:
    ssl_paths = []
names = ("stdlib", "platstdlib", "purelib", "platlib", "scripts", "include", "data")
sites = [p for p in sys.path if p and os.path.basename(p) in ("site-packages", "dist-packages")]
print(json.dumps({
    "executable": os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable), "prefix": sys.prefix, "base_prefix": sys.base_prefix,
    "version": "%d.%d.%d" % sys.version_info[:3], "tag": sys.implementation.cache_tag, "implementation": platform.python_implementation(),
    "platform": sysconfig.get_platform(), "paths": {n: sysconfig.get_path(n) for n in names}, "sites": sites,
    "user_base": site.getuserbase(), "ssl_paths": ssl_paths, "wheels": sysconfig.get_config_var("WHEEL_PKG_DIR") or "",
    "markers": {
        "implementation_name": sys.implementation.name, "implementation_version": "%d.%d.%d" % sys.implementation.version[:3], "os_name": os.name,
        "platform_machine": platform.machine(), "platform_release": "", "platform_system": platform.system(), "platform_version": "",
        "python_full_version": platform.python_version(), "platform_python_implementation": platform.python_implementation(),
        "python_version": ".".join(platform.python_version_tuple()[:2]), "sys_platform": sys.platform}}))
"""


class Interpreter(msgspec.Struct, frozen=True):
    """What an interpreter says of itself. `paths` are sysconfig's; `sites` its directories of installed distributions."""

    executable: str
    prefix: str
    base_prefix: str
    version: str
    tag: str
    implementation: str
    platform: str
    paths: dict[str, str]
    sites: list[str]
    user_base: str
    ssl_paths: list[str]
    wheels: str
    markers: dict[str, str]

    @property
    def short(self) -> str:
        """`3.11`."""
        return ".".join(self.version.split(".")[:2])


_DECODER = msgspec.json.Decoder(Interpreter)


def examine(python: str | Path) -> Interpreter:
    """Ask an interpreter; raises InvalidInput when it is none we can capture."""
    try:
        # From / and without PYTHON* variables: its own idea of sys.path, not the caller's.
        done = subprocess.run([str(python), "-E", "-c", _PROBE], capture_output=True, cwd="/", timeout=PROBE_TIMEOUT, check=True)
        found = _DECODER.decode(done.stdout)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as err:
        raise InvalidInput(f"{python}: not a Python interpreter that can be asked: {err}") from err
    if found.implementation != "CPython":
        raise InvalidInput(f"{python}: {found.implementation} cannot be captured", hint="use a CPython interpreter")
    return found


# -- moving to another prefix ---------------------------------------------------------------------------------------


class Relocation(msgspec.Struct, frozen=True):
    """Host directories and where they are in the image, longest first; `home` is replaced in texts only, no file comes from there."""

    pairs: tuple[tuple[str, str], ...]
    home: str | None = None

    @classmethod
    def of(cls, *pairs: tuple[str, str], home: str | None = None) -> Relocation:
        """Of (host, image) pairs; real paths are added, pairs that move nothing are left out."""
        real = [(os.path.normpath(old), new) for old, new in pairs] + [(os.path.realpath(old), new) for old, new in pairs]
        moved = {old: new for old, new in reversed(real) if old not in ("/", ".")}
        kept = [(old, new) for old, new in moved.items() if old != new]
        return cls(tuple(sorted(kept, key=lambda pair: (-len(pair[0]), pair))), home)

    def path(self, path: str) -> str | None:
        """Where a host path is in the image; None when it does not move."""
        for old, new in self.pairs:
            if path == old or path.startswith(old + "/"):
                return new + path[len(old) :]
        return None

    def edit(self, path: str) -> Edit | None:
        """The edit that a file with this name needs on its way into the image."""
        if path.endswith(".pyc"):
            return self.compiled
        return self.content

    def content(self, data: bytes) -> bytes:
        """Text and other files with the image's paths; ELF files also without debug sections, every offset kept."""
        if data[:4] == b"\x7fELF":
            data = strip_debug(data)
        replace = _in_place if b"\0" in data else _plain
        for old, new, pattern in self._patterns():
            if old in data:
                data = pattern.sub(partial(replace, new), data)
        return data

    def compiled(self, data: bytes) -> bytes | None:
        """A compiled file with the image's `co_filename`; None when a path is inside another string."""
        for old, new, pattern in self._patterns():
            pieces: list[bytes] = []
            done = 0
            for match in pattern.finditer(data):
                head = _string_head(data, match.start(), len(old))
                if head is None:
                    return None
                start, length = head
                pieces += [data[done:start], _marshal_string(data[start], new + data[match.end() : match.start() + length])]
                done = match.start() + length
            data = b"".join((*pieces, data[done:]))
        return data

    def _patterns(self) -> Iterator[tuple[bytes, bytes, re.Pattern[bytes]]]:
        # The home becomes root's, so that no user name stays in a text.
        for old, new in (*self.pairs, *([(self.home, "/root")] if self.home else ())):
            name = os.fsencode(old)
            yield name, os.fsencode(new), re.compile(re.escape(name) + rb"(?![\w-])")


def _plain(new: bytes, match: re.Match[bytes]) -> bytes:
    return new


def _in_place(new: bytes, match: re.Match[bytes]) -> bytes:
    """As many bytes as before, since offsets count on them: slashes fill up, more of them mean the same to Linux.

    Linkers let a string share the tail of another: `3.11.7`, Python's version, is the end of `…/versions/3.11.7`. So a path
    that ends here keeps its last component; of one that goes on, the shared tail is behind us.
    """
    old, end = match[0], match.end()
    tail = old[old.rindex(b"/") :] if match.string[end : end + 1] == b"\0" else b""
    # Too short to be replaced, so hardly private; its libraries are found through ld.so.conf.
    return (new + tail).rjust(len(old), b"/") if len(new + tail) <= len(old) else old


_SHORT, _LONG, _REF = b"zZ", b"aAut", 0x80


def _string_head(data: bytes, at: int, least: int) -> tuple[int, int] | None:
    """Where the marshalled string whose text begins at `at` starts (its type byte) and the text's length; None when none begins there."""
    if data[at - 2] & ~_REF in _SHORT and data[at - 1] >= least:
        return at - 2, data[at - 1]
    length = int(struct.unpack_from("<I", data, at - 4)[0])
    if data[at - 5] & ~_REF in _LONG and least <= length <= len(data) - at:
        return at - 5, length
    return None


def _marshal_string(kind: int, text: bytes) -> bytes:
    if kind & ~_REF in _SHORT and len(text) < 256:
        return bytes((kind, len(text))) + text
    wide = {ord("z"): ord("a"), ord("Z"): ord("A")}.get(kind & ~_REF, kind & ~_REF)
    return bytes((wide | kind & _REF,)) + struct.pack("<I", len(text)) + text


# -- the standard library -------------------------------------------------------------------------------------------

# Below the standard library, without: test suites, IDLE, Tk (of no use without a display), what only linking Python needs.
_NO_DIRECTORY = ("test", "tests", "idle_test", "idlelib", "tkinter", "turtledemo", "site-packages", "dist-packages", "config-*", "config")
_NO_FILE = (
    "*.a", "*.o", "*.exe", "*.opt-1.pyc", "*.opt-2.pyc", "turtle.py", "turtle.*.pyc", "EXTERNALLY-MANAGED",
    "_tkinter.*", "_test*.so", "_ctypes_test.*", "_xxtestfuzz.*", "xxlimited*.so",
)  # fmt: skip


def stdlib_files(interpreter: Interpreter) -> Iterator[str]:
    """The standard library's files on the host, sorted within each directory."""
    for root in dict.fromkeys((interpreter.paths["stdlib"], interpreter.paths["platstdlib"])):
        for directory, names, files in os.walk(root):
            names[:] = sorted(n for n in names if not _matches(n, _NO_DIRECTORY))
            yield from (os.path.join(directory, f) for f in sorted(files) if not _matches(f, _NO_FILE))


def header_files(interpreter: Interpreter) -> Iterator[str]:
    """The C headers, so that an extension module can be compiled once a compiler is there."""
    for directory, names, files in os.walk(interpreter.paths["include"]):
        names.sort()
        yield from (os.path.join(directory, f) for f in sorted(files))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def plan_files(plan: Plan, files: Iterable[str], relocation: Relocation) -> list[str]:
    """Plan host files at their place in the image; returns the places. Compiled files that do not belong to their source are left out."""
    placed = []
    for source in files:
        if not os.path.isfile(source) or (source.endswith(".pyc") and not _is_current(source)):
            continue
        place = relocation.path(source) or source
        plan.file(place, source, relocation.edit(source))
        placed.append(place)
    return placed


def _is_current(compiled: str) -> bool:
    """Whether Python would use this compiled file: it belongs to its source's time and size (PEP 552), or to no source."""
    directory, name = os.path.split(compiled)
    if os.path.basename(directory) != "__pycache__":
        return True
    try:
        with open(compiled, "rb") as file:
            flags, mtime, size = struct.unpack("<4xIII", file.read(16))
        status = os.stat(os.path.join(os.path.dirname(directory), name.partition(".")[0] + ".py"))
    except (OSError, struct.error):
        return False
    return bool(flags == 0 and mtime == int(status.st_mtime) & 0xFFFFFFFF and size == status.st_size & 0xFFFFFFFF)


# Runs in the base interpreter: pairs of (file to read, path inside the image) from standard input.
_COMPILE = """
import json, os, py_compile, sys
for source, inside, target in json.load(sys.stdin):
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        py_compile.compile(source, cfile=target, dfile=inside, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
        os.chmod(target, 0o644)
    except (py_compile.PyCompileError, RecursionError, ValueError):
        pass
"""


def compile_missing(interpreter: Interpreter, root: str, places: Iterable[str]) -> list[str]:
    """Compile the modules below `root` that have no compiled file yet; a container would do it anew at each start.

    Returns the places of the files made. A module that does not compile (packages carry such for other versions) is left as it is.
    """
    jobs = []
    for place in sorted(place for place in set(places) if place.endswith(".py")):
        compiled = compiled_place(place, interpreter)
        if not os.path.exists(root + compiled):
            jobs.append((root + place, place, root + compiled))
    if jobs:
        # A fixed hash seed: the order of a frozenset constant would otherwise differ from run to run.
        environment = {"PYTHONHASHSEED": "0", "PATH": os.defpath}
        command = [interpreter.executable, "-S", "-W", "ignore", "-c", _COMPILE]
        done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, env=environment, check=False, cwd="/")
        if done.returncode:
            raise ImageError(f"{interpreter.executable}: could not compile the standard library: {done.stderr.strip()}")
    return [target.removeprefix(root) for _, _, target in jobs]


def compiled_place(place: str, interpreter: Interpreter) -> str:
    """Where Python looks for a module's compiled file (PEP 3147)."""
    directory, name = posixpath.split(place)
    return f"{directory}/__pycache__/{name.removesuffix('.py')}.{interpreter.tag}.pyc"
