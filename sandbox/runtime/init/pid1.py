"""Init: the first process of a container. Performs the plan's steps, starts the program, reaps, forwards signals.

Everything it knows of the outside is the link to its supervisor; when that breaks, Linux kills init (PDEATHSIG) and
with it the whole PID namespace.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C module behind `signal`
import errno
import fcntl
import os
import signal
import socket
import struct
import sys
import termios

from sandbox.runtime.init import link, program, steps
from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from sandbox.runtime.init import pack, unpack

_NOT_FORWARDED = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, 32, 33}
_FORWARDED = frozenset(int(number) for number in signal.valid_signals() if number not in _NOT_FORWARDED)
_AWAITED = _FORWARDED | {int(signal.SIGCHLD)}


def run(facts: Mapping[str, Any], supervisor: socket.socket, joins: Sequence[int]) -> None:
    """Be init of the ground `facts` (see ground.py); never returns. What it waits for from `supervisor`: that its ids are mapped, then
    its orders. Reports `ready`, `started`, `ended` or `refused`."""
    code = 125
    try:
        close_others({0, 1, 2, supervisor.fileno(), *joins})
        setup, own_io = _stand(facts, supervisor, joins)
        message, fds = link.receive(supervisor)
        if message is None:
            return
        plan, stdio = link.read_plan(fds[0]), fds[1 : 1 + message["stdio"]]
        setup.mounts.update(zip(message["mounts"], fds[1 + len(stdio) :], strict=True))
        try:
            steps.perform(plan["steps"], setup)
        finally:
            link.send(supervisor, {"event": "ready", "stubs": setup.stubs}, setup.handed)
            for fd in setup.handed:
                os.close(fd)
        code = serve_program(plan, supervisor, stdio, own_io)
    except steps.StepError as err:
        say(supervisor, {"event": "refused", "code": 125, "message": str(err), "step": err.step, "errno": err.errno})
    except program.Refused as err:
        say(supervisor, {"event": "refused", "code": err.code, "message": str(err)})
    except OSError as err:
        say(supervisor, {"event": "refused", "code": 125, "message": f"init: {err}", "step": "init", "errno": err.errno})
    except Exception as err:  # noqa: BLE001  # a mistake of ours: nobody else could report it from here
        say(supervisor, {"event": "refused", "code": 125, "message": f"init: {err!r}", "step": "init", "errno": None})
    finally:
        os._exit(code)


def _stand(facts: Mapping[str, Any], supervisor: socket.socket, joins: Sequence[int]) -> tuple[steps.Setup, int]:
    """In its groups, root of its user namespace, with the kernel's file systems built: all that needs no orders. Also where to read what
    it read and wrote."""
    if link.receive(supervisor)[0] is None:
        os._exit(125)
    for fd in joins:
        os.write(fd, b"0")
        os.close(fd)
    own_io = _open_own_io() if facts["idmap"] and os.geteuid() == 0 else -1  # its root is whoever made us: an ordinary user
    _become_root(facts)
    leave_keyring()
    _die_with_supervisor(supervisor)
    forget_imports()
    if facts["cgroup_namespace"]:
        s.unshare(s.CLONE_NEWCGROUP)
    setup = steps.Setup()
    steps.perform(facts["ground_steps"], setup)
    return setup, own_io


def close_others(keep: set[int]) -> None:
    """Nothing of the supervisor's (its client, its logs, its locks) may be held from inside."""
    low = 0
    for fd in sorted(keep):
        if low < fd:  # an empty range would reach close_range(2) as (0, 2³²-1)
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 4096)


def leave_keyring() -> None:
    """Own keys only. Where Linux has none, or a filter around us forbids to use them, there is nothing to leave."""
    try:
        s.join_new_session_keyring()
    except OSError as err:
        if err.errno not in (errno.ENOSYS, errno.EPERM):
            raise


def _become_root(facts: Mapping[str, Any]) -> None:
    if facts["idmap"]:
        if facts["idmap"]["setgroups"]:
            os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


def _die_with_supervisor(supervisor: socket.socket) -> None:
    """After the credentials changed, which clears the setting (prctl(2)); then look whether it died before."""
    s.prctl(s.PR_SET_PDEATHSIG, signal.SIGKILL)
    s.prctl(s.PR_SET_DUMPABLE, 0)
    try:
        if not supervisor.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            os._exit(125)
    except BlockingIOError:
        return


def forget_imports() -> None:
    """From here on a path is the container's: an import would run the image's code as init."""
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()


def serve_program(plan: Mapping[str, Any], supervisor: socket.socket, stdio: Sequence[int], own_io: int = -1) -> int:
    """Start the program, report it, wait for it; the exit code init should end with. `own_io`: where to read what the supervisor cannot.
    Raises program.Refused."""
    # Blocked before the program exists: a signal that arrives early waits for the loop below.
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _AWAITED)
    entry = _entry(plan["process"])
    pid = _start(entry, plan, supervisor, stdio)
    for fd in stdio:  # ours must not keep the program's pipes open
        os.close(fd)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    link.send(supervisor, {"event": "started"})
    status = reap_until(pid, _AWAITED)
    say(supervisor, {"event": "ended", "status": status, "io": os.pread(own_io, 1024, 0).decode("ascii") if own_io >= 0 else ""})
    return os.waitstatus_to_exitcode(status) & 0x7F


def _open_own_io() -> int:
    """Where Linux says what we and all we have reaped read and wrote. An ordinary user's supervisor may not read that once we are not
    dumpable, and we only if it was opened before; in the host's /proc."""
    try:
        return os.open("/proc/self/io", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # a Linux without I/O accounting
        return -1


def load_entry(process: Mapping[str, Any]) -> None:
    """Import what some programs need, before the clone: afterwards there are no imports (`forget_imports`). Not when the spawner
    starts: tarfile and what it imports double the pages that every fork copies."""
    if process["unpack"]:
        import sandbox.runtime.init.unpack
    elif process.get("pack"):
        import sandbox.runtime.init.pack  # noqa: F401


def _entry(process: Mapping[str, Any]) -> program.Program | unpack.Unpacker | pack.Packer:
    """What is started: the program, or one of ours in its place."""
    if process["unpack"]:
        from sandbox.runtime.init import unpack  # loaded already: `load_entry`

        return unpack.Unpacker(process["unpack"])
    if process.get("pack"):
        from sandbox.runtime.init import pack

        return pack.Packer(process["pack"])
    return program.Program(process)


def _start(
    entry: program.Program | unpack.Unpacker | pack.Packer, plan: Mapping[str, Any], supervisor: socket.socket, stdio: Sequence[int]
) -> int:
    if not plan["process"]["tty"]:
        return entry.start(stdio)
    master, slave = os.openpty()
    if plan["window"]:  # before the program can ask
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *plan["window"], 0, 0))
    os.fchown(slave, entry.identity.uid, -1)
    link.send(supervisor, {"event": "terminal"}, [master])
    os.close(master)
    try:
        return entry.start([slave, slave, slave], slave)
    finally:
        os.close(slave)


def reap_until(pid: int, signals: frozenset[int]) -> int:
    """Reap every child and pass `signals` on until `pid` ended; its wait status."""
    while True:
        info = signal.sigwaitinfo(signals)
        if info.si_signo != signal.SIGCHLD:
            os.kill(pid, info.si_signo)
            continue
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if ended == pid:
                return status
            if ended == 0:
                break


def say(supervisor: socket.socket, message: Mapping[str, Any]) -> None:
    """Tell the supervisor; that it is gone is no news any more."""
    try:
        link.send(supervisor, message)
    except (BrokenPipeError, ConnectionResetError):
        return
