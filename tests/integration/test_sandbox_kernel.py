"""The Sandbox kernel, whose cells run by our runner in images without ipykernel: jupyter_kernel_test for every language it claims, and
what that does not test."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jupyter_kernel_test
import pytest
from jupyter_client.manager import KernelManager

from kernelspec import dialects
from kernelspec.orphans import KERNEL_LABEL
from sandbox.engine import Engine
from sandbox.errors import ContainerNotFound
from tests.support.host import requires
from tests.support.kernel import KERNEL_MARKS, Kernel, kernel_place, printed, started_kernel
from tests.support.language_images import IMAGE, add_languages

pytestmark = [pytest.mark.anybody, requires("userns", "overlay"), *KERNEL_MARKS[1:]]  # the first asks for root

MEMORY = 200 << 20


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory, python_tar: Path) -> Iterator[Path]:
    """An engine with an image of all languages, and a kernelspec for each, installed as a person does."""
    with kernel_place(tmp_path_factory.mktemp("sandboxkernel")) as place, pytest.MonkeyPatch.context() as patch:
        add_languages(place.engine, python_tar, tmp_path_factory.mktemp("context"))
        patch.chdir(place.base)
        for each in dialects.DIALECTS:
            flags = ["--language", each.language, "--name", f"sandbox-{each.language}", "-m", str(MEMORY), "--network", "none"]
            assert "the Sandbox kernel" in place.install(IMAGE, *flags)
        yield place.root


class _Language(jupyter_kernel_test.KernelTests):
    __test__ = False
    supported_history_operations = ("tail", "range", "search")


class TestPython(_Language):
    __test__ = True
    kernel_name = "sandbox-python"
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = (
        {"text": "zi", "matches": {"zip"}},
        {"text": "import tempf", "matches": {"tempfile"}},
        {"text": "'é'; str.startsw", "matches": {"startswith"}},
    )
    complete_code_samples = ("1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n")
    incomplete_code_samples = ("print('''hello", "def f(x):\n  x*2")
    invalid_code_samples = ("import = 7q", "f(]")
    code_generate_error = "raise ValueError('no')"
    code_execute_result = ({"code": "1+2+3", "result": "6"}, {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"})
    code_history_pattern = "1?2*"
    code_inspect_sample = "zip"
    code_display_data = (
        {"code": "display({'text/html': '<b>x</b>', 'text/plain': 'x'}, raw=True)", "mime": "text/html"},
        {"code": "from IPython.display import Image; display(Image(b'\\x89PNG1'))", "mime": "image/png"},
    )
    code_clear_output = "from IPython.display import clear_output; clear_output()"


class TestJavaScript(_Language):
    __test__ = True
    kernel_name = "sandbox-javascript"
    language_name = "javascript"
    file_extension = ".js"
    code_hello_world = "console.log('hello, world')"
    code_stderr = "console.error('test')"
    completion_samples = ({"text": "Math.sq", "matches": {"sqrt"}}, {"text": "let é = JSON.par", "matches": {"parse"}})
    complete_code_samples = ("1", "function f(x) { return 2 * x }", "await 1")
    incomplete_code_samples = ("function f(x) {", "`a")
    invalid_code_samples = ("let = = 7", "f(]")
    code_generate_error = "throw new TypeError('no')"
    code_execute_result = ({"code": "1+2+3", "result": "6"}, {"code": "[1, 2].map(n => n * 10)", "result": "[ 10, 20 ]"})
    code_history_pattern = "1?2*"
    code_inspect_sample = "Math.max"
    code_display_data = ({"code": "display({'text/html': '<b>x</b>'}, {raw: true})", "mime": "text/html"},)


class _Shell(_Language):
    file_extension = ".sh"
    code_hello_world = "echo hello, world"
    code_stderr = "echo test >&2"
    completion_samples = ({"text": "echo; expor", "matches": {"export"}},)
    complete_code_samples = ("echo 1", "f() { echo x; }")
    incomplete_code_samples = ("if true; then", "echo 'a", "echo $(ls", "for x in 1 2")
    invalid_code_samples = ("fi", "echo )")
    code_generate_error = "exit 3"
    code_inspect_sample = "cd"
    code_display_data = ({"code": "printf '<b>x</b>' > /tmp/x.html; display /tmp/x.html", "mime": "text/html"},)


class TestBash(_Shell):
    __test__ = True
    kernel_name = "sandbox-bash"
    language_name = "bash"


class TestSh(_Shell):
    __test__ = True
    kernel_name = "sandbox-sh"
    language_name = "sh"


# What jupyter_kernel_test leaves out


def started(
    root: Path, language: str, *, env: dict[str, str] | None = None, killed: bool = False
) -> AbstractContextManager[tuple[KernelManager, Kernel]]:
    """A kernel of that language, ready; shut down afterwards, or `killed`."""
    return started_kernel(f"sandbox-{language}", root, root.parent, env=env, killed=killed)


@pytest.fixture(scope="module")
def python(root: Path) -> Iterator[tuple[KernelManager, Kernel]]:
    """One kernel for the tests that leave it as it was."""
    with started(root, "python") as both:
        yield both


def test_cells_run_in_the_container_in_the_notebooks_directory(root: Path, python: tuple[KernelManager, Kernel]) -> None:
    code = "import os, socket; print(os.getcwd(), [name for _, name in socket.if_nameindex()], 'ipykernel' in __import__('sys').modules)"
    assert python[1].text(code) == f"{root.parent} ['lo'] False\n"
    python[1].run("open('/made-inside', 'w').close(); open('shared.txt', 'w').write('x')")
    assert not Path("/made-inside").exists()
    assert (root.parent / "shared.txt").read_text() == "x"


ASKS = {
    "python": ("print(input('name? ')[::-1])", "b anna\n"),
    "javascript": ("console.log(prompt('name?').toUpperCase())", "ANNA B\n"),
    "bash": ("read -p 'name? ' x; echo \"<$x>\"", "<anna b>\n"),
    "sh": ("read -p 'name? ' x; echo \"<$x>\"", "<anna b>\n"),
}
ENDLESS = {
    "python": ("kept = 5; print('on', flush=True)\nwhile True: pass", "print(kept)"),
    "javascript": ("let kept = 5; await new Promise(setImmediate); console.log('on'); await new Promise(() => {})", "console.log(kept)"),
    "bash": ("kept=5; echo on; sleep 1000", "echo $kept"),
    "sh": ("kept=5; echo on; sleep 1000", "echo $kept"),
}


@pytest.mark.parametrize("language", ENDLESS)
def test_a_kernel_asks_is_interrupted_and_keeps_its_state(root: Path, language: str) -> None:
    with started(root, language) as (_, kernel):
        asking, answer = ASKS[language]
        outputs = kernel.run(asking, on_input=lambda _: kernel.client.input("anna b"))
        assert printed(outputs) == [("stdout", answer)]
        endless, look = ENDLESS[language]
        client = kernel.client
        by_signal = kernel.run(endless, on_stream=kernel.interrupt)
        by_message = kernel.run(endless, on_stream=lambda: client.control_channel.send(client.session.msg("interrupt_request", {})))
        for outputs in (by_signal, by_message):
            assert outputs[-1]["ename"] == "KeyboardInterrupt"
        assert kernel.text(look) == "5\n"


def test_nobody_is_asked_where_the_front_end_does_not_allow_it(python: tuple[KernelManager, Kernel]) -> None:
    assert python[1].error("input('x')")["ename"] == "EOFError"


def test_errors_have_the_cells_own_lines(python: tuple[KernelManager, Kernel]) -> None:
    error = python[1].error("def f(x):\n    return 1 / x\nf(0)")
    assert (error["ename"], error["evalue"]) == ("ZeroDivisionError", "division by zero")
    assert [line for line in error["traceback"] if "line 2, in f" in line]


def test_results_displays_and_prints_come_in_order(python: tuple[KernelManager, Kernel]) -> None:
    outputs = python[1].run("import sys\nprint('a'); print('b', file=sys.stderr); display(1); print('c')\n2")
    kinds = [each.get("text") or each["data"]["text/plain"] for each in outputs]
    assert kinds == ["a\n", "b\n", "1", "c\n", "2"]
    assert outputs[-1]["execution_count"] == python[1].run("3")[-1]["execution_count"] - 1


def test_html_of_a_container_has_no_scripts(python: tuple[KernelManager, Kernel]) -> None:
    shown = python[1].run("display({'text/html': '<script>alert(1)</script>', 'text/plain': 'x'}, raw=True)")[0]["data"]
    assert "<script" not in shown["text/html"]
    assert "sandbox=" in shown["text/html"]


def test_out_of_memory_is_the_cells_error_and_the_next_cell_starts_afresh(root: Path) -> None:
    with started(root, "python", env={"KERNEL_MEMORY": "160m"}) as (manager, kernel):
        kernel.run("x = 1; open('/kept', 'w').write('file')")
        error = kernel.error("y = bytearray(400 << 20)")
        assert (error["ename"], error["evalue"]) == ("ContainerError", "out of memory: killed at the 160 MiB limit")
        outputs = kernel.run("print('x' in globals())")
        assert manager.is_alive()
        assert [each["text"] for each in outputs if each["name"] == "stdout"] == ["False\n"]
        assert "starts afresh" in "".join(each["text"] for each in outputs if each["name"] == "stderr")
        assert kernel.text("print(open('/kept').read())") == "file\n"
        with Engine(root) as engine:
            container = engine.container(_containers(engine, manager)[0])
            container.kill(signal.SIGTERM)  # while no cell runs
            container.wait(30)
        assert kernel.text("1", "stderr") == "session kernel: killed by SIGTERM; starts afresh, without variables\n"


def _containers(engine: Engine, manager: KernelManager) -> list[str]:
    kernel_id = Path(manager.connection_file).stem.removeprefix("kernel-")
    return [each.id for each in engine.containers(all=True) if each.labels.get(KERNEL_LABEL) == kernel_id]


def test_restart_forgets_variables_and_keeps_files_also_after_a_kill(root: Path) -> None:
    with started(root, "python") as (manager, kernel), Engine(root) as engine:
        kernel.run("x = 1; open('/kept', 'w').write('file')")
        before = _containers(engine, manager)
        assert len(before) == 1
        manager.restart_kernel(now=False)
        kernel.wait_connected()
        assert kernel.text("print('x' in globals(), open('/kept').read())") == "False file\n"
        manager.restart_kernel(now=True)  # SIGKILL to the kernel: its container ends because its client is gone
        kernel.wait_connected()
        assert kernel.text("print(open('/kept').read())") == "file\n"
        assert _containers(engine, manager) == before
        kernel.run("%container reset kernel")
        assert kernel.text("import os; print(os.path.exists('/kept'))") == "False\n"
    with Engine(root) as engine:
        assert _containers(engine, manager) == []


def test_container_that_may_more_is_not_used_again(root: Path) -> None:
    notebook = root.parent / "changes.ipynb"
    document = {"cells": [], "metadata": {"sandbox": {}}, "nbformat": 4, "nbformat_minor": 5}
    notebook.write_text(json.dumps(document))
    with started(root, "python", env={"JPY_SESSION_NAME": str(notebook)}) as (manager, kernel):
        kernel.run("open('/kept', 'w').close()")
        notebook.write_text(json.dumps({**document, "metadata": {"sandbox": {"memory": "100m"}}}))
        manager.restart_kernel()
        kernel.wait_connected()
        outputs = kernel.run("import os; print(os.path.exists('/kept'))")
        assert [output.get("text") or output["data"]["text/plain"] for output in outputs] == [
            "False\n",
            "what the kernel may do has changed: its container is another, without the files of the one before",
        ]
        assert len(kernel.run("1")) == 1
        assert "at the 100 MiB limit" in kernel.error("x = bytearray(150 << 20)")["evalue"]


def test_what_a_kernel_killed_for_good_left_goes_with_the_next_start(root: Path) -> None:
    with Engine(root) as engine:
        with started(root, "sh", killed=True) as (manager, kernel):
            kernel.run("true")
            left = engine.container(_containers(engine, manager)[0])
        left.wait(30)
        with started(root, "sh"), pytest.raises(ContainerNotFound):
            while True:  # its thread takes a moment; the test's time-out is the end of our patience
                engine.container(left.id)
                threading.Event().wait(0.02)


def test_our_magics_work_and_are_completed(python: tuple[KernelManager, Kernel]) -> None:
    assert "localhost/languages" in str(python[1].run("%container images")[-1]["data"]["text/plain"])
    assert "--memory" in python[1].offers("%%container --mem")


def test_shell_escapes_of_a_python_cell_run_inside(root: Path, python: tuple[KernelManager, Kernel]) -> None:
    assert python[1].text("!echo $PPID; pwd\n%matplotlib inline\nhere = !echo x\nprint(here)") == f"2\n{root.parent}\n['x']\n"
    assert python[1].error("%timeit 1")["ename"] == "SyntaxError"


def test_notebook_may_tighten_and_not_give(root: Path) -> None:
    notebook = root.parent / "asks.ipynb"
    for asked, fails in (({"memory": "100m"}, False), ({"volumes": ["/etc:/etc:ro"]}, True)):
        notebook.write_text(json.dumps({"cells": [], "metadata": {"sandbox": asked}, "nbformat": 4, "nbformat_minor": 5}))
        with started(root, "python", env={"JPY_SESSION_NAME": str(notebook)}) as (_, kernel):
            outputs: list[dict[str, Any]] = kernel.run("x = bytearray(150 << 20)")
            assert outputs[-1]["evalue"].startswith("out of memory" if not fails else "notebook metadata: sandbox asks for volumes")


def test_kernel_of_a_missing_image_says_so_in_its_first_cell(root: Path) -> None:
    directory = Path(os.environ["JUPYTER_PATH"]) / "kernels"
    spec = json.loads((directory / "sandbox-python/kernel.json").read_text())
    spec["metadata"]["sandbox_kernel"]["image"] = "localhost/missing"
    spec["argv"][3] = str(directory / "sandbox-missing")
    (directory / "sandbox-missing").mkdir()
    (directory / "sandbox-missing/kernel.json").write_text(json.dumps(spec))
    with started(root, "missing") as (_, kernel):
        assert "localhost/missing" in kernel.error("1")["evalue"]
