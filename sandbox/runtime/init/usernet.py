"""The supervisor's part of an ordinary user's network: a helper program that carries the packets, published ports, a name server.

pasta leaves the process that started it and loses its PDEATHSIG when it enters the container's user namespace. So a guard of ours
stands beside it, which waits for the supervisor's end and kills it, however the supervisor ended.
"""

from __future__ import annotations

import json
import os
import select
import signal

from sandbox.runtime.init import attachment, pid1
from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

_PATIENCE = 20.0
"""Seconds a helper may take until it is ready."""
_LONGEST = 8192
PID, PID_FILE, READY = "{pid}", "{pid file}", "{ready}"
"""Words of a helper's command that stand for the container's init, a file for its own pid, a descriptor to say on that it is ready."""


class UserAttachment(attachment.Attachment):
    """One container with a network of its own. `network` is what `userspace.attached` gave."""

    def __init__(self, network: dict[str, Any], deny: Callable[[str], object]) -> None:
        super().__init__(network, deny)
        self._guard = 0
        self._helper = -1

    def connect(self, pid: int) -> None:
        """Nothing yet: the helper needs the container's user ids."""

    def enter(self, pid: int) -> None:
        """The user namespace of `pid`, which waits for us, has its ids now. Afterwards packets flow, and ports are passed on. Failed."""
        inside: list[int] = []
        try:
            inside += [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("user", "net")]
            self._publish(inside)
            self._start(pid)
        except OSError as err:
            raise attachment.Failed(f"network {self.places[0]['name']}: {err.strerror}", step="network", errno=err.errno) from err
        finally:
            for fd in inside:
                os.close(fd)

    def unpublish(self) -> None:
        """Free the ports; the helper has nothing to carry any more."""
        super().unpublish()
        if self._helper >= 0:
            _kill(self._helper)
            os.close(self._helper)
            self._helper = -1
        if self._guard:
            os.waitpid(self._guard, 0)
            self._guard = 0

    def leave(self) -> None:
        """Nothing was reserved."""

    def change(self, wish: Mapping[str, Any], pid: int) -> None:
        """Failed: there is one network, and it is its own."""
        del wish, pid  # whatever it is
        raise attachment.Failed("an ordinary user's container has one network, its own")

    def _start(self, pid: int) -> None:
        said, say = os.pipe()
        parent = os.getpid()
        self._guard = os.fork()
        if self._guard == 0:
            try:
                _Guard(self.network["helper"], pid, parent, say).stand()
            except Exception as err:  # noqa: BLE001  # a mistake of ours: nobody else could report it from here
                os.write(say, json.dumps({"problem": repr(err)}).encode())
            finally:
                os._exit(0)
        os.close(say)
        with os.fdopen(said, "rb") as file:
            report = json.loads(file.read() or b'{"problem": "its guard ended"}')
        if "pid" not in report:
            raise attachment.Failed(f"network {self.places[0]['name']}: {report['problem']}", step="network", errno=None)
        self._helper = os.pidfd_open(report["pid"])


class _Guard:
    """Starts the helper for the container whose init is `container`, tells `say` its pid or what was wrong, and ends with the first of it
    and the supervisor, `parent`."""

    def __init__(self, helper: Mapping[str, Any], container: int, parent: int, say: int) -> None:
        self._pid_file = helper["pid_file"]
        self._container = container
        self._parent = parent
        self._say = say
        self._ready, self._be_ready = os.pipe()
        self._complaints, self._complain = os.pipe()
        told = {PID: str(container), PID_FILE: self._pid_file, READY: str(self._be_ready)}
        self._argv = [told.get(word, word) for word in helper["argv"]]

    def stand(self) -> None:
        """Until one of them has ended."""
        s.prctl_name("sandbox-network")
        s.prctl(s.PR_SET_CHILD_SUBREAPER, 1)  # pasta goes into the background: then it is our child still
        pid1.close_others({0, 1, 2, self._say, self._ready, self._be_ready, self._complaints, self._complain})
        pid = self._start()
        if pid:
            helper = os.pidfd_open(pid)
            _wait_any([os.pidfd_open(self._parent), helper] if os.getppid() == self._parent else [])
            _kill(helper)

    def _start(self) -> int:
        """The helper's pid once it is ready; 0 when it will not be. Should the supervisor end meanwhile, that is seen afterwards."""
        child = os.fork()
        if child == 0:
            self._become_helper()
        os.close(self._be_ready)
        os.close(self._complain)
        first = os.pidfd_open(child)
        _wait_any([first, *([] if self._pid_file else [self._ready])], _PATIENCE)
        pid = self._pid_when_ready(child)
        if not pid:
            _kill(first)
        self._report({"pid": pid} if pid else {"problem": f"{os.path.basename(self._argv[0])}: {self._last_words()}"})
        return pid

    def _pid_when_ready(self, child: int) -> int:
        """pasta is when its first process has ended well; the one that stays has written its pid. slirp4netns says so, and stays."""
        if not self._pid_file:
            return child if os.read(self._ready, 1) else 0
        ended, status = os.waitpid(child, os.WNOHANG)
        if not ended or status:
            return 0
        with open(self._pid_file, encoding="ascii") as file:
            pid = int(file.read())
        os.unlink(self._pid_file)
        return pid

    def _become_helper(self) -> None:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # pasta of 2023 takes an ignored one for a failure
        null = os.open("/dev/null", os.O_RDWR)
        for fd, end in ((null, 0), (null, 1), (self._complain, 2)):
            os.dup2(fd, end)
        os.set_inheritable(self._be_ready, not self._pid_file)
        os.execv(self._argv[0], self._argv)

    def _last_words(self) -> str:
        """What it complained of last; not that this host has no system log."""
        os.set_blocking(self._complaints, False)
        try:
            text = os.read(self._complaints, _LONGEST).decode(errors="replace")
        except BlockingIOError:
            text = ""
        lines = [line.strip() for line in text.splitlines() if line.strip() and "syslog" not in line]
        return lines[-1] if lines else "is not ready, and does not say why"

    def _report(self, message: Mapping[str, Any]) -> None:
        try:
            os.write(self._say, json.dumps(message).encode())
        except BrokenPipeError:
            pass  # the supervisor has ended
        os.close(self._say)


def _kill(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it had ended by itself


def _wait_any(fds: Sequence[int], patience: float | None = None) -> None:
    """Until one of them can be read (a pidfd: its process has ended), or so many seconds are over."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    if fds:
        poll.poll(None if patience is None else patience * 1000)
