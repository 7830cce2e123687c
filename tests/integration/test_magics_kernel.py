"""The magics in a real ipykernel, as a front end sees them: messages, not return values."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from sandbox.engine import Engine

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    # zmq's sockets and loops are jupyter_client's to close
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Kernel:
    """A kernel with the extension loaded."""

    def __init__(self, client: BlockingKernelClient, root: Path) -> None:
        self.client = client
        self.root = root

    def run(self, code: str) -> list[dict[str, Any]]:
        """The outputs of one cell."""
        outputs: list[dict[str, Any]] = []

        def take(message: dict[str, Any]) -> None:
            if message["msg_type"] in ("stream", "display_data", "execute_result", "error", "update_display_data"):
                outputs.append({"type": message["msg_type"], **message["content"]})

        self.client.execute_interactive(code, allow_stdin=False, output_hook=take, timeout=60)
        return outputs

    def text(self, code: str, stream: str = "stdout") -> str:
        """What one cell printed."""
        return "".join(each["text"] for each in self.run(code) if each["type"] == "stream" and each["name"] == stream)

    def error(self, code: str) -> dict[str, Any]:
        """The error of one cell."""
        return next(each for each in self.run(code) if each["type"] == "error")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One kernel for the module, with a busybox image."""
    directory = tmp_path_factory.mktemp("magics")
    (directory / "tree/bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", directory / "tree/bin/busybox")
    for name in ("sh", "cat", "echo", "sleep", "tail", "id", "env"):
        (directory / "tree/bin" / name).symlink_to("busybox")
    subprocess.run(["tar", "-C", str(directory / "tree"), "-cf", str(directory / "rootfs.tar"), "."], check=True)
    root = directory / "state"
    with Engine(root) as engine:
        engine.import_image(directory / "rootfs.tar", "localhost/box", changes=['CMD ["sh"]'])
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(directory), env={**os.environ, "SANDBOX_ROOT": str(root)})
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        opened = Kernel(client, root)
        assert not [each for each in opened.run("%load_ext sandbox") if each["type"] == "error"]
        yield opened
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)


def test_build_then_run(kernel: Kernel) -> None:
    outputs = kernel.run("%%dockerfile -t localhost/built\nFROM localhost/box\nRUN echo made > /made\n")
    assert {"text/plain", "text/html"} <= set(outputs[0]["data"])
    assert kernel.text("%%container localhost/built\ncat /made; echo $0") == "made\nsh\n"


def test_unchanged_step_says_cached(kernel: Kernel) -> None:
    code = "%%dockerfile\nFROM localhost/box\nRUN echo twice > /twice\n"
    kernel.run(code)
    last = [each for each in kernel.run(code) if "data" in each][-1]
    assert last["data"]["text/plain"].count("CACHED") == 2


def test_usage_line_is_the_result(kernel: Kernel) -> None:
    outputs = kernel.run("%%container -m 64m localhost/box\ntrue")
    result = next(each for each in outputs if each["type"] == "execute_result")
    assert result["data"]["text/plain"].startswith("✓ ")
    assert "/ 64 MiB" in result["data"]["text/plain"]
    assert result["metadata"]["org.jupyter.sandbox"]["exit_code"] == 0


def test_stderr_and_exit_code(kernel: Kernel) -> None:
    error = kernel.error("%%container localhost/box\necho bad >&2; exit 3")
    assert error["ename"] == "CellFailed"
    assert error["evalue"] == "sh: exit code 3"
    assert kernel.text("%%container --no-raise-error localhost/box\necho bad >&2; exit 3", "stderr").startswith("bad\n")


def test_memory_limit_is_named_in_the_error(kernel: Kernel) -> None:
    error = kernel.error("%%container -m 32m localhost/box\ntail /dev/zero")
    assert error["evalue"] == "out of memory: killed at the 32 MiB limit"
    assert len(error["traceback"]) == 1


def test_dockerfile_error_has_a_caret_and_a_suggestion(kernel: Kernel) -> None:
    lines = "\n".join(kernel.error("%%dockerfile\nFROM localhost/box\nRAN x\n")["traceback"])
    assert "^^^" in lines
    assert "did you mean RUN?" in lines


def test_failed_step_shows_its_cell_line_and_output(kernel: Kernel) -> None:
    lines = "\n".join(kernel.error("%%dockerfile\nFROM localhost/box\nRUN echo why; exit 7\n")["traceback"])
    assert "exit code 7" in lines
    assert "cell line 3 of 3" in lines
    assert "    why" in lines


def test_out_variable_and_expansion(kernel: Kernel) -> None:
    kernel.run("name = 'world'")
    kernel.run("%%container --out said -e WHO={name} localhost/box\necho hello $WHO")
    assert kernel.text("print(repr(said))") == "'hello world\\n'\n"


def test_verbs_print_into_the_cell(kernel: Kernel) -> None:
    assert "localhost/box" in kernel.text("%container images")
    assert kernel.error("%container rmi localhost/nothing")["ename"] == "ContainerError"


def test_exec_in_a_background_container(kernel: Kernel) -> None:
    kernel.run("%container run -d --name bg localhost/box sleep 100")
    try:
        assert kernel.text("%%container exec bg\necho inside") == "inside\n"
    finally:
        kernel.run("%container rm -f bg")
    assert "bg" not in kernel.text("%container ps -a")


def test_nothing_runs_after_the_cells(kernel: Kernel) -> None:
    with Engine(kernel.root) as engine:
        assert engine.containers(all=True) == []
