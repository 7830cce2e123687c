"""One kernel's container: made once, started again for every restart, with the sockets of its connection bound into it.

The kernel talks over `ipc`: Unix sockets in a directory that host and container share (kernelspec.sockets). So it works with its network
off, there are no ports and no races for them.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from kernelspec.orphans import DIRECTORY_LABEL, KERNEL_LABEL
from kernelspec.sockets import SocketDirectory
from sandbox import Completed, Container, Engine, RunOptions
from sandbox.engine import Running, Streams
from sandbox.errors import ContainerNotFound, InvalidOption
from sandbox.runtime.spec import Mount

log = logging.getLogger(__name__)

CONNECTION = "{connection_file}"
"""The word of a kernel's command that stands for its connection file (jupyter_client, kernel.json)."""
START = "{start_file}"
"""The word that stands for a file of ours which IPython runs first."""
REASON = "ended"
"""The file beside the sockets that says why the kernel before this one ended."""
_START = """\
def _sandbox_tell_why(*_, _path=__file__.rpartition("/")[0] + "/ended", _shell=get_ipython()):
    import sys
    _shell.events.unregister("pre_run_cell", _sandbox_tell_why)
    with open(_path, encoding="utf-8") as file:
        reason = file.read()
    if reason:
        print("The kernel before this one ended:", reason, file=sys.stderr, flush=True)
get_ipython().events.register("pre_run_cell", _sandbox_tell_why)
"""


class KernelRequest(msgspec.Struct, frozen=True):
    """What to run: `argv` holds CONNECTION; `env` is the kernel's own; `cwd`, if given, is mounted at its own path."""

    image: str
    argv: tuple[str, ...]
    options: RunOptions = msgspec.field(default_factory=RunOptions)
    env: Mapping[str, str] | None = None
    cwd: str | None = None
    kernel_id: str = ""


class KernelContainer:
    """A kernel process in its container, made by `engine`, which stays the caller's. Thread-safe: front ends poll while a thread waits
    for the end."""

    def __init__(self, request: KernelRequest, directory: SocketDirectory, engine: Engine) -> None:
        self._request = request
        self._directory = directory
        self._engine = engine
        self._container: Container | None = None
        self._running: Running | None = None
        self._ended = threading.Event()
        self._ended.set()
        self._unwanted = True
        self.completed: Completed | None = None
        atexit.register(self.close)  # jupyter console tells the kernel to end and goes, without a word to its provisioner

    @property
    def id(self) -> str | None:
        """The container's id, once there is one."""
        return self._container.id if self._container else None

    @property
    def pid(self) -> int:
        """The host's pid of the container's init while the kernel runs, else 0."""
        return self._running.pid if self._running and not self._ended.is_set() else 0

    def start(self, connection: str, *, stdout: int, stderr: int, on_end: Callable[[Completed], None] | None = None) -> None:
        """Start the kernel with this connection file's text, in the container of the last start if there was one.

        Raises SandboxError; `on_end` is called in a thread when the kernel has ended.
        """
        self._directory.clear()
        self._directory.write("connection.json", connection)
        with open(os.devnull, "rb") as null:
            running = self._attach(Streams(stdin=null.fileno(), stdout=stdout, stderr=stderr))
        if running.refused is not None:
            reason = running.refused.reason
            running.close()
            raise InvalidOption(f"kernel in {self._request.image}: {reason}", hint="is the kernel's program in the image?")
        self._running, self.completed, self._unwanted = running, None, True
        self._ended = threading.Event()
        threading.Thread(target=self._follow, args=(running, self._ended, on_end), daemon=True, name="sandbox kernel").start()

    def _attach(self, streams: Streams) -> Running:
        """In the container there is; in a new one the first time, and after `sandbox kernel reset`."""
        if self._container is not None:
            try:
                return self._engine.attach_started(self._container.id, streams)
            except ContainerNotFound:
                log.info("kernel %s: its container was reset", self._request.kernel_id)
        running, self._container = self._launch(streams)
        return running

    def _follow(self, running: Running, ended: threading.Event, on_end: Callable[[Completed], None] | None) -> None:
        with running:
            done = running.wait()
        self.completed = done
        self._directory.write(REASON, self.reason)  # before anybody can see the end and start the next one
        if self.reason:
            log.warning("kernel %s: %s", self._request.kernel_id, self.reason)
        ended.set()
        if on_end is not None:
            on_end(done)

    def poll(self) -> int | None:
        """The kernel's exit status, None while it runs (or was never started)."""
        return self.completed.exit_code if self._ended.is_set() and self.completed else None

    def wait(self, timeout: float | None = None) -> bool:
        """Until it has ended; False when `timeout` seconds were not enough."""
        return self._running is None or self._ended.wait(timeout)

    def signal(self, number: int) -> None:
        """Send a signal to the kernel, SIGINT to what it started as well; nothing when it has ended.

        SIGTERM and SIGKILL are somebody's wish that it ends: then there is no reason to tell (see `reason`).
        """
        if self._running is None or self._ended.is_set():
            return
        if number in (signal.SIGTERM, signal.SIGKILL):
            self.expect_end()
        if number == signal.SIGINT:
            self._running.interrupt_group()
        else:
            self._running.signal(number)

    def resolve(self, path: str) -> str | None:
        """A path as the kernel means it, absolute; None when there is nothing at it inside."""
        return self._container.resolve(path) if self._container is not None else None

    def expect_end(self) -> None:
        """It is asked to end now."""
        self._unwanted = False

    @property
    def reason(self) -> str:
        """Why the last kernel ended, empty when it was asked to."""
        done = self.completed
        if done is None or not self._unwanted:
            return ""
        return done.reason or (f"exit code {done.exit_code}" if done.exit_code else "")

    def close(self) -> None:
        """End the kernel, remove its container and its sockets."""
        atexit.unregister(self.close)
        self.expect_end()
        if self._container is not None:
            self._container.remove(force=True, volumes=True)
            self._container = None
        self._ended.wait(10)
        self._directory.remove()

    def _launch(self, streams: Streams) -> tuple[Running, Container]:
        request, path = self._request, self._directory.path
        self._directory.write("start.py", _START)
        self._directory.write(REASON, "")
        argv = [word.replace(CONNECTION, f"{path}/connection.json").replace(START, f"{path}/start.py") for word in request.argv]
        first, *rest = argv
        options = replace(
            request.options,
            entrypoint=first,
            env=(*request.options.env, *_environment(request.env or {})),
            label=(*request.options.label, f"{DIRECTORY_LABEL}={path}", f"{KERNEL_LABEL}={request.kernel_id}"),
            workdir=request.options.workdir or request.cwd,
            rm=False, detach=False, interactive=False, tty=False,
        )  # fmt: skip
        shared = (path, *((request.cwd,) if request.cwd else ()))
        mounts = [Mount("bind", each, each) for each in shared]
        return self._engine.launch(request.image, rest, options=options, streams=streams, mounts=mounts)


def mounted_directory(cwd: str | os.PathLike[str] | None) -> str | None:
    """Where a kernel works, which its container has at the same path: `cwd`, else where we are. None for /: that is the image's."""
    path = os.path.realpath(cwd or os.getcwd())
    return None if path == "/" else path


def _environment(given: Mapping[str, str]) -> list[str]:
    """JPY_PARENT_PID=1: our init is the kernel's parent; an inherited number would end it at once, none makes it complain."""
    return [f"{name}={value}" for name, value in {**given, "JPY_PARENT_PID": "1"}.items()]


def options_from(flags: Sequence[str]) -> RunOptions:
    """docker run's flags as written on a command line; InvalidOption."""
    from magics.cells import parse_words
    from sandbox.options import RUN

    values, rest = parse_words(flags, RUN, interspersed=False)
    if rest:
        raise InvalidOption(f"{rest[0]}: not a flag of run")
    return RunOptions(**values)


def default_command(engine: Engine, image: str) -> tuple[str, ...]:
    """How the image's own ipykernel is started; InvalidOption when the image has no Python."""
    found = engine.image(image)
    for name in ("python3", "python"):
        if engine.has_program(found, name):
            return name, "-m", "ipykernel_launcher", "-f", CONNECTION, f"--IPKernelApp.exec_files={START}"
    raise InvalidOption(f"image {image}: has no Python", hint="say how its kernel is started with --kernel-cmd")
