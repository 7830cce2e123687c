"""The magics in IPython in a terminal, and in a script of its own: no notebook, no kernel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from sandbox.engine import Engine
from tests.support.host import requires
from tests.support.leftovers import nothing_left

pytestmark = requires("root")

_IPYTHON = [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor"]


@pytest.fixture
def environment(tmp_path: Path, busybox_tar: Path) -> Iterator[dict[str, str]]:
    """What IPython runs in: an engine with an image, a profile of its own."""
    root = tmp_path / "root"
    with Engine(root) as engine:
        engine.import_image(busybox_tar, "localhost/box", changes=['CMD ["sh"]'])
    yield {**os.environ, "SANDBOX_ROOT": str(root), "IPYTHONDIR": str(tmp_path / "ipython"), "TERM": "dumb"}
    nothing_left(root)


def test_a_terminal_is_lent_to_a_program_and_given_back(environment: dict[str, str]) -> None:
    shell = pexpect.spawn(_IPYTHON[0], _IPYTHON[1:], encoding="utf-8", timeout=30, dimensions=(40, 120), env=environment)
    try:

        def enter(line: str, *, then: str) -> str:
            shell.sendline(line)
            shell.expect(then)
            return str(shell.before)

        shell.expect(r"In \[1\]")
        enter("%load_ext sandbox", then=r"In \[2\]")
        enter("%container run -it --rm localhost/box sh", then="# ")
        enter("echo inside $((6 * 7)); test -t 0 && echo yes", then="inside 42\r+\nyes")
        enter("exit", then=r"In \[3\]")
        enter("%container run -i --rm localhost/box sh -c 'echo up; head -n 1'", then="\nup")
        enter("typed", then=r"In \[4\]")
        assert "CONTAINER ID" in enter("%container ps -a", then=r"In \[5\]")
        shell.sendline("exit")
        shell.expect(pexpect.EOF)
    finally:
        shell.close(force=True)


def test_a_script_runs_cells_and_ends_at_an_error(environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "cells.ipy"
    script.write_text(
        "%load_ext sandbox\n"
        "get_ipython().run_cell_magic('dockerfile', '-t localhost/made', 'FROM localhost/box\\nRUN echo made > /made\\n')\n"
        "get_ipython().run_cell_magic('container', 'localhost/made', 'cat /made')\n"
        "rows = %container images\nprint(sorted(row['Repository'] for row in rows))\n"
        "%container logs nobody\nprint('not reached')\n"
    )
    done = subprocess.run([*_IPYTHON, str(script)], env=environment, capture_output=True, text=True, check=False, timeout=60)
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert "#2 [0 2/2] RUN echo made > /made\n" in said
    assert "\nmade\n['localhost/box', 'localhost/made']\n" in said
    assert "ContainerNotFound: nobody: no such container" in said + done.stderr
    assert "not reached" not in said
    assert done.returncode == 1
