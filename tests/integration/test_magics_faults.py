"""Cells when something goes wrong around them: notebooks that share a name, front ends that close, processes that are killed, floods."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager

from sandbox.engine import Container, Engine
from tests.support.host import requires
from tests.support.kernel import Kernel
from tests.support.leftovers import nothing_left

pytestmark = [
    requires("root"),
    # zmq's sockets and loops are jupyter_client's to close
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
IMAGE = "localhost/python"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, python_tar: Path) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("faults") / "engine"
    with Engine(place) as engine:
        engine.load(python_tar)
        yield place
        engine.prune_containers()  # what killed supervisors left
    nothing_left(place)


class Notebook(Kernel):
    """A kernel that can be killed."""

    def __init__(self, manager: KernelManager, root: Path) -> None:
        super().__init__(manager.blocking_client(), root, manager.interrupt_kernel)
        self.manager = manager
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        assert self.errors("%load_ext sandbox") == []

    def reopen(self) -> None:
        """Close the front end, open it again."""
        self.client.stop_channels()
        self.client = self.manager.blocking_client()
        self.client.start_channels()


@pytest.fixture(scope="module")
def open_notebook(root: Path) -> Iterator[Callable[[], Notebook]]:
    managers: list[KernelManager] = []

    def start() -> Notebook:
        managers.append(KernelManager(kernel_name="python3"))
        environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        managers[-1].start_kernel(cwd=str(root.parent), env={**environment, "SANDBOX_ROOT": str(root), "SANDBOX_NETWORK": "none"})
        return Notebook(managers[-1], root)

    yield start
    for manager in managers:
        manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def notebook(open_notebook: Callable[[], Notebook]) -> Notebook:
    return open_notebook()


def running(root: Path, count: int) -> list[Container]:
    """The containers that run, as soon as they are that many."""
    with Engine(root) as engine:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            found = engine.containers()
            if len(found) == count:
                return found
            threading.Event().wait(0.02)
    raise AssertionError(f"not {count} containers: {found}")


def test_a_session_of_one_name_in_two_notebooks_is_two(open_notebook: Callable[[], Notebook], notebook: Notebook) -> None:
    other = open_notebook()
    for each, value in ((notebook, "one"), (other, "two")):
        each.run(f"%%container --session shared {IMAGE}\nx = {value!r}")
    running(notebook.root, 2)
    said = [each.run("%%container --session shared\nx")[0]["data"]["text/plain"] for each in (notebook, other)]
    assert said == ["'one'", "'two'"]
    os.kill(int(other.text("import os; print(os.getpid())")), signal.SIGKILL)
    running(notebook.root, 1)
    assert notebook.run("%%container --session shared\nx")[0]["data"]["text/plain"] == "'one'"
    notebook.run("%container reset shared")


def test_a_cell_outlives_its_front_end_and_ends_with_its_kernel(open_notebook: Callable[[], Notebook]) -> None:
    closed = open_notebook()
    closed.client.execute(f"%%container {IMAGE}\nimport time\nprint('on', flush=True)\ntime.sleep(1000)")
    running(closed.root, 1)
    closed.reopen()
    running(closed.root, 1)
    closed.interrupt()
    running(closed.root, 0)
    closed.client.wait_for_ready(timeout=60)
    closed.client.execute(f"%%container {IMAGE}\nimport time\ntime.sleep(1000)")
    running(closed.root, 1)
    assert closed.manager.provisioner is not None
    os.kill(closed.manager.provisioner.pid, signal.SIGKILL)
    running(closed.root, 0)


def kill_supervisor(root: Path) -> None:
    pid = running(root, 1)[0].pid
    supervisor = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)


@pytest.mark.parametrize("where", ["", "--session killed "])
def test_a_supervisor_that_is_killed_is_told_and_the_next_cell_runs(notebook: Notebook, where: str) -> None:
    cell = f"%%container {where}{IMAGE}\nprint('on')\nimport time\ntime.sleep(1000)"
    outputs = notebook.run(cell, on_stream=lambda: kill_supervisor(notebook.root))
    errors = [each for each in outputs if each["type"] == "error"]
    assert [each["ename"] for each in errors] == ["CellFailed"]
    assert "[lost]" in "\n".join(errors[0]["traceback"])
    assert notebook.text(f"%%container {where}{IMAGE}\nprint('again')") == "again\n"
    notebook.run("%container reset killed" if where else "pass")


FLOODS = {
    "one line of 100 MB": "print('x' * 100_000_000)",
    "bytes that are no text": "import os\nfor n in range(200): os.write(1, bytes(range(256)) * 40)",
    "characters cut in two": "import os\nfor byte in 'é€😀'.encode() * 50: os.write(1, bytes([byte]))",
    "both streams": "import sys\nfor n in range(100_000): print(n)\nprint('end', file=sys.stderr)",
}


@pytest.mark.parametrize("code", FLOODS.values(), ids=FLOODS)
def test_floods_are_capped_and_the_cell_ends(notebook: Notebook, code: str) -> None:
    outputs = notebook.run(f"%%container --session flood {IMAGE}\n{code}\nprint('last')")
    text = "".join(each["text"] for each in outputs if each["type"] == "stream" and each["name"] == "stdout")
    assert text.endswith("last\n")
    assert len(text) < 1_200_000
    assert ("more …" in text) == (len(text) > 1_000_000)
    assert "😀€" not in text
    assert not [each for each in outputs if each["type"] == "error"]


def test_an_error_of_100_mb_is_cut_and_the_session_stays(notebook: Notebook) -> None:
    notebook.run(f"%%container --session flood {IMAGE}\nkept = 1")
    error = notebook.error("%%container --session flood\nraise ValueError('x' * 100_000_000)")
    assert error["evalue"].startswith("ValueError: xxx")
    assert len("".join(error["traceback"])) < 1_200_000
    assert notebook.run("%%container --session flood\nkept")[0]["data"]["text/plain"] == "1"
    shown = notebook.run("%%container --session flood\nclass Page:\n    def _repr_html_(self): return 'x' * 50_000_000\nPage()")
    assert "too large to show" in shown[0]["data"]["text/plain"]
    assert notebook.run("%%container --session flood\nkept")[0]["data"]["text/plain"] == "1"
    notebook.run("%container reset flood")
