"""Processes of a container as the host sees them (proc(5))."""

from __future__ import annotations

import os


def program_of(init: int) -> int:
    """The program of the container whose init this is: its first child. ProcessLookupError when it has ended."""
    try:
        with open(f"/proc/{init}/task/{init}/children", encoding="utf-8") as file:
            return int(file.read().split()[0])
    except (FileNotFoundError, IndexError) as err:
        raise ProcessLookupError(3, "has ended", f"process {init}") from err


def root_of(pid: int) -> int:
    """The user id that its uid 0 is here (user_namespaces(7)); ProcessLookupError when it has ended."""
    try:
        with open(f"/proc/{pid}/uid_map", encoding="utf-8") as file:
            inside, outside, _ = file.readline().split()
    except (FileNotFoundError, ValueError) as err:
        raise ProcessLookupError(3, "has ended", f"process {pid}") from err
    return int(outside) if inside == "0" else 0


def entered_through(init: int) -> int:
    """Whom to enter its container through: an ordinary user may not through init, which is not dumpable (ptrace(2)), but through the
    program. ProcessLookupError when it has ended."""
    return init if os.geteuid() == 0 else program_of(init)
