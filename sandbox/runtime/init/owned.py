"""Files of an ordinary user's containers that belong to subordinate ids: only inside a user namespace can they be dealt with.

At rest every file is the user's and readable, and the owner in the image (and the mode, where it shuts us out) is noted beside it
(sandbox.image.owners): so the engine can read all. While a container uses them, files have the owners themselves: `restore` before,
`harvest` after it; a layer with such files gets a `twin`.
"""

from __future__ import annotations

import errno
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

    Owner = tuple[int, int]
    Entries = list[tuple[str, os.stat_result]]

_ROOT = (0, 0)
NOTE = "user.sandbox.owner"
"""As sandbox.image.owners writes it: `uid:gid`, or `uid:gid:mode`."""
LINKS_NOTE = "user.sandbox.owners"
"""As well, of a directory: `uid:gid` of most links and special files in it, then `NUL uid:gid name` for each of the others."""
CAPABILITY_NOTE = "user.sandbox.capability"
"""As well: what is at rest of a file's `security.capability`, which without a user namespace nobody but root may give."""
CAPABILITY = "security.capability"
_TOO_LONG = (errno.ENOSPC, errno.E2BIG, errno.ERANGE)
_FICLONE = 0x40049409
_FAILED = 1
_NO_ID = (1 << 32) - 1


def perform(job: str, *paths: str, idmap: Mapping[str, Any] | None = None) -> bool:
    """Do one of `JOBS` in a child of a process without threads; False: it failed, or there is no `idmap` for want of subordinate ids."""
    idmap = idmap or subids.find(os.geteuid(), os.getegid())
    if idmap is None and job not in _FOR_ANYBODY:
        return False
    idmap = idmap or subids.own(os.geteuid(), os.getegid())
    (ready, tell), (wait, go) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready)
        os.close(go)
        _be_inside(job, paths, tell, wait, bool(idmap["setgroups"]))
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
    if job not in _FOR_ANYBODY and subids.find(os.geteuid(), os.getegid()) is None:
        return False
    packages = __file__
    for _ in range(4):
        packages = os.path.dirname(packages)
    code = "import sys; sys.path.insert(0, sys.argv[1]); from sandbox.runtime.init import owned; sys.exit(not owned.perform(*sys.argv[2:]))"
    child = os.posix_spawn(sys.executable, [sys.executable, "-SI", "-c", code, packages, job, *paths], {})
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _be_inside(job: str, paths: tuple[str, ...], tell: int, wait: int, others: bool) -> None:
    """In the child: become root of a user namespace of its own; never returns."""
    code = _FAILED
    try:
        s.unshare(s.CLONE_NEWUSER)
        os.write(tell, b"x")
        os.close(tell)
        if os.read(wait, 1):
            if others:
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
    """Whether anything below belongs to somebody else or is closed to us; seen from outside, where what cannot be looked into does."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        return any(_owner(status) != (uid, gid) or _hidden_bits(status) or _capability(path, status) for path, status in _below(top))
    except PermissionError:
        return True


def harvest(top: str) -> None:
    """Every file becomes root's (the user's, outside), with a note of whose it was; after a kill it goes on where it was."""
    for directory, entries in _directories(top):
        _note_links(directory, entries)
        for path, status in entries:
            if capability := _capability(path, status):
                os.setxattr(path, CAPABILITY_NOTE, capability)
                os.removexattr(path, CAPABILITY)
            _lay_to_rest(path, status)


def _lay_to_rest(path: str, status: os.stat_result) -> None:
    owner, hidden = _owner(status), _hidden_bits(status)
    if hidden:  # root's by now may mean that one who was killed got as far as that
        noted = (owner == _ROOT and _noted(path, status, None)) or owner
        os.setxattr(path, NOTE, b"%d:%d:%o" % (*noted, stat.S_IMODE(status.st_mode)))
    elif owner != _ROOT and _can_hold_note(status):
        os.setxattr(path, NOTE, b"%d:%d" % owner)
    if owner != _ROOT:
        _chown(path, status, *_ROOT)
    if hidden:
        os.chmod(path, stat.S_IMODE(status.st_mode) | hidden)


def restore(top: str) -> None:
    """Every file goes to whom its note says, if there is such a user here, with the mode that it says."""
    noting = []
    for directory, entries in _directories(top):
        links, all_given = _LinkOwners.of(directory, entries), True
        for path, status in entries:
            owner = _noted(path, status, links)
            is_given = owner is None or _give(path, status, owner)
            if _can_hold_note(status):
                if owner and is_given:
                    os.removexattr(path, NOTE)
                if capability := _xattr(path, CAPABILITY_NOTE):
                    os.setxattr(path, CAPABILITY, capability)
                    os.removexattr(path, CAPABILITY_NOTE)
            elif not is_given:
                all_given = False
        if links and all_given:
            noting.append(directory)
    for directory in noting:  # at last: after a kill everything is given once more
        os.removexattr(directory, LINKS_NOTE)


def _give(path: str, status: os.stat_result, owner: Owner) -> bool:
    """False: its owner is not among the ids here. It has its mode in any case."""
    mode = _noted_mode(path, status)
    try:
        _chown(path, status, *owner)
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        return False
    finally:
        if mode is not None:
            os.chmod(path, mode)
    return True


def twin(source: str, target: str) -> None:
    """A copy of a layer, as containers need it: with owners. What is root's is the same file; a layer that is wholly root's has an empty
    file for a twin."""
    given = {path: owner for directory, entries in _directories(source) for path, owner in _given(directory, entries)}
    if not given:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        return
    os.mkdir(target)
    _copy_tree(source, target, lambda path, _: given.get(path))


def copy(source: str, target: str) -> None:
    """Into an empty directory, the files of a container that runs as `harvest` would leave them."""
    _copy_tree(source, target, lambda _, status: _owner(status), with_notes=True)
    harvest(target)


def names(top: str, out: str) -> None:
    """Into a file, every path below: `D` when it is overlayfs' mark of a removed one, else `-`, the path, NUL."""
    with open(out, "wb") as file:
        for path, status in _below(top):
            if path != top:
                is_removed = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
                file.write((b"D" if is_removed else b"-") + os.fsencode(path[len(top) :]) + b"\0")


def measure(top: str, told: str) -> None:
    """To this descriptor, how many bytes the files below take."""
    from sandbox.runtime.init import meter  # which asks for this

    os.write(int(told), b"%d" % meter.bytes_below(top))


def _given(directory: str, entries: Entries) -> Iterator[tuple[str, Owner]]:
    """Those of a directory's entries that need a file of their own in a twin."""
    links = _LinkOwners.of(directory, entries)
    for path, status in entries:
        if owner := _noted(path, status, links):
            yield path, owner
        elif _xattr(path, CAPABILITY_NOTE):
            yield path, _ROOT


def _copy_tree(source: str, target: str, owner_of: Callable[[str, os.stat_result], Owner | None], *, with_notes: bool = False) -> None:
    """`owner_of` says whose the copy of a file is; None: the file itself will do. Hard links are kept. `with_notes`: what is noted stays
    so, else it is given."""
    directories, made = [], dict[int, str]()
    for path, status in _below(source):
        place, owner = target + path[len(source) :], owner_of(path, status)
        if stat.S_ISDIR(status.st_mode):
            if path != source:
                os.mkdir(place)
            directories.append((path, place, status, owner or _ROOT))
        elif owner is None or status.st_ino in made:
            os.link(made.get(status.st_ino, path), place, follow_symlinks=False)
        else:
            _copy_file(path, place, status)
            _copy_rest(path, place, status, owner, with_notes)
            if status.st_nlink > 1:
                made[status.st_ino] = place
    for path, place, status, owner in reversed(directories):  # the times of a directory, once it is complete
        _copy_rest(path, place, status, owner, with_notes)


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


_FOR_ANYBODY = (harvest.__name__, copy.__name__, names.__name__, measure.__name__)
"""Jobs for which a user namespace with one's own id will do."""
JOBS: dict[str, Callable[..., None]] = {job.__name__: job for job in (harvest, restore, twin, copy, names, measure, remove)}


def _directories(top: str) -> Iterator[tuple[str, Entries]]:
    """What is in each directory, from the top (which comes first, by itself) down. No link is followed."""
    yield "", [(top, os.lstat(top))]
    waiting = [top]
    while waiting:
        directory = waiting.pop()
        with os.scandir(directory) as found:
            entries = [(each.path, each.stat(follow_symlinks=False)) for each in found]
        yield directory, entries
        waiting += [path for path, status in entries if stat.S_ISDIR(status.st_mode)]


def _below(top: str) -> Iterator[tuple[str, os.stat_result]]:
    """The directory itself and all below it, a directory before what is in it."""
    for _, entries in _directories(top):
        yield from entries


def _owner(status: os.stat_result) -> Owner:
    return status.st_uid, status.st_gid


def _can_hold_note(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)


def _noted(path: str, status: os.stat_result, links: _LinkOwners | None) -> Owner | None:
    """Whose a file is, where that is not root."""
    if not _can_hold_note(status):
        return links.owner(path) if links else None
    noted = _parsed(_xattr(path, NOTE))
    return noted[:2] if noted else None


def _noted_mode(path: str | int, status: os.stat_result) -> int | None:
    """Of what is at rest, where its own shuts us out."""
    noted = _parsed(_xattr(path, NOTE)) if _can_hold_note(status) else None
    return noted[2] if noted else None


def _hidden_bits(status: os.stat_result, mode: int | None = None) -> int:
    """What the owner of such a file lacks to read it, with its mode or this one."""
    mode = status.st_mode if mode is None else mode
    if stat.S_ISDIR(status.st_mode):
        return 0o700 & ~mode
    return 0o400 & ~mode if stat.S_ISREG(status.st_mode) else 0


def _parsed(note: bytes | None) -> tuple[int, int, int | None] | None:
    """What a note says: uid, gid, mode. None: there is none, or a program of the container has put something else there."""
    try:
        uid, gid, mode = [*(note or b"").split(b":", 2), b""][:3]
        found = int(uid), int(gid), int(mode, 8) & 0o7777 if mode else None
    except ValueError:
        return None
    return found if 0 <= found[0] < _NO_ID and 0 <= found[1] < _NO_ID else None


def _numbers(owner: bytes) -> Owner:
    found = _parsed(owner)
    return found[:2] if found else _ROOT


class _LinkOwners:
    """A directory's note of whose its symbolic links and special files are."""

    def __init__(self, note: bytes) -> None:
        most, *rows = note.split(b"\0")
        self.most = _numbers(most)
        self.others = {name: _numbers(owner) for owner, _, name in (row.partition(b" ") for row in rows)}

    @classmethod
    def of(cls, directory: str, entries: Entries) -> _LinkOwners | None:
        """None: there is no note."""
        note = None if all(_can_hold_note(status) for _, status in entries) else _xattr(directory, LINKS_NOTE)
        return cls(note) if note else None

    def owner(self, path: str) -> Owner | None:
        """Whose this link is; None: root's."""
        owner = self.others.get(os.fsencode(os.path.basename(path)), self.most)
        return None if owner == _ROOT else owner


def _note_links(directory: str, entries: Entries) -> None:
    """Note whose a directory's links and special files are. What is root's by now may be noted already, by one who was killed."""
    links = _LinkOwners.of(directory, entries)
    owners = {}
    for path, status in entries:
        if not _can_hold_note(status):
            known = links.owner(path) if links else None
            owners[os.fsencode(os.path.basename(path))] = known if known and _owner(status) == _ROOT else _owner(status)
    if set(owners.values()) <= {_ROOT}:
        return
    counts = list(owners.values())
    most = max(set(counts), key=counts.count)
    try:
        os.setxattr(directory, LINKS_NOTE, _written(most, owners))
    except OSError as err:
        if err.errno not in _TOO_LONG:
            raise
        os.write(2, f"sandbox: {directory}: its links have too many owners, all are noted as {most[0]}:{most[1]}'s\n".encode())
        os.setxattr(directory, LINKS_NOTE, b"%d:%d" % most)


def _written(most: Owner, owners: Mapping[bytes, Owner]) -> bytes:
    rows = [b"%d:%d %b" % (*owner, name) for name, owner in sorted(owners.items()) if owner != most]
    return b"\0".join((b"%d:%d" % most, *rows))


def add_link_owners(directory: int, owners: Mapping[bytes, Owner]) -> None:
    """Note whose these links and special files of an open directory are, beside what is noted; OSError (ENOSPC: of too many owners)."""
    note = _xattr(directory, LINKS_NOTE)
    if note is None and set(owners.values()) <= {_ROOT}:
        return
    known = _LinkOwners(note or b"0:0")
    os.setxattr(directory, LINKS_NOTE, _written(known.most, {**known.others, **owners}))


def noted_owner(fd: int) -> Owner | None:
    """Whose an open file or directory is, where a note says so."""
    noted = _parsed(_xattr(fd, NOTE))
    return noted[:2] if noted else None


def meant_mode(fd: int, status: os.stat_result) -> int:
    """The mode of an open file or directory; what it is noted to be, if it still is as it was laid to rest."""
    mode, noted = stat.S_IMODE(status.st_mode), _noted_mode(fd, status)
    return mode if noted is None or noted | _hidden_bits(status, noted) != mode else noted


def noted_capability(fd: int) -> bytes | None:
    """An open file's `security.capability`, where it is at rest."""
    return _xattr(fd, CAPABILITY_NOTE)


def _chown(path: str, status: os.stat_result, uid: int, gid: int) -> None:
    """With what chown(2) takes from a program: its set-user-id bit."""
    os.lchown(path, uid, gid)
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o6000:
        os.chmod(path, stat.S_IMODE(status.st_mode))


def _capability(path: str, status: os.stat_result) -> bytes | None:
    is_program = stat.S_ISREG(status.st_mode) and status.st_mode & 0o111
    return _xattr(path, CAPABILITY) if is_program else None


def _xattr(path: str | int, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name) if isinstance(path, int) else os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return None


def _copy_file(path: str, copy: str, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        _copy_content(path, copy)
    elif stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(path), copy)
    else:
        os.mknod(copy, status.st_mode, status.st_rdev)  # a named pipe, a socket, overlayfs' whiteout: anybody may


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


def _copy_rest(path: str, copy: str, status: os.stat_result, owner: Owner, with_notes: bool) -> None:
    os.lchown(copy, *owner)
    if not stat.S_ISLNK(status.st_mode):
        noted = None if with_notes else _noted_mode(path, status)
        os.chmod(copy, stat.S_IMODE(status.st_mode) if noted is None else noted)
    for name in os.listxattr(path, follow_symlinks=False):
        if with_notes or name not in (NOTE, LINKS_NOTE):
            meant = CAPABILITY if name == CAPABILITY_NOTE else name
            os.setxattr(copy, meant, os.getxattr(path, name, follow_symlinks=False))
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
