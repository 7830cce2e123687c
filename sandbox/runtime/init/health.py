"""Health checks: a program run inside every so often, whose exit says how the container is (docker's HEALTHCHECK).

The supervisor starts each check in a child of its own, because entering the container blocks; what the child says at the end comes
over a socket that the supervisor polls. A check that takes too long is ended and counts as failed.
"""

from __future__ import annotations

import os
import signal
import socket
import time

from sandbox.runtime.init import cgroup, hostside, join, link, pid1, procs, report, streams, supervisor, title
from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_KEPT = 5
"""How many results are remembered."""
_MOST_OUTPUT = 4096
"""Bytes kept of what a check prints."""
_FAILED = 1
_TIMED_OUT = -1
"""docker's exit code of a check that took too long."""


class Health:
    """How one running container is. `due`: the moment (time.monotonic) of the next check; None while one runs, and after the end."""

    def __init__(self, container: supervisor.Container) -> None:
        self._container = container
        self._plan = container.plan["health"]
        self._began = time.monotonic()
        self._child: socket.socket | None = None
        self._pid = 0
        self.status = "starting"
        self.streak = 0
        self.results: list[dict[str, Any]] = []
        self.due: float | None = self._began + self._interval()

    @property
    def state(self) -> dict[str, Any]:
        """As state.json keeps it."""
        return {"status": self.status, "streak": self.streak, "results": self.results}

    def fileno(self) -> int:
        """What to wait on while a check runs; -1: none does."""
        return -1 if self._child is None else self._child.fileno()

    def begin(self) -> None:
        """Start a check; in a paused container it would wait, so there it comes later."""
        if self._is_paused():
            self.due = time.monotonic() + self._interval()
            return
        try:
            plan = self._joining_plan()
        except ProcessLookupError:  # it ends just now
            self.due = None
            return
        self._child, theirs = link.pair()
        self._pid = os.fork()
        if self._pid == 0:
            _be_check(theirs, plan, self._container.title)
        theirs.close()
        self.due = None

    def take(self) -> None:
        """The check has ended: what that says of the container."""
        assert self._child is not None
        message, _ = link.receive(self._child)
        self._let_go()
        result = message or {"code": _FAILED, "output": "the check was killed", "started": time.time()}
        self.results = [*self.results, {**result, "finished": time.time()}][-_KEPT:]
        if result["code"] == 0:
            self.status, self.streak = "healthy", 0
        elif self.status != "starting" or not self._is_starting():
            self.streak += 1
            self.status = "unhealthy" if self.streak >= self._plan["retries"] else self.status
        self.due = time.monotonic() + self._interval()

    def end(self) -> None:
        """The container has ended; a check that was inside ended with it."""
        if self._child is not None:
            os.kill(self._pid, signal.SIGKILL)
            self._let_go()
        self.due = None

    def _let_go(self) -> None:
        assert self._child is not None
        self._child.close()
        self._child = None
        os.waitpid(self._pid, 0)

    def _is_starting(self) -> bool:
        """Failures in this time do not count."""
        return time.monotonic() - self._began < float(self._plan["start_period"])

    def _interval(self) -> float:
        is_early = self.status == "starting" and self._is_starting()
        return float(self._plan["start_interval"] if is_early else self._plan["interval"])

    def _is_paused(self) -> bool:
        freezer = (self._container.plan["cgroup"] or {}).get("freezer")
        return cgroup.is_frozen(freezer) if freezer else False

    def _joining_plan(self) -> dict[str, Any]:
        facts = report.running_state(self._container)
        return {
            "pid": procs.entered_through(self._container.pid),
            "namespaces": facts["namespaces"],
            "joins": facts["joins"],
            "into": facts["into"],
            "process": self._plan["process"],
            "timeout": self._plan["timeout"],
            "window": None,
            "detach": False,
            "interactive": False,
            "detach_keys": "",
            "log": None,
            "cgroup": None,
        }


class _Kept:
    """In the place of a log: the beginning of what is printed."""

    def __init__(self) -> None:
        self.text = b""

    def write(self, stream: str, data: bytes) -> None:
        del stream
        self.text += data[: _MOST_OUTPUT - len(self.text)]


def _be_check(parent: socket.socket, plan: Mapping[str, Any], shown: title.Title) -> None:
    """In the child: never returns. Nothing of the supervisor's stays open: its lock says that the container runs."""
    try:
        s.prctl(s.PR_SET_PDEATHSIG, signal.SIGKILL)
        pid1.close_others({0, 1, 2, parent.fileno()})
        started, kept = time.time(), _Kept()
        code, words = _check(dict(plan), kept, shown)
        text = kept.text.decode("utf-8", "replace") + words
        pid1.say(parent, {"started": started, "code": code, "output": text})
    finally:
        os._exit(0)


def _check(plan: dict[str, Any], kept: _Kept, shown: title.Title) -> tuple[int, str]:
    """The exit code, and words of ours."""
    source, sink = os.pipe()
    stdio = [os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), sink, os.dup(sink)]
    joined = join.Joined(plan, None, stdio, shown)
    joined.output.pumps = [streams.Pump("stdout", source, [], kept)]
    try:
        joined.start()
        joined.watch()
        result = joined.finish()
    except hostside.Refused as err:
        return int(err.message["code"]), str(err)
    except OSError as err:
        return _FAILED, str(err)
    finally:
        joined.clean_up()
    if result["ending"] == "timeout":
        return _TIMED_OUT, f"Health check exceeded timeout ({plan['timeout']:g}s)"
    code = os.waitstatus_to_exitcode(result["wait_status"])
    return (code if code >= 0 else 128 - code), ""
