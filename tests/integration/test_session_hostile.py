"""A `python3` of the image that is not Python: it speaks the runner's protocol, and lies. It may spoil its own cell and nothing else."""

from __future__ import annotations

import json
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.engine import Engine
from sandbox.options import RunOptions
from sandbox.session.believed import MOST_DISPLAYS, CellCode, CellOutcome
from sandbox.session.session import Session
from tests.support.host import requires
from tests.support.leftovers import nothing_left
from tests.support.recorder import Recorder

pytestmark = requires("root")

IMAGE = "localhost/hostile"
_FAKE = '''#!{python} -SI
"""Reads frames and does what the cell's text says: Python, with `send` and the socket at hand."""
import json, os, socket, struct, sys, time
end = socket.socket(fileno=int(sys.argv[2]))
def exactly(size):
    data = b""
    while len(data) < size:
        more = end.recv(size - len(data))
        if not more: sys.exit()
        data += more
    return data
def send(message, *buffers, **sizes):
    message.setdefault("buffers", [len(each) for each in buffers])
    text = json.dumps(message).encode()
    end.sendall(struct.pack("!IQ", sizes.get("text", len(text)), sizes.get("data", sum(map(len, buffers)))) + text + b"".join(buffers))
def done(**more):
    send(dict(dict(op="done", status="ok", exit=0, seconds=0.001), **more))
while True:
    text, data = struct.unpack("!IQ", exactly(12))
    frame = json.loads(exactly(text)); exactly(data)
    if frame["op"] == "run": exec(frame["code"])
    if frame["op"] == "libraries": send(dict(op="libraries", names=["pyarrow", 7, "x" * 1000]))
'''


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, python_tar: Path) -> Iterator[Engine]:
    """One engine, whose image has the fake before the real one."""
    directory = tmp_path_factory.mktemp("hostile")
    with Engine(directory / "engine") as made:
        made.load(python_tar)
        found = made.run("localhost/python", ["sh", "-c", "command -v python3"]).stdout.decode().strip()
        fake = directory / "context/python3"
        fake.parent.mkdir()
        fake.write_text(_FAKE.format(python=found))
        fake.chmod(fake.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        made.build(fake.parent, dockerfile="FROM localhost/python\nCOPY python3 /hostile/python3\n", tags=[IMAGE])
        yield made
        assert made.containers(all=True) == []
    nothing_left(directory / "engine")


Run = Callable[..., tuple[CellOutcome, list[tuple[str, Any]]]]


@pytest.fixture
def run(engine: Engine) -> Iterator[Run]:
    """Run a cell in a session of the fake; what came of it, and what the front end was given."""
    session = Session("h", IMAGE, lambda: engine.interpreter(IMAGE, ["/hostile/python3"], options=RunOptions(rm=True, memory=256 << 20)))

    def run(code: str, timeout: float | None = 60, **asked: Any) -> tuple[CellOutcome, list[tuple[str, Any]]]:
        front = Recorder()
        return session.run(CellCode(code, **asked), front, timeout=timeout), front.events

    yield run
    session.close()


def test_the_fake_speaks_the_protocol(run: Run) -> None:
    outcome, events = run("send(dict(op='display', id=1, data={'text/plain': 'hello'})); done()")
    assert (outcome.status, events) == ("ok", [("display", {"text/plain": "hello"})])


LIES = {
    "endless": "done(seconds=float('inf'))",
    "no number": "done(seconds=float('nan'), exit=True)",
    "negative": "done(seconds=-5, exit=-1)",
    "astronomic": "done(seconds=10 ** 400, exit=10 ** 400)",
    "text": "done(seconds='9', exit='0', status=['ok'])",
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_figures_are_clamped(run: Run, lie: str) -> None:
    outcome, _ = run(lie)
    assert 0 <= outcome.seconds < 60
    assert outcome.usage.wall == outcome.seconds
    assert 0 <= outcome.exit_code <= 255


def test_texts_are_cut_and_move_no_cursor(run: Run) -> None:
    lines = "['\\x1b]0;title\\x07\\x1b[2J' + 'y' * 20_000] * 200 + ['z'] * 100_000"
    value = "'\\x1b[31mred\\x1b[0m\\r\\x9b1A' * 10 ** 5"
    outcome, _ = run(f"done(status='error', name='N' * 10 ** 6 + '\\n', value={value}, traceback={lines})")
    assert outcome.status == "error"
    text = "".join((*outcome.error, *outcome.traceback))
    assert len(outcome.error[0]) <= 201
    assert "\n" not in outcome.error[0]
    assert len(text) < 2 << 20
    assert "\x1b[31mred\x1b[0m" in text
    assert not [each for each in ("\x1b]", "\x1b[2J", "\x07", "\r", "\x9b") if each in text]


def test_displays_stay_in_their_own_cell(run: Run) -> None:
    outcome, events = run(
        "for name in ('1', 'x' * 10 ** 6, 7, None, ['1']):\n"
        "    send(dict(op='display', id=1, display_id=name, update=name == '1', data={'text/plain': 'mine', 'n': 1}, metadata=[1]))\n"
        "send(dict(op='display', id=2, data=[1]))\ndone()"
    )
    assert outcome.status == "ok"
    ids = [event[1][1] for event in events if event[0] == "display as"]
    assert len(set(ids)) == 2
    assert all(len(each) < 120 and len(each.partition("-")[0]) == 32 for each in ids)


def test_displays_without_end_end_with_the_time_out(run: Run) -> None:
    flood = "while True: send(dict(op='display', id=1, data={'text/plain': 'again'})); end.recv(1000)"
    outcome, events = run(flood, timeout=3)
    assert outcome.status == "timeout"
    assert len([event for event in events if event[0] == "display"]) == MOST_DISPLAYS
    assert "the others are not shown" in events[-1][1]


def test_one_that_never_listens_is_ended(run: Run) -> None:
    outcome, _ = run("while True: send(dict(op='sync', id=1))", timeout=30)
    assert outcome.status == "died"
    assert "does not listen" in outcome.error[1]
    assert run("done()")[0].status == "ok"


def test_bytes_of_displays_are_limited(run: Run) -> None:
    code = "for n in range(20): send(dict(op='display', id=1, update=True, display_id='d', data={'text/plain': 'x' * (8 << 20)}))\ndone()"
    _, events = run(code)
    shown = [event for event in events if event[0] == "display as"]
    assert 10 < len(shown) < 20


def test_a_flood_of_output_ends_with_the_time_out(run: Run) -> None:
    outcome, events = run("line = b'y' * 65536\nwhile True: os.write(1, line)", timeout=1)
    assert outcome.status == "timeout"
    assert events[0][0] == "stdout"


def test_a_child_that_prints_without_end_holds_up_no_display(run: Run) -> None:
    child = "if not os.fork():\n    while True: os.write(1, b'y' * 4096)\ntime.sleep(0.1)\n"
    outcome, events = run(f"{child}send(dict(op='display', id=1, data={{'text/plain': 'shown'}})); end.recv(100); done()", timeout=30)
    assert outcome.status == "ok"
    assert ("display", {"text/plain": "shown"}) in events


def test_frames_that_are_announced_and_never_come_cost_no_memory(run: Run) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome, _ = run("send(dict(op='done'), text=2 ** 31); time.sleep(1000)", timeout=30)
    assert outcome.status == "died"
    outcome, _ = run("send(dict(op='done', buffers=[2 ** 31]), b'x', data=2 ** 31); time.sleep(1000)", timeout=0.1, outputs=("v",))
    assert outcome.status in ("died", "timeout")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_tiny_frames_by_the_hundred_thousand_are_taken(run: Run) -> None:
    code = "send(dict(op='no such thing'))\n" + "end.sendall((struct.pack('!IQ', 10, 0) + b'{\"op\":\"a\"}') * 200_000)\ndone()"
    assert run(code)[0].status == "ok"


def test_a_question_is_cut_and_answered_once(run: Run) -> None:
    _, events = run("send(dict(op='input', id=[1] * 10 ** 6, prompt='who\\x1b[2J? ' * 10 ** 5, password='yes')); end.recv(1000); done()")
    assert events[0][0] == "ask"
    assert len(events[0][1][0]) < 3000
    assert "\x1b" not in events[0][1][0]


VALUES = {
    "of a name nobody asked for": ("out=[dict(kind='json', variable='w', first=0, count=1)], buffers=[1]", "b'1'", "v: did not come"),
    "that are missing": ("out=[dict(kind='json', variable='v', first=5, count=1)], buffers=[1]", "b'1'", "damaged"),
    "too deep": ("out=[dict(kind='json', variable='v', first=0, count=1)], buffers=[200000]", "b'[' * 200000", "damaged"),
    "larger than memory": (
        "out=[dict(kind='npy', variable='v', first=0, count=1)], buffers=[128]",
        "b'\\x93NUMPY\\x01\\x00v\\x00' + repr(dict(descr='<f8', fortran_order=False, shape=(2 ** 50,))).encode().ljust(117) + b'\\n'",
        "damaged",
    ),
    "no table": ("out=[dict(kind='arrow', variable='v', first=0, count=1, **{'as': 'DataFrame'})], buffers=[100]", "b'x' * 100", "damaged"),
}


@pytest.mark.parametrize(("about", "data", "said"), VALUES.values(), ids=VALUES)
def test_values_are_data(run: Run, about: str, data: str, said: str) -> None:
    outcome, _ = run(f"send(dict(op='done', status='ok', exit=0, {about}), {data})", outputs=("v",))
    assert outcome.status == "object"
    assert said in outcome.error[1]
    assert outcome.values == {}


def test_after_all_that_an_honest_session_works(engine: Engine, run: Run) -> None:
    run("os.write(3, os.urandom(1 << 16))", timeout=5)
    honest = Session("g", "localhost/python", lambda: engine.interpreter("localhost/python", ["python3"]))
    front = Recorder()
    honest.run(CellCode("x = 1"), front)
    run("send(dict(op='display', id=1, data={'text/plain': 'mine'})); send(dict(op='done', status='ok'))")
    assert honest.run(CellCode("x"), front).status == "ok"
    honest.close()
    assert front.events == [("display", {"text/plain": "1"})]
    assert json.dumps(front.events)
