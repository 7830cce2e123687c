"""Fixtures every suite shares, `requires`, and the last word: a run that leaves something on the host has failed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import host, image_schemas, image_verify, leftovers
from tests.support.ordinary_user import OrdinaryUser, take_away_orphans
from tests.support.ordinary_user import ordinary_user as make_ordinary_user

if TYPE_CHECKING:
    from sandbox import Engine

collect_ignore = ["corpus"]  # projects with tests of their own
_MISSING = pytest.StashKey[dict[str, str | None]]()
_BEFORE = pytest.StashKey[frozenset[str]]()


# What the host must offer -------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--one-of-each", action="store_true", help="of a parametrised test run the first case only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --one-of-each, what repeats a test with other values is left out."""
    if not config.option.one_of_each:
        return
    seen: set[str] = set()
    kept, left = [], []
    for item in items:
        name = item.nodeid.partition("[")[0]
        (left if name in seen else kept).append(item)
        seen.add(name)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("SANDBOX_NETWORK", "none")  # a bridge is made where a test is about networks
    config.stash[_MISSING] = {}
    # A shell's `make test &` starts us with it ignored, and so would be all that the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if _is_controller(config):
        if os.geteuid() == 0:
            take_away_orphans()
        config.stash[_BEFORE] = frozenset(leftovers.everything_left())


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this host cannot do, with the reason; where REQUIRE_ALL is set that is a failure."""
    known = item.config.stash[_MISSING]
    for name in (name for mark in item.iter_markers("requires") for name in mark.args):
        if name not in known:
            known[name] = host.missing(name)
        if known[name] is not None:
            _not_possible(f"{name}: {known[name]}")


def _not_possible(reason: str) -> None:
    if os.environ.get("REQUIRE_ALL") == "1":
        pytest.fail(f"REQUIRE_ALL=1 and {reason}", pytrace=False)
    pytest.skip(reason)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """After the last test of all workers: nothing may be left that was not there before."""
    config = session.config
    if not _is_controller(config) or config.option.collectonly:
        return
    found = leftovers.everything_left(config.stash[_BEFORE])
    for _ in range(50 if found else 0):  # a neighbour's container may be running just now; what we left stays
        threading.Event().wait(0.1)
        found = [line for line in found if line in leftovers.everything_left()]
    if found:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line("")
            reporter.write_line("left behind on this host by the tests:\n  " + "\n  ".join(found), red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _is_controller(config: pytest.Config) -> bool:
    return not hasattr(config, "workerinput")


# Engines and images -------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An engine in a directory of its own; afterwards its containers are removed, nothing is left of it and its images are whole."""
    from sandbox import Engine  # late: the unit tests of other parts do not need it

    root = tmp_path / "engine"
    with Engine(root) as made:
        yield made
        for container in made.containers(all=True):
            container.remove(force=True)
    leftovers.nothing_left(root)
    if image_schemas.missing() is None:
        found = image_verify.broken(root)
        assert not found, found


@pytest.fixture
def busybox_image(engine: Engine, busybox_tar: Path) -> str:
    """The name of a busybox image (sh, every applet, /etc/passwd with root and nobody) in `engine`."""
    engine.import_image(busybox_tar, "busybox")
    return "busybox"


@pytest.fixture(scope="session")
def busybox_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system tar of the host's static busybox."""
    program = shutil.which("busybox")
    if program is None:
        _not_possible("busybox: not installed")
        raise AssertionError
    root = tmp_path_factory.mktemp("busybox")
    for name in ("bin", "etc", "tmp", "root", "proc", "sys", "dev", "var"):
        (root / name).mkdir()
    root.chmod(0o755)  # not mkdtemp's 0700: the image's / must be open to every user in it
    (root / "tmp").chmod(0o1777)
    shutil.copy(program, root / "bin/busybox")
    for applet in subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    tar = root.parent / f"{root.name}.tar"
    subprocess.run(["tar", "--owner=0", "--group=0", "--numeric-owner", "-C", root, "-cf", tar, "."], check=True)
    return tar


@pytest.fixture(scope="session")
def python_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This machine's Python, captured once and saved, for engines to load."""
    from sandbox import Engine

    place = tmp_path_factory.mktemp("python")
    with Engine(place / "engine") as engine:
        engine.capture("localhost/python")
        engine.save(["localhost/python"], place / "python.tar", format="oci")
    shutil.rmtree(place / "engine")
    return place / "python.tar"


@pytest.fixture
def python_image(engine: Engine, python_tar: Path) -> str:
    """The name of the captured Python in `engine`."""
    engine.load(python_tar)
    return "localhost/python"


# Programs and people ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def sandbox_command() -> list[str]:
    """The argv that runs this checkout's `sandbox`, whatever is on PATH."""
    return [sys.executable, "-m", "sandbox"]


@pytest.fixture(scope="session")
def ordinary_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrdinaryUser]:
    """A person without privileges, made for this session and removed after it; `run(argv)` runs a command as them."""
    if (reason := host.missing("root")) is not None:
        _not_possible(f"ordinary user: {reason}")
    with make_ordinary_user() as user:
        yield user
