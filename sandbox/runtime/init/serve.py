"""The spawner: one single-threaded helper of an engine that forks a supervisor per container.

A Jupyter kernel has threads, and forking it can deadlock; a new interpreter for every container would cost 10 to 15 ms.
It ends when its engine closes the socket; the supervisors it forked live on.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket

from sandbox.runtime.init import ground, join, link, supervisor, title

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

_CALM = 0.02
"""Seconds without a job before a ground is made ahead: of containers started one right after the other, the next would wait for it."""


def _keep_hub(orders: int, client: socket.socket, stdio: Sequence[int], shown: title.Title, spare: ground.Spare | None) -> None:
    from sandbox.runtime.init import hubkeeper  # once for all containers of an ordinary user

    hubkeeper.run(orders, client, stdio, shown, spare)


JOBS: dict[str, Callable[..., None]] = {"run": supervisor.run, "exec": join.run, "hub": _keep_hub}


def main(fd: int, interpreter: int = -1, greets: int = 0, inherits: int = 0) -> NoReturn:
    """Serve requests from the socket `fd` until it is closed; never returns. `interpreter`: what we were executed from, needed no more.
    `greets`: say that we are there. `inherits`: our starter has closed nothing of its own, nor left its directory."""
    if inherits:
        os.chdir("/")
        title.forget_environment()
        for other in [int(name) for name in os.listdir("/proc/self/fd") if int(name) not in (0, 1, 2, fd)]:
            with contextlib.suppress(OSError):  # the directory itself
                os.close(other)
    elif interpreter >= 0:
        os.close(interpreter)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the engine, which decides what it means
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Linux reaps the supervisors
    engine = socket.socket(fileno=fd)
    shown = title.Title()
    shown.set("sandbox-spawner")
    gc.disable()
    gc.freeze()  # forks share this memory until they write to it
    if greets:
        link.send(engine, {})
    while True:
        request, fds = link.receive(engine)
        if request is None:
            os._exit(0)  # nothing to tidy up, and the engine waits for our end
        if os.fork() == 0:
            engine.close()
            _serve(socket.socket(fileno=fds[0]), request, fds[1:], shown)
        for received in fds:
            os.close(received)


def _serve(client: socket.socket, task: Mapping[str, Any], given: Sequence[int], shown: title.Title) -> None:
    """In the fork: become a supervisor as soon as the client says of what; never returns. The `task` before that: a ground to be made, of
    the facts that are `given`; its `lock`."""
    spare = None
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        shown.set("sandbox-supervisor")
        if "lock" in task and not _hears_within(client, _CALM):
            spare = ground.Spare(link.read_plan(given[0], keep=True), task["lock"], shown)
        for fd in given:
            os.close(fd)
        message, fds = link.receive(client)
        if message is not None:
            JOBS[message["job"]](fds[0], client, fds[1:], shown, spare)
        elif spare is not None:
            spare.discard()
    finally:
        os._exit(0)


def _hears_within(client: socket.socket, seconds: float) -> bool:
    poll = select.poll()
    poll.register(client, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
