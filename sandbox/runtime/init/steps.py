"""The set-up steps of a container, one function each: the plan names them, `perform` runs them in order.

Steps before `enter_root` prepare detached mounts while the host is still visible; `enter_root` pivots and drops the
old root; steps after it only see the container, so whatever a hostile image made of its paths resolves inside it.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
import stat
import struct

from sandbox.runtime.init import files, netlink
from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

# Mount points for the staging tmpfs, which exists only in the container's mount namespace until the pivot.
_STAGING = ("/tmp", "/run", "/mnt", "/var", "/dev")  # a place to mount on, nothing is written to the host's
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


class Setup:
    """What the steps share: detached mounts by name, the mount points they had to create (`stubs`), and what the supervisor serves
    from outside (`handed`): /etc/hosts and the name server's sockets."""

    def __init__(self) -> None:
        self.mounts: dict[str, int] = {}
        self.stubs: list[str] = []
        self.root_device = -1
        self.handed: list[int] = []


class StepError(Exception):
    """A step failed: its name and the reason."""

    def __init__(self, step: str, err: BaseException) -> None:
        super().__init__(f"{step}: {err}")
        self.step = step
        self.errno = getattr(err, "errno", None)


def perform(steps: Sequence[tuple[str, Mapping[str, Any]]], setup: Setup) -> None:
    """Run every step in order; raises StepError that names the one that failed."""
    for name, arguments in steps:
        try:
            STEPS[name](setup, **arguments)
        except (OSError, KeyError, TypeError, ValueError) as err:
            raise StepError(name, err) from err


def isolate_mounts(setup: Setup) -> None:
    """Nothing mounted from here on may reach the host, nor the other way round."""
    s.mount("", "/", "", s.MS_REC | s.MS_PRIVATE)


def mount_staging(setup: Setup) -> None:
    """A tmpfs of our own to build on; the working directory from now until the pivot."""
    for place in _STAGING:
        if os.path.isdir(place) and not os.path.islink(place):
            s.mount("staging", place, "tmpfs", s.MS_NOSUID | s.MS_NODEV, "mode=0755")
            os.chdir(place)
            return
    raise FileNotFoundError(2, "no directory to build the container's root on", ", ".join(_STAGING))


def make_directory(setup: Setup, path: str) -> None:
    """A directory on the staging tmpfs."""
    os.makedirs(path, exist_ok=True)


def write_file(
    setup: Setup,
    path: str,
    text: str,
    name: str,
    mode: int = 0o644,
    owner: Sequence[int] = (0, 0),
    read_only: bool = False,
    is_handed: bool = False,
) -> None:
    """A generated file on the staging tmpfs, kept as detached mount `name` for `attach`. `text` may carry any bytes
    (surrogateescape). `is_handed`: the supervisor goes on writing it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(text.encode("utf-8", "surrogateescape"))
        if tuple(owner) != (0, 0):
            os.fchown(fd, *owner)
        os.fchmod(fd, mode)
    if is_handed:
        setup.handed.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    setup.mounts[name] = s.open_tree(path)
    if read_only:
        s.mount_setattr(setup.mounts[name], attr_set=s.MOUNT_ATTR_RDONLY)


def attach_store(setup: Setup, target: str) -> None:
    """The engine's directory (mount `store`): idmapped by the supervisor, or opened by `detach_bind` where that cannot be."""
    os.mkdir(target)
    tree = setup.mounts.pop("store")
    s.move_mount(tree, target)
    os.close(tree)  # a directory of the host held open is a way out (CVE-2024-21626)


def mount_overlay(setup: Setup, lowers: Sequence[str], upper: str, work: str, target: str, volatile: bool, userxattr: bool) -> None:
    """The root file system; paths are relative to staging, so their length does not count against Linux' limits."""
    os.mkdir(target)
    options = {"upperdir": upper, "workdir": work} if upper else {}
    flags = [*(["userxattr"] if userxattr else []), *(["volatile"] if volatile else [])]  # volatile: without it each unmount syncs the disk
    mount = _mount_overlay if s.kernel() >= _LAYERS_ONE_BY_ONE else _mount_overlay_at_once
    mount(lowers, options, flags, target)


_LAYERS_ONE_BY_ONE = (6, 5)
"""The Linux whose overlayfs takes `lowerdir+`, a layer a call."""


def _mount_overlay(lowers: Sequence[str], options: Mapping[str, str], flags: Sequence[str], target: str) -> None:
    fd = s.fsopen("overlay")
    for lower in reversed(lowers):  # topmost first
        s.fsconfig_string(fd, "lowerdir+", lower)
    for key, value in options.items():
        s.fsconfig_string(fd, key, value)
    for flag in flags:
        s.fsconfig_flag(fd, flag)
    s.fsconfig_create(fd)
    tree = s.fsmount(fd)
    s.move_mount(tree, target)
    os.close(tree)
    os.close(fd)


def _mount_overlay_at_once(lowers: Sequence[str], options: Mapping[str, str], flags: Sequence[str], target: str) -> None:
    """By mount(2), whose options are one page at most, and fsconfig(2)'s 255 bytes each: links with short names stand for the layers."""
    place = next(str(number) for number in itertools.count() if not os.path.lexists(str(number)))
    os.mkdir(place)
    names = [f"{place}/{number:x}" for number in range(len(lowers))]
    for name, lower in zip(names, reversed(lowers), strict=True):
        os.symlink(f"../{lower}", name)
    words = [f"lowerdir={':'.join(names)}", *(f"{key}={value}" for key, value in options.items()), *flags]
    s.mount("overlay", target, "overlay", 0, ",".join(words))


def detach_new(setup: Setup, name: str, fstype: str, attrs: int = 0, options: Mapping[str, str] | None = None) -> None:
    """A new file system as detached mount `name`. Before the pivot: proc and sysfs want a visible one beside them."""
    fd = s.fsopen(fstype)
    for key, value in (options or {}).items():
        s.fsconfig_string(fd, key, value)
    s.fsconfig_create(fd)
    setup.mounts[name] = s.fsmount(fd, attrs)
    os.close(fd)


def detach_bind(setup: Setup, name: str, source: str, recursive: bool = False, read_only: bool = False) -> None:
    """A host file or directory as detached mount `name`."""
    flags = s.OPEN_TREE_CLONE | s.OPEN_TREE_CLOEXEC | (s.AT_RECURSIVE if recursive else 0)
    tree = setup.mounts[name] = s.open_tree(source, flags)
    if read_only:
        s.mount_setattr(tree, attr_set=s.MOUNT_ATTR_RDONLY, recursive=recursive)


def enter_root(setup: Setup, target: str) -> None:
    """pivot_root(2) with both arguments the same, then drop the host's tree: nothing of it is reachable afterwards."""
    os.chdir(target)
    s.pivot_root(".", ".")
    s.umount2(".", s.MNT_DETACH)
    os.chdir("/")
    setup.root_device = os.stat("/").st_dev


def attach(setup: Setup, name: str, target: str) -> None:
    """Mount the detached mount `name` on `target`, which is made (and remembered as a stub) where it does not exist."""
    tree = setup.mounts.pop(name)
    _make_target(setup, target, is_directory=stat.S_ISDIR(os.fstat(tree).st_mode))
    s.move_mount(tree, target)
    os.close(tree)


def _make_target(setup: Setup, target: str, *, is_directory: bool) -> None:
    if os.path.exists(target):
        return
    real = os.path.realpath(target)
    missing = []
    parent = os.path.dirname(real)
    while not os.path.isdir(parent):
        missing.append(parent)
        parent = os.path.dirname(parent)
    for path in reversed(missing):
        os.mkdir(path, 0o755)
    if is_directory:
        os.mkdir(real, 0o755)
    else:
        os.close(os.open(real, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    if os.stat(parent).st_dev == setup.root_device:  # on the image's own file system, not on a mount of ours
        setup.stubs += [*reversed(missing), real]


def symlink(setup: Setup, target: str, path: str) -> None:
    """A symbolic link, for /dev."""
    os.symlink(target, path)


def mask(setup: Setup, paths: Sequence[str]) -> None:
    """Cover what must not be read: files with /dev/null, directories with an empty read-only tmpfs."""
    for path in paths:
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue  # this kernel does not have it
        if stat.S_ISDIR(mode):
            detach_new(setup, "mask", "tmpfs", s.MOUNT_ATTR_RDONLY, {"size": "4k"})
        else:
            detach_bind(setup, "mask", "dev/null")  # of staging, or of the root: where we are
        tree = setup.mounts.pop("mask")
        s.move_mount(tree, path)
        os.close(tree)


def protect(setup: Setup, paths: Sequence[str]) -> None:
    """Make what may be read but not written read-only."""
    for path in paths:
        if os.path.exists(path):
            detach_bind(setup, "protected", path, recursive=True, read_only=True)
            tree = setup.mounts.pop("protected")
            s.move_mount(tree, path)
            os.close(tree)


def protect_root(setup: Setup) -> None:
    """--read-only: the overlay itself; what is mounted on it keeps its own mode."""
    fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    s.mount_setattr(fd, attr_set=s.MOUNT_ATTR_RDONLY)
    os.close(fd)


def set_sysctl(setup: Setup, path: str, text: str) -> None:
    """Write one of Linux' settings of the container's own namespaces (sysctl(8))."""
    files.write_value(path, text)


def set_hostname(setup: Setup, name: str) -> None:
    """sethostname(2) in the container's UTS namespace."""
    socket.sethostname(name)


def loopback_up(setup: Setup) -> None:
    """Bring lo up, netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack_from("16xh", fcntl.ioctl(link, _SIOCGIFFLAGS, request))[0]
        fcntl.ioctl(link, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))


def configure_links(setup: Setup, links: Sequence[Mapping[str, Any]]) -> None:
    """The links to its networks, which the supervisor put here."""
    with netlink.Netlink() as net:
        for link in links:
            netlink.configure(net, **link)


def make_rules(setup: Setup, requests: Sequence[tuple[int, str, int]]) -> None:
    """nf_tables rules of the container's own network namespace, as kind, body (in hex) and flags."""
    with netlink.Netlink(netlink.NETFILTER) as net:
        net.transact([(kind, bytes.fromhex(body), flags) for kind, body, flags in requests])


def open_resolver(setup: Setup, address: str, port: int) -> None:
    """The sockets of the container's name server, which the supervisor serves: for datagrams, and for connections (RFC 7766)."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        end = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        end.bind((address, port))
        if kind == socket.SOCK_STREAM:
            end.listen(16)
        setup.handed.append(end.detach())


STEPS: dict[str, Callable[..., None]] = {
    step.__name__: step
    for step in (
        isolate_mounts, mount_staging, make_directory, write_file, attach_store, mount_overlay, detach_new, detach_bind, enter_root,
        attach, symlink, mask, protect, protect_root, set_sysctl, set_hostname, loopback_up, configure_links, make_rules, open_resolver,
    )
}  # fmt: skip
