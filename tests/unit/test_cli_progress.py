"""The faces of a build: what each shows of the same events."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from sandbox.build.events import (
    BuildDone,
    BuildEvent,
    BuildStarted,
    BuildWarning,
    PullProgress,
    StepDone,
    StepError,
    StepOutput,
    StepStarted,
)
from sandbox.cli.formatting import seconds_text
from sandbox.cli.progress import Face, JsonFace, Lines, PlainFace, QuietFace, TerminalFace
from sandbox.image.registry.progress import BlobProgress, TransferDone, TransferStarted, TransferWarning

EVENTS: list[BuildEvent] = [
    BuildStarted(3, ("0",)),
    StepStarted(1, 3, "0", "FROM busybox", 1),
    StepDone(1, 3, "0", "FROM busybox", 1, cached=True, seconds=0.0, bytes=0, layer="sha256:aa"),
    StepStarted(2, 3, "0", "COPY a.txt /", 2),
    StepDone(2, 3, "0", "COPY a.txt /", 2, cached=False, seconds=0.04, bytes=1500, layer="sha256:bb"),
    StepStarted(3, 3, "0", "RUN make", 3),
    StepOutput(3, 3, "0", "stdout", b"compiling \xc3"),
    StepOutput(3, 3, "0", "stdout", b"\xa9\nhalf a li"),
    StepOutput(3, 3, "0", "stderr", b"warning!\n"),
    StepOutput(3, 3, "0", "stdout", b"ne"),
    BuildWarning("no .dockerignore", 2),
    StepDone(3, 3, "0", "RUN make", 3, cached=False, seconds=1.26, bytes=0, layer="sha256:cc"),
    BuildDone("sha256:" + "d" * 64, ("docker.io/library/x:latest",), 1.4, 3, 1),
]
FAILURE: list[BuildEvent] = [*EVENTS[:-2], StepError(3, 3, "0", "RUN make", 3, 1.26, "RUN make: exit code 2")]


class Ticks:
    """A clock that goes on by half a second at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.5
        return self.now


def shown(face: Face, events: list[BuildEvent]) -> None:
    with face:
        for event in events:
            face(event)


def plain(events: list[BuildEvent]) -> str:
    out = io.StringIO()
    shown(PlainFace(out, Ticks()), events)
    return out.getvalue()


def test_plain_is_buildkits_form() -> None:
    assert plain(EVENTS) == (
        "#1 [1/3] FROM busybox\n#1 CACHED\n\n"
        "#2 [2/3] COPY a.txt /\n#2 DONE 0.0s\n\n"
        "#3 [3/3] RUN make\n#3 0.500 compiling é\n#3 1.000 warning!\n"
        "warning: line 2: no .dockerignore\n#3 1.500 half a line\n#3 DONE 1.3s\n\n"
        "built dddddddddddd in 1.4 s (3 steps, 1 cached)\n  docker.io/library/x:latest\n"
    )


def test_plain_names_the_stage_when_there_are_several() -> None:
    events: list[BuildEvent] = [
        BuildStarted(2, ("base", "1")),
        StepStarted(1, 2, "base", "FROM a AS base", 1),
        StepStarted(2, 2, "1", "FROM base", 2),
    ]
    assert plain(events) == "#1 [base 1/2] FROM a AS base\n#2 [1 2/2] FROM base\n"


def test_plain_shows_the_last_output_before_the_error() -> None:
    assert plain(FAILURE).endswith("#3 1.500 half a line\n#3 ERROR: RUN make: exit code 2\n\n")


def test_quiet_shows_warnings_only() -> None:
    out = io.StringIO()
    shown(QuietFace(out), EVENTS)
    assert out.getvalue() == "warning: line 2: no .dockerignore\n"


def terminal(width: int = 60, height: int = 24) -> tuple[TerminalFace, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None, highlight=False)
    return TerminalFace(out, console, Ticks()), out


def screen(face: TerminalFace, width: int = 60) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    with console.capture() as captured:
        console.print(face.render())
    return [line.rstrip() for line in captured.get().splitlines()]


def test_the_live_view_has_a_row_a_step_and_the_running_steps_last_lines() -> None:
    face, _ = terminal()
    for event in EVENTS[:9]:
        face(event)
    lines = screen(face)
    assert lines[0].startswith("✓ [1/3] FROM busybox")
    assert lines[0].endswith("CACHED")
    assert lines[1].endswith("1.5kB  0.0 s")
    assert lines[2].startswith("• [3/3] RUN make")
    assert lines[3:] == ["     compiling é", "     warning!"]


def test_the_live_view_keeps_to_the_screen() -> None:
    face, _ = terminal(height=5)
    for index in range(1, 20):
        face(StepStarted(index, 20, "0", f"RUN step {index}", index))
        face(StepDone(index, 20, "0", f"RUN step {index}", index, cached=False, seconds=0.1, bytes=0, layer=None))
    lines = screen(face)
    assert len(lines) <= 5
    assert "RUN step 19" in lines[-1]


def test_only_the_last_lines_of_the_running_step_are_shown() -> None:
    face, _ = terminal()
    face(EVENTS[5])
    face(StepOutput(3, 3, "0", "stdout", b"".join(b"line %d\n" % n for n in range(1000))))
    assert screen(face)[1:] == [f"     line {n}" for n in range(994, 1000)]


def test_the_terminal_view_collapses_to_its_rows_and_the_summary() -> None:
    face, out = terminal()
    shown(face, EVENTS)
    final = out.getvalue().rsplit("\x1b[?25h", 1)[-1]
    assert final.count("✓") == 3
    assert "compiling" not in final
    assert "built dddddddddddd in 1.4 s" in final


def test_a_failed_step_is_marked_and_the_cursor_is_given_back() -> None:
    face, out = terminal()
    shown(face, FAILURE)
    assert "✗ [3/3] RUN make" in out.getvalue()
    assert out.getvalue().count("\x1b[?25h") >= out.getvalue().count("\x1b[?25l")


def test_markup_in_an_instruction_is_text() -> None:
    face, _ = terminal()
    face(StepStarted(1, 1, "0", "RUN echo [bold]x[/bold] [/]", 1))
    assert "RUN echo [bold]x[/bold] [/]" in screen(face)[0]


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b"a\nb\n"], ["a", "b"]),
        ([b"10%\r20%\r100%\n"], ["100%"]),
        ([b"windows\r\n"], ["windows"]),
        ([b"\x1b[31mred\x1b[0m\n"], ["red"]),
        ([b"\xff\n"], ["\ufffd"]),
        ([b"sp", b"lit", b"\n"], ["split"]),
        ([b"no end"], ["no end"]),
    ],
)
def test_lines_are_what_a_terminal_would_show_in_the_end(pieces: list[bytes], lines: list[str]) -> None:
    reader = Lines()
    assert [line for piece in pieces for line in reader.feed(piece)] + reader.flush() == lines


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    reader = Lines()
    for _ in range(64):
        reader.feed(b"x" * 65536)
    assert len(reader.flush()[0]) <= 65536


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (12, "12.0 s"), (185, "3 min 5 s")])
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


TWO_AT_ONCE: list[BuildEvent] = [
    BuildStarted(4, ("a", "1")),
    StepStarted(2, 4, "a", "RUN one", 2, 2, 2),
    StepStarted(4, 4, "1", "RUN two", 4, 2, 2),
    StepOutput(2, 4, "a", "stdout", b"half of "),
    StepOutput(4, 4, "1", "stdout", b"whole of two\n"),
    StepOutput(2, 4, "a", "stdout", b"one\n"),
    StepDone(4, 4, "1", "RUN two", 4, cached=False, seconds=1.0, bytes=0, layer=None, step=2, steps=2),
    StepError(2, 4, "a", "RUN one", 2, 2.0, "canceled", 2, 2, canceled=True),
]


def test_plain_lines_of_steps_at_the_same_time_are_each_ones_own() -> None:
    assert plain(TWO_AT_ONCE) == (
        "#2 [a 2/2] RUN one\n#4 [1 2/2] RUN two\n#4 0.500 whole of two\n#2 1.500 half of one\n#4 DONE 1.0s\n\n#2 CANCELED\n\n"
    )


def test_the_live_view_shows_all_steps_at_work_below_those_that_ended() -> None:
    face, _ = terminal()
    for event in TWO_AT_ONCE[:-1]:
        face(event)
    lines = screen(face)
    assert [line[:13] for line in lines] == ["✓ [1 2/2] RUN", "• [a 2/2] RUN", "     half of "]
    face(TWO_AT_ONCE[-1])
    assert screen(face)[-1].startswith("– [a 2/2] RUN one")


def test_json_is_one_object_an_event() -> None:
    out = io.StringIO()
    shown(JsonFace(out, lambda: 1.5), EVENTS)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in lines[:3]] == ["build_started", "step_started", "step_done"]
    assert len(lines) == len(EVENTS)
    assert {"time", "event", "index", "stage", "cached", "bytes", "seconds"} <= set(lines[4])
    assert lines[8]["data"] == "warning!\n"


PULL: list[BuildEvent] = [
    PullProgress(TransferStarted("pull", "reg.test/base", (("sha256:" + "a" * 64, 1000), ("sha256:" + "b" * 64, 3000)))),
    PullProgress(BlobProgress("sha256:" + "a" * 64, "present", 1000, 1000)),
    PullProgress(BlobProgress("sha256:" + "b" * 64, "downloading", 1500, 3000)),
    PullProgress(TransferWarning("reg.test/base is for linux/arm64")),
    PullProgress(BlobProgress("sha256:" + "b" * 64, "done", 3000, 3000)),
    PullProgress(TransferDone("sha256:" + "c" * 64, 3000, 0.25)),
]


def test_a_base_that_is_pulled_stands_before_the_steps() -> None:
    assert plain([*PULL, *EVENTS]).startswith(
        "Pulling reg.test/base: 2 layers\n"
        "aaaaaaaaaaaa: Already exists\n"
        "warning: reg.test/base is for linux/arm64\n"
        "bbbbbbbbbbbb: Done\n"
        "3kB in 0.2 s\n"
        "#1 [1/3] FROM busybox\n"
    )


def test_quiet_shows_only_warnings_of_a_pull() -> None:
    out = io.StringIO()
    shown(QuietFace(out), PULL)
    assert out.getvalue() == "warning: reg.test/base is for linux/arm64\n"


def test_json_has_the_pulls_events_as_they_are() -> None:
    out = io.StringIO()
    shown(JsonFace(out, lambda: 1.0), PULL)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in lines] == [
        "transfer_started", "blob_progress", "blob_progress", "transfer_warning", "blob_progress", "transfer_done"
    ]  # fmt: skip
    assert (lines[2]["done"], lines[2]["total"], lines[5]["moved"]) == (1500, 3000, 3000)


def test_a_terminal_has_the_pulls_bars_until_it_is_done() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=20, highlight=False)
    face = TerminalFace(out, console)
    for event in PULL[:3]:
        face(event)
    console.print(face.render())
    assert "Pulling reg.test/base" in out.getvalue()
    assert "1.5kB / 3kB" in out.getvalue()
    assert "━" in out.getvalue()
    for event in PULL[3:]:
        face(event)
    assert "Pulled reg.test/base: 3kB in 0.2 s" in out.getvalue()
    before = len(out.getvalue())
    console.print(face.render())
    assert "━" not in out.getvalue()[before:]
