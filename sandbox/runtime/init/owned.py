"""Files of an ordinary user's containers that belong to subordinate ids: only inside a user namespace can they be dealt with.

At rest every file is the user's, and the owner in the image is noted beside it (sandbox.image.owners): so the engine can read all. While a
container uses them, files have the owners themselves: `restore` before, `harvest` after it; a layer with such files gets a `twin`.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys

from sandbox.runtime.init import subids
from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

NOTE = "user.sandbox.owner"
"""As sandbox.image.owners writes it: `uid:gid`."""
CAPABILITY_NOTE = "user.sandbox.capability"
"""As well: what is at rest of a file's `security.capability`, which without a user namespace nobody but root may give."""
_CAPABILITY = "security.capability"
_FICLONE = 0x40049409
_FAILED = 1


def perform(job: str, *paths: str, idmap: Mapping[str, Any] | None = None) -> bool:
    """Do one of `JOBS` in a child of a process without threads; False: it failed, or this user has no subordinate ids."""
    idmap = idmap or subids.find(os.geteuid(), os.getegid())
    if idmap is None:
        return False
    (ready, tell), (wait, go) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready)
        os.close(go)
        _be_inside(job, paths, tell, wait)
    try:
        os.close(tell)
        os.close(wait)
        if os.read(ready, 1):
            subids.write_maps(child, idmap)
            os.write(go, b"x")
    except PermissionError:
        pass  # the child sees the pipe closed, and says that it failed
    finally:
        os.close(ready)
        os.close(go)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def spawn(job: str, *paths: str) -> bool:
    """As `perform`, from a process that may have threads."""
    if subids.find(os.geteuid(), os.getegid()) is None:
        return False
    packages = __file__
    for _ in range(4):
        packages = os.path.dirname(packages)
    code = "import sys; sys.path.insert(0, sys.argv[1]); from sandbox.runtime.init import owned; sys.exit(not owned.perform(*sys.argv[2:]))"
    child = os.posix_spawn(sys.executable, [sys.executable, "-SI", "-c", code, packages, job, *paths], {})
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _be_inside(job: str, paths: tuple[str, ...], tell: int, wait: int) -> None:
    """In the child: become root of a user namespace of its own; never returns."""
    code = _FAILED
    try:
        s.unshare(s.CLONE_NEWUSER)
        os.write(tell, b"x")
        os.close(tell)
        if os.read(wait, 1):
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            os.umask(0)
            JOBS[job](*paths)
            code = 0
    except OSError as err:
        os.write(2, f"sandbox: {job}: {err}\n".encode())
    finally:
        os._exit(code)


def needs_harvest(top: str) -> bool:
    """Whether anything below belongs to somebody else; seen from outside, where what cannot be looked into does."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        return any((status.st_uid, status.st_gid) != (uid, gid) or _capability(path, status) for path, status in _below(top))
    except PermissionError:
        return True


def harvest(top: str) -> None:
    """Every file becomes root's (the user's, outside), with a note of whose it was. Links and special files can hold none."""
    for path, status in _below(top):
        if capability := _capability(path, status):
            os.setxattr(path, CAPABILITY_NOTE, capability)
            os.removexattr(path, _CAPABILITY)
        if (status.st_uid, status.st_gid) != (0, 0):
            if _can_hold_note(status):
                os.setxattr(path, NOTE, f"{status.st_uid}:{status.st_gid}".encode())
            _chown(path, status, 0, 0)


def restore(top: str) -> None:
    """Every file goes to whom its note says."""
    for path, status in _below(top):
        if owner := _noted(path, status):
            _chown(path, status, *owner)
            os.removexattr(path, NOTE)
        if capability := _xattr(path, CAPABILITY_NOTE):
            os.setxattr(path, _CAPABILITY, capability)
            os.removexattr(path, CAPABILITY_NOTE)


def twin(source: str, target: str) -> None:
    """A copy of a layer, as containers need it: with owners. What is root's is the same file; a layer that is wholly root's has an empty
    file for a twin."""
    if not any(_noted(path, status) or _xattr(path, CAPABILITY_NOTE) for path, status in _below(source)):
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        return
    directories = []
    for path, status in _below(source):
        copy = target + path[len(source) :]
        owner = _noted(path, status)
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(copy)
            directories.append((path, copy, status, owner or (0, 0)))
        elif owner or _xattr(path, CAPABILITY_NOTE):
            _copy_content(path, copy)
            _copy_rest(path, copy, status, owner or (0, 0))
        else:
            os.link(path, copy, follow_symlinks=False)
    for path, copy, status, given in reversed(directories):  # the times of a directory, once it is complete
        _copy_rest(path, copy, status, given)


def remove(top: str) -> None:
    """The tree, whosever it is."""
    directories = []
    for path, status in _below(top):
        if stat.S_ISDIR(status.st_mode):
            directories.append(path)
        else:
            os.unlink(path)
    for path in reversed(directories):
        os.rmdir(path)


JOBS: dict[str, Callable[..., None]] = {job.__name__: job for job in (harvest, restore, twin, remove)}


def _below(top: str) -> Iterator[tuple[str, os.stat_result]]:
    """The directory itself and all below it, a directory before what is in it. No link is followed."""
    yield top, os.lstat(top)
    waiting = [top]
    while waiting:
        directory = waiting.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                yield entry.path, status
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(entry.path)


def _can_hold_note(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)


def _noted(path: str, status: os.stat_result) -> tuple[int, int] | None:
    if not _can_hold_note(status):
        return None
    try:
        uid, _, gid = os.getxattr(path, NOTE, follow_symlinks=False).decode("ascii").partition(":")
        return int(uid), int(gid)
    except (OSError, ValueError):
        return None


def _chown(path: str, status: os.stat_result, uid: int, gid: int) -> None:
    """With what chown(2) takes from a program: its set-user-id bit."""
    os.lchown(path, uid, gid)
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o6000:
        os.chmod(path, stat.S_IMODE(status.st_mode))


def _capability(path: str, status: os.stat_result) -> bytes | None:
    is_program = stat.S_ISREG(status.st_mode) and status.st_mode & 0o111
    return _xattr(path, _CAPABILITY) if is_program else None


def _xattr(path: str, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return None


def _copy_content(path: str, copy: str) -> None:
    source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    target = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.ioctl(target, _FICLONE, source)  # where the file system can, the bytes are shared
        except OSError:
            while os.sendfile(target, source, None, 1 << 30):
                continue
    finally:
        os.close(source)
        os.close(target)


def _copy_rest(path: str, copy: str, status: os.stat_result, owner: tuple[int, int]) -> None:
    os.lchown(copy, *owner)
    os.chmod(copy, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(path, follow_symlinks=False):
        if name != NOTE:
            meant = _CAPABILITY if name == CAPABILITY_NOTE else name
            os.setxattr(copy, meant, os.getxattr(path, name, follow_symlinks=False))
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
