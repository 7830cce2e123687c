"""Start the container's program: who it is, where it is found, what it may do. Runs inside the container, after the pivot.

Names are looked up in the container's own /etc/passwd and /etc/group by reading them as text: nss would load libraries
of the image into our process (CVE-2019-14271).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C module behind `signal`
import errno
import fcntl
import os
import resource
import stat
import termios

from sandbox.runtime.init import syscalls as s
from sandbox.runtime.init.names import CAPABILITIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TABLE_LIMIT = 1 << 20
LAST_CAPABILITY = 40


class Refused(Exception):
    """The program cannot be started; `code` is docker's: 126 cannot execute, 127 not found."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Identity:
    """Who the program runs as."""

    def __init__(self, uid: int, gid: int, groups: Sequence[int], home: str) -> None:
        self.uid, self.gid, self.groups, self.home = uid, gid, list(groups), home


def find_identity(user: str) -> Identity:
    """docker's `--user name|uid[:group|gid]`; Refused when a name is not in the container's tables."""
    name, _, group = (user or "0").partition(":")
    passwd = _read_table("/etc/passwd", 7)
    groups = _read_table("/etc/group", 4)
    row = _find_row(passwd, name, 2)
    if row is None and not _is_id(name):
        raise Refused(126, f"user {name}: no matching entry in the image's /etc/passwd")
    uid = int(row[2]) if row else int(name)
    gid = _find_group(group, groups) if group else int(row[3]) if row else 0
    extra = [int(g[2]) for g in groups if row and not group and row[0] in g[3].split(",") and _is_id(g[2])]
    return Identity(uid, gid, sorted({gid, *extra}), row[5] if row and row[5] else "/")


def _find_group(group: str, groups: Sequence[list[str]]) -> int:
    row = _find_row(groups, group, 2)
    if row is None and not _is_id(group):
        raise Refused(126, f"group {group}: no matching entry in the image's /etc/group")
    return int(row[2]) if row else int(group)


def _find_row(table: Sequence[list[str]], key: str, column: int) -> list[str] | None:
    """By name first, then by number, as docker does."""
    return next((r for r in table if r[0] == key), None) or next((r for r in table if r[column] == key), None)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) < 2**31


def _read_table(path: str, columns: int) -> list[list[str]]:
    """Rows of a colon-separated file; a missing or odd file (a fifo, a device) is an empty table."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return []
        text = os.read(fd, _TABLE_LIMIT).decode("utf-8", "surrogateescape")
    finally:
        os.close(fd)
    rows = [line.split(":") for line in text.splitlines() if line and not line.startswith("#")]
    return [row for row in rows if len(row) >= columns and (columns < 7 or (_is_id(row[2]) and _is_id(row[3])))]


def find_environment(process: Mapping[str, Any], identity: Identity) -> dict[str, str]:
    """The process's environment with docker's defaults for PATH, HOME and TERM."""
    env = {"PATH": DEFAULT_PATH}
    if process.get("hostname"):
        env["HOSTNAME"] = str(process["hostname"])
    if process["tty"]:
        env["TERM"] = "xterm"
    env.update(process["env"])
    if not env.get("HOME"):
        env["HOME"] = identity.home
    return env


def find_executable(name: str, path: str, cwd: str) -> str:
    """Where `name` is, along PATH; Refused with 127 when nowhere, 126 when it may not be executed."""
    if not name:
        raise Refused(127, "no command given")
    candidates = [name] if "/" in name else [os.path.join(d or ".", name) for d in path.split(":")]
    denied = ""
    for candidate in candidates:
        full = os.path.join(cwd, candidate)
        if os.path.isfile(full) and os.access(full, os.X_OK):
            return full
        if os.path.exists(full):
            denied = full
    if denied:
        raise Refused(126, f"{name}: {'is a directory' if os.path.isdir(denied) else 'permission denied'}")
    raise Refused(127, f"{name}: not found")


def give_pipes(stdio: Sequence[int], uid: int, gid: int = -1) -> None:
    """Make pipes among the program's descriptors its own, as runc does: to open /dev/stdout again, as nginx does with its log, takes that.
    What belongs to nobody in here (an ordinary user's caller's) stays as it is."""
    for fd in stdio:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            try:
                os.fchown(fd, uid, gid)
            except PermissionError:
                continue


class Program:
    """A program ready to start; `start` may be called once."""

    def __init__(self, process: Mapping[str, Any]) -> None:
        self._process = process
        self.identity = find_identity(process["user"])
        self._env = find_environment(process, self.identity)
        self._cwd = enter_directory(process["cwd"])
        self._argv = list(process["argv"])
        self._path = find_executable(self._argv[0] if self._argv else "", self._env["PATH"], self._cwd)

    def start(self, stdio: Sequence[int], terminal: int | None = None) -> int:
        """Execute it in a child; the pid once execve(2) succeeded. Refused when it did not."""
        if self.identity.uid:
            give_pipes(stdio, self.identity.uid)
        return self._spawn(stdio) if terminal is None and self._may_share_limits() else self._fork(stdio, terminal)

    def _may_share_limits(self) -> bool:
        """Whether init itself may live under all that the program gets: it then needs no copy of itself to set that up."""
        return bool(self._process["limits_suit_init"]) and (self.identity.uid, self.identity.gid) == (0, 0)

    def _spawn(self, stdio: Sequence[int]) -> int:
        """posix_spawn(3), which shares our memory until the program is there: a millisecond less than fork(2) of an interpreter."""
        step, high = "user", [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(stdio)) for fd in stdio]
        try:
            filter_ = bytes.fromhex(self._process["seccomp"])
            restrict(self.identity, self._process["capabilities"])
            s.prctl(s.PR_SET_NO_NEW_PRIVS, 1)
            step = "workdir"
            os.chdir(self._cwd)
            step = "seccomp"
            if filter_:
                s.seccomp_filter(filter_)
            step = "exec"
            places = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(high)]
            return os.posix_spawn(
                self._path, self._argv, self._env, file_actions=places, setsid=True, setsigmask=(), setsigdef=_ALL_SIGNALS
            )
        except OSError as err:
            raise _refusal(step, err.errno or 0, self._argv[0]) from err
        finally:
            for fd in high:
                os.close(fd)
            os.chdir("/")

    def _fork(self, stdio: Sequence[int], terminal: int | None) -> int:
        """fork(2), and everything that would hinder init only in the child."""
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._become_child(stdio, terminal, tell)
        os.close(tell)
        failure = os.read(told, 256)
        os.close(told)
        if not failure:
            return pid
        os.waitpid(pid, 0)
        step, _, number = failure.decode().partition(" ")
        raise _refusal(step, int(number), self._argv[0])

    def _become_child(self, stdio: Sequence[int], terminal: int | None, tell: int) -> None:
        """In the child: never returns."""
        try:
            tell = fcntl.fcntl(tell, fcntl.F_DUPFD_CLOEXEC, 2 * len(stdio) + 3)  # out of the way of what becomes 0, 1, 2
            self._execute(stdio, terminal)
        except _Failure as err:
            os.write(tell, f"{err.step} {err.number}".encode())
        finally:
            os._exit(126)

    def become(self, stdio: Sequence[int]) -> None:
        """In this very process; Refused when that cannot be."""
        if self.identity.uid:
            give_pipes(stdio, self.identity.uid)
        try:
            self._execute(stdio, None)
        except _Failure as err:
            raise _refusal(err.step, err.number, self._argv[0]) from err

    def _execute(self, stdio: Sequence[int], terminal: int | None) -> None:
        """Returns never; _Failure."""
        step = "set up"
        try:
            reset_signals()
            os.setsid()
            if terminal is not None:
                fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
            _pass_on(stdio)
            step = "ulimit"
            _set_ulimits(self._process["ulimits"])
            step = "user"
            filter_ = bytes.fromhex(self._process["seccomp"])
            late = self._process["no_new_privileges"]
            restrict(self.identity, self._process["capabilities"], b"" if late else filter_)
            if late:
                s.prctl(s.PR_SET_NO_NEW_PRIVS, 1)
            step = "workdir"
            os.chdir(self._cwd)
            if late and filter_:
                step = "seccomp"
                s.seccomp_filter(filter_)  # as late as can be: the policy need not allow what came before
            step = "exec"
            os.execve(self._path, self._argv, self._env)
        except OSError as err:
            raise _Failure(step, err.errno or 0) from err


class _Failure(Exception):
    """What did not succeed, and errno(3)."""

    def __init__(self, step: str, number: int) -> None:
        super().__init__(step)
        self.step, self.number = step, number


def _pass_on(stdio: Sequence[int]) -> None:
    """Make `stdio` the descriptors 0, 1, 2 and, when there is a channel too, 3."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(stdio)) for fd in stdio]
    for target, fd in enumerate(high):
        os.dup2(fd, target, inheritable=True)


def _refusal(step: str, number: int, name: str) -> Refused:
    if step != "exec":
        return Refused(126, f"{step}: {os.strerror(number)}")
    if number == errno.ENOENT:
        return Refused(127, f"{name}: its interpreter or loader is not in the image")
    if number == errno.ENOEXEC:
        return Refused(126, f"{name}: exec format error (a script without a #! line, or a program for another processor)")
    return Refused(126, f"{name}: {os.strerror(number).lower()}")


def enter_directory(cwd: str) -> str:
    """Make the working directory when it does not exist, as docker does; its path inside the container."""
    try:
        os.makedirs(cwd, 0o755, exist_ok=True)
        os.chdir(cwd)
        path = os.getcwd()
    except OSError as err:
        raise Refused(126, f"working directory {cwd}: {(err.strerror or '').lower()}") from err
    if not path.startswith("/"):
        # getcwd(3) answers "(unreachable)…" for a directory outside the root (CVE-2024-21626).
        raise Refused(126, f"working directory {cwd}: outside the container")
    os.chdir("/")
    return path


def reset_signals() -> None:
    """Undo what Python, init and whoever started us did: every handler default, nothing blocked.

    Through `_signal`: the names that `signal` gives to each number cost more than the calls.
    """
    for number in _ALL_SIGNALS:
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


_NOT_OURS = frozenset((_signal.SIGKILL, _signal.SIGSTOP, 32, 33))
"""What cannot be set: the C library keeps 32 and 33 for itself (nptl(7))."""
_ALL_SIGNALS = tuple(number for number in range(1, _signal.NSIG) if number not in _NOT_OURS)


def _set_ulimits(ulimits: Sequence[tuple[str, int, int]]) -> None:
    for name, soft, hard in ulimits:
        resource.setrlimit(getattr(resource, "RLIMIT_" + name.upper()), (soft, hard))


def restrict(identity: Identity, capabilities: Sequence[str], early_filter: bytes = b"") -> None:
    """Become the user with these capabilities at most. Without no_new_privs a seccomp filter must come while CAP_SYS_ADMIN is there."""
    kept = {CAPABILITIES[name] for name in capabilities}
    for number in range(LAST_CAPABILITY + 1):
        if number not in kept:
            drop_from_bounding(number)
    if early_filter:
        s.seccomp_filter(early_filter)
    set_groups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    mask = sum(1 << number for number in kept) if identity.uid == 0 else 0
    s.capset(mask, mask, 0)


def drop_from_bounding(number: int) -> None:
    """PR_CAPBSET_DROP of one capability; one that this kernel does not have is dropped already."""
    try:
        s.prctl(s.PR_CAPBSET_DROP, number)
    except OSError as err:
        if err.errno != errno.EINVAL:  # a capability this kernel does not have
            raise


def set_groups(groups: Sequence[int]) -> None:
    """setgroups(2), where the user namespace allows it."""
    try:
        os.setgroups(groups)
    except PermissionError:
        # A single-id user namespace has setgroups denied (user_namespaces(7)); the user's own groups remain.
        if _setgroups_rule() != "deny":
            raise


def _setgroups_rule() -> str:
    """What our user namespace says. An exec is not in its own PID namespace and has no /proc/self there, but init's namespace is ours."""
    for place in ("self", "1"):
        try:
            with open(f"/proc/{place}/setgroups", encoding="utf-8") as file:
                return file.read().strip()
        except FileNotFoundError:
            continue
    return ""
