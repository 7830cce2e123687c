"""The stages at work: each in a thread of its own, waiting for others only where it needs them; one failure ends all.

A stage waits for its base at FROM and for another stage at the step that names it, so independent steps overlap as in a
graph of steps. A slot is held while a step is at work and never while it waits, so any number of jobs gets through.

The events of all threads come together in a queue and are told in the calling thread, one after the other: whoever
watches a build needs no lock. A build of one stage uses no thread at all.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from sandbox.build.events import BuildEvent, OnEvent
from sandbox.build.stages import Stage
from sandbox.build.state import BuildState
from sandbox.build.stop import Stop, Stopped

if TYPE_CHECKING:
    from concurrent.futures import Future

_PATIENCE = 2.0
"""Seconds between SIGTERM and SIGKILL for the steps of a build that is over early."""
_WAITING_EVENTS = 256
"""Events (a piece of output is at most 64 KiB) that may wait to be told before the steps wait."""


def default_jobs() -> int:
    """Steps mostly wait, for a network, a disk or a `sleep`: at least four at once even where there are fewer CPUs."""
    return max(4, len(os.sched_getaffinity(0)))


class Graph(msgspec.Struct, dict=True):
    """The stages of one build and where each ended. `work` builds one, telling its events by `tell`."""

    stages: Sequence[Stage]
    stop: Stop
    on_event: OnEvent
    jobs: int
    _ended: dict[int, Future[BuildState]] = msgspec.field(default_factory=dict)
    _news: queue.Queue[BuildEvent | None] = msgspec.field(default_factory=lambda: queue.Queue(_WAITING_EVENTS))
    _failures: list[BaseException] = msgspec.field(default_factory=list)
    _is_threaded: bool = False

    def __post_init__(self) -> None:
        if len(self.stages) > 1:
            from concurrent.futures import Future  # with logging; one stage waits for no other

            self._ended = {stage.index: Future() for stage in self.stages}
        self._slots = threading.Semaphore(self.jobs)

    def tell(self, event: BuildEvent) -> None:
        """Have the event told in the calling thread. Called from any stage."""
        if self._is_threaded:
            self._news.put(event)
        else:
            self.on_event(event)

    def state_of(self, index: int) -> BuildState:
        """Where a stage ended, once it has; raises Stopped when it will not."""
        return self._ended[index].result()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Held while a step is at work; raises Stopped instead when the build is over."""
        with self._slots:
            self.stop.check()
            yield

    def run(self, work: Callable[[Stage], BuildState]) -> BuildState:
        """Build all stages; where the last one ended. Raises what the first failing stage raised, or the caller's interrupt."""
        if len(self.stages) == 1:
            return work(self.stages[0])
        self._is_threaded = True
        threads = [threading.Thread(target=self._work, args=(work, stage), name=f"build-{stage.label}") for stage in self.stages]
        for thread in threads:
            thread.start()
        try:
            self._tell_all(threads)
        finally:
            self._is_threaded = False
        if self._failures:
            raise self._failures[0]
        return self.state_of(self.stages[-1].index)

    def _work(self, work: Callable[[Stage], BuildState], stage: Stage) -> None:
        try:
            self._ended[stage.index].set_result(work(stage))
        except BaseException as err:  # noqa: BLE001 (raised again in the calling thread)
            self._ended[stage.index].set_exception(Stopped())
            if not isinstance(err, Stopped):
                self._failures.append(err)
                self.stop.now()
        finally:
            self._news.put(None)

    def _tell_all(self, threads: Sequence[threading.Thread]) -> None:
        """Tell the events until every thread has ended, also when telling is interrupted."""
        interrupt: BaseException | None = None
        deadline: float | None = None
        left = len(threads)
        while left:
            try:
                event = self._next(deadline)
                left -= event is None
                if event is not None:
                    self.on_event(event)
            except queue.Empty:
                self.stop.now(signal.SIGKILL)
                deadline = None
                if not any(thread.is_alive() for thread in threads):  # the interrupt came while its last word was taken
                    break
            except BaseException as err:  # noqa: BLE001 (raised below, when no thread is left)
                self.stop.now(signal.SIGTERM if interrupt is None else signal.SIGKILL)
                interrupt = interrupt or err
            if deadline is None and self.stop.is_over:
                deadline = time.monotonic() + _PATIENCE
        if interrupt is not None:
            raise interrupt

    def _next(self, deadline: float | None) -> BuildEvent | None:
        """The next event, None for a thread's end; queue.Empty when the deadline has passed."""
        return self._news.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
