"""A container's files on the host: state written at once, trees removed, stubs taken back. Standard library only."""

from __future__ import annotations

import json
import os
import stat

from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


def write_json(path: str, value: Mapping[str, Any]) -> None:
    """Replace the file at once: a reader sees the old or the new text, never half of it."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.rename(temporary, path)


def read_json(path: str) -> dict[str, Any] | None:
    """What `write_json` wrote; None when there is no such file."""
    try:
        with open(path, encoding="utf-8") as file:
            value: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        return None
    return value


def remove_tree(path: str) -> None:
    """Remove a directory and all below it without following a link; already gone is fine."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(entry.path)
                else:
                    os.unlink(entry.path)
        os.rmdir(path)
    except FileNotFoundError:
        return


def remove_stubs(upper: str, stubs: Sequence[str]) -> None:
    """Take back the empty mount points init made, deepest first; one that the program has used stays."""
    root = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for stub in reversed(stubs):
            _remove_stub(root, stub.strip("/"))
    finally:
        os.close(root)


def _remove_stub(root: int, stub: str) -> None:
    directory, _, name = stub.rpartition("/")
    try:
        parent = s.openat2(root, directory or ".", os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            os.rmdir(name, dir_fd=parent)
        elif stat.S_ISREG(found.st_mode) and found.st_size == 0:
            os.unlink(name, dir_fd=parent)
    except OSError:
        return  # used by the program, or removed by it: no stub any more
    finally:
        os.close(parent)
