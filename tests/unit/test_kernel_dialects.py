"""Languages as front ends see them: which is chosen, names at the cursor, what shells say of a text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kernelspec.dialects import DIALECTS, choose_dialect, completion, inspection, is_known
from sandbox.errors import InvalidOption

BY_LANGUAGE = {each.language: each for each in DIALECTS}


def _choose(programs: Sequence[str], *, language: str = "", label: str | None = None, own: Sequence[str] = ()) -> tuple[str, str]:
    dialect, program = choose_dialect(language, label=label, own=own, find=set(programs).__contains__, image="x")
    return dialect.language, program


def test_flag_then_label_then_the_images_own_then_the_first_found() -> None:
    everything = ("bash", "sh", "python3", "node")
    assert _choose(everything, language="bash", label="node", own=["python3"]) == ("bash", "bash")
    assert _choose(everything, label="node", own=["python3"]) == ("javascript", "node")
    assert _choose(everything, own=["/usr/bin/node", "-i"]) == ("javascript", "/usr/bin/node")
    assert _choose(everything, own=["bash"]) == ("python", "python3")
    assert _choose(("sh", "bash"), own=["nginx"]) == ("bash", "bash")
    assert _choose(("sh",)) == ("sh", "sh")
    assert _choose(("python3.12", "python3"), language="python3.12") == ("python", "python3.12")


@pytest.mark.parametrize(
    ("programs", "language", "says"), [((), "", "has no Python, node"), (("sh",), "r", "none of"), (("sh",), "node", "has no node")]
)
def test_no_language_is_an_error_that_says_which_there_are(programs: Sequence[str], language: str, says: str) -> None:
    with pytest.raises(InvalidOption, match=says):
        _choose(programs, language=language)


def test_known_languages_by_all_their_names() -> None:
    assert all(map(is_known, ("python", "Python3", "js", "node", "bash", "sh", "dash")))
    assert not any(map(is_known, ("r", "julia", "")))


@pytest.mark.parametrize(
    ("language", "code", "name"),
    [
        ("python", "x = os.path.jo|in(a)", "os.path.join"),
        ("python", "sorted(|", "sorted"),
        ("python", "1 + |", ""),
        ("javascript", "Math.m|ax(1)", "Math.max"),
        ("bash", "cd /tmp; my-to|ol x", "my-tool"),
    ],
)
def test_name_at_the_cursor(language: str, code: str, name: str) -> None:
    assert BY_LANGUAGE[language].name_at(code.replace("|", ""), code.index("|")) == name


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("", "complete"),
        ("bash: line 2: syntax error: unexpected end of file", "incomplete"),
        ("bash: line 1: unexpected EOF while looking for matching `)'", "incomplete"),
        ("bash: warning: here-document at line 1 delimited by end-of-file (wanted `E')", "incomplete"),
        ('sh: 2: Syntax error: end of file unexpected (expecting "fi")', "incomplete"),
        ("sh: syntax error: unterminated quoted string", "incomplete"),
        ("bash: line 1: syntax error near unexpected token `)'", "invalid"),
    ],
)
def test_what_shells_say_of_a_text(said: str, status: str) -> None:
    assert BY_LANGUAGE["bash"].is_complete(({"op": "reply"}, [memoryview(said.encode())]))["status"] == status


def test_no_answer_is_an_answer_for_the_front_end() -> None:
    assert completion(None, 3)["matches"] == []
    assert inspection(None)["found"] is False
    assert BY_LANGUAGE["python"].is_complete(None) == {"status": "unknown"}
    assert BY_LANGUAGE["python"].language_info("")["version"] == ""
    assert BY_LANGUAGE["python"].language_info("Python 3.12.1+")["version"] == "3.12.1"
