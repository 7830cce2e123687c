"""Names of containers: each a symbolic link to the id of the one that has it. Standard library only.

Taking a name is symlink(2), in which only one can succeed. Giving it up looks before it removes, and does both under a lock (flock(2)
on the file beside the directory): between the two the name may have gone to another container.
"""

from __future__ import annotations

import fcntl
import os


def take(link: str, container_id: str) -> bool:
    """Whether the name is its own from now on; False: another has it."""
    try:
        os.symlink(container_id, link)
    except FileExistsError:
        return False
    return True


def owner(link: str) -> str:
    """The id of the container that has the name; nothing when none has it."""
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""


def give_up(link: str, container_id: str) -> bool:
    """The name is free, if it was this container's; whether it was. OSError."""
    if not container_id or owner(link) != container_id:
        return False
    lock = os.open(os.path.dirname(link) + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if owner(link) != container_id:
            return False
        os.unlink(link)
    finally:
        os.close(lock)
    return True
