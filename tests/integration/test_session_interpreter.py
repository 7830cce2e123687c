"""A warm interpreter in a real container: what cells print, show, raise and hand over."""

from __future__ import annotations

import ast
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.engine import Engine
from sandbox.errors import InvalidInput, WrongState
from sandbox.options import RunOptions
from sandbox.session import inside
from sandbox.session.believed import MOST_DISPLAYS, CellCode, CellOutcome
from sandbox.session.interpreter import Interpreter
from sandbox.session.session import Session
from tests.support.leftovers import nothing_left
from tests.support.recorder import Recorder, interrupted_at_first

pytestmark = pytest.mark.anybody


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, python_tar: Path) -> Iterator[Engine]:
    """One engine for the module: loading the image takes longer than the tests."""
    root = tmp_path_factory.mktemp("sessions") / "engine"
    with Engine(root) as made:
        made.load(python_tar)
        yield made
        assert made.containers(all=True) == []
    nothing_left(root)


@pytest.fixture
def python_image() -> str:
    return "localhost/python"


@pytest.fixture
def session(engine: Engine, python_image: str) -> Iterator[Session]:
    made = Session("s", python_image, lambda: engine.interpreter(python_image, ["python3"], options=RunOptions(rm=True, memory=128 << 20)))
    yield made
    made.close()


def run(session: Session, code: str, front: Recorder | None = None, **asked: Any) -> tuple[CellOutcome, list[tuple[str, Any]]]:
    front = front or Recorder()
    return session.run(CellCode(code, **asked), front), front.events


def test_the_runner_is_python_3_6() -> None:
    files = [*Path(inside.__file__).parent.rglob("*.py")]
    assert len(files) >= 7
    for file in files:
        ast.parse(file.read_text(), feature_version=(3, 6))
    with pytest.raises(SyntaxError):
        ast.parse("(x := 1)", feature_version=(3, 6))


def test_variables_stay_and_the_last_expression_is_shown(session: Session) -> None:
    run(session, "x = 20")
    outcome, events = run(session, "y = x + 1\ny * 2")
    assert outcome.status == "ok"
    assert events == [("display", {"text/plain": "42"})]
    assert run(session, "x;")[1] == []


def test_output_of_both_streams_children_and_displays_stays_in_order(session: Session) -> None:
    code = """import os, sys
print("a"); print("b", file=sys.stderr); os.system("echo c"); display("d"); print("e"); os.system("echo f >&2"); sys.stderr.write("g")"""
    _, events = run(session, code + "\nNone")
    assert events == [
        ("stdout", "a\n"), ("stderr", "b\n"), ("stdout", "c\n"), ("display", {"text/plain": "'d'"}), ("stdout", "e\n"), ("stderr", "f\ng"),
    ]  # fmt: skip


def test_traceback_has_the_cells_own_lines(session: Session) -> None:
    outcome, _ = run(session, "def f():\n    return 1 / 0\nf()", first_line=2)
    assert outcome.error == ("ZeroDivisionError", "division by zero")
    text = "\n".join(outcome.traceback)
    assert 'File "<cell 1>", line 3, in f\n    return 1 / 0' in text
    assert "sandbox_runner" not in text
    syntax, _ = run(session, "x = (")
    assert "runner" not in "\n".join(syntax.traceback)
    assert syntax.error[0] == "SyntaxError"


def test_await_at_the_top(session: Session) -> None:
    assert run(session, "import asyncio\nawait asyncio.sleep(0, 'slept')")[1] == [("display", {"text/plain": "'slept'"})]


def test_input_is_asked_of_the_front_end_and_ends_without_one(session: Session) -> None:
    _, events = run(session, "import getpass\ninput('name? ') + getpass.getpass()", Recorder(("me", "secret")))
    assert events == [("ask", ("name? ", False)), ("ask", ("Password: ", True)), ("display", {"text/plain": "'mesecret'"})]
    assert run(session, "input()")[0].error[0] == "EOFError"


def test_interrupt_raises_inside_ends_children_and_keeps_variables(session: Session) -> None:
    run(session, "kept = 1")
    front = Recorder()
    code = "import subprocess\ntry:\n    print('on'); subprocess.run(['sleep', '1000'])\nexcept KeyboardInterrupt:\n    kept = 2; raise"
    with interrupted_at_first(front):
        run(session, code, front)
    assert run(session, "kept")[1] == [("display", {"text/plain": "2"})]


def test_a_cell_that_does_not_stop_is_ended_and_the_next_one_says_so(session: Session) -> None:
    front = Recorder()
    stubborn = """import time
is_new = True
while True:
    try:
        if is_new:
            is_new = False
            print('on')
        time.sleep(1000)
    except KeyboardInterrupt:
        pass"""
    with interrupted_at_first(front):
        run(session, stubborn, front)
    said = "session s: did not end when it was interrupted; starts afresh, without variables\n"
    assert run(session, "1")[1] == [("stderr", said), ("display", {"text/plain": "1"})]


def test_memory_limit_is_told_and_the_next_cell_starts_afresh_with_one_warning(session: Session) -> None:
    run(session, "x = 1")
    outcome, _ = run(session, "x = bytearray(1 << 30)")
    assert outcome.status == "died"
    assert outcome.completed is not None
    assert outcome.completed.why == "oom"
    again, events = run(session, "'x' in globals()")
    assert again.status == "ok"
    assert events == [
        ("stderr", "session s: its interpreter ended; starts afresh, without variables\n"),
        ("display", {"text/plain": "False"}),
    ]
    assert run(session, "1")[1] == [("display", {"text/plain": "1"})]


def test_time_out_interrupts_and_keeps_the_interpreter(session: Session) -> None:
    run(session, "kept = 1")
    outcome = session.run(CellCode("import time\ntime.sleep(1000)"), Recorder(), timeout=0.3)
    assert outcome.status == "timeout"
    assert run(session, "kept")[1] == [("display", {"text/plain": "1"})]


def test_two_cells_at_once_are_refused(session: Session) -> None:
    front = Recorder()
    other = threading.Thread(target=run, args=(session, "print('on')\nimport time; time.sleep(0.5)", front))
    other.start()
    front.first.wait(30)
    with pytest.raises(WrongState):
        run(session, "1")
    other.join()


def test_objects_travel_without_pickle(session: Session) -> None:
    given = {"a": [1, None, {"b": "ü"}], "t": "text\0\n", "b": b"\xff\0"}
    outcome, _ = run(session, "a.append(t)", inputs=given, outputs=("a", "t", "b"))
    assert outcome.values == {**given, "a": [1, None, {"b": "ü"}, "text\0\n"]}
    with pytest.raises(InvalidInput, match=r"--in s: a list_iterator is neither JSON"):
        run(session, "1", inputs={"s": iter([])})
    assert run(session, "len(a)")[1] == [("display", {"text/plain": "4"})], "a refused input costs no state"
    refused, _ = run(session, "s = type('Own', (dict,), {})", outputs=("s",))
    assert (refused.status, refused.exit_code) == ("object", 1)
    code = "from collections import OrderedDict\ns = OrderedDict(k=1)"
    assert run(session, code, outputs=("s",), trust=True)[0].values == {"s": {"k": 1}}
    assert run(session, "s = {(1, 2): {3}}", outputs=("s",))[0].values == {"s": {(1, 2): {3}}}
    assert "no such variable" in run(session, "1", outputs=("nothing",))[0].error[1]


def test_a_pickle_that_was_not_asked_for_is_not_read(session: Session, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    code = f"""
import json, os, pickle, struct
class Bomb:
    def __reduce__(self):
        return os.mkdir, ({str(canary)!r},)
data = pickle.dumps(Bomb())
about = {{"op": "done", "status": "ok", "out": [{{"kind": "pickle", "variable": "v", "first": 0, "count": 1}}], "buffers": [len(data)]}}
text = json.dumps(about).encode()
os.write(3, struct.pack("!IQ", len(text), len(data)) + text + data)
"""
    outcome, _ = run(session, code, outputs=("v",))
    assert outcome.status == "object"
    assert not canary.exists()


@pytest.mark.parametrize("rubbish", ["b'rubbish' * 10", "b'\\xff' * 100", "b'\\0\\0\\0\\2' + b'\\0' * 8 + b'[]'", "b''"])
def test_rubbish_on_the_channel_spoils_only_its_own_cell(session: Session, rubbish: str) -> None:
    code = f"import os\nos.write(3, {rubbish})\nos.close(3)"
    outcome, _ = run(session, code)
    assert outcome.status == "died"
    assert run(session, "1")[0].status == "ok"


def test_what_a_thread_displays_between_cells_is_shown(session: Session) -> None:
    run(
        session,
        "import threading\ngo = threading.Event()\ndef late():\n    go.wait()\n    display('late')\nthread = threading.Thread(target=late)",
    )
    run(session, "thread.start()")
    _, events = run(session, "go.set()")
    events += run(session, "import sys\nsys.stdout.write('a\\n'); sys.stderr.write('b\\n')\nthread.join()")[1]  # asks while the thread does
    events += run(session, "1")[1]
    assert sorted(map(str, events)) == sorted(
        map(str, [("stdout", "a\n"), ("stderr", "b\n"), ("display", {"text/plain": "'late'"}), ("display", {"text/plain": "1"})])
    )


def test_a_fresh_cell_imports_nothing_heavy(session: Session) -> None:
    heavy = ("json", "re", "enum", "threading", "typing", "ast", "socket", "getpass", "traceback", "runpy", "datetime")
    _, events = run(session, f"import sys\n[name for name in {heavy} if name in sys.modules]")
    assert events == [("display", {"text/plain": "[]"})]
    _, events = run(session, "import getpass, threading\ngetpass.getpass('secret? ')", front=Recorder(answers=("x",)))
    assert events == [("ask", ("secret? ", True)), ("display", {"text/plain": "'x'"})]


def test_displays_without_end_are_cut_off(session: Session) -> None:
    outcome, events = run(session, "for n in range(50_000): display(n)\nprint('end')")
    assert outcome.status == "ok"
    assert len([each for each in events if each[0] == "display"]) == MOST_DISPLAYS
    assert events[-1] == ("stdout", "end\n")


def test_idle_sessions_end(engine: Engine, python_image: str) -> None:
    session = Session("i", python_image, lambda: engine.interpreter(python_image, ["python3"]), idle=0.05)
    run(session, "1")
    deadline = time.monotonic() + 20
    while (session.status != "cold" or engine.containers(all=True)) and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    assert (session.status, engine.containers(all=True)) == ("cold", [])
    assert "without a cell" in run(session, "1")[1][0][1]
    session.close()


def test_the_last_cell_ends_the_container_with_its_exit_code(engine: Engine, python_image: str) -> None:
    def once(code: str) -> CellOutcome:
        interpreter: Interpreter = engine.interpreter(python_image, ["python3"])
        return interpreter.run(CellCode(code), Recorder(), keep=False)

    for code, exit_code in (("1", 0), ("1/0", 1), ("import sys; sys.exit(7)", 7), ("import os; os._exit(9)", 9)):
        completed = once(code).completed
        assert completed is not None
        assert completed.exit_code == exit_code
    assert engine.containers(all=True) == []
