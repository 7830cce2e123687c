"""A session: a name that keeps one interpreter warm."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from sandbox.errors import WrongState
from sandbox.session.believed import CellCode, CellOutcome
from sandbox.session.channel import Frame
from sandbox.session.interpreter import Front, Interpreter


class Session:
    """A name for a warm interpreter. The first cell starts it; a crash is told once and the next cell starts afresh."""

    def __init__(self, name: str, image: str, launch: Callable[[], Interpreter], *, idle: float | None = None) -> None:
        self.name, self.image, self.idle = name, image, idle
        self._launch = launch
        self._interpreter: Interpreter | None = None
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self.cells = 0
        self.used = time.time()
        self._lost = ""
        self._rested = time.monotonic()

    @property
    def status(self) -> str:
        """`busy`, `idle`, or `cold` when the next cell starts a fresh interpreter."""
        if self._lock.locked():
            return "busy"
        return "idle" if self._interpreter is not None and self._interpreter.alive else "cold"

    def run(self, cell: CellCode, front: Front, *, timeout: float | None = None) -> CellOutcome:
        """Run a cell in the warm interpreter; WrongState when another cell of it runs (in another thread)."""
        if not self._lock.acquire(blocking=False):
            raise WrongState(f"session {self.name}: runs another cell", wanted="idle", actual="busy", hint="wait for it, or interrupt it")
        try:
            interpreter = self._warm(front)
            if interpreter.refused is not None:
                return CellOutcome("died", interpreter.refused.exit_code, completed=interpreter.refused)
            self.cells += 1
            return interpreter.run(cell, front, keep=True, timeout=timeout)
        finally:
            self.used, self._rested = time.time(), time.monotonic()
            self._start_clock()
            self._lock.release()

    def ask(self, operation: str, front: Front, *, timeout: float, **facts: str | int) -> tuple[Frame, list[memoryview]] | None:
        """Put a question between cells (`complete`, `inspect`, `parse`); None while a cell runs, or without an answer in time."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            interpreter = self._warm(front)
            return interpreter.ask(operation, front, timeout=timeout, **facts) if interpreter.refused is None else None
        finally:
            self._lock.release()

    def reset(self) -> None:
        """Forget variables and files: the next cell starts in a fresh container."""
        self.close()

    def close(self) -> None:
        """End the interpreter and its container."""
        self._stop_clock()
        if self._interpreter is not None:
            self._interpreter.close()
            self._interpreter = None
        self.cells = 0

    def _warm(self, front: Front) -> Interpreter:
        if self._interpreter is not None and not self._interpreter.settle(front):
            self._lost = self._interpreter.close_ended(front) or "its interpreter ended"
            self.close()
        if self._interpreter is None:
            self._interpreter = self._launch()
            if self._lost:
                front.write("stderr", f"session {self.name}: {self._lost}; starts afresh, without variables\n".encode())
                self._lost = ""
        return self._interpreter

    def _start_clock(self) -> None:
        """One timer at a time, whatever the number of cells: when it goes off it looks how long the last is ago."""
        if self.idle and self._timer is None:
            self._set_timer(self.idle)

    def _set_timer(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._look_at_clock)
        self._timer.daemon = True
        self._timer.start()

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_at_clock(self) -> None:
        """Called by the timer: end the interpreter when no cell came for so long."""
        idle = self.idle or 0.0
        if not self._lock.acquire(blocking=False):  # a cell runs
            self._set_timer(idle)
            return
        try:
            left = idle - (time.monotonic() - self._rested)
            self._timer = None
            if self._interpreter is None:
                return
            if left > 0:
                self._set_timer(left)
                return
            self.close()
            self._lost = f"ended after {idle:g} s without a cell"
        finally:
            self._lock.release()


class Sessions:
    """The sessions of one front end, by name."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}

    def __iter__(self) -> Any:
        return iter(self._sessions.values())

    def find(self, name: str) -> Session | None:
        """The session of this name."""
        return self._sessions.get(name)

    def add(self, session: Session) -> Session:
        """Keep it; one of the same name is closed."""
        self.remove(session.name)
        self._sessions[session.name] = session
        return session

    def remove(self, name: str) -> bool:
        """Close and forget it; whether there was one."""
        session = self._sessions.pop(name, None)
        if session is not None:
            session.close()
        return session is not None

    def close(self) -> None:
        """Close them all."""
        for name in list(self._sessions):
            self.remove(name)
