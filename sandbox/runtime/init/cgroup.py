"""Perform a cgroup plan: make, join, read, freeze, kill, remove. Takes plain lists, so that a plan can travel as JSON.

Used on both sides: by the spawner (`python -SI`, standard library only) and by sandbox.runtime.cgroups. Everything
raises OSError with the file's name; a group that is already gone is never an error.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time

from sandbox.runtime.init import files

TYPE_CHECKING = False  # `typing` itself costs the spawner milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

_GONE = (errno.ENOENT, errno.ENODEV, errno.ESRCH)
"""ENODEV: the file is still open or listed, the group behind it is already removed."""


class _Tolerating:
    """`with` it, an OSError of one of these numbers ends the block and nothing else."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        return isinstance(error, OSError) and error.errno in self.numbers


def make(
    directories: Sequence[str],
    *,
    moves: Sequence[Sequence[str]] = (),
    copies: Sequence[Sequence[str]] = (),
    writes: Sequence[Sequence[str]] = (),
    optional: Collection[str] = (),
    groups: Sequence[str] = (),
) -> None:
    """Make the directories (parents first), then move, copy and write in order. On failure nothing of `groups` is left.

    `moves`: (from, to) empties a group into another; `copies`: (source file, target file); `writes`: (file, text);
    a write to a file of `optional` may fail because Linux does not have it. `groups` are those directories that must be
    new: FileExistsError when one is there and in use.
    """
    made: list[str] = []
    try:
        for directory in directories:
            _make_directory(directory, must_be_new=directory in groups)
            made += [directory] if directory in groups else []
        for source, target in moves:
            _move_all(source, target)
        for source, target in copies:
            _copy_when_empty(source, target)
        for path, text in writes:
            _write_limit(path, text, path in optional)
    except BaseException:
        remove(made)
        raise


def join(paths: Sequence[str]) -> None:
    """Put the calling process into the groups whose `tasks` or `cgroup.procs` are given. The caller must have one thread.

    From inside and through `tasks`: for anybody else, and through cgroup.procs, Linux waits 5 to 11 ms for an RCU
    grace period. A v2 group has no such door; use clone3(CLONE_INTO_CGROUP) with the plan's `into` where that counts.
    """
    for path in paths:
        files.write_value(path, "0")


def read(report: Mapping[str, Sequence[str | float]]) -> dict[str, float | None]:
    """The values of a report table: name → (file, key in the file or "" for the whole file, factor); None: not told.
    `key` begins its line; `key*` may stand anywhere, and its values are added up."""
    return {name: _read_value(str(path), str(key), float(factor)) for name, (path, key, factor) in report.items()}


def processes(groups: Sequence[str]) -> list[int]:
    """The pids in the groups and in the groups below them, each once, as this pid namespace numbers them."""
    found: dict[int, None] = {}
    for group in groups:
        for directory, _, _ in os.walk(group):
            found.update(dict.fromkeys(_pids(directory)))
    return [pid for pid in found if pid]


def kill(groups: Sequence[str], *, timeout: float = 10.0) -> None:
    """SIGKILL every process in the groups and return when they are empty; TimeoutError when one does not die.

    A group with cgroup.kill is killed at once by Linux; elsewhere each round kills what it sees, until a round sees nobody.
    """
    deadline = time.monotonic() + timeout
    for group in groups:
        _kill_at_once(group)
    while pids := processes(groups):
        for fd in _killed(pids, groups):
            _wait_readable(fd, deadline)
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, f"processes survive SIGKILL: {pids[:8]}", groups[0])


def remove(groups: Sequence[str], *, timeout: float = 10.0) -> None:
    """Remove the groups and every group below them; processes still inside are killed. Already gone is fine."""
    deadline = time.monotonic() + timeout
    for group in groups:
        if not _rmdir(group):
            kill([group], timeout=timeout)
            _remove_tree(group, deadline)


def freeze(switch: Sequence[str], *, timeout: float = 10.0) -> None:
    """Stop every process of the group at once; `switch` is (file, text that freezes, text that thaws, file that tells, its word)."""
    path, frozen, _, told, word = switch
    files.write_value(path, frozen)
    _wait_until(told, lambda text: word in text.splitlines(), time.monotonic() + timeout)


def is_frozen(switch: Sequence[str]) -> bool:
    """Whether the group is stopped; one that is gone is not."""
    frozen = False
    with _Tolerating(*_GONE):
        frozen = switch[4] in _read(switch[3]).splitlines()
    return frozen


def thaw(switch: Sequence[str]) -> None:
    """Let a frozen group go on. A group that is gone is fine."""
    with _Tolerating(*_GONE):
        files.write_value(switch[0], switch[2])


def _make_directory(directory: str, *, must_be_new: bool = False) -> None:
    """mkdir; a parent may exist, and may vanish in between (another engine's prune). A new one may replace an empty one."""
    try:
        os.mkdir(directory, 0o755)
    except FileNotFoundError:
        os.makedirs(directory, 0o755, exist_ok=not must_be_new)
    except FileExistsError:
        if must_be_new:
            if not _rmdir(directory):
                raise
            os.mkdir(directory, 0o755)


def _move_all(source: str, target: str) -> None:
    """Move every process of a v2 group, round by round: a fork during one round is seen by the next."""
    while pids := _pids(source):
        for pid in pids:
            with _Tolerating(*_GONE):
                files.write_value(target + "/cgroup.procs", str(pid))


def _copy_when_empty(source: str, target: str) -> None:
    """Copy a cpuset file down, unless it has a value: narrowing another container's parent must not happen."""
    if not _read(target).strip():
        files.write_value(target, _read(source).strip())


def _write_limit(path: str, text: str, is_optional: bool) -> None:
    with _Tolerating(*((errno.ENOENT, errno.EOPNOTSUPP) if is_optional else ())):
        files.write_value(path, text)


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(fd, 65536), b"")).decode()
    finally:
        os.close(fd)


def _read_value(path: str, key: str, factor: float) -> float | None:
    try:
        text = _read(path)
    except OSError as err:
        if err.errno in (*_GONE, errno.EOPNOTSUPP):
            return None
        raise
    if key.endswith("*"):
        return _sum_after(text, key[:-1]) * factor
    if key:
        text = next((line[len(key) + 1 :] for line in text.splitlines() if line.startswith(key + " ")), "")
    value = text.strip()
    return float(value) * factor if value.isdigit() else None  # "max" is not a number: not limited


def _sum_after(text: str, key: str) -> int:
    """The numbers behind `key`, over all lines: io.stat and blkio have a line a device. `some total=`: of lines that begin with some."""
    first, _, word = key.rpartition(" ") if "=" in key else ("", "", key)
    total = 0
    for line in text.splitlines():
        if line.startswith(first):
            digits = (" " + line).partition(" " + word)[2].partition(" ")[0]
            total += int(digits) if digits.isdigit() else 0
    return total


def _pids(group: str) -> list[int]:
    """0 stands for a process outside our pid namespace; a threaded group has no process list (EOPNOTSUPP)."""
    try:
        return [int(line) for line in _read(group + "/cgroup.procs").split()]
    except OSError as err:
        if err.errno in (*_GONE, errno.EOPNOTSUPP):
            return []
        raise


def _kill_at_once(group: str) -> None:
    """v2: cgroup.kill (Linux 5.14). A v1 freezer must thaw first, or SIGKILL waits with everything else."""
    for path, text in ((group + "/cgroup.kill", "1"), (group + "/freezer.state", "THAWED")):
        if os.access(path, os.W_OK):
            with _Tolerating(*_GONE):
                files.write_value(path, text)


def _killed(pids: Sequence[int], groups: Sequence[str]) -> list[int]:
    """SIGKILL through pidfds, only to those still members once their pidfd is open: a pid may have been given away."""
    fds = {pid: fd for pid in pids if (fd := _pidfd(pid)) is not None}
    members = set(processes(groups))
    for pid in fds.keys() & members:
        with _Tolerating(*_GONE):
            signal.pidfd_send_signal(fds[pid], signal.SIGKILL)
    for pid in fds.keys() - members:
        os.close(fds.pop(pid))
    return list(fds.values())


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _wait_readable(fd: int, deadline: float) -> None:
    poll = select.poll()  # not select(2): a notebook may hold more than 1024 files
    poll.register(fd, select.POLLIN)
    try:
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
    finally:
        os.close(fd)


def _wait_until(path: str, holds: Callable[[str], bool], deadline: float) -> None:
    """Until the file's text holds. cgroup.events wakes poll(2); v1 files wake nobody, hence the short timeout."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        while not holds(os.pread(fd, 4096, 0).decode()):
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), path)
            poll.poll(5)
    finally:
        os.close(fd)


def _rmdir(group: str) -> bool:
    """Whether the group is gone afterwards; False: it has processes or groups inside."""
    try:
        os.rmdir(group)
    except OSError as err:
        if err.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        if err.errno not in _GONE:
            raise
    return True


def _remove_tree(group: str, deadline: float) -> None:
    """Deepest first. EBUSY right after the last exit: Linux lets go of a dead task a moment after its parent knows."""
    for directory in sorted((d for d, _, _ in os.walk(group)), key=len, reverse=True):
        while not _rmdir(directory):
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.EBUSY), directory)
            _wait_unpopulated(directory)


def _wait_unpopulated(group: str) -> None:
    events = group + "/cgroup.events"
    if os.path.exists(events):
        with _Tolerating(*_GONE, errno.ETIMEDOUT):
            _wait_until(events, lambda text: "populated 0" in text, time.monotonic() + 0.05)
    else:
        select.poll().poll(1)  # v1 has no event for it
