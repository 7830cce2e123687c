"""IPython's escapes in cells that plain Python reads."""

from __future__ import annotations

from typing import Any

import pytest

from kernelspec.escapes import plain_python


@pytest.mark.parametrize("code", ["x = 5 % 3", "print('!')", "y = (1\n  % 2)", "text = '''\n!not a command\n'''", "def f(:"])
def test_what_is_no_escape_stays(code: str) -> None:
    assert plain_python(code).rstrip("\n") == code


def test_commands_run_and_give_their_output(capfd: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {}
    exec(plain_python("if True:\n    !echo 'a b'\nx = !echo one; echo two\n"), scope)
    assert capfd.readouterr().out == "a b\n"
    assert scope["x"] == ["one", "two"]
    assert eval(plain_python("!true").strip()) is None


def test_magics_that_make_sense_here(capfd: pytest.CaptureFixture[str]) -> None:
    exec(plain_python("%matplotlib inline\n%pip --version"), {})
    assert capfd.readouterr().out.startswith("pip ")


@pytest.mark.parametrize("code", ["%timeit 1", "%%time\n1", "!ls\n%time 1"])
def test_magics_of_ipythons_own_are_left_to_fail(code: str) -> None:
    assert plain_python(code) == code


def test_lines_keep_their_numbers() -> None:
    assert plain_python("1\n!ls\n3 / 0\n").split("\n")[2] == "3 / 0"
