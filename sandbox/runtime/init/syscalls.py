"""Linux system calls that Python 3.11 lacks, by ctypes; names and argument order are the manual's.

Every function raises OSError with the errno. Numbers from 424 on are the same on all architectures; older ones are
looked up per machine.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C module behind `signal`, which the spawner's starter does not wait for
import ctypes
import itertools
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

_NUMBERS = {
    "x86_64": {"pivot_root": 155, "capset": 126, "keyctl": 250},
    "aarch64": {"pivot_root": 41, "capset": 91, "keyctl": 219},
}
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _CLONE3, _OPENAT2, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 435, 437, 442

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
_CLONE_PARENT, _CLONE_INTO_CGROUP = 0x8000, 0x200000000
NAMESPACES = {
    "mount": CLONE_NEWNS,
    "cgroup": CLONE_NEWCGROUP,
    "uts": CLONE_NEWUTS,
    "ipc": CLONE_NEWIPC,
    "user": CLONE_NEWUSER,
    "pid": CLONE_NEWPID,
    "net": CLONE_NEWNET,
}

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE, AT_SYMLINK_NOFOLLOW = -100, 0x1000, 0x8000, 0x100
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_IDMAP = 1, 2, 4, 8, 0x00100000
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6
RESOLVE_IN_ROOT, RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_MAGICLINKS = 0x10, 0x08, 0x04, 0x02
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER, PR_CAP_AMBIENT = (
    1,
    4,
    15,
    24,
    38,
    36,
    47,
)
PR_SET_SECUREBITS, PR_SET_KEEPCAPS, PR_SET_SECCOMP = 28, 8, 22


def _check(result: int, path: object = None) -> int:
    if result < 0:
        err = ctypes.get_errno()
        if path is None:
            raise OSError(err, os.strerror(err))
        raise OSError(err, os.strerror(err), path)
    return result


def _number(name: str) -> int:
    machine = os.uname().machine
    if machine not in _NUMBERS:
        raise OSError(38, f"{machine}: this processor is not known to jupyter-sandbox")
    return _NUMBERS[machine][name]


def _call(number: int, *args: object) -> int:
    return int(_syscall(ctypes.c_long(number), *args))


def _path(path: str) -> ctypes.c_char_p:
    return ctypes.c_char_p(os.fsencode(path))


def _long(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(ctypes.c_int(flags)))


def setns(fd: int, flags: int) -> None:
    """setns(2); `fd` may be a pidfd, then several namespaces are entered at once (Linux 5.8)."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)))


def clone(flags: int, into: str | None = None, *, parent: bool = False) -> int:
    """clone3(2) as fork with namespaces: 0 in the child. Only for a process with one thread that has no at-fork hooks.

    `into`: the v2 cgroup the child is born in. Joining one later waits for an RCU grace period, 5 to 15 ms.
    `parent`: the new process is a sibling, our parent's child.
    """
    cgroup = -1 if into is None else os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    born_in = (_CLONE_INTO_CGROUP, cgroup) if into is not None else (0, 0)
    whose, ends_with = (_CLONE_PARENT, 0) if parent else (0, _signal.SIGCHLD)
    args = struct.pack("11Q", flags | whose | born_in[0], 0, 0, 0, ends_with, 0, 0, 0, 0, 0, born_in[1])
    try:
        return _check(_call(_CLONE3, args, _long(len(args))), into)
    finally:
        if cgroup >= 0:
            os.close(cgroup)


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    _check(_libc.mount(_path(source), _path(target), _path(fstype), ctypes.c_ulong(flags), _path(data)), target)


def umount2(target: str, flags: int = 0) -> None:
    """umount(2)."""
    _check(_libc.umount2(_path(target), ctypes.c_int(flags)), target)


def setdomainname(name: str) -> None:
    """setdomainname(2)."""
    data = os.fsencode(name)
    _check(_libc.setdomainname(ctypes.c_char_p(data), ctypes.c_size_t(len(data))))


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _check(_call(_number("pivot_root"), _path(new_root), _path(put_old)), new_root)


def open_tree(path: str, flags: int = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC, dirfd: int = AT_FDCWD) -> int:
    """open_tree(2): with OPEN_TREE_CLONE a detached bind mount as a file descriptor."""
    return _check(_call(_OPEN_TREE, _long(dirfd), _path(path), _long(flags)), path)


def move_mount(fd: int, target: str) -> None:
    """move_mount(2) of a detached mount onto `target`."""
    _check(_call(_MOVE_MOUNT, _long(fd), _path(""), _long(AT_FDCWD), _path(target), _long(MOVE_MOUNT_F_EMPTY_PATH)), target)


def move_mount_to(fd: int, target: int) -> None:
    """move_mount(2) of a detached mount onto what the descriptor `target` is open on."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _check(_call(_MOVE_MOUNT, _long(fd), _path(""), _long(target), _path(""), _long(flags)))


def mount_setattr(
    fd: int, *, attr_set: int = 0, attr_clr: int = 0, propagation: int = 0, userns_fd: int = 0, recursive: bool = False
) -> None:
    """mount_setattr(2) on the mount `fd`; `propagation` is one of MS_PRIVATE, MS_SHARED …, 0 leaves it."""
    attr = struct.pack("QQQQ", attr_set, attr_clr, propagation, userns_fd)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _check(_call(_MOUNT_SETATTR, _long(fd), _path(""), _long(flags), ctypes.c_char_p(attr), _long(len(attr))))


def kernel() -> tuple[int, int]:
    """Which Linux this is: (6, 1) for 6.1.0-amd64."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(itertools.takewhile(str.isdigit, minor)))


def fsopen(fstype: str) -> int:
    """fsopen(2)."""
    return _check(_call(_FSOPEN, _path(fstype), _long(1)), fstype)


def fsconfig_string(fd: int, key: str, value: str) -> None:
    """fsconfig(2), FSCONFIG_SET_STRING."""
    _check(_call(_FSCONFIG, _long(fd), _long(FSCONFIG_SET_STRING), _path(key), _path(value), _long(0)), f"{key}={value}")


def fsconfig_flag(fd: int, key: str) -> None:
    """fsconfig(2), FSCONFIG_SET_FLAG."""
    _check(_call(_FSCONFIG, _long(fd), _long(FSCONFIG_SET_FLAG), _path(key), None, _long(0)), key)


def fsconfig_create(fd: int) -> None:
    """fsconfig(2), FSCONFIG_CMD_CREATE; on failure the error carries what the file system itself says."""
    if _call(_FSCONFIG, _long(fd), _long(FSCONFIG_CMD_CREATE), None, None, _long(0)) < 0:
        err = ctypes.get_errno()
        raise OSError(err, f"{os.strerror(err)}: {_fs_log(fd)}")


def _fs_log(fd: int) -> str:
    try:
        return os.read(fd, 4096).decode(errors="replace").strip()
    except OSError:
        return "no reason given"


def fsmount(fd: int, attrs: int = 0) -> int:
    """fsmount(2): the configured file system as a detached mount."""
    return _check(_call(_FSMOUNT, _long(fd), _long(1), _long(attrs)))


def openat2(dirfd: int, path: str, flags: int, *, mode: int = 0, resolve: int = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS) -> int:
    """openat2(2); by default the path cannot leave `dirfd`."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return _check(_call(_OPENAT2, _long(dirfd), _path(path), ctypes.c_char_p(how), _long(len(how))), path)


def fchown(fd: int, uid: int, gid: int) -> None:
    """fchownat(2), AT_EMPTY_PATH: also of what was opened with O_PATH, as links and special files can only be."""
    _check(_libc.fchownat(ctypes.c_int(fd), b"", ctypes.c_uint(uid), ctypes.c_uint(gid), ctypes.c_int(AT_EMPTY_PATH)))


def prctl(option: int, arg2: int = 0, arg3: int = 0) -> None:
    """prctl(2)."""
    _check(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(arg2), ctypes.c_ulong(arg3), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def seccomp_filter(program: bytes) -> None:
    """prctl(2), PR_SET_SECCOMP: filter every system call of this thread and its children from now on.
    Wants no_new_privs or CAP_SYS_ADMIN."""
    code = ctypes.create_string_buffer(program, len(program))
    pointer = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))  # struct sock_fprog
    mode_filter = ctypes.c_ulong(2)
    _check(_libc.prctl(ctypes.c_int(PR_SET_SECCOMP), mode_filter, ctypes.c_char_p(pointer), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def join_new_session_keyring() -> None:
    """keyctl(2), KEYCTL_JOIN_SESSION_KEYRING with an anonymous one: the keys of whoever started us cannot be searched any more."""
    _check(_call(_number("keyctl"), _long(1), None))


def prctl_name(name: str) -> None:
    """prctl(2), PR_SET_NAME: 15 characters."""
    _check(_libc.prctl(ctypes.c_int(PR_SET_NAME), ctypes.c_char_p(name.encode()[:15]), None, None, None))


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2), version 3, for the calling thread."""
    header = struct.pack("Ii", 0x20080522, 0)
    low, high = 0xFFFFFFFF, 32
    data = struct.pack(
        "IIIIII",
        effective & low,
        permitted & low,
        inheritable & low,
        effective >> high,
        permitted >> high,
        inheritable >> high,
    )
    _check(_call(_number("capset"), ctypes.c_char_p(header), ctypes.c_char_p(data)))
