"""`sandbox-oci run` and `exec` without --detach: wait for the program, pass signals on, and be its terminal."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import tempfile
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from sandbox.errors import InvalidOption
from sandbox.runtime.bundle.config import Process, read_config
from sandbox.runtime.bundle.lifecycle import Bundles
from sandbox.runtime.bundle.making import Given

_CHUNK = 65536
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)


def run_bundle(bundles: Bundles, container_id: str, bundle: Path, given: Given, *, detach: bool, keep: bool) -> int:
    """create, start, wait, delete; the program's status, 128+n when signal n ended it."""
    config, _ = read_config(bundle)
    with _console(config.process, given, detach=detach) as (given, master), _Signals() as signals:
        record = bundles.create(container_id, bundle, given)
        try:
            bundles.start(container_id)
            if detach:
                return 0
            return _follow(record.pid, master, signals)
        except BaseException:
            bundles.delete(container_id, force=True)
            raise
        finally:
            if not detach and not keep and bundles.states.directory(container_id).exists():
                bundles.delete(container_id, force=True)


def exec_process(bundles: Bundles, container_id: str, process: Process, given: Given, *, detach: bool) -> int:
    """Start the process and, without `detach`, wait for it; its status as above."""
    with _console(process, given, detach=detach) as (given, master), _Signals() as signals:
        pid = bundles.exec(container_id, process, given)
        return 0 if detach else _follow(pid, master, signals)


@contextmanager
def _console(process: Process | None, given: Given, *, detach: bool) -> Iterator[tuple[Given, Callable[[], int]]]:
    """Where the terminal's master end arrives: nowhere without a terminal, at the caller's own socket, else here."""
    if process is None or not process.terminal or given.console:
        yield given, lambda: -1
        return
    if detach:
        raise InvalidOption("--detach: the process has a terminal", hint="pass --console-socket")
    with tempfile.TemporaryDirectory(prefix="sandbox-oci-") as directory, ExitStack() as opened:
        listener = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC))
        path = Path(directory) / "console"
        listener.bind(str(path))
        listener.listen(1)

        def master() -> int:
            sender, _ = listener.accept()
            with sender:
                fds = socket.recv_fds(sender, 256, 1)[1]
            opened.callback(os.close, fds[0])
            return fds[0]

        yield replace(given, console=path), master


def _follow(pid: int, master: Callable[[], int], signals: _Signals) -> int:
    """Until the child ended, its status; signals that come meanwhile are its own."""
    terminal = master()
    signals.to(pid, terminal)
    if terminal >= 0:
        with _raw_keys():
            _relay(terminal)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


class _Signals:
    """While entered, signals to this process are the program's. Entered before there is one: what comes early waits."""

    def __init__(self) -> None:
        self._pid = 0
        self._terminal = -1
        self._early: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        self._before = {number: signal.signal(number, self._take) for number in (*_FORWARDED, signal.SIGWINCH)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def to(self, pid: int, terminal: int) -> None:
        """From now on to this program, and its terminal follows ours in size."""
        self._pid, self._terminal = pid, terminal
        for number in (*self._early, signal.SIGWINCH):
            self._take(number)

    def _take(self, number: int, _: object = None) -> None:
        if not self._pid:
            self._early.append(number)
        elif number != signal.SIGWINCH:
            _pass_on(self._pid, number)
        elif self._terminal >= 0:
            _copy_size(self._terminal)


def _pass_on(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _copy_size(terminal: int) -> None:
    """Our own terminal's size to the program's; no terminal of our own: no size."""
    try:
        size = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
    except OSError:
        return
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)


@contextmanager
def _raw_keys() -> Iterator[None]:
    """Each key goes through as it is: Ctrl-C is the program's. Without a terminal of our own there is nothing to set."""
    if not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _relay(terminal: int) -> None:
    """Keys to the terminal, what it shows to stdout, until its last program has closed it."""
    poll = select.poll()
    poll.register(terminal, select.POLLIN)
    poll.register(0, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            data = _read(fd)
            if fd == terminal and not data:
                return
            if fd == 0 and not data:
                poll.unregister(0)
                data = b"\x04"  # end of file, as a terminal says it
            os.write(1 if fd == terminal else terminal, data)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except OSError as err:
        if err.errno == errno.EIO:  # a terminal's way to say that nobody has it open any more
            return b""
        raise
