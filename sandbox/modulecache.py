"""The byte-code of every module that our commands have imported, in one file: much of an import is the search for its file.

It lies where Python keeps this package's own byte-code (PEP 3147) and is believed as far: it is for one interpreter and one `sys.path`,
no directory of which has changed (another module of that name could have come), and each module's source has to be as it was, by time
and size. What it does not have Python imports as ever, and the command adds it at its end. Standard library only, and little of it.
"""

from __future__ import annotations

import marshal
import os
import sys
from _frozen_importlib import ModuleSpec  # which `importlib.machinery` gives too, with `warnings` beside
from _frozen_importlib_external import ExtensionFileLoader, SourceFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

    Stamp = tuple[int, int]  # modified, in ns, and size, in bytes
    Row = tuple[str, Stamp, str | None, bool, int, int]  # source, its stamp, Python's own byte-code, whether a package, where its code is

_MARK = b"jupyter-sandbox modules 1\n"
_LENGTH = 8


class ModuleCache:
    """A finder for `sys.meta_path` (importlib.abc.MetaPathFinder), kept in `file`."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._place = [(path, _stamp(path)) for path in sys.path]
        self._rows: dict[str, Row] = {}
        self._codes = memoryview(b"")
        self._missed: list[str] = []

    def open(self) -> None:
        """Read what it has, if that is for this interpreter and this `sys.path`."""
        try:
            found = _mapped(self.file)
        except (OSError, ValueError):  # there is none yet; empty
            return
        start, length = len(_MARK) + _LENGTH, int.from_bytes(found[len(_MARK) : len(_MARK) + _LENGTH], "little")
        if found[: len(_MARK)] != _MARK or len(found) < start + length:
            return
        try:
            place, total, rows = marshal.loads(found[start : start + length])
        except (EOFError, ValueError, TypeError):  # marshal's for what is not its own
            return
        if place == self._place and len(found) == start + length + total:
            self._rows, self._codes = rows, found[start + length :]

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """The module, if it is here and as it was."""
        row = self._rows.get(name)
        if row is None or _stamp(row[0]) != row[1]:
            self._missed.append(name)
            return None
        file, _, cached, is_package, start, end = row
        loader = ExtensionFileLoader(name, file) if start == end else _Loader(self, name, file, self._codes[start:end])
        spec = ModuleSpec(name, loader, origin=file, is_package=is_package)
        spec.has_location = True
        spec.cached = cached
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(os.path.dirname(file))
        return spec

    def forget(self, name: str) -> None:
        """What is here of this module cannot be read; `save` makes it anew."""
        del self._rows[name]
        self._missed.append(name)

    def save(self) -> None:
        """Add what this process had to look for."""
        new = dict(self._imported())
        if not new or sys.dont_write_bytecode:
            return
        old = {name: (row, bytes(self._codes[row[4] : row[5]])) for name, row in self._rows.items() if _stamp(row[0]) == row[1]}
        rows: dict[str, Row] = {}
        codes = bytearray()
        for name, (row, code) in {**old, **new}.items():
            rows[name] = (*row[:4], len(codes), len(codes) + len(code))
            codes += code
        index = marshal.dumps((self._place, len(codes), rows))
        _write_whole(self.file, b"".join((_MARK, len(index).to_bytes(_LENGTH, "little"), index, codes)))

    def _imported(self) -> Iterator[tuple[str, tuple[Row, bytes]]]:
        for name in self._missed:
            spec = getattr(sys.modules.get(name), "__spec__", None)
            if spec is None or spec.name != name or spec.origin is None or (stamp := _stamp(spec.origin)) is None:
                continue
            if type(spec.loader) is ExtensionFileLoader:
                yield name, ((spec.origin, stamp, None, False, 0, 0), b"")
            elif type(spec.loader) in (SourceFileLoader, _Loader):
                code = marshal.dumps(SourceFileLoader(name, spec.origin).get_code(name))
                yield name, ((spec.origin, stamp, spec.cached, spec.submodule_search_locations is not None, 0, 0), code)


class _Loader(SourceFileLoader):
    def __init__(self, cache: ModuleCache, name: str, path: str, code: memoryview) -> None:
        super().__init__(name, path)
        self._cache, self._code = cache, code

    def get_code(self, fullname: str) -> CodeType | None:
        try:
            code = marshal.loads(self._code)
        except (EOFError, ValueError, TypeError):
            code = None
        if isinstance(code, type(use.__code__)):
            return code
        self._cache.forget(fullname)
        return super().get_code(fullname)


def use() -> ModuleCache:
    """This package's, in use from now on."""
    beside = __spec__.cached or __file__
    cache = ModuleCache(f"{beside.removesuffix('.pyc')}.modules")
    cache.open()
    sys.meta_path.insert(0, cache)
    return cache


def _mapped(file: str) -> memoryview:
    """Mapped, since most of it is not needed, and a child of ours may close whatever it inherits."""
    import mmap

    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ))
    finally:
        os.close(fd)


def _write_whole(file: str, content: bytes) -> None:
    """Or not at all: where the place is read-only, somebody else's or full, commands do without, as with Python's own byte-code."""
    draft = f"{file}.{os.getpid()}"
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)  # code: nobody else's to write, whatever the umask
    except OSError:
        return
    try:
        with open(fd, "wb") as stream:
            stream.write(content)
        os.replace(draft, file)
    except OSError:
        os.unlink(draft)


def _stamp(path: str) -> Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
