"""`sandbox run` has its helper come up before the command line is parsed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from sandbox.__main__ import is_to_start
from sandbox.runtime import spawner


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "busybox"],
        ["exec", "box", "true"],
        ["container", "run", "busybox"],
        ["--root", "/somewhere", "run", "busybox"],
        ["--root=/somewhere", "-D", "run", "--rm", "busybox"],
    ],
)
def test_what_starts_a_program_is_seen(argv: Sequence[str]) -> None:
    assert is_to_start(argv)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--help"],
        ["images", "run"],
        ["--root", "run", "images"],
        ["run", "--help"],
        ["image", "ls"],
        ["container", "ls"],
        ["start", "box"],
        ["--root"],
    ],
)
def test_nothing_else_has_a_helper_come_up(argv: Sequence[str]) -> None:
    assert not is_to_start(argv)


def test_who_asks_gets_the_helper_that_is_there() -> None:
    spawner.come_up_ahead()
    first, second = spawner.single(), spawner.single()
    try:
        assert first.pid is not None
        assert second.pid is None
    finally:
        first.close()
        second.close()


def test_leaving_at_once_loses_nothing_that_was_printed() -> None:
    failing = "import sandbox.cli.program as p, sandbox.__main__ as m; p.run = lambda argv: print('printed', end='') or 3; m.main()"
    buffering = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", failing], stdout=subprocess.PIPE, env=buffering, check=False)
    assert (done.returncode, done.stdout) == (3, b"printed")


def test_leaving_runs_what_was_registered() -> None:
    registering = (
        "import atexit, sandbox.cli.program as p, sandbox.__main__ as m\n"
        "p.run = lambda argv: 0\natexit.register(print, 'the end')\nm.main()"
    )
    assert subprocess.run([sys.executable, "-c", registering], stdout=subprocess.PIPE, check=True).stdout == b"the end\n"
