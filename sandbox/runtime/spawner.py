"""The engine's end of the spawner: starts the helper on first use, has it fork supervisors, hands them plans and file descriptors.

See sandbox.runtime.init.serve for the other end. Thread-safe; a helper that died is started anew.
"""

from __future__ import annotations

import atexit
import errno
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any  # Any: a plan is JSON

import msgspec

from sandbox.errors import SetupFailed
from sandbox.runtime import comeup
from sandbox.runtime.init import link
from sandbox.runtime.interpreter import open_interpreter
from sandbox.runtime.plan import encoded

if TYPE_CHECKING:
    import subprocess

_ENTER = "import os, sys; os.dup2(os.open('/dev/null', os.O_RDWR), 2); os.execve(sys.argv[1], sys.argv[2:], {})"
_PATIENCE = 30.0
"""Seconds that systemd may take to make a scope."""


def hand_over(supervisor: socket.socket, job: str, plan: Mapping[str, Any], stdio: Sequence[int]) -> None:
    """Give a reserved supervisor its job, the plan, and the program's stdin, stdout, stderr; SetupFailed when it is gone."""
    memory = link.hold(encoded(plan))
    try:
        link.send(supervisor, {"job": job}, [memory, *stdio])
    except (BrokenPipeError, ConnectionResetError) as err:
        raise SetupFailed("supervisor: ended before the container started") from err
    finally:
        os.close(memory)


class Spare(msgspec.Struct, frozen=True):
    """A supervisor that waits for `hand_over`, and ends when the connection is closed. `container_id`: whose ground it has made; empty:
    nobody's."""

    end: socket.socket
    container_id: str = ""


class Spawner:
    """A handle on the helper process; `close` ends it, the containers it started live on. `single`: one container will be started.
    `helper`: it has come up already.

    `has_scope`: it was started in a scope of its own (cgroups.systemd); `complaint`: why that was not to be had where it is needed.
    """

    def __init__(self, *, single: bool = False, helper: tuple[comeup.Started, int] | None = None) -> None:
        self._has_spare = not single
        self.has_scope = False
        self.complaint = ""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | comeup.Started | None = None
        self._socket: socket.socket | None = None
        self._owner = os.getpid()
        if helper is not None:
            self._process, self._socket = helper[0], socket.socket(fileno=helper[1])
        self._spare: socket.socket | None = None
        self._grounded: Spare | None = None

    @property
    def pid(self) -> int | None:
        """The helper's process id, when it has been started."""
        return self._process.pid if self._process else None

    @property
    def place(self) -> str:
        """Whose group containers' groups are made below (cgroups.discover): the helper's where it has a scope, else our own."""
        return str(self.pid) if self.has_scope and self.pid else "self"

    def warm(self) -> None:
        """Start the helper now, and have it fork a supervisor, so that the next container waits for neither."""
        with self._lock:
            self._connect()
        self.restock()

    def reserve(self) -> socket.socket:
        """A supervisor, forked now unless one is spare; the connection to it. It waits for `hand_over`, and ends when that is closed."""
        with self._lock:
            return self._take()

    def _take(self) -> socket.socket:
        spare, self._spare = self._spare, None
        return spare if spare and self._is_usable(spare) else self._fork()

    def reserve_grounded(self) -> Spare:
        """As `reserve`, for a container that may be called as the spare one whose ground was made ahead, if there is one."""
        with self._lock:
            spare, self._grounded = self._grounded, None
            return spare if spare and self._is_usable(spare.end) else Spare(self._take())

    def _is_usable(self, spare: socket.socket) -> bool:
        if self._owner == os.getpid() and _is_alive(spare):
            return True
        spare.close()
        return False

    def restock(self) -> None:
        """Have a supervisor ready for the next, where there was one before: who starts one container starts another."""
        with self._lock:
            if self._wants(self._spare):
                self._spare = self._fork()

    def restock_grounded(self, container_id: str, lock: Path, ground: Callable[[], Mapping[str, Any]]) -> None:
        """As `restock`, with a ground made for a container of this id; while it waits it holds the file `lock`."""
        with self._lock:
            if not self._wants(self._grounded):
                return
            memory = link.hold(encoded(ground()))
            try:
                self._grounded = Spare(self._fork({"lock": str(lock)}, [memory]), container_id)
            finally:
                os.close(memory)

    def _wants(self, spare: Spare | socket.socket | None) -> bool:
        return self._has_spare and spare is None and self._socket is not None and self._owner == os.getpid()

    def _fork(self, task: Mapping[str, Any] = MappingProxyType({}), fds: Sequence[int] = ()) -> socket.socket:
        """A supervisor, which first has that task."""
        ours, theirs = link.pair()
        try:
            self._send(dict(task), [theirs.fileno(), *fds])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return ours

    def _send(self, task: Mapping[str, Any], fds: Sequence[int]) -> None:
        try:
            link.send(self._connect(), task, fds)
        except (BrokenPipeError, ConnectionResetError):
            self._discard()
            link.send(self._connect(), task, fds)

    def _connect(self) -> socket.socket:
        if self._socket is None or self._owner != os.getpid():  # a fork must not talk through its parent's socket
            self._start()
        assert self._socket is not None
        return self._socket

    def _start(self) -> None:
        from sandbox.runtime.cgroups.systemd import scope_command

        process = connection = None
        if scope := scope_command(os.environ):
            process, connection, self.complaint = _start_in(scope)
        self.has_scope = connection is not None
        if connection is None:
            connection, theirs = link.pair()
            process = _execute(theirs)
        self._process, self._socket, self._owner = process, connection, os.getpid()

    def close(self) -> None:
        """End the helper; nothing happens when it was never started."""
        with self._lock:
            self._discard()

    def dismiss_spares(self) -> None:
        """Nobody waits any more, until the next restock; nothing of what they made is left."""
        with self._lock:
            self._dismiss_spares()

    def _dismiss_spares(self) -> None:
        for end in (self._spare, self._grounded.end if self._grounded else None):
            if end is not None:
                _dismiss(end, is_ours=self._owner == os.getpid())
        self._spare = self._grounded = None

    def _discard(self) -> None:
        self._dismiss_spares()
        if self._socket is not None:
            self._socket.close()
        if self._process is not None and self._owner == os.getpid():
            self._process.wait()
        self._socket = self._process = None


_ahead: list[Spawner] = []


def come_up_ahead(helper: tuple[comeup.Started, int] | None = None) -> None:
    """Start the helper of the one container that this process will start, before whoever asks for it (`single`) is imported; unless it
    has come up even before us."""
    spawner = Spawner(single=True, helper=helper)
    try:
        spawner.warm()
    except SetupFailed:
        return  # `single` tries again, and its caller tells
    _ahead.append(spawner)
    atexit.register(_dismiss_ahead)


def single() -> Spawner:
    """A helper for one container, which may have come up ahead."""
    return _ahead.pop() if _ahead else Spawner(single=True)


def _dismiss_ahead() -> None:
    """Nobody asked."""
    while _ahead:
        _ahead.pop().close()


def _dismiss(spare: socket.socket, *, is_ours: bool) -> None:
    """Have it end, and wait until nothing is left of what it made; a fork of ours only lets go."""
    with spare:
        if not is_ours:
            return
        try:
            spare.shutdown(socket.SHUT_WR)
            while spare.recv(1):
                pass
        except OSError as err:  # it was killed
            if err.errno not in (errno.ECONNRESET, errno.ENOTCONN):
                raise


def _start_in(scope: Sequence[str]) -> tuple[subprocess.Popen[bytes] | None, socket.socket | None, str]:
    """The helper in a scope of its own, which greets from there: it, our end, nothing; or None, None and what systemd had to say."""
    import select

    ours, theirs = link.pair()
    with open(os.memfd_create("complaints"), "w+b", buffering=0) as complaints:
        process = _execute(theirs, scope, complaints.fileno())
        poll = select.poll()
        poll.register(ours, select.POLLIN)
        if poll.poll(_PATIENCE * 1000) and link.receive(ours)[0] is not None:
            return process, ours, ""
        process.kill()
        process.wait()
        ours.close()
        complaints.seek(0)
        said = complaints.read(4096).decode(errors="replace").partition("\n")[0].strip()
    return None, None, f"systemd-run: {said or f'no answer after {_PATIENCE:g} s'}"


def _execute(theirs: socket.socket, scope: Sequence[str] = (), complaints: int | None = None) -> subprocess.Popen[bytes]:
    """Start the helper with its end of the connection, which is closed here; by way of the command `scope`, whose words of refusal go
    to `complaints`. SetupFailed."""
    import subprocess  # most commands start no container

    interpreter = open_interpreter(os.path.realpath(sys.executable))
    place = sys.executable if interpreter is None else f"/proc/self/fd/{interpreter}"
    words = (str(theirs.fileno()), str(-1 if interpreter is None else interpreter))
    argv = [sys.executable, "-SI", "-c", comeup.BOOT, comeup.PACKAGES, *words]
    if scope:
        argv = [*scope, sys.executable, "-SI", "-c", _ENTER, place, *argv, "1"]
    try:
        return subprocess.Popen(
            argv,
            executable=argv[0] if scope else place,
            pass_fds=[theirs.fileno(), *([] if interpreter is None else [interpreter])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if complaints is None else complaints,  # ours would be held open by detached containers
            env=_to_reach_systemd(os.environ) if scope else {},
            cwd="/",
            start_new_session=True,
        )
    except OSError as err:
        raise SetupFailed(f"spawner: {err}") from err
    finally:
        theirs.close()
        if interpreter is not None:
            os.close(interpreter)


def _to_reach_systemd(environ: Mapping[str, str]) -> dict[str, str]:
    from sandbox.runtime.cgroups.systemd import runtime_directory

    bus = environ.get("DBUS_SESSION_BUS_ADDRESS")
    return {"XDG_RUNTIME_DIR": runtime_directory(environ), **({"DBUS_SESSION_BUS_ADDRESS": bus} if bus else {})}


def _is_alive(end: socket.socket) -> bool:
    """A supervisor that waits says nothing; one that was killed has closed its end."""
    try:
        return bool(end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
