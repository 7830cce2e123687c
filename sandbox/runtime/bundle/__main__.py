"""The console script `sandbox-oci`, also `python -m sandbox.runtime.bundle`."""

from __future__ import annotations

import os
import sys

from sandbox.runtime.interpreter import open_interpreter

_ENTER_CONTAINERS = frozenset(("create", "run", "exec"))


def main() -> None:
    """Perform the command line. What enters a container is first executed again from a read-only mount: a container in our
    own user namespace could otherwise change the host's Python through /proc/PID/exe (CVE-2019-5736)."""
    if _ENTER_CONTAINERS & set(sys.argv[1:]) and not _is_protected():
        _execute_again()
    from sandbox.runtime.bundle.command import run  # after that: the imports cost more than the rest

    sys.exit(run(sys.argv[1:]))


def _is_protected() -> bool:
    """Whether the file that this process was executed from is one that `open_interpreter` gave."""
    path = "/proc/self/exe"
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY) or os.readlink(path).startswith("/memfd:")


def _execute_again() -> None:
    interpreter = open_interpreter(os.path.realpath(sys.executable))
    if interpreter is not None:
        os.execv(f"/proc/self/fd/{interpreter}", [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    main()
