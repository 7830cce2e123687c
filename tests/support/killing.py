"""Kill a helper process of an engine at its n-th step: every call of a Python or C function in spawner, supervisor and init counts as one.

The spawner is started with a profile hook and a page of memory it shares with the test, in which the test says whom to
kill at which count and reads how far each came. An init is PID 1 and immune to its own SIGKILL: it dies of a fault.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sandbox.runtime import comeup

ROLES = ("spawner", "supervisor", "init")
_BOOT = """
import ctypes, mmap, os, signal, struct, sys
sys.path.insert(0, sys.argv[1])
with open({page!r}, "r+b") as file:
    page = mmap.mmap(file.fileno(), 4096)
role = 0

def step(frame, event, argument):
    global role
    if event not in ("call", "c_call"):
        return
    code = frame.f_code
    if code.co_name == "_serve" and code.co_filename.endswith("serve.py"):
        role = 1
    elif code.co_name == "run" and code.co_filename.endswith("pid1.py"):
        role = 2
    elif role == 2 and code.co_name == "start" and code.co_filename.endswith("program.py"):
        sys.setprofile(None)  # the program is a fork of init; its steps are not init's
        return
    count = struct.unpack_from("q", page, 16 + 8 * role)[0] + 1
    struct.pack_into("q", page, 16 + 8 * role, count)
    victim, at = struct.unpack_from("qq", page, 0)
    if victim == role and count == at:
        if role == 2:
            ctypes.string_at(0)
        os.kill(os.getpid(), signal.SIGKILL)

from sandbox.runtime.init.serve import main
sys.setprofile(step)
main(int(sys.argv[2]))
"""


@dataclass
class Killer:
    """Whom to kill, and what was counted."""

    page: mmap.mmap

    def aim(self, role: str | None, at: int = 0) -> None:
        """From the next run on: kill `role` at its step `at`; None kills nobody. The counts begin anew."""
        victim = ROLES.index(role) if role else -1
        struct.pack_into("qqqqq", self.page, 0, victim, at, 0, 0, 0)

    def steps(self, role: str) -> int:
        """How many steps this role has made since `aim`."""
        count: int = struct.unpack_from("q", self.page, 16 + 8 * ROLES.index(role))[0]
        return count


@contextmanager
def instrumented(place: Path) -> Iterator[Killer]:
    """While entered, spawners that are started can be aimed at; `place`: a file for the shared page."""
    place.write_bytes(bytes(4096))
    before = comeup.BOOT
    with place.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as page:
        killer = Killer(page)
        killer.aim(None)
        comeup.BOOT = _BOOT.format(page=str(place))
        try:
            yield killer
        finally:
            comeup.BOOT = before
