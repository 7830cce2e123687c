"""A kernel as a front end sees it: code in, messages out."""

from __future__ import annotations

import contextlib
import itertools
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient


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
        """The outputs of one cell; `on_stream` is called when it first prints, `on_input` when it asks (else it may not ask)."""
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
