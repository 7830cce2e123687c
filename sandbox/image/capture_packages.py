"""Installed distributions for a capture: which are meant, what they depend on, and exactly the files they say are theirs.

Only what a RECORD (or dpkg's list) names is taken: whatever else lies in site-packages was put there by someone and may be private.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import logging
import os
import posixpath
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from sandbox.errors import ImageError, InvalidInput
from sandbox.image.capture_plan import Edit, Plan, Written
from sandbox.image.capture_python import Interpreter, Relocation, compiled_place

log = logging.getLogger(__name__)

_DEBIAN_SITE = "/usr/lib/python3/dist-packages"
_DPKG_LISTS = "/var/lib/dpkg/info"
# direct_url.json names where it was installed from: local paths, private servers, sometimes a token.
_LEFT_OUT = ("direct_url.json",)
# Both of pip's forms: the plain line, and the detour through sh that it takes when the line would be too long.
_SHEBANG = re.compile(rb"\A#!(?:/bin/sh\n'''exec' [^\n]*python[^\n]*\n' '''\n|[^\n]*python[\d.]*(?: [^\n]*)?\n)")


class Package(msgspec.Struct, frozen=True):
    """One installed distribution and its files on the host, by absolute path."""

    name: str
    version: str
    files: tuple[str, ...]


class Environment:
    """The distributions one interpreter sees, the first on its path winning, as import does."""

    def __init__(self, interpreter: Interpreter) -> None:
        self.interpreter = interpreter
        self._known: dict[str, metadata.Distribution | None] = {}

    def find(self, name: str) -> metadata.Distribution | None:
        """The distribution of that name, or None."""
        key = canonicalize_name(name)
        if key not in self._known:
            self._known[key] = next(iter(metadata.distributions(name=key, path=self.interpreter.sites)), None)
        return self._known[key]

    def names(self) -> list[str]:
        """Canonical names of all distributions, sorted."""
        named = (distribution.metadata["Name"] for distribution in metadata.distributions(path=self.interpreter.sites))
        return sorted({canonicalize_name(name) for name in named if name})

    def select(self, names: Sequence[str]) -> list[Package]:
        """The named distributions (`name`, `name[extra]` or `all`) with everything they depend on, sorted by name.

        Raises InvalidInput for a name that is not installed, ImageError for one whose files cannot be told.
        """
        if "all" in names:
            return [p for name in self.names() if (p := self._try_package(name)) is not None]
        return [self._package(name) for name in sorted(self._closure(names))]

    def _closure(self, names: Iterable[str]) -> set[str]:
        queue = [_requirement(name) for name in names]
        seen: set[tuple[str, str]] = set()
        for requirement in queue:
            self._require(requirement.name)
        while queue:
            requirement = queue.pop()
            name = canonicalize_name(requirement.name)
            if self.find(name) is None:
                log.warning("%s: a dependency that is not installed here, so not captured either", name)
                continue
            fresh = [extra for extra in ("", *sorted(requirement.extras)) if (name, extra) not in seen]
            seen.update((name, extra) for extra in fresh)
            queue += [needed for extra in fresh for needed in self._needs(name, extra)]
        return {name for name, _ in seen}

    def _needs(self, name: str, extra: str) -> Iterator[Requirement]:
        distribution = self.find(name)
        for text in (distribution.requires if distribution else None) or ():
            requirement = _requirement(text)
            if requirement.marker is None:
                if not extra:
                    yield requirement
            elif requirement.marker.evaluate({**self.interpreter.markers, "extra": extra}):
                yield requirement

    def _require(self, name: str) -> metadata.Distribution:
        distribution = self.find(name)
        if distribution is None:
            raise InvalidInput(f"{name}: not installed in this Python", hint="install it with pip first, or check the spelling")
        return distribution

    def _try_package(self, name: str) -> Package | None:
        try:
            return self._package(name)
        except ImageError as err:
            log.warning("left out: %s", err)
            return None

    def _package(self, name: str) -> Package:
        distribution = self._require(name)
        if _is_editable(distribution):
            raise ImageError(
                f"package {name}: installed in editable mode, its files are in a source tree",
                hint=f"install it for real (pip install . instead of pip install -e .), or leave {name} out",
            )
        files = tuple(sorted(set(self._files(name, distribution))))
        if not files:
            raise ImageError(
                f"package {name}: has no RECORD, so its files cannot be told",
                hint=f"reinstall it with pip: pip install --force-reinstall {name}",
            )
        return Package(name, distribution.version, files)

    def _files(self, name: str, distribution: metadata.Distribution) -> Iterator[str]:
        recorded = [*_recorded(distribution), *_dpkg_files(distribution)]
        for path in (*recorded, *(compiled_place(path, self.interpreter) for path in recorded if path.endswith(".py"))):
            if not any(path.startswith(root + "/") for root in self._roots()):
                raise ImageError(f"package {name}: its RECORD names {path}, which is outside of the environment")
            if os.path.isfile(path) and posixpath.basename(path) not in _LEFT_OUT:
                yield path

    def _roots(self) -> Iterator[str]:
        found = self.interpreter
        yield from (os.path.normpath(p) for p in (found.prefix, found.base_prefix, found.user_base, *found.sites) if p)


def _requirement(text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as err:
        raise InvalidInput(f"package {text!r}: not a distribution name", hint="write NAME, NAME[EXTRA] or all") from err


def _is_editable(distribution: metadata.Distribution) -> bool:
    """PEP 610 says so; before it, `setup.py develop` left the metadata in the source tree."""
    text = distribution.read_text("direct_url.json")
    if text and json.loads(text).get("dir_info", {}).get("editable"):
        return True
    root = str(distribution.locate_file(""))
    return posixpath.basename(os.path.normpath(root)) not in ("site-packages", "dist-packages")


def _recorded(distribution: metadata.Distribution) -> list[str]:
    text = distribution.read_text("RECORD")
    names = [row[0] for row in csv.reader(io.StringIO(text)) if row] if text else _egg_files(distribution)
    return [os.path.normpath(str(distribution.locate_file(name))) for name in names]


def _egg_files(distribution: metadata.Distribution) -> list[str]:
    text = distribution.read_text("installed-files.txt")
    # Relative to the egg-info directory, as pip wrote them.
    return [posixpath.join(_metadata_directory(distribution), line) for line in text.splitlines()] if text else []


def _metadata_directory(distribution: metadata.Distribution) -> str:
    # No public name for it; both kinds of metadata have it in every Python.
    return str(getattr(distribution, "_path", ""))


def _dpkg_files(distribution: metadata.Distribution) -> list[str]:
    """The modules and programs of the Debian package that owns the metadata (Debian removes RECORD, or the scripts from it)."""
    own = _metadata_directory(distribution) if str(distribution.locate_file("")).startswith(_DEBIAN_SITE) else ""
    site = str(distribution.locate_file("")).rstrip("/") + "/"
    for listing in Path(_DPKG_LISTS).glob("*.list") if own else ():
        lines = listing.read_text(errors="surrogateescape").splitlines()
        if own in lines or f"{own}/METADATA" in lines:
            bins = [line for line in lines if line.startswith("/usr/bin/")]
            return [*(line for line in lines if line.startswith(site)), *bins]
    return []


# -- into the plan --------------------------------------------------------------------------------------------------


def edit_script(python: str, inner: Edit | None) -> Edit:
    """The edit for a console script: its shebang names the image's interpreter."""
    line = b"#!" + os.fsencode(python) + b"\n"

    def edit(data: bytes) -> bytes | None:
        data = _SHEBANG.sub(lambda _: line, data)
        return inner(data) if inner else data

    return edit


def plan_script(plan: Plan, place: str, source: str, python: str, relocation: Relocation) -> None:
    """Plan a file of a `bin` directory."""
    plan.file(place, source, edit_script(python, relocation.edit(source)))


def plan_bundled_pip(plan: Plan, interpreter: Interpreter, site: str) -> bool:
    """Install the pip that `ensurepip` carries, as `ensurepip` would; False when there is none."""
    folders = (interpreter.wheels, posixpath.join(interpreter.paths["stdlib"], "ensurepip", "_bundled"))
    wheels = [str(wheel) for folder in folders if folder for wheel in sorted(Path(folder).glob("pip-*.whl"))]
    if not wheels:
        return False
    with zipfile.ZipFile(wheels[-1]) as wheel:
        for name in (n for n in wheel.namelist() if not n.endswith("/")):
            if ".." in name.split("/"):
                raise ImageError(f"{wheels[-1]}: names {name}, which leaves the site directory")
            plan.generated(posixpath.join(site, name), wheel.read(name))
    return True


def plan_pip_scripts(plan: Plan, interpreter: Interpreter, scripts: str, python: str) -> None:
    """`pip`, `pip3` and `pip3.X`, where pip's own are not planned: `ensurepip` leaves the first out, Debian its RECORD."""
    for name in ("pip", "pip3", f"pip{interpreter.short}"):
        plan.generated(posixpath.join(scripts, name), _PIP_SCRIPT.format(python=python), 0o755)


_PIP_SCRIPT = """#!{python}
import sys
from pip._internal.cli.main import main
if __name__ == "__main__":
    sys.exit(main())
"""


def update_records(root: Path, records: Iterable[str], written: Written) -> None:
    """Make each captured RECORD true again: hashes of edited files, no line for a file that did not come along."""
    for record in records:
        site = posixpath.dirname(posixpath.dirname(record))
        path = Path(f"{root}{record}")
        rows = [
            _row(row, posixpath.normpath(posixpath.join(site, row[0])), root, written.edited)
            for row in csv.reader(io.StringIO(path.read_text()))
            if row
        ]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(row for row in rows if row)
        path.write_text(text.getvalue())


def _row(row: list[str], place: str, root: Path, edited: Mapping[str, tuple[str, int]]) -> list[str]:
    if place in edited and len(row) == 3 and row[1]:
        digest, size = edited[place]
        return [row[0], "sha256=" + base64.urlsafe_b64encode(bytes.fromhex(digest)).rstrip(b"=").decode(), str(size)]
    return row if os.path.lexists(f"{root}{place}") else []
