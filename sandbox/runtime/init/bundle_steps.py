"""The set-up steps of an OCI bundle's container, one function each: `plan.py` of sandbox.runtime.bundle names them.

Unlike an engine's container, the root file system is the caller's directory and every mount is made below it before the
pivot, because the specification's hooks want to see them there. So every target is opened with openat2(RESOLVE_IN_ROOT)
and mounted on by descriptor: a link that the image made, or that changes meanwhile, cannot lead outside.
"""

from __future__ import annotations

import errno
import os
import socket
import stat

from sandbox.runtime.init import syscalls as s
from sandbox.runtime.init.steps import StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

_CGROUP_ROOT_SIZE = "64k"
_COPY_CHUNK = 1 << 20


class Tree:
    """What the steps share: the root file system's descriptor, and the sources of bind mounts that were opened early."""

    def __init__(self) -> None:
        self.root = -1
        self.sources: dict[str, int] = {}


def perform(steps: Sequence[tuple[str, Mapping[str, Any]]], tree: Tree) -> None:
    """Run every step in order; raises StepError that names the one that failed."""
    for name, arguments in steps:
        try:
            STEPS[name](tree, **arguments)
        except (OSError, KeyError, TypeError, ValueError) as err:
            raise StepError(name, err) from err


def propagate(_: Tree, flags: int) -> None:
    """How mounts travel between the container's mount namespace and the one it was copied from."""
    s.mount("", "/", "", flags)


def open_root(tree: Tree, path: str) -> None:
    """Bind the root file system onto itself: pivot_root(2) wants a mount, and the host's flags on it must stay the host's."""
    bound = s.open_tree(path, s.OPEN_TREE_CLONE | s.OPEN_TREE_CLOEXEC | s.AT_RECURSIVE)
    s.mount_setattr(bound, propagation=s.MS_PRIVATE, recursive=True)
    s.move_mount(bound, path)
    tree.root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.close(bound)


def open_source(tree: Tree, path: str, recursive: bool) -> None:
    """The source of a bind mount, opened before this process becomes the container's root: a directory above may be the host's alone."""
    tree.sources[path] = s.open_tree(path, s.OPEN_TREE_CLONE | s.OPEN_TREE_CLOEXEC | (s.AT_RECURSIVE if recursive else 0))


def bind(
    tree: Tree, source: str, target: str, recursive: bool, attr_set: int, attr_clear: int, tree_set: int, tree_clear: int,
    propagation: Sequence[int],
) -> None:  # fmt: skip
    """A bind mount of a host path. The r-forms (`rro`) reach every mount below it, the others only the topmost."""
    if source not in tree.sources:
        open_source(tree, source, recursive)
    mount = tree.sources.pop(source)
    if attr_set or attr_clear:
        s.mount_setattr(mount, attr_set=attr_set, attr_clr=attr_clear)
    if tree_set or tree_clear:
        s.mount_setattr(mount, attr_set=tree_set, attr_clr=tree_clear, recursive=True)
    _place(tree, mount, target, propagation)


def new_mount(
    tree: Tree, fstype: str, source: str, target: str, data: Sequence[tuple[str, str | None]], attr_set: int, attr_clear: int,
    copy_up: bool, propagation: Sequence[int],
) -> None:  # fmt: skip
    """A new file system. `copy_up`: it begins with what the image has at its place."""
    del attr_clear  # a new mount has nothing to clear
    fd = s.fsopen(fstype)
    s.fsconfig_string(fd, "source", source or fstype)
    for name, value in data:
        s.fsconfig_flag(fd, name) if value is None else s.fsconfig_string(fd, name, value)
    s.fsconfig_create(fd)
    mount = s.fsmount(fd, attr_set & ~(s.MOUNT_ATTR_RDONLY if copy_up else 0))
    os.close(fd)
    if copy_up:
        _copy_up(tree, target, mount)
        s.mount_setattr(mount, attr_set=attr_set)
    _place(tree, mount, target, propagation)


def cgroup_tree(tree: Tree, target: str, attr_set: int, groups: Mapping[str, str], propagation: Sequence[int]) -> None:
    """/sys/fs/cgroup: the container's own groups, v1 as directories of a tmpfs, a single v2 group (name "") as it is."""
    if list(groups) == [""]:
        bind(tree, groups[""], target, False, attr_set, 0, 0, 0, propagation)
        return
    fd = s.fsopen("tmpfs")
    s.fsconfig_string(fd, "mode", "0755")
    s.fsconfig_string(fd, "size", _CGROUP_ROOT_SIZE)
    s.fsconfig_create(fd)
    _place(tree, s.fsmount(fd, attr_set & ~s.MOUNT_ATTR_RDONLY), target, propagation)
    os.close(fd)
    for name, group in groups.items():
        bind(tree, group, f"{target}/{name}", False, attr_set, 0, 0, 0, ())
    if attr_set & s.MOUNT_ATTR_RDONLY:
        _set_attributes(tree, target, s.MOUNT_ATTR_RDONLY)


def device(tree: Tree, path: str, kind: int, major: int, minor: int, mode: int, uid: int, gid: int, bind_from: str) -> None:
    """A device node; in a user namespace, where none can be made, the host's by bind mount."""
    if bind_from:
        bind(tree, bind_from, path, False, 0, 0, 0, 0, ())
        return
    parent, name = _open_parent(tree, path)
    try:
        os.mknod(name, kind | mode, os.makedev(major, minor), dir_fd=parent)
    except FileExistsError:
        return  # the image's, or one that an earlier mount brought
    else:
        os.chmod(name, mode, dir_fd=parent)  # the umask took some
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(parent)


def link(tree: Tree, target: str, path: str) -> None:
    """A symbolic link, where nothing is yet."""
    parent, name = _open_parent(tree, path)
    try:
        os.symlink(target, name, dir_fd=parent)
    except FileExistsError:
        return
    finally:
        os.close(parent)


def write_sysctl(tree: Tree, name: str, value: str) -> None:
    """sysctl(8): before /proc/sys becomes read-only. Dots separate, or slashes where the name holds dots."""
    path = name if "/" in name else name.replace(".", "/")
    fd = s.openat2(tree.root, f"proc/sys/{path}", os.O_WRONLY)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def mask(tree: Tree, paths: Sequence[str]) -> None:
    """maskedPaths: files read as empty, directories are an empty read-only tmpfs."""
    for path in paths:
        covered = _open_existing(tree, path)
        if covered < 0:
            continue
        if stat.S_ISDIR(os.fstat(covered).st_mode):
            fd = s.fsopen("tmpfs")
            s.fsconfig_string(fd, "size", "4k")
            s.fsconfig_create(fd)
            mount = s.fsmount(fd, s.MOUNT_ATTR_RDONLY)
            os.close(fd)
        else:
            mount = s.open_tree("/dev/null")
        s.move_mount_to(mount, covered)
        os.close(mount)
        os.close(covered)


def protect(tree: Tree, paths: Sequence[str]) -> None:
    """readonlyPaths."""
    for path in paths:
        found = _open_existing(tree, path)
        if found < 0:
            continue
        mount = s.open_tree("", s.OPEN_TREE_CLONE | s.OPEN_TREE_CLOEXEC | s.AT_RECURSIVE | s.AT_EMPTY_PATH, found)
        s.mount_setattr(mount, attr_set=s.MOUNT_ATTR_RDONLY, recursive=True)
        s.move_mount_to(mount, found)
        os.close(mount)
        os.close(found)


def protect_root(tree: Tree) -> None:
    """root.readonly: the root file system alone; what is mounted on it keeps its own mode."""
    s.mount_setattr(tree.root, attr_set=s.MOUNT_ATTR_RDONLY)


def enter_root(tree: Tree, pivot: bool, flags: int) -> None:
    """pivot_root(2) with both arguments the same, then drop the host's tree; without pivot (an initramfs cannot) MS_MOVE
    and chroot(2). `flags`: the propagation the root has from then on, 0 to leave it."""
    os.fchdir(tree.root)
    if pivot:
        s.pivot_root(".", ".")
        s.umount2(".", s.MNT_DETACH)
    else:
        s.mount(".", "/", "", _MS_MOVE)
        os.chroot(".")
    os.chdir("/")
    os.close(tree.root)
    if flags:
        s.mount("", "/", "", flags)


_MS_MOVE = 8192


def change_root(_: Tree, path: str) -> None:
    """In a mount namespace that was joined: its mounts are its owner's, only the root changes."""
    os.chdir(path)
    os.chroot(".")
    os.chdir("/")


def set_hostname(_: Tree, name: str) -> None:
    """sethostname(2)."""
    socket.sethostname(name)


def set_domainname(_: Tree, name: str) -> None:
    """setdomainname(2)."""
    s.setdomainname(name)


def console(_: Tree, slave: int) -> None:
    """/dev/console: the terminal's own end. After the pivot."""
    os.close(os.open("/dev/console", os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY, 0o600))
    mount = s.open_tree("", s.OPEN_TREE_CLONE | s.OPEN_TREE_CLOEXEC | s.AT_EMPTY_PATH, slave)
    s.move_mount(mount, "/dev/console")
    os.close(mount)


# Below the root -------------------------------------------------------------------------------------------------------


def _place(tree: Tree, mount: int, target: str, propagation: Sequence[int]) -> None:
    """Mount on `target`, which is made where it does not exist, then let it propagate as asked."""
    covered = _open_or_make(tree, target, is_directory=stat.S_ISDIR(os.fstat(mount).st_mode))
    s.move_mount_to(mount, covered)
    os.close(covered)
    for flags in propagation:
        s.mount_setattr(mount, propagation=flags & ~s.MS_REC, recursive=bool(flags & s.MS_REC))
    os.close(mount)


def _open_existing(tree: Tree, path: str) -> int:
    """The path below the root; -1 when this kernel or image does not have it."""
    try:
        return s.openat2(tree.root, path.lstrip("/") or ".", os.O_PATH)
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            return -1
        raise


def _open_or_make(tree: Tree, path: str, *, is_directory: bool) -> int:
    found = _open_existing(tree, path)
    if found >= 0:
        return found
    parent, name = _open_parent(tree, path)
    try:
        if is_directory:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=parent))
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    finally:
        os.close(parent)


def _open_parent(tree: Tree, path: str) -> tuple[int, str]:
    """The directory `path` is in, made where it does not exist, and its last part."""
    directory, _, name = path.strip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise ValueError(f"{path}: names no file")
    found = s.openat2(tree.root, ".", os.O_PATH | os.O_DIRECTORY)
    done = ""
    for part in filter(None, directory.split("/")):
        done = f"{done}/{part}".lstrip("/")
        try:
            below = s.openat2(tree.root, done, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            os.mkdir(part, 0o755, dir_fd=found)
            below = s.openat2(tree.root, done, os.O_PATH | os.O_DIRECTORY)
        os.close(found)
        found = below
    return found, name


def _set_attributes(tree: Tree, path: str, attributes: int) -> None:
    fd = s.openat2(tree.root, path.lstrip("/"), os.O_PATH)
    s.mount_setattr(fd, attr_set=attributes)
    os.close(fd)


def _copy_up(tree: Tree, target: str, mount: int) -> None:
    """tmpcopyup: what the image has at `target`, into the new file system."""
    source = _open_existing(tree, target)
    if source < 0:
        return
    os.close(source)
    source = s.openat2(tree.root, target.lstrip("/"), os.O_RDONLY | os.O_DIRECTORY)
    try:
        _copy_status(os.fstat(source), mount, ".")
        _copy_directory(source, mount)
    finally:
        os.close(source)


def _copy_directory(source: int, into: int) -> None:
    for name in os.listdir(source):
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(name, dir_fd=into)
            _copy_below(source, into, name)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=into)
        elif stat.S_ISREG(status.st_mode):
            _copy_file(source, into, name)
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=into)
        _copy_status(status, into, name)


def _copy_below(source: int, into: int, name: str) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    below, copy = os.open(name, flags, dir_fd=source), os.open(name, flags, dir_fd=into)
    try:
        _copy_directory(below, copy)
    finally:
        os.close(below)
        os.close(copy)


def _copy_file(source: int, into: int, name: str) -> None:
    original = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    copy = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=into)
    try:
        while os.sendfile(copy, original, None, _COPY_CHUNK):
            pass
    finally:
        os.close(original)
        os.close(copy)


def _copy_status(status: os.stat_result, into: int, name: str) -> None:
    os.chown(name, status.st_uid, status.st_gid, dir_fd=into, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=into)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=into, follow_symlinks=False)


STEPS: dict[str, Callable[..., None]] = {
    step.__name__: step
    for step in (
        propagate, open_root, open_source,
        bind, new_mount, cgroup_tree, device, link, write_sysctl, mask, protect, protect_root, enter_root,
        change_root, set_hostname, set_domainname, console,
    )
}  # fmt: skip
