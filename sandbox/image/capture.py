"""This machine's Python as a base image: what works here works in a container of it.

Collect (pure look-ups on the host, a `Plan` comes out), write (one loop into a draft), finish (what needs the written tree),
commit. Nothing is taken by directory except the standard library and data tables: home, keys, environment, pip's
configuration and caches are never on any list.
"""

from __future__ import annotations

import logging
import os
import posixpath
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from sandbox.errors import ImageError
from sandbox.image import capture_packages, capture_python, capture_system
from sandbox.image.capture_elf import Elf, Linker, host_linker, inheritable, read_elf
from sandbox.image.capture_packages import Environment, Package
from sandbox.image.capture_plan import Plan, Writer, Written, stamp
from sandbox.image.capture_python import Interpreter, Relocation
from sandbox.image.reference import Reference
from sandbox.image.store import Image, Store
from sandbox.oci import History, ImageConfig, RootFS, RunConfig

log = logging.getLogger(__name__)

LABEL = "org.jupyter.sandbox"
PREFIX = "/usr/local"
# A distribution's own Python is compiled for where it is (dist-packages, triplet paths); only others move.
_FIXED_PREFIXES = ("/usr", PREFIX)
_SYSTEM_ROOTS = ("/usr/", "/lib", "/bin/", "/sbin/", "/etc/", "/var/", "/opt/", "/dev/", "/proc/", "/run/")
# pip and requests bring bundles of their own, which do not know the host's authorities.
_BUNDLE_VARIABLES = ("PIP_CERT", "REQUESTS_CA_BUNDLE")
_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
    "i686": "386",
}


def capture(store: Store, reference: str | Reference, *, packages: Sequence[str] = (), python: Path = Path(sys.executable)) -> Image:
    """Make an image of `python` (its base interpreter, when it is a virtual environment's) and tag it.

    `packages`: installed distributions to take along, with what they depend on, or `all`. Capturing an unchanged host again
    gives the same image id. Raises InvalidInput for an unknown package or a program that is no Python, ImageError for a
    package whose files cannot be told.
    """
    name = Reference.parse(reference) if isinstance(reference, str) else reference
    collected = collect(python, packages)
    with store.shared(), store.draft() as draft:
        newest = write(collected, draft.upper)
        snapshot = store.commit(draft, None)
        if snapshot is None:
            raise ImageError("capture: nothing was written")
        image = store.put_image(describe(collected, newest, snapshot.diff_id))
        store.tag(name, image)
    return image


class Collected(msgspec.Struct, frozen=True):
    """What a capture will hold. `python`: the interpreter's path inside; `modules`: places of standard library files;
    `records`: places of the RECORDs of `packages`."""

    plan: Plan
    interpreter: Interpreter
    python: str
    modules: tuple[str, ...]
    packages: tuple[Package, ...]
    records: tuple[str, ...]
    has_pip: bool
    has_authorities: bool


def collect(python: Path, packages: Sequence[str] = ()) -> Collected:
    """Look up everything that belongs to the image; writes nothing."""
    asked = capture_python.examine(python)
    base = capture_python.examine(asked.executable) if asked.prefix != asked.base_prefix else asked
    relocation, linker, plan = relocate(asked, base), host_linker(), Plan()
    program = _program(base)
    capture_system.plan_base(plan)
    tools = capture_system.plan_tools(plan)
    capture_system.plan_data(plan)
    inside = relocation.path(base.executable) or base.executable
    modules = _plan_interpreter(plan, base, relocation, inside)
    chosen, has_pip = _choose(plan, asked, base, packages, relocation)
    records = _plan_packages(plan, chosen, relocation, inside)
    if has_pip:
        capture_packages.plan_pip_scripts(plan, base, posixpath.dirname(inside), inside)
    _plan_libraries(plan, linker, program, relocation, [*tools, *_sources(plan)])
    has_authorities = _plan_openssl(plan, base, relocation)
    return Collected(plan, base, inside, tuple(modules), tuple(chosen), tuple(records), has_pip, has_authorities)


def relocate(asked: Interpreter, base: Interpreter) -> Relocation:
    """Where the interpreter's and the environment's directories go, and the user's home (to root's, so that no name stays)."""
    target = base.base_prefix if os.path.realpath(base.base_prefix) in _FIXED_PREFIXES else PREFIX
    site = base.paths["purelib"].replace(base.base_prefix, target, 1) if target == PREFIX else base.paths["purelib"]
    # A Python in /usr has its own site directory elsewhere (dist-packages); the environment's goes there.
    pairs = [
        (base.base_prefix, target),
        (asked.paths["purelib"], site),
        (asked.paths["platlib"], site),
        (asked.prefix, PREFIX if asked is not base else target),
    ]
    user_site = next((s for s in asked.sites if s.startswith(asked.user_base + "/")), None)
    pairs += [(user_site, site)] if user_site else []
    return Relocation.of(*pairs, (asked.user_base, PREFIX), home=private_home())


def private_home() -> str | None:
    """The user's home, unless it is root's (which every image has) or a system directory (as service accounts have)."""
    home = os.path.normpath(Path.home())
    is_private = home not in ("/", "/root", "/nonexistent") and not f"{home}/".startswith(_SYSTEM_ROOTS)
    return home if is_private else None


def _program(base: Interpreter) -> Elf:
    elf = read_elf(base.executable)
    if elf is None:
        raise ImageError(f"{base.executable}: not an ELF program", hint="capture the interpreter itself, not a wrapper script")
    return elf


def _plan_interpreter(plan: Plan, base: Interpreter, relocation: Relocation, inside: str) -> list[str]:
    plan.file(inside, base.executable, relocation.content)
    scripts = posixpath.dirname(inside)
    for name in (f"python{base.short}", f"python{base.short[0]}", "python"):
        plan.link(posixpath.join(scripts, name), posixpath.basename(inside))
    capture_python.plan_files(plan, capture_python.header_files(base), relocation)
    if base.wheels:  # a distribution's ensurepip, and so `python -m venv`, installs from here
        plan.host_tree(base.wheels)
    return capture_python.plan_files(plan, capture_python.stdlib_files(base), relocation)


def _choose(plan: Plan, asked: Interpreter, base: Interpreter, names: Sequence[str], relocation: Relocation) -> tuple[list[Package], bool]:
    """The packages to take; pip comes along always, from where there is one."""
    environment = Environment(asked)
    chosen = {package.name: package for package in environment.select(names)} if names else {}
    for source in (environment, Environment(base)):
        if "pip" not in chosen and source.find("pip"):
            chosen |= {package.name: package for package in source.select(["pip"])}
    site = relocation.path(base.paths["purelib"]) or base.paths["purelib"]
    has_pip = "pip" in chosen or capture_packages.plan_bundled_pip(plan, base, site)
    if not has_pip:
        log.warning("this Python has no pip and no ensurepip: the image has none either")
    return sorted(chosen.values(), key=lambda package: package.name), has_pip


def _plan_packages(plan: Plan, packages: Iterable[Package], relocation: Relocation, inside: str) -> list[str]:
    records = []
    for package in packages:
        places = capture_python.plan_files(plan, (f for f in package.files if not _is_script(f)), relocation)
        records += [place for place in places if place.endswith("/RECORD")]
        for source in filter(_is_script, package.files):
            capture_packages.plan_script(plan, relocation.path(source) or source, source, inside, relocation)
    return records


def _is_script(path: str) -> bool:
    return posixpath.basename(posixpath.dirname(path)) in ("bin", "sbin")


def _sources(plan: Plan) -> list[str]:
    """Host files planned so far that may load libraries."""
    return [entry.source for entry in plan.entries.values() if entry.source and (".so" in entry.source or entry.mode & 0o111)]


def _plan_libraries(plan: Plan, linker: Linker, program: Elf, relocation: Relocation, files: Iterable[str]) -> None:
    """The loaders, and every library that the files, or the C library behind their back, will ask for."""
    opened = [*capture_system.run_time_files(linker, program), *capture_system.provider_modules(linker, program)]
    roots = capture_system.elves(dict.fromkeys([*files, *opened]))
    # Python's own RPATH counts for the modules it loads (conda's is the only way to its libraries).
    needed = linker.closure([program, *roots], inheritable(program))
    if needed.missing:
        log.debug("libraries that this host does not have either: %s", ", ".join(sorted(needed.missing)))
    loaders = {elf.interpreter for elf in (program, *roots) if elf.interpreter}
    for path in (*sorted(loaders), *opened):
        _plan_library(plan, path, relocation)
    places = [_plan_library(plan, path, relocation) for path in sorted(needed.libraries)]
    folders = sorted({posixpath.dirname(place) for place in places} | {posixpath.join(PREFIX, "lib")})
    plan.generated("/etc/ld.so.conf", "".join(f"{folder}\n" for folder in folders))


def _plan_library(plan: Plan, path: str, relocation: Relocation) -> str:
    place = relocation.path(path)
    if place is None and path.startswith(f"{Path.home()}/"):
        place = posixpath.join(PREFIX, "lib", posixpath.basename(path))
    if place is None:
        plan.host(path)
        return path
    real = relocation.path(os.path.realpath(path)) or place
    plan.file(real, os.path.realpath(path), relocation.content)
    if real != place:
        plan.link(place, posixpath.relpath(real, posixpath.dirname(place)))
    return place


def _plan_openssl(plan: Plan, base: Interpreter, relocation: Relocation) -> bool:
    """OpenSSL's configuration and the certificate authorities; False when the host has none."""
    cafile, capath = [*base.ssl_paths, "", ""][:2]
    folder = posixpath.dirname(cafile)
    capture_system.plan_openssl(plan, folder, relocation.path(folder) or folder)
    found = capture_system.plan_certificates(plan, cafile, capath, relocation.path(cafile) or cafile)
    if not found:
        log.warning("no certificate authorities on this host: TLS connections from the image will not verify")
    return found


# -- writing --------------------------------------------------------------------------------------------------------


def write(collected: Collected, root: Path) -> int:
    """Write the tree below `root`; returns the time of the newest file, which is the image's."""
    written = Writer(root).write(collected.plan)
    compiled = _compile(collected, root, written)
    capture_packages.update_records(root, collected.records, written)
    _index_libraries(root)
    stamp(root, written.newest, copied=written.copied.difference(collected.records, compiled))
    return written.newest


def _compile(collected: Collected, root: Path, written: Written) -> list[str]:
    """Compile what has no compiled file: modules of a Python that came without, and those whose source was edited."""
    edited = [place for place in written.edited if place.endswith(".py")]
    for place in edited:
        Path(f"{root}{capture_python.compiled_place(place, collected.interpreter)}").unlink(missing_ok=True)
    compiled = capture_python.compile_missing(collected.interpreter, str(root), [*collected.modules, *edited])
    log.debug("compiled %d modules", len(compiled))
    return compiled


def _index_libraries(root: Path) -> None:
    """Make ld.so.cache for the tree; only glibc has one, and it is read, not run, by ldconfig."""
    ldconfig = next((path for path in ("/sbin/ldconfig.real", "/sbin/ldconfig") if os.access(path, os.X_OK)), None)
    if ldconfig is None:
        return
    done = subprocess.run([ldconfig, "-r", str(root), "-X"], capture_output=True, text=True, env={"LC_ALL": "C"}, check=False)
    if done.returncode:
        log.warning("ldconfig: %s", done.stderr.strip())
    shutil.rmtree(root / "var/cache/ldconfig", ignore_errors=True)


def describe(collected: Collected, newest: int, diff_id: str) -> ImageConfig:
    """The image's config: docker's python image's settings, and labels that say what was captured but not from whom."""
    interpreter = collected.interpreter
    created = datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    machine = interpreter.markers["platform_machine"]
    labels = {
        f"{LABEL}.lang": "python",
        f"{LABEL}.python.version": interpreter.version,
        f"{LABEL}.python.platform": interpreter.platform,
        f"{LABEL}.python.packages": " ".join(f"{package.name}=={package.version}" for package in collected.packages),
        f"{LABEL}.python.pip": "yes" if collected.has_pip else "no",
    }
    env = [f"PATH={_PATH}", "LANG=C.UTF-8", f"PYTHON_VERSION={interpreter.version}"]
    if collected.has_authorities:
        env += [f"{name}={capture_system.CA_BUNDLE}" for name in _BUNDLE_VARIABLES]
    return ImageConfig(
        created=created,
        architecture=_ARCHITECTURES.get(machine, machine),
        os="linux",
        config=RunConfig(env=env, cmd=["python3"], labels=labels),
        rootfs=RootFS("layers", [diff_id]),
        history=[History(created=created, created_by=f"sandbox capture # Python {interpreter.version}")],
    )
