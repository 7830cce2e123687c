"""The helper of a command that starts one program, started before anything else of ours is imported: it comes up meanwhile.

Where nobody in the container could change our interpreter, it is a fork of this process, which spares a second interpreter its start
and its imports; else it is executed from a protected file (init.interpreter). Standard library only, and little of it.
"""

from __future__ import annotations

import os
import sys
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socketpair  # the C module: `socket` takes ten times as long to import

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

BOOTED = "/run/systemd/system"
"""There when systemd is this host's init (sd_booted(3))."""
PACKAGES = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
# -I -S: no site, no user directory, no environment; only our own package beside the standard library.
BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from sandbox.runtime.init.serve import main; main(*(int(fd) for fd in sys.argv[2:]))"


class Started:
    """A process of ours, as far as its starter needs it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def wait(self) -> None:
        """Until it has ended."""
        os.waitpid(self.pid, 0)


def come_up(argv: Sequence[str]) -> tuple[Started, int] | None:
    """The helper for this command line and our end of the connection to it (`link.pair`); None where it has to be started in another way
    (in a scope of systemd's), or cannot be: whoever does that says why. Only for a process without threads: what the helper gets is not
    closed on exec for a moment."""
    if os.path.isdir(BOOTED):
        return None
    path = os.path.realpath(sys.executable)
    try:
        if "exec" not in argv and not any("userns" in word for word in argv) and is_out_of_reach(path):
            return _fork()
        return _execute(path)
    except OSError:
        return None


def is_out_of_reach(path: str) -> bool:
    """Whether nobody in a container with a user namespace of its own could write to this file: root in there is an ordinary user's own id,
    or one that is nobody's, as all others in there are."""
    found, mine = os.stat(path), os.geteuid()
    return not found.st_mode & 0o022 and found.st_uid < _LENT_IDS and (mine == 0 or found.st_uid != mine)


_LENT_IDS = 65536
"""From here on ids may be a container's."""


def _fork() -> tuple[Started, int]:
    from sandbox.runtime.init import files, link, procs  # noqa: F401  # what both need is imported once

    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _become_helper(theirs.detach())
    theirs.close()
    return Started(pid), ours.detach()


def _become_helper(end: int) -> NoReturn:
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        from sandbox.runtime.init import serve

        serve.main(end, inherits=1)
    finally:
        os._exit(1)


def _execute(path: str) -> tuple[Started, int]:
    from sandbox.runtime.init.interpreter import open_interpreter

    interpreter = open_interpreter(path)
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    kept = [theirs.fileno()] + ([] if interpreter is None else [interpreter])
    place = sys.executable if interpreter is None else f"/proc/self/fd/{interpreter}"
    argv = [sys.executable, "-SI", "-c", BOOT, PACKAGES, str(theirs.fileno()), str(-1 if interpreter is None else interpreter), "0", "1"]
    null = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0), (os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
    try:
        for fd in kept:
            os.set_inheritable(fd, True)
        return Started(os.posix_spawn(place, argv, {}, file_actions=null, setsid=True)), ours.detach()
    finally:
        ours.close()
        theirs.close()
        if interpreter is not None:
            os.close(interpreter)
