"""A program that carries the packets of a network namespace as sockets of an ordinary user: pasta(1), slirp4netns(1).

pasta leaves the process that started it and loses its PDEATHSIG when it enters the user namespace: whoever starts it must be a subreaper
(prctl(2)), and stand beside it to end it.
"""

from __future__ import annotations

import os
import select
import signal

from sandbox.runtime.init import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_PATIENCE = 20.0
"""Seconds a helper may take until it is ready."""
_LONGEST = 8192
PID, PID_FILE, READY = "{pid}", "{pid file}", "{ready}"
"""Words of a helper's command that stand for the process whose namespaces it serves, a file for its own pid, a descriptor to say on that
it is ready."""


class Failed(Exception):
    """It did not come up; the words are its own."""


def start(helper: Mapping[str, Any], target: int) -> int:
    """Run the `argv` of `helper` for the namespaces of the process `target`; a pidfd of it once it is ready. Failed, and nothing runs."""
    starting = _Starting(helper, target)
    try:
        return starting.wait()
    finally:
        starting.close()


class _Starting:
    def __init__(self, helper: Mapping[str, Any], target: int) -> None:
        self._pid_file = helper["pid_file"]
        self._ready, be_ready = os.pipe()
        self._complaints, complain = os.pipe()
        told = {PID: str(target), PID_FILE: self._pid_file, READY: str(be_ready)}
        self._argv = [told.get(word, word) for word in helper["argv"]]
        self._child = os.fork()
        if self._child == 0:
            try:
                self._become_helper(be_ready, complain)
            finally:
                os._exit(127)
        os.close(be_ready)
        os.close(complain)

    def _become_helper(self, be_ready: int, complain: int) -> None:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # pasta of 2023 takes an ignored one for a failure
        null = os.open("/dev/null", os.O_RDWR)
        for fd, end in ((null, 0), (null, 1), (complain, 2)):
            os.dup2(fd, end)
        os.set_inheritable(be_ready, not self._pid_file)
        os.execv(self._argv[0], self._argv)

    def wait(self) -> int:
        first = os.pidfd_open(self._child)
        wait_any([first, *([] if self._pid_file else [self._ready])], _PATIENCE)
        pid = self._pid_when_ready()
        if pid == self._child:
            return first
        try:
            if not pid:
                kill(first)
                raise Failed(f"{os.path.basename(self._argv[0])}: {self._last_words()}")
            return os.pidfd_open(pid)
        finally:
            os.close(first)

    def _pid_when_ready(self) -> int:
        """pasta is when its first process has ended well; the one that stays has written its pid. slirp4netns says so, and stays."""
        if not self._pid_file:
            return self._child if os.read(self._ready, 1) else 0
        ended, status = os.waitpid(self._child, os.WNOHANG)
        if not ended or status:
            return 0
        with open(self._pid_file, encoding="utf-8") as file:
            return int(file.read())

    def _last_words(self) -> str:
        """What it complained of last; not that this host has no system log."""
        os.set_blocking(self._complaints, False)
        try:
            text = os.read(self._complaints, _LONGEST).decode(errors="replace")
        except BlockingIOError:
            text = ""
        lines = [line.strip() for line in text.splitlines() if line.strip() and "syslog" not in line]
        return lines[-1] if lines else "is not ready, and does not say why"

    def close(self) -> None:
        if self._pid_file:
            files.remove_file(self._pid_file)
        os.close(self._ready)
        os.close(self._complaints)


def kill(pidfd: int) -> None:
    """SIGKILL; that it had ended by itself is fine."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass


def wait_any(fds: Sequence[int], patience: float | None = None) -> None:
    """Until one of them can be read (a pidfd: its process has ended), or so many seconds are over."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    poll.poll(None if patience is None else patience * 1000)
