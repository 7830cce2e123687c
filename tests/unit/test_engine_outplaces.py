"""Directories for /out: each is its maker's until it is let go, and what a kill leaves goes with the next prune."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from sandbox.outplaces import OutPlace, abandoned

_HOLD = "import sys, pathlib; from sandbox.outplaces import OutPlace\n"
_HOLD += "p = OutPlace(pathlib.Path(sys.argv[1])); print(p.path, flush=True); input()"


def test_a_place_is_empty_again_and_gone_afterwards(tmp_path: Path) -> None:
    with OutPlace(tmp_path) as place:
        (place.path / "dir").mkdir()
        (place.path / "dir/file").write_text("x")
        (place.path / "link").symlink_to("/etc/passwd")
        assert place.path.stat().st_mode & 0o777 == 0o777
        place.empty()
        assert list(place.path.iterdir()) == []
        assert list(abandoned(tmp_path)) == []
    assert list((tmp_path / "out").iterdir()) == []


def test_what_a_killed_process_held_is_abandoned(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    path = Path(holder.stdout.readline().strip())
    assert list(abandoned(tmp_path)) == []
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert list(abandoned(tmp_path)) == [path]
