"""PostgreSQL, Redis and nginx, of Debian's packages, on one network; a fourth container uses all three by their names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.engine import Engine
from tests.support import debian
from tests.support.command_line import CommandLine
from tests.support.host import requires

pytestmark = [requires("root", "tool:mmdebstrap"), pytest.mark.xdist_group("debian"), pytest.mark.timeout(300)]

SERVICES = Path(__file__).parents[1] / "corpus/services"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, python_tar: Path, debian_tar: Path) -> Iterator[CommandLine]:
    scratch = tmp_path_factory.mktemp("services")
    made = CommandLine(scratch / "engine", patience=300)
    with Engine(made.root) as engine:
        engine.load(python_tar)
        engine.import_image(debian_tar, debian.IMAGE, changes=[debian.PATH])
    context = shutil.copytree(SERVICES, scratch / "services")
    for target in ("database", "cache", "web", "client"):
        made.ok("build", "-q", "--target", target, "-t", target, str(context))
    made.ok("network", "create", "app")
    yield made
    made.ok("rm", "-f", *made.ok("ps", "-aq").out.split())
    made.ok("prune", "-f")


def start(sandbox: CommandLine, name: str, *flags: str) -> None:
    """Until its health check says that it is well."""
    sandbox.ok("run", "-d", "--name", name, "--network", "app", "-m", "256m", *flags, name)
    deadline = time.monotonic() + 60
    while sandbox.json("inspect", name)[0]["State"].get("Health", {}).get("Status") != "healthy":
        assert time.monotonic() < deadline, sandbox("logs", name)
        threading.Event().wait(0.1)


def visit(sandbox: CommandLine) -> str:
    return sandbox.ok("run", "--rm", "--network", "app", "client").out


def test_the_notebook_of_it(sandbox: CommandLine) -> None:
    """notebooks/05_services.ipynb, with what is made already: alone it makes its base first, which takes a minute."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", "notebooks/05_services.ipynb"]
    env = {**os.environ, "SANDBOX_ROOT": str(sandbox.root)}
    done = subprocess.run(command, cwd=SERVICES.parents[2], env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert sandbox.ok("ps", "-aq").out == ""
    assert sandbox.ok("volume", "ls", "-q").out == ""


def test_three_services_and_a_client(sandbox: CommandLine) -> None:
    start(sandbox, "database", "-v", "pgdata:/var/lib/postgresql/data")
    start(sandbox, "cache")
    start(sandbox, "web", "-p", "80")
    assert visit(sandbox) == "1 1 <h1>hello</h1>\n"
    assert visit(sandbox) == "2 2 <h1>hello</h1>\n"
    address = sandbox.ok("port", "web", "80").out.strip()
    with urllib.request.urlopen(f"http://{address}/", timeout=10) as page:
        assert page.read() == b"<h1>hello</h1>\n"
    assert "GET / HTTP/1.1" in sandbox.ok("logs", "web").out

    sandbox.ok("stop", "database")
    assert sandbox.ok("wait", "database").out == "0\n"  # it ended by itself, in good order
    sandbox.ok("rm", "database")
    sandbox.ok("rm", "-f", "cache")
    start(sandbox, "database", "-v", "pgdata:/var/lib/postgresql/data")
    start(sandbox, "cache")
    assert visit(sandbox) == "3 1 <h1>hello</h1>\n"  # the database has a volume, the cache has none
