"""Sessions of shells and Node.js in real containers: their state stays, whatever a cell does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.engine import Engine
from sandbox.errors import InvalidInput
from sandbox.options import RunOptions
from sandbox.session import interpreter
from sandbox.session.believed import CellCode, CellOutcome
from sandbox.session.channel import Channel
from sandbox.session.runners import runner_for
from sandbox.session.session import Session
from tests.support.language_images import IMAGE, add_languages
from tests.support.leftovers import nothing_left
from tests.support.recorder import Recorder, interrupted_at_first

pytestmark = pytest.mark.anybody

SHELLS = ("bash", "sh")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, python_tar: Path, busybox_tar: Path) -> Iterator[Engine]:
    root = tmp_path_factory.mktemp("languages") / "engine"
    with Engine(root) as made:
        add_languages(made, python_tar, tmp_path_factory.mktemp("context"))
        made.import_image(busybox_tar, "localhost/busybox")
        yield made
        deadline = time.monotonic() + 30
        while made.containers(all=True) and time.monotonic() < deadline:  # closed, and ending just now
            threading.Event().wait(0.02)
        assert made.containers(all=True) == []
    nothing_left(root)


Open = Callable[[str], Session]


@pytest.fixture
def open_session(engine: Engine) -> Iterator[Open]:
    """Sessions by program; sh is busybox's."""
    made: list[Session] = []

    def start(program: str) -> Session:
        image = "localhost/busybox" if program == "sh" else IMAGE
        options = RunOptions(rm=True, memory=256 << 20, pids_limit=64)
        runner = runner_for(program)
        made.append(Session("s", image, lambda: engine.interpreter(image, [program], options=options, runner=runner)))
        return made[-1]

    yield start
    for session in made:
        session.close()


def run(session: Session, code: str, front: Recorder | None = None) -> tuple[CellOutcome, str, str]:
    """How a cell ended, what it printed and what it complained of."""
    front = front or Recorder()
    outcome = session.run(CellCode(code), front)
    return outcome, front.text("stdout"), front.text("stderr")


def interrupted(session: Session, code: str) -> None:
    """Run a cell that prints and then does not end; interrupt it when it has printed."""
    front = Recorder()
    with interrupted_at_first(front):
        run(session, code, front)


@pytest.mark.parametrize("shell", SHELLS)
def test_variables_functions_and_directory_of_a_shell_stay(open_session: Open, shell: str) -> None:
    session = open_session(shell)
    assert run(session, 'x=\'1  2\'; f() { echo "f:$x"; }; cd /tmp; export Y="it\'s"; umask 027')[0].status == "ok"
    assert run(session, "echo \"$x\"; f; pwd; sh -c 'echo $Y'; umask")[1] == "1  2\nf:1  2\n/tmp\nit's\n0027\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_exit_set_e_syntax_errors_and_break_leave_a_shell_with_its_state(open_session: Open, shell: str) -> None:
    session = open_session(shell)
    run(session, "x='a\nb'; cd /var")
    ending = [("exit 7", 7), ("(exit 3)", 3), ("set -e\nfalse\necho not", 1), ("set +e; if", 2), ("set -u; echo $nothing", None)]
    for code, status in ending:
        outcome, printed, _ = run(session, code)
        assert (outcome.status, printed) == ("exit", "")
        assert status in (None, outcome.exit_code)
        run(session, "set +eu")
    run(session, "break; x=changed")
    outcome, printed, _ = run(session, 'echo "$x"; pwd')
    assert (outcome.status, printed) == ("ok", "a\nb\n/var\n")


def test_bash_keeps_functions_arrays_and_options_through_exit(open_session: Open) -> None:
    session = open_session("bash")
    run(session, "f() { echo f; }; a=(1 '2 3'); declare -A m=([k]=v); shopt -s nullglob; alias hi='echo hi'; set -o pipefail; exit 1")
    printed = run(session, 'f; echo "${a[1]}" "${m[k]}"; shopt nullglob; hi; false | true; echo $?')[1]
    assert printed.split("\n") == ["f", "2 3 v", "nullglob       \ton", "hi", "1", ""]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_status_of_a_cell_is_the_last_commands_and_is_seen_by_the_next(open_session: Open, shell: str) -> None:
    session = open_session(shell)
    outcome, *_ = run(session, "(exit 5)")
    assert (outcome.status, outcome.exit_code) == ("exit", 5)
    assert run(session, "echo $?")[1] == "5\n"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("code", ["echo on; sleep 1000; echo not", "echo on; while :; do :; done", "f() { sleep 1000; f; }; echo on; f"])
def test_interrupt_ends_a_shells_cell_and_its_children_and_keeps_variables(open_session: Open, shell: str, code: str) -> None:
    session = open_session(shell)
    run(session, "kept=1")
    interrupted(session, code)
    outcome, printed, complained = run(session, "echo $kept; ps 2>/dev/null | grep [s]leep; true")
    assert (outcome.status, printed, complained) == ("ok", "1\n", "")


@pytest.mark.parametrize("shell", SHELLS)
def test_read_asks_the_person_and_ends_without_one(open_session: Open, shell: str) -> None:
    session = open_session(shell)
    front = Recorder(("two  words\\n",))
    run(session, "read -r -p 'name? ' a b; echo \"$a|$b\"", front)
    assert front.events == [("ask", ("name? ", False)), ("stdout", "two|words\\n\n")]
    assert run(session, "read x && echo $x; echo end")[1] == "end\n"
    assert run(session, "echo piped | { read x; echo $x; }")[1] == "piped\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_show_files_by_type(open_session: Open, shell: str) -> None:
    session = open_session(shell)
    front = Recorder()
    run(session, "printf '<b>\\303\\274</b>' > /tmp/x.html; display /tmp/x.html", front)
    run(session, "printf '\\211PNG\\0\\1' > /tmp/x.png; display /tmp/x.png", front)
    shown = [data for kind, data in front.events if kind == "display"]
    assert shown[0]["text/html"] == "<b>ü</b>"
    assert shown[1]["image/png"] == "iVBORwAB"


@pytest.mark.parametrize("shell", SHELLS)
def test_cells_reach_a_shell_unchanged(open_session: Open, shell: str) -> None:
    session = open_session(shell)
    code = "  cat <<'X'\n  \\n \\\\ %s %d \\0101 $HOME `x` ü \t\n\n'\"\nX\n  "
    assert run(session, code)[1] == "  \\n \\\\ %s %d \\0101 $HOME `x` ü \t\n\n'\"\n"
    large = "x='" + "0123456789" * 3000 + "'; echo ${#x}"
    assert run(session, large)[1] == "30000\n"
    with pytest.raises(InvalidInput, match="NUL"):
        run(session, "echo \0")


def test_set_x_traces_the_cell_and_nothing_of_ours(open_session: Open) -> None:
    session = open_session("bash")
    run(session, "set -x")
    assert run(session, "echo a")[1:] == ("a\n", "++ echo a\n")


def test_memory_limit_in_a_shell_is_told_or_ends_the_program_alone(open_session: Open) -> None:
    session = open_session("bash")
    outcome, *_ = run(session, "x=$(yes | head -c 900m)")
    assert outcome.status in ("died", "exit")
    assert outcome.completed is None or outcome.completed.why == "oom"
    assert run(session, "echo again")[1] == "again\n"


def test_rubbish_on_a_shells_channel_spoils_only_its_own_cell(open_session: Open) -> None:
    session = open_session("bash")
    assert run(session, "echo rubbish >&200; printf '\\377%.0s' {1..100} >&200")[0].status == "died"
    assert run(session, "echo again")[1] == "again\n"


def test_what_node_declares_stays_and_may_be_declared_again(open_session: Open) -> None:
    session = open_session("node")
    run(session, "const x = 20; function f() { return x }")
    front = Recorder()
    outcome = session.run(CellCode("const x = 21\nf() + await Promise.resolve(1)"), front)
    assert outcome.status == "ok"
    assert front.events == [("display", {"text/plain": "22"})]


def test_nodes_errors_have_the_cells_own_lines(open_session: Open) -> None:
    session = open_session("node")
    outcome, *_ = run(session, "function f() {\n  throw new TypeError('bad')\n}\nf()")
    assert outcome.error == ("TypeError", "bad")
    assert outcome.traceback == ("TypeError: bad", "    at f (cell1:2:9)", "    at cell1:4:1")
    syntax, *_ = run(session, "let z = (")
    assert syntax.error[0] == "SyntaxError"
    assert run(session, "throw 5")[0].error == ("Uncaught", "5")


AWAITS = "await new Promise(setImmediate); console.log('on'); await new Promise(() => {})"
"""Prints from the event loop: node dies of a signal in the instant in which it changes handlers, at the end of a script."""


@pytest.mark.parametrize("code", ["console.log('on'); for(;;);", AWAITS])
def test_interrupt_ends_a_node_cell_and_keeps_variables(open_session: Open, code: str) -> None:
    session = open_session("node")
    run(session, "let kept = 1")
    interrupted(session, code)
    front = Recorder()
    session.run(CellCode("kept"), front)
    assert front.events == [("display", {"text/plain": "1"})]


@pytest.mark.parametrize(("program", "code"), [("bash", "echo on; sleep 9"), ("sh", "echo on; sleep 9"), ("node", AWAITS)])
def test_signals_on_their_way_are_taken_before_the_next_cell(
    open_session: Open, monkeypatch: pytest.MonkeyPatch, program: str, code: str
) -> None:
    session, sent, replies = open_session(program), [], []
    send, take = Channel.send, interpreter._TAKE["reply"]
    monkeypatch.setattr(Channel, "send", lambda self, message, *rest: (sent.append(message["op"]), send(self, message, *rest)))
    monkeypatch.setitem(interpreter._TAKE, "reply", lambda self, message, buffers: (replies.append(message), take(self, message, buffers)))
    interrupted(session, code)
    assert (sent, len(replies)) == (["run", "settle"], 1)
    run(session, "")
    assert sent == ["run", "settle", "run"]


def test_nodes_streams_are_in_order_and_displays_too(open_session: Open) -> None:
    front = Recorder()
    open_session("node").run(CellCode("console.log('a'); console.error('b'); display(1); console.log('c')"), front)
    assert front.events == [("stdout", "a\n"), ("stderr", "b\n"), ("display", {"text/plain": "1"}), ("stdout", "c\n")]


def test_node_asks_shows_html_and_imports(open_session: Open) -> None:
    session = open_session("node")
    front = Recorder(("me",))
    session.run(CellCode("prompt('who?') + (await import('node:path')).sep"), front)
    assert front.events == [("ask", ("who? ", False)), ("display", {"text/plain": "'me/'"})]
    front = Recorder()
    session.run(CellCode("({_toHtml: () => '<b>x</b>'})"), front)
    assert front.events[0][1]["text/html"] == "<b>x</b>"


def test_node_survives_a_late_error_and_its_exit_is_told(open_session: Open) -> None:
    session = open_session("node")
    told = run(session, "setTimeout(() => { throw new Error('late') }, 5)")[2]  # on a busy machine that is before the cell's end
    assert "Error: late" in told + run(session, "await new Promise(done => setTimeout(done, 50))")[2]
    assert run(session, "process.exit(3)")[0].exit_code == 3
    outcome, _, complained = run(session, "1")
    assert outcome.status == "ok"
    assert "starts afresh" in complained


ANSWERS: dict[str, list[tuple[str, dict[str, Any], str]]] = {
    "python": [
        ("complete", {"code": "import os\nos.path.joi"}, "join"),
        ("inspect", {"code": "sorted", "detail": 0}, "ascending order"),
        ("parse", {"code": "def f(x):\n  x"}, "incomplete"),
    ],
    "bash": [
        ("complete", {"code": "echo; expor"}, "export"),
        ("inspect", {"code": "cd", "detail": 0}, "shell builtin"),
        ("parse", {"code": "if"}, "unexpected end of file"),
    ],
    "sh": [
        ("complete", {"code": "echo; expor"}, "export"),
        ("inspect", {"code": "cd", "detail": 0}, "shell builtin"),
        ("parse", {"code": "if"}, "unexpected end of file"),
    ],
    "node": [
        ("complete", {"code": "Math.sq"}, "sqrt"),
        ("inspect", {"code": "Math.max", "detail": 0}, "function"),
        ("parse", {"code": "for (const x of [1]) {"}, "incomplete"),
    ],
}


@pytest.mark.parametrize(("language", "operation", "facts", "expected"), [(name, *each) for name, rows in ANSWERS.items() for each in rows])
def test_runners_answer_between_cells(open_session: Open, language: str, operation: str, facts: dict[str, Any], expected: str) -> None:
    session = open_session("python3" if language == "python" else language)
    if language == "python":
        run(session, "import os")
    answer = session.ask(operation, Recorder(), timeout=20, **facts)
    assert answer is not None
    assert expected in f"{answer[0]} {[bytes(each).decode() for each in answer[1]]}"
