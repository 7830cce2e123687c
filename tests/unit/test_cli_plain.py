"""`run` and `exec` read without click: as click reads them, or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.cli import plain, program
from sandbox.cli.programs import EXEC
from sandbox.options import RUN
from sandbox.runtime import comeup

_VALUES = ["64m", "1.5", "2", "x", "A=1", "NAME", "/a:/b", "8080:80", "5s", "TERM", "nofile=5:6", "on-failure:3", "", "-1", "none", "--rm"]


def by_click(verb: str, words: Sequence[str]) -> tuple[dict[str, Any], list[str]] | None:
    """The values that were given and the other words, as click's command reads them; None when it finds something wrong."""
    import click

    command = program.program().get_command(click.Context(program.program()), verb)
    assert command is not None
    try:
        context = command.make_context(verb, list(words))
    except click.ClickException:
        return None
    values = dict(context.params)
    extra = {name: values.pop(name, None) for name in ("detach_keys", "sig_proxy", "quiet")}
    assert extra["sig_proxy"] in (None, True) and not extra["quiet"]
    rest = [values.pop("name" if verb == "exec" else "image"), *values.pop("command")]
    return {name: value for name, value in values.items() if value not in (None, ())}, rest


def agrees(verb: str, words: list[str]) -> bool:
    """Whether it was read, and then as click does."""
    read = plain.read([verb, *words])
    if read is None:
        return False
    assert (read.values, read.rest) == by_click(verb, words), words
    return True


@pytest.mark.parametrize(
    "words",
    [
        ["box"],
        ["--rm", "box", "true"],
        ["-it", "--rm", "box", "sh", "-c", "echo --rm"],
        ["-d", "--name", "web", "-p", "8080:80", "-e", "A=1", "--env", "B=2", "box"],
        ["--memory=64m", "--cpus", "1.5", "--pids-limit=10", "box", "-x", "--", "y"],
        ["-v", "/a:/b", "-v", "data:/c:ro", "--tmpfs", "/tmp", "--network", "none", "box"],
        ["--restart", "on-failure:3", "--health-cmd", "true", "--health-interval", "1m30s", "box"],
        ["--label", "a=b", "--ulimit", "nofile=5:6", "--cap-drop", "ALL", "--stop-signal", "INT", "box"],
    ],
)
def test_plain_words_are_read(words: list[str]) -> None:
    assert agrees("run", words)


def test_exec_is_read() -> None:
    assert agrees("exec", ["-it", "-e", "A=1", "-w", "/", "-u", "5", "name", "ls", "-l"])


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["run"],
        ["run", "--help"],
        ["run", "--rm=true", "box"],
        ["run", "-eA=1", "box"],
        ["run", "-e"],
        ["run", "-m", "lots", "box"],
        ["run", "--nonsense", "box"],
        ["run", "-q", "box"],
        ["run", "--", "box"],
        ["run", "-", "box"],
        ["exec", "box"],
        ["-D", "run", "box"],
        ["ps"],
    ],
)
def test_what_is_not_plain_is_left_to_click(argv: list[str]) -> None:
    assert plain.read(argv) is None


def test_the_root_is_taken() -> None:
    read = plain.read(["--root", "/somewhere", "container", "run", "box"])
    assert read is not None and (read.root, read.verb, read.rest) == (Path("/somewhere"), "run", ["box"])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_is_read_is_what_click_reads(data: st.DataObject) -> None:
    verb = data.draw(st.sampled_from(["run", "exec"]))
    rows = EXEC if verb == "exec" else RUN
    flags = st.sampled_from([name for row in rows for name in row.names])
    pieces = st.one_of(
        st.tuples(flags),
        st.tuples(flags, st.sampled_from(_VALUES)),
        st.builds(lambda name, value: (f"{name}={value}",), flags, st.sampled_from(_VALUES)),
        st.sampled_from([("-it",), ("-dit",), ("-ti", "x"), ("--",), ("-",), ("-eA=1",)]),
    )
    words = [word for piece in data.draw(st.lists(pieces, max_size=5)) for word in piece]
    agrees(verb, [*words, "box", "true", *data.draw(st.lists(st.sampled_from(["-x", "--rm", "y"]), max_size=2))])


# The helper that comes up before: a fork, or not


@pytest.mark.parametrize(
    ("argv", "reachable", "way"),
    [
        (["run", "box"], False, "fork"),
        (["run", "box"], True, "execute"),
        (["run", "--userns", "host", "box"], False, "execute"),
        (["run", "--userns=host", "box"], False, "execute"),
        (["exec", "box", "true"], False, "execute"),
    ],
)
def test_where_the_interpreter_could_be_reached_another_is_executed(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], reachable: bool, way: str
) -> None:
    monkeypatch.setattr(comeup, "is_out_of_reach", lambda path: not reachable)
    monkeypatch.setattr(comeup, "BOOTED", "/nowhere")
    monkeypatch.setattr(comeup, "_fork", lambda: "fork")
    monkeypatch.setattr(comeup, "_execute", lambda path: "execute")
    assert comeup.come_up(argv) == way  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    ("mode", "owner", "mine", "expected"),
    [
        (0o755, 0, 0, True),
        (0o755, 1000, 0, True),
        (0o775, 0, 0, False),
        (0o757, 0, 0, False),
        (0o755, 0, 1000, True),
        (0o755, 1000, 1000, False),
        (0o755, 1001, 1000, True),
        (0o755, 100_000, 0, False),
        (0o755, 100_000, 1000, False),
    ],
)
def test_who_could_write_to_the_interpreter(monkeypatch: pytest.MonkeyPatch, mode: int, owner: int, mine: int, expected: bool) -> None:
    monkeypatch.setattr(os, "stat", lambda path: os.stat_result((0o100000 | mode, 0, 0, 1, owner, 0, 0, 0, 0, 0)))
    monkeypatch.setattr(os, "geteuid", lambda: mine)
    assert comeup.is_out_of_reach("/python") == expected


def test_under_systemd_it_is_left_to_the_spawner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(comeup, "BOOTED", str(tmp_path))
    assert comeup.come_up(["run", "box"]) is None
