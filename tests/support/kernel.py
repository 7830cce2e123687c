"""A kernel as a front end sees it: code in, messages out; and the place kernels of a test live in."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from sandbox.engine import Engine
from sandbox.errors import ContainerNotFound
from tests.support.host import requires
from tests.support.leftovers import nothing_left

SOCKET_WARNINGS = [
    # zmq's sockets and loops are jupyter_client's to close, Playwright's its own
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
KERNEL_MARKS = [requires("root", "userns", "overlay"), pytest.mark.xdist_group("kernels"), *SOCKET_WARNINGS]
"""What a file of tests with containerised kernels has as its `pytestmark`."""


@dataclass(frozen=True)
class KernelPlace:
    """An engine in `base`/root, kernelspecs in `base`/prefix, notebooks in `base`/work."""

    base: Path
    engine: Engine

    @property
    def root(self) -> Path:
        """The engine's."""
        return self.engine.root

    @property
    def work(self) -> Path:
        """Where notebooks are."""
        return self.base / "work"

    def directory(self, kernel: str) -> Path:
        """A kernelspec's."""
        return self.base / "prefix/share/jupyter/kernels" / kernel

    def install(self, image: str, *flags: str) -> str:
        """A kernelspec, as a person makes it; what the command says."""
        argv = [sys.executable, "-m", "sandbox", "kernel", "install", image, "--prefix", str(self.base / "prefix"), *flags]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def kernel_place(base: Path) -> Iterator[KernelPlace]:
    """A place that all processes of the block take for theirs; afterwards nothing of its containers is left."""
    (base / "work").mkdir(exist_ok=True)
    with Engine(base / "root") as engine, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SANDBOX_ROOT", str(base / "root"))
        patch.setenv("JUPYTER_PATH", str(base / "prefix/share/jupyter"))
        patch.setenv("IPYTHONDIR", str(base / "ipython"))
        yield KernelPlace(base, engine)
        assert engine.containers(all=True) == []
    nothing_left(base / "root")


def wait_removed(engine: Engine, ids: Iterable[str]) -> None:
    """Until none of these containers is there; a kernel removes its own a moment after its front end's end."""
    for container_id in ids:
        with contextlib.suppress(ContainerNotFound):
            while engine.container(container_id):  # the test's time-out is the end of our patience
                threading.Event().wait(0.02)


class Kernel:
    """A kernel with the extension loaded."""

    def __init__(self, client: BlockingKernelClient, root: Path, interrupt: Callable[[], object]) -> None:
        self.client = client
        self.root = root
        self.interrupt = interrupt

    def wait_connected(self) -> None:
        """Until it answers on shell and is heard on iopub, whose socket connects to a restarted kernel a moment later."""
        self.client.wait_for_ready(timeout=60)
        for _ in range(60):
            self.client.kernel_info()
            with contextlib.suppress(queue.Empty):
                self.client.get_iopub_msg(timeout=1)
                return
        raise AssertionError("nothing on iopub")

    def run(
        self, code: str, *, on_stream: Callable[[], object] | None = None, on_input: Callable[[dict[str, Any]], object] | None = None
    ) -> list[dict[str, Any]]:
        """The outputs of one cell; `on_stream` is called when it first prints, `on_input` when it asks (else it may not ask).

        A cell to be interrupted then should not flush: ipykernel 7.4 by itself loses 3 of 1,410 interrupts that come while it does.
        """
        outputs: list[dict[str, Any]] = []

        def take(message: dict[str, Any]) -> None:
            if message["msg_type"] in ("stream", "display_data", "execute_result", "error", "update_display_data"):
                outputs.append({"type": message["msg_type"], **message["content"]})
            if on_stream and message["msg_type"] == "stream" and len(outputs) == 1:
                on_stream()

        self.client.execute_interactive(code, allow_stdin=on_input is not None, output_hook=take, stdin_hook=on_input, timeout=60)
        return outputs

    def text(self, code: str, stream: str = "stdout") -> str:
        """What one cell printed."""
        return "".join(each["text"] for each in self.run(code) if each["type"] == "stream" and each["name"] == stream)

    def offers(self, code: str) -> list[str]:
        """What Tab at the end of the code offers."""
        return list(self.client.complete(code, len(code), reply=True, timeout=60)["content"]["matches"])

    def error(self, code: str) -> dict[str, Any]:
        """The error of one cell."""
        return next(each for each in self.run(code) if each["type"] == "error")

    def errors(self, code: str) -> list[str]:
        """The errors of one cell, as text."""
        return ["\n".join(each["traceback"]) for each in self.run(code) if each["type"] == "error"]


def printed(outputs: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(stream, text) as a front end shows it: neighbours of one stream are one text, however the kernel's flushes cut it."""
    pieces = [(each["name"], each["text"]) for each in outputs if each["type"] == "stream"]
    return [(name, "".join(text for _, text in run)) for name, run in itertools.groupby(pieces, key=lambda piece: piece[0])]


@contextlib.contextmanager
def started_kernel(
    name: str,
    root: Path,
    cwd: Path,
    *,
    env: Mapping[str, str] | None = None,
    connection_file: str = "",
    killed: bool = False,
) -> Iterator[tuple[KernelManager, Kernel]]:
    """A kernel of that name, ready; shut down afterwards, or `killed`."""
    manager = KernelManager(kernel_name=name, connection_file=connection_file)
    manager.start_kernel(cwd=str(cwd), env={**os.environ, **(env or {})})
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield manager, Kernel(client, root, manager.interrupt_kernel)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=killed)
