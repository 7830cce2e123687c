"""The first process of an OCI bundle's container, and one that enters it: set up, wait for `start`, become the program.

There is no supervisor: whoever called `sandbox-oci` is the parent and gets the exit status. So this process does not fork
the program but executes it, and everything it holds closes by that: an end of file on a socket says that it succeeded.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import stat
import struct
import termios

from sandbox.runtime.init import bundle_steps, hooks, link, pid1, program
from sandbox.runtime.init import syscalls as s
from sandbox.runtime.init.names import CAPABILITIES
from sandbox.runtime.init.steps import StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

_TIOCGPTPEER, _TIOCSPTLCK = 0x5441, 0x40045431
_PTMX = (5, 2)
_AMBIENT_RAISE, _AMBIENT_CLEAR = 2, 4


class Given:
    """What the process gets from the command that made it: descriptors, and who is told how it goes."""

    def __init__(
        self, *, command: socket.socket, listener: socket.socket | None, console: int, joins: Sequence[int], preserved: int
    ) -> None:
        self.command = command
        self.listener = listener
        self.console = console
        self.joins = list(joins)
        self.preserved = preserved

    def kept(self) -> set[int]:
        """The descriptors that stay open until the program is executed, or beyond."""
        listener = {self.listener.fileno()} if self.listener else set()
        console = {self.console} if self.console >= 0 else set()
        return {*range(3 + self.preserved), self.command.fileno(), *listener, *console, *self.joins}


def clone(plan: Mapping[str, Any], action: Callable[[], NoReturn]) -> int:
    """Run `action` in a new child inside the plan's namespaces; its pid. OSError.

    Namespaces to join are entered by a helper, which then makes the child as its sibling (CLONE_PARENT): a process cannot
    leave its pid namespace, only give its children another.
    """
    if not plan["enter"]:
        pid = s.clone(plan["flags"], plan["into"])
        if pid == 0:
            action()
        return pid
    told, tell = os.pipe()
    helper = os.fork()
    if helper == 0:
        _clone_from_inside(plan, tell, action)
    os.close(tell)
    answer = os.read(told, 64)
    os.close(told)
    os.waitpid(helper, 0)
    kind, _, number = answer.decode().partition(" ")
    if kind != "pid":
        raise OSError(int(number or errno.ECHILD), os.strerror(int(number or errno.ECHILD)), kind or "clone")
    return int(number)


def _clone_from_inside(plan: Mapping[str, Any], tell: int, action: Callable[[], NoReturn]) -> NoReturn:
    """In the helper: never returns."""
    where = "clone"
    try:
        s.prctl(s.PR_SET_DUMPABLE, 0)  # before the container can see us (CVE-2016-9962)
        opened = [(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC), flag) for path, flag in plan["enter"]]
        for path, fd, flag in opened:
            where = path
            s.setns(fd, flag)
        where = "clone"
        pid = s.clone(plan["flags"], plan["into"], parent=True)
        if pid == 0:
            os.close(tell)
            action()
        os.write(tell, f"pid {pid}".encode())
    except OSError as err:
        os.write(tell, f"{where} {err.errno}".encode())
    finally:
        os._exit(0)


def run_container(plan: Mapping[str, Any], given: Given) -> NoReturn:
    """Set up the container of `plan`, wait for `start`, execute its program."""
    teller = given.command
    try:
        tree = bundle_steps.Tree()
        _begin(plan, given, lambda: bundle_steps.perform(plan["first_steps"], tree))
        bundle_steps.perform(plan["steps"], tree)
        _ask(given.command, "hooks")
        hooks.run(plan["hooks"]["createContainer"], plan["state"], os.getpid())
        bundle_steps.perform(plan["last_steps"], tree)
        hooks.prepare(plan["hooks"]["startContainer"])
        pid1.forget_imports()
        terminal = _open_terminal(plan["process"], given)
        if terminal is not None and plan["console"]:
            bundle_steps.console(tree, terminal)
        entry = _Entry(plan["process"], terminal)
        link.send(given.command, {"event": "created"})
        given.command.close()
        teller = _wait_for_start(given)
        hooks.run(plan["hooks"]["startContainer"], {**plan["state"], "status": "created"}, os.getpid())
        entry.execute(given.preserved)
    except Exception as err:  # noqa: BLE001  # nobody else could report it from here
        _report(teller, err)
    finally:
        os._exit(1)


def run_entered(plan: Mapping[str, Any], given: Given) -> NoReturn:
    """Execute one more program in a container whose namespaces were entered."""
    try:
        _begin(plan, given, lambda: None)
        pid1.forget_imports()
        terminal = _open_terminal(plan["process"], given)
        _Entry(plan["process"], terminal).execute(given.preserved)
    except Exception as err:  # noqa: BLE001  # nobody else could report it from here
        _report(given.command, err)
    finally:
        os._exit(1)


def _begin(plan: Mapping[str, Any], given: Given, as_caller: Callable[[], None]) -> None:
    """Until the process is who it should be; `as_caller` is done while its ids still are the caller's."""
    pid1.close_others(given.kept())
    _ask(given.command, "mapped")
    for fd in given.joins:
        os.write(fd, b"0")
        os.close(fd)
    as_caller()
    if plan["become_root"]:
        _become_root()
    s.prctl(s.PR_SET_DUMPABLE, 0)
    if plan["cgroup_namespace"]:
        s.unshare(s.CLONE_NEWCGROUP)
    os.umask(0o022)


def _become_root() -> None:
    program.set_groups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _ask(command: socket.socket, event: str) -> None:
    """Tell how far it is and wait until the command says go on; when the command died, so do we."""
    link.send(command, {"event": event})
    if link.receive(command)[0] is None:
        os._exit(1)


def _wait_for_start(given: Given) -> socket.socket:
    """Until `start` connects and says so; a connection that says nothing (a probe) does not count."""
    assert given.listener is not None
    while True:
        starter, _ = given.listener.accept()
        if link.receive(starter)[0]:
            given.listener.close()
            return starter
        starter.close()


def _report(teller: socket.socket, err: Exception) -> None:
    message = str(err) if isinstance(err, (OSError, StepError, program.Refused, hooks.HookFailed)) else repr(err)
    pid1.say(teller, {"event": "failed", "message": message, "errno": getattr(err, "errno", None)})


# The terminal ---------------------------------------------------------------------------------------------------------


def _open_terminal(process: Mapping[str, Any], given: Given) -> int | None:
    """A terminal of the container's own devpts, from here on also 0, 1 and 2; its other end goes to the console socket."""
    if not process["terminal"]:
        return None
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    status = os.fstat(master)
    if not stat.S_ISCHR(status.st_mode) or (os.major(status.st_rdev), os.minor(status.st_rdev)) != _PTMX:
        raise OSError(errno.ENODEV, "not a terminal multiplexer", "/dev/ptmx")
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    slave: int = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)  # never by its path (CVE-2018-19968's kind)
    if process["size"]:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *process["size"], 0, 0))
    os.fchown(slave, process["uid"], -1)
    with socket.socket(fileno=given.console) as receiver:
        socket.send_fds(receiver, [b"/dev/ptmx"], [master])
    os.close(master)
    for target in (0, 1, 2):  # now: until the start, the creator's must not be held
        os.dup2(slave, target, inheritable=True)
    return slave


# The program ----------------------------------------------------------------------------------------------------------


class _Entry:
    """A program that was found and is ready to be executed."""

    def __init__(self, process: Mapping[str, Any], terminal: int | None) -> None:
        self._process = process
        self._terminal = terminal
        self._env = _environment(process)
        self._cwd = _enter(process["cwd"])
        self._argv = list(process["argv"])
        self._path = _find(self._argv, self._env.get("PATH", program.DEFAULT_PATH), self._cwd)

    def execute(self, preserved: int) -> NoReturn:
        """Become the program; OSError when that cannot be."""
        process = self._process
        os.setsid()
        if self._terminal is not None:
            fcntl.ioctl(self._terminal, termios.TIOCSCTTY, 0)
        for name, soft, hard in process["rlimits"]:
            resource.setrlimit(getattr(resource, name), (soft, hard))
        for fd in range(3, 3 + preserved):
            os.set_inheritable(fd, True)
        program.reset_signals()
        os.umask(process["umask"])
        _take_identity(process)
        os.chdir(self._cwd)
        os.execve(self._path, self._argv, self._env)


def _environment(process: Mapping[str, Any]) -> dict[str, str]:
    env = dict(entry.partition("=")[::2] for entry in process["env"])
    if not env.get("HOME"):
        env["HOME"] = program.find_identity(str(process["uid"])).home
    return env


def _enter(cwd: str) -> str:
    """The working directory, made where it does not exist; its path inside the container."""
    try:
        return program.enter_directory(cwd)
    except program.Refused as err:
        raise OSError(errno.EINVAL, str(err)) from err


def _find(argv: Sequence[str], path: str, cwd: str) -> str:
    """Where the program is. The words are runc's: engines read the reason (126, 127) out of them."""
    name = argv[0] if argv else ""
    try:
        return program.find_executable(name, path, cwd)
    except program.Refused as err:
        reason = "executable file not found in $PATH: No such file or directory" if err.code == 127 else "Permission denied"
        raise program.Refused(err.code, f'exec: "{name}": {reason}') from err


def _take_identity(process: Mapping[str, Any]) -> None:
    """Ids, capabilities, no_new_privs and the seccomp filter, in the order in which each is still allowed."""
    sets = {name: _bits(names) for name, names in process["capabilities"].items()}
    for number in range(program.LAST_CAPABILITY + 1):
        if not sets["bounding"] >> number & 1:
            program.drop_from_bounding(number)
    if process["no_new_privileges"]:
        s.prctl(s.PR_SET_NO_NEW_PRIVS, 1)
    elif process["seccomp"]:
        _install(process["seccomp"])  # needs CAP_SYS_ADMIN, which goes below
    s.prctl(s.PR_SET_KEEPCAPS, 1)
    program.set_groups(process["groups"])
    os.setresgid(process["gid"], process["gid"], process["gid"])
    os.setresuid(process["uid"], process["uid"], process["uid"])
    s.prctl(s.PR_SET_KEEPCAPS, 0)
    s.capset(sets["effective"], sets["permitted"], sets["inheritable"])
    _set_ambient(sets["ambient"])
    if process["no_new_privileges"] and process["seccomp"]:
        _install(process["seccomp"])


def _bits(names: Sequence[str]) -> int:
    return sum(1 << CAPABILITIES[name] for name in names)


def _set_ambient(bits: int) -> None:
    s.prctl(s.PR_CAP_AMBIENT, _AMBIENT_CLEAR)
    for number in range(program.LAST_CAPABILITY + 1):
        if bits >> number & 1:
            s.prctl(s.PR_CAP_AMBIENT, _AMBIENT_RAISE, number)


def _install(filter_: str) -> None:
    s.seccomp_filter(bytes.fromhex(filter_))
