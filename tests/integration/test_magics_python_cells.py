"""Python cells in a real kernel: results, sessions, values, files, background."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.engine import Engine
from tests.support.host import requires
from tests.support.kernel import Kernel, printed, started_kernel
from tests.support.leftovers import nothing_left

pytestmark = [
    pytest.mark.anybody,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, python_tar: Path) -> Iterator[Kernel]:
    """One kernel for the module, with the captured Python."""
    directory = tmp_path_factory.mktemp("cells")
    root = directory / "state"
    with Engine(root) as engine:
        engine.load(python_tar)
    with started_kernel("python3", root, directory, env={"SANDBOX_ROOT": str(root)}) as (_, opened):
        opened.run("%load_ext sandbox\nimport numpy as np, pandas as pd")
        yield opened
    with Engine(root) as engine:
        for container in engine.containers(all=True):
            container.remove(force=True)
    nothing_left(root)


PY = "localhost/python"

UPDATES = "import os; os.environ.pop('PYTEST_CURRENT_TEST', None)"
"""What a kernel runs to know that its front end is no nbval, and implements display updates."""


def test_last_expression_display_and_output_come_in_order(kernel: Kernel) -> None:
    outputs = kernel.run(f"%%container {PY}\nprint('a')\ndisplay('b')\nimport sys; sys.stderr.write('c')\n40 + 2")
    told: list[str] = []
    for before, each in zip([{}, *outputs], outputs, strict=False):
        text = each.get("text") or each["data"]["text/plain"]
        if each["type"] == "stream" and each.get("name") == before.get("name"):  # one text, however it was cut on its way
            told[-1] += text
        else:
            told.append(text)
    assert told[:4] == ["a\n", "'b'", "c", "42"]
    assert told[4].startswith("✓ ")


def test_html_of_a_cell_is_framed_and_dropped_by_sandbox(kernel: Kernel) -> None:
    body = "class P:\n  def _repr_html_(self): return '<script>1</script>'\n  def __repr__(self): return 'P'\nP()"
    assert 'sandbox=""' in kernel.run(f"%%container {PY}\n{body}")[0]["data"]["text/html"]
    assert set(kernel.run(f"%%sandbox {PY}\n{body}")[0]["data"]) == {"text/plain"}


def test_error_is_the_cells_own_traceback(kernel: Kernel) -> None:
    error = kernel.error(f"%%container {PY}\n\ndef f():\n    return 1 / 0\nf()")
    assert error["evalue"] == "ZeroDivisionError: division by zero"
    assert error["traceback"][:4] == [
        "Traceback (most recent call last):",
        '  File "<cell>", line 5, in <module>',
        "    f()",
        '  File "<cell>", line 4, in f',
    ]
    assert kernel.error(f"%%container {PY}\nimport sys; sys.exit(3)")["evalue"] == "python: exit code 3"


def test_a_cell_that_spoils_its_own_result_is_told_so(kernel: Kernel) -> None:
    error = kernel.error(f"%%container {PY}\nimport os; os.write(3, b'rubbish' * 9); print('on')")
    assert error["evalue"].startswith("its result is lost: a frame")


def test_session_keeps_variables_lists_and_resets(kernel: Kernel) -> None:
    kernel.run(f"%%container --session w {PY}\nx = 6")
    assert kernel.run("%%container --session w\nx * 7")[0]["data"]["text/plain"] == "42"
    assert "idle" in kernel.run("%container sessions")[0]["data"]["text/plain"]
    assert "memory" not in kernel.text("%container reset w")
    assert "not there yet" in kernel.error("%%container --session w\nx")["evalue"]


def test_interrupt_keeps_the_session(kernel: Kernel) -> None:
    kernel.run(UPDATES)  # under nbval a Python cell shows what stands at its end
    kernel.run(f"%%container --session i {PY}\nx = 1")
    outputs = kernel.run(
        "%%container --session i\nprint('on')\nimport os; os.system('sleep 1000'); os.system('sleep 1000')\nimport time; time.sleep(1000)",
        on_stream=kernel.interrupt,
    )
    assert next(each for each in outputs if each["type"] == "error")["ename"] == "KeyboardInterrupt"
    assert kernel.run("%%container --session i\nx")[0]["data"]["text/plain"] == "1"
    kernel.run("%container reset i")


def test_values_go_in_and_out(kernel: Kernel) -> None:
    kernel.run("rows, name = [1, 2, {'k': None}], 'ü'")
    kernel.run(f"%%container --in rows,name -o out,n {PY}\nout = [*rows, name]; n = len(out)")
    assert kernel.text("print(out, n)") == "[1, 2, {'k': None}, 'ü'] 4\n"


@requires("root")  # numpy is not installed for the ordinary user of the tests
def test_values_that_need_a_library_inside_say_so(kernel: Kernel) -> None:
    assert "needs numpy" in kernel.error(f"%%container --in a {PY}\na" if kernel.run("a = np.zeros(3)") == [] else "")["evalue"]


def test_files_of_out_are_shown_and_saved(kernel: Kernel) -> None:
    outputs = kernel.run(f"%%container --save-files saved {PY}\nopen('/out/t.csv', 'w').write('a,b\\n1,2\\n');")
    assert "<td>1</td>" in outputs[0]["data"]["text/html"]
    assert kernel.text("print(open('saved/t.csv').read())") == "a,b\n1,2\n\n"


def test_background_handle_tells_how_it_stands(kernel: Kernel) -> None:
    kernel.run(f"%%container --bg --proc p {PY}\nprint('up', flush=True)\nimport time; time.sleep(1000)")
    assert kernel.text("print(p.status, type(_).__name__)") == "running Handle\n"
    kernel.run("while 'up' not in p.logs(): pass")
    assert "\nup\n" in kernel.run("p")[0]["data"]["text/plain"]
    assert kernel.text("p.stop(0); print(p.wait().why, p.status); p.remove()") == "signal exited\n"


@requires("network")
@pytest.mark.network
def test_install_pip_reaches_the_registry_and_is_one_more_layer(kernel: Kernel) -> None:
    assert kernel.errors(f"%%dockerfile -t localhost/with-six\nFROM {PY}") == []
    assert kernel.errors("%install -t localhost/with-six pip six==1.17.0") == []
    assert kernel.text("%%container localhost/with-six\nimport six\nprint(six.__version__)") == "1.17.0\n"


def test_exec_shows_results_and_hands_values_over(kernel: Kernel) -> None:
    kernel.run(f"%container run -d --name inside {PY} sleep 1000\ngiven = [1, 2, 3]")
    try:
        outputs = kernel.run(
            "%%container exec --in given -o total -e WHO=me -w /tmp inside\n"
            "import os, inspect\ndef f(): return 1\nprint(inspect.getsource(f))\ntotal = sum(given)\n(os.environ['WHO'], os.getcwd())"
        )
        assert printed(outputs) == [("stdout", "def f(): return 1\n\n")]
        assert [each["data"]["text/plain"] for each in outputs if each["type"] == "display_data"] == ["('me', '/tmp')"]
        assert kernel.text("print(total)") == "6\n"
        error = kernel.error("%%container exec inside\nx = 1\n1 / 0")
        assert error["evalue"] == "ZeroDivisionError: division by zero"
        assert 'File "<cell>", line 3' in "\n".join(error["traceback"])
        kernel.run(UPDATES)  # under nbval a Python cell shows what stands at its end
        waiting = "%%container exec inside\nimport time\nprint('on')\ntry:\n    time.sleep(1000)\nfinally:\n    open('/tmp/caught', 'w')"
        outputs = kernel.run(waiting, on_stream=kernel.interrupt)
        assert [each["ename"] for each in outputs if each["type"] == "error"] == ["KeyboardInterrupt"]
        assert kernel.text("%%container exec --lang sh inside\nls /tmp") == "caught\n"
        assert kernel.text("%%container exec inside cat\nstdin") == "stdin\n"
        assert "for Python" in kernel.error("%%container exec --in given --lang sh inside\n:")["evalue"]
    finally:
        kernel.run("%container rm -f inside")
    assert kernel.error("%%container exec inside\n1")["ename"] == "ContainerNotFound"


def test_docker_words_mean_this_engine(kernel: Kernel) -> None:
    assert kernel.run("%load_ext sandbox.docker") == []
    assert PY in kernel.run("!docker images")[0]["data"]["text/plain"]
    assert PY in kernel.text("found = !docker images\nprint(*(each['Repository'] for each in found))").split()
    assert kernel.text(f"%%docker run --rm {PY} sh\necho $((6 * 7))") == "42\n"
    assert kernel.text("!echo docker").strip() == "docker"
    assert "takes no body" in kernel.error("%%docker ps\nx")["evalue"]
    assert kernel.text(f"%%docker run -i --rm {PY} cat\nread by cat") == "read by cat\n"
    assert kernel.errors(f"%%docker build -t localhost/words -\nFROM {PY}\nENTRYPOINT [\"cat\"]") == []
    assert kernel.text("%%docker run -i localhost/words\nread by its own program") == "read by its own program\n"
    assert "not in the build context" in kernel.errors(f"%%docker build -f - -\nFROM {PY}\nCOPY x /")[0]
    assert kernel.text("!docker images --format '{{.Repository}}' | grep -c '^localhost/words$'").strip() == "1"
    assert "rmi" in kernel.offers("!docker rm")
    assert "usage: %%docker run" in kernel.client.inspect("%docker", 5, reply=True, timeout=60)["content"]["data"]["text/plain"]


def test_what_verbs_let_programs_print_stands_in_the_cell(kernel: Kernel) -> None:
    program = "import os; [os.write(1, bytes([byte])) for byte in 'né'.encode()]; os.write(2, b'told')"
    outputs = kernel.run(f'%container run --rm {PY} python -c "{program}"')
    assert printed(outputs) == [("stdout", "né"), ("stderr", "told")]
    kernel.run(f"%container run -d --name talker {PY} sh -c 'echo out; echo err >&2'\n%container wait talker")
    assert kernel.text("%container logs talker") == "out\n"
    kernel.run("%container rm talker")


def test_input_is_asked_for_when_the_front_end_allows_it(kernel: Kernel) -> None:
    assert kernel.error(f"%%container {PY}\ninput('who? ')")["evalue"] == "EOFError: EOF when reading a line"
    answers: list[str] = []

    def answer(message: dict[str, object]) -> None:
        answers.append(str(message["content"]["prompt"]))  # type: ignore[index]
        kernel.client.input("me")

    taken = kernel.run(f"%%container {PY}\ninput('who? ')", on_input=answer)
    assert answers == ["who? "]
    assert taken[0]["data"]["text/plain"] == "'me'"


def test_nothing_is_left_when_the_kernel_goes(kernel: Kernel) -> None:
    kernel.run(f"%%container --session last {PY}\nimport threading")
    with Engine(kernel.root) as engine:
        assert len(engine.containers()) == 1
        kernel.run("%unload_ext sandbox")
        for _ in range(100):
            if not engine.containers(all=True):
                break
            threading.Event().wait(0.05)
        assert engine.containers(all=True) == []
    kernel.run("%load_ext sandbox")


def test_a_display_is_updated_in_its_place_and_reaches_no_others(kernel: Kernel) -> None:
    kernel.run(UPDATES)
    outputs = kernel.run(
        f"%%container {PY}\nhandle = display('a', display_id=True)\nfor n in range(300): handle.update(n)\ndisplay('b', display_id='x')\n"
        "from IPython.display import update_display\nupdate_display('c', display_id='x')"
    )
    first, *rest = (each for each in outputs if each["type"].endswith("display_data"))
    assert first["data"]["text/plain"] == "'a'"
    assert rest[-1]["type"] == "update_display_data"
    last = {each["transient"]["display_id"]: each["data"]["text/plain"] for each in (first, *rest)}
    assert sorted(last.values()) == ["'c'", "299"]
    assert all(len(name) > 32 for name in last), "an id chosen inside cannot be one of the notebook's"
    assert len(rest) < 100


def test_clear_output_and_notebook_names_work_without_ipython(kernel: Kernel) -> None:
    kernel.run(UPDATES)
    cleared: list[object] = []

    def take(message: dict[str, object]) -> None:
        cleared.append(message["msg_type"])

    code = (
        "from IPython.display import HTML, Markdown, clear_output, display\nprint('x')\nclear_output(wait=True)\ndisplay(HTML('<b>1</b>'))"
    )
    kernel.client.execute_interactive(f"%%container {PY}\n{code}\nMarkdown('**2**')", output_hook=take, timeout=60)
    assert cleared.index("stream") < cleared.index("clear_output") < cleared.index("display_data")
    shown = [each["data"] for each in kernel.run(f"%%container {PY}\n{code}\nMarkdown('**2**')") if each["type"] == "display_data"]
    assert shown[0]["text/html"] == "<b>1</b>"
    assert shown[1]["text/markdown"] == "**2**"


def test_a_million_displays_are_cut_off_and_the_cell_ends(kernel: Kernel) -> None:
    outputs = kernel.run(f"%%container {PY}\nfor n in range(1_000_000): display(n)\nprint('done')")
    assert 0 < sum(each["type"] == "display_data" for each in outputs) <= 1001
    assert any(each["type"] == "stream" and "done" in each["text"] for each in outputs)
