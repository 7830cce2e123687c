"""A container's files on the host: state written at once, trees removed, stubs taken back. Standard library only."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat

from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


_RESERVED = 16384
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def write_json(path: str, value: Mapping[str, Any]) -> None:
    """Replace the file at once: a reader sees the old or the new text, never half of it. On a full disk the place that
    `reserve` took is used; OSError when there is none."""
    data = json.dumps(value).encode()
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
    except OSError as err:
        os.unlink(temporary)
        if err.errno not in _NO_SPACE or not _fill_reserved(path, data):
            raise
        temporary = path + ".reserved"
    os.rename(temporary, path)


def reserve(path: str) -> None:
    """Take the place on the disk that the next `write_json` of this file needs, so that it cannot fail for want of it."""
    with open(path + ".reserved", "wb") as file:
        file.write(b" " * _RESERVED)


def _fill_reserved(path: str, data: bytes) -> bool:
    """Write into blocks that are ours already."""
    try:
        with open(path + ".reserved", "r+b") as file:
            file.write(data)
            file.truncate()
    except FileNotFoundError:
        return False
    return len(data) <= _RESERVED


def read_json(path: str) -> dict[str, Any] | None:
    """What `write_json` wrote; None when there is no such file."""
    try:
        with open(path, encoding="utf-8") as file:
            value: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        return None
    return value


def is_locked(directory: str) -> bool:
    """Whether a supervisor holds the lock of this container's directory."""
    return is_held(directory + "/lock")


def is_held(lock: str) -> bool:
    """Whether somebody has this file locked (flock(2))."""
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def wait_released(lock: str) -> None:
    """Until nobody has this file locked."""
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def write_value(path: str, text: str) -> None:
    """Into a file of the kernel's (/proc, cgroups), by one write(2): Linux takes or refuses it as one value. OSError with the path."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as err:
        err.filename = path
        raise
    finally:
        os.close(fd)


def remove_file(path: str) -> None:
    """Already gone is fine."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def remove_tree(path: str) -> None:
    """Remove a directory and all below it without following a link; already gone is fine."""
    try:
        _remove_tree(path)
    except PermissionError:
        from sandbox.runtime.init import owned  # subordinate ids' files, of a container whose supervisor was killed

        if not owned.spawn("remove", path):
            _open_up(path)
            _remove_tree(path)


def _open_up(path: str) -> None:
    """Let us write in every directory below: a container may have made some that even their owner may not change."""
    os.chmod(path, 0o700)
    for directory, names, _ in os.walk(path):
        for place in (os.path.join(directory, name) for name in names):
            if not os.path.islink(place):
                os.chmod(place, 0o700)


def _remove_tree(path: str) -> None:
    try:
        with _entries(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    _remove_tree(entry.path)
                else:
                    os.unlink(entry.path)
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError as err:
        if err.errno != errno.ENOTEMPTY:
            raise
        _remove_tree(path)  # somebody who does not know yet has put something into it meanwhile


def _entries(path: str) -> Any:  # Any: what scandir gives, an iterator and a context
    """What is in a directory, also in one that its owner may not read: overlay's work/work has no permissions (an ordinary user's)."""
    try:
        return os.scandir(path)
    except PermissionError:
        os.chmod(path, 0o700)
        return os.scandir(path)


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
