"""Magic lines: words, flags, what they mean, what Tab offers. Nothing runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from magics import build_cells, cells
from magics.build_cells import BUILD_ROWS, parse_build
from magics.cells import DOCKER_ROWS, EXEC_ROWS, RUN_ROWS, parse_exec, parse_run
from magics.completion import offer
from magics.languages import ImageFacts, choose
from magics.words import Namespace, join_continuations, split_line
from sandbox.cli.completing import Names
from sandbox.errors import InvalidOption
from sandbox.options import Option

NAMES = Namespace({"n": 3, "text": "two words"}, {"HOME": "/home/me"})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-e A='$HOME {n}' x", ["-e", "A=$HOME {n}", "x"]),
        ('-e A="$HOME {n}"', ["-e", "A=/home/me 3"]),
        ("-e A={text} $unknown $HOME", ["-e", "A=two words", "$unknown", "/home/me"]),
        ("ps --format {{.ID}}", ["ps", "--format", "{{.ID}}"]),
        ("{n+1} ${HOME} $$ a\\ b", ["4", "/home/me", "$", "a b"]),
        ("{a b} {}", ["{a b}", "{}"]),
    ],
)
def test_words_of_a_line(line: str, words: list[str]) -> None:
    assert split_line(line, NAMES) == words


@pytest.mark.parametrize(("line", "said"), [("a 'b", "never closed"), ('"', "never closed"), ("{1/0}", "ZeroDivisionError")])
def test_an_open_quote_or_a_failing_expression_is_an_error(line: str, said: str) -> None:
    with pytest.raises(InvalidOption, match=said):
        split_line(line, NAMES)


def test_a_line_goes_on_after_a_backslash() -> None:
    assert join_continuations("-m 64m \\", "-e A=1 \\\nimage\nbody\n") == ("-m 64m  -e A=1  image", "body\n", 3)


def test_flags_end_at_the_image() -> None:
    cell = parse_run(["-m", "64m", "--rm", "img", "prog", "-m"], "")
    assert (cell.image, cell.argv, cell.options.memory) == ("img", ("prog", "-m"), 64 << 20)


def test_a_sandbox_is_locked_down_and_a_flag_wins_over_that() -> None:
    cell = parse_run(["-m", "1g", "img"], "", magic="%%sandbox")
    assert cell.locked
    assert (cell.options.networks, cell.options.read_only, cell.options.cap_drop) == (("none",), True, ("ALL",))
    assert (cell.options.memory, cell.options.pids_limit, cell.options.timeout, cell.options.tmpfs) == (1 << 30, 128, 60.0, ("/tmp",))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memry", "1g", "img"], "--memry: no such option"),
        (["-m"], "-m: wants a value"),
        ([], "no image named"),
        (["--rm", "--keep", "img"], "one or the other"),
        (["-d", "--out", "x", "img"], "-d: a background container has no"),
        (["-d", "--session", "x", "img"], "-d: a background container has no"),
        (["--proc", "p", "img"], "--proc"),
        (["--in", "a,1b", "img"], "'1b' is no variable name"),
        (["--session", "s", "--stdin", "x", "img"], "--session: cannot be used with --stdin"),
        (["--gpus", "all", "img"], "--gpus: not supported"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(InvalidOption, match=said):
        parse_run(words, "")


def test_near_flags_are_suggested() -> None:
    with pytest.raises(InvalidOption) as caught:
        parse_run(["--memry", "1g", "img"], "")
    assert caught.value.hint == "did you mean --memory?"


def test_exec_names_a_container() -> None:
    cell = parse_exec(["-e", "A=1", "-it", "box", "sh"], "body")
    assert (cell.container, cell.argv, cell.options.env, cell.cell.terminal) == ("box", ("sh",), ("A=1",), True)


def test_the_context_may_stand_among_the_flags_and_f_is_explained() -> None:
    assert parse_build(["-t", "x", "dir", "--no-cache"], "").context == "dir"
    with pytest.raises(InvalidOption, match="the cell's body is the Dockerfile"):
        parse_build(["-f", "x"], "")


FACTS = ImageFacts("img", (), ("python3",), {}, lambda name: name in ("sh", "python3"))


@pytest.mark.parametrize(
    ("lang", "body", "argv", "facts", "program", "on_stdin"),
    [
        ("bash", "x", (), FACTS, "bash", False),
        (None, "#!/usr/bin/env python3\n", (), FACTS, "python3", False),
        (None, "x", ("cat",), FACTS, "cat", True),
        (None, "x", (), FACTS, "python3", False),
        (None, "x", (), ImageFacts("i", (), ("x",), {"org.jupyter.sandbox.lang": "perl"}, lambda _: False), "perl", False),
        (None, "x", (), ImageFacts("i", (), (), {}, lambda name: name == "bash"), "bash", False),
        (None, "x", (), ImageFacts("i", (), (), {}, lambda name: name == "sh"), "sh", False),
    ],
)
def test_the_first_rule_chooses_the_language(
    lang: str | None, body: str, argv: tuple[str, ...], facts: ImageFacts, program: str, on_stdin: bool
) -> None:
    chosen = choose(body, lang=lang, argv=argv, entrypoint=None, facts=facts)
    assert (chosen.program, chosen.body_on_stdin) == (program, on_stdin)


@pytest.mark.parametrize("program", ["R", "/usr/lib/R/bin/R", "Rscript"])
def test_r_neither_greets_nor_echoes(program: str) -> None:
    own = choose("1 + 1", lang=None, argv=(), entrypoint=None, facts=ImageFacts("i", (), (program,), {}, lambda _: True))
    assert (own.entrypoint, own.argv) == (program, ("--slave", "--no-restore", "-e", "1 + 1"))


def test_no_shell_and_nothing_named_is_an_error() -> None:
    with pytest.raises(InvalidOption, match="neither bash nor sh"):
        choose("x", lang=None, argv=(), entrypoint=None, facts=ImageFacts("i", (), (), {}, lambda _: False))


ALL_ROWS = [
    *(("%%container", row) for row in RUN_ROWS),
    *(("%%container exec", row) for row in EXEC_ROWS),
    *(("%%docker run", row) for row in DOCKER_ROWS),
    *(("%%dockerfile", row) for row in BUILD_ROWS),
    *(("%install", row) for row in build_cells.INSTALL_ROWS),
]


@pytest.mark.parametrize(("magic", "row"), ALL_ROWS, ids=lambda value: value.names[-1] if isinstance(value, Option) else value)
def test_every_flag_is_helped_with_and_completed(magic: str, row: Option) -> None:
    text = {**cells.USAGES, **build_cells.USAGES}[magic].text()
    offered = offer(f"{magic} -", 0, len(magic) + 2, Names())
    assert offered is not None
    for name in row.names:
        assert f"{name}" in text
        assert name in offered.texts
    assert row.help in text


def test_help_is_readable() -> None:
    for usage in (*cells.USAGES.values(), *build_cells.USAGES.values()):
        assert max(map(len, usage.text().split("\n"))) <= 132, usage.synopsis


THERE = Names(
    images=lambda: ["image-a"],
    containers=lambda: ["box"],
    networks=lambda: ["lan"],
    volumes=lambda: ["data"],
    sessions=lambda: ["warm"],
    variables=lambda: ["df", "mydata"],
)
ON_LINES = [
    ("%%container ima", ("image-a",)),
    ("%%container ex", ("exec",)),
    ("%%container exec bo", ("box",)),
    ("%%container run ima", ("image-a",)),
    ("%%container -m ", None),
    ("%%container image-a --n", None),
    ("%%container -e 'A B' ima", ("image-a",)),
    ("%%container --network l", ("lan",)),
    ("%%container --network=l", ("lan",)),
    ("%%container --network c", ("container:box",)),
    ("%%container -v d", ("data",)),
    ("%%container --session w", ("warm",)),
    ("%%container -i df,my", ("df,mydata",)),
    ("%%container --rm \\\n  --memory-r", ("--memory-reservation",)),
    ("%%sandbox --pull m", ("missing",)),
    ("%%docker ru", ("run",)),
    ("%%docker run -i ima", ("image-a",)),
    ("%%docker exec bo", ("box",)),
    ("%%docker ps ", None),
    ("%container sto", ("stop",)),
    ("%container logs bo", ("box",)),
    ("%container image l", ("load", "ls")),
    ("%container network rm ", ("lan",)),
    ("%container volume inspect ", ("data",)),
    ("%container cp ", ("box:",)),
    ("%container images --js", ("--json",)),
    ("%container run --js", None),
    ("%container reset ", ("warm",)),
    ("%container nosuch ", None),
    ("found = %container imag", ("images", "image")),
    ("!docker imag", ("images", "image")),
    ("x = !docker run --pull a", ("always",)),
    ("x = 1\n%container sto", ("stop",)),
    ("%install p", ("pip",)),
    ("%dockerfile ", ("export", "import")),
    ("import os", None),
    ("%%container image-a\nEN", None),
]
IN_DOCKERFILES = [
    ("WOR", ("WORKDIR ",)),
    ("ONBUILD EN", ("ENTRYPOINT ", "ENV ")),
    ("FROM a AS one\nCOPY --from=o", ("one",)),
    ("FROM a AS one\nCOPY --ch", ("--chown=", "--chmod=")),
    ("FROM a AS one\nRUN --mount=type=ca", ("cache",)),
    ("FROM a AS one\nRUN --mount=type=bind,from=o", ("one",)),
    ("FROM ima", ("image-a",)),
    ("FROM image-a a", ("AS",)),
    ("FROM a\nRUN true && \\\n  EN", ("EN",)),
    ("FROM a\nRUN <<EOF\nEN", ("EN",)),
    ("FROM a\nRUN <<EOF\nEN\nEOF\nUSE", ("USER ",)),
    ("FROM a\nRUN ", None),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [*ON_LINES, *((f"%%dockerfile\n{text}", found) for text, found in IN_DOCKERFILES), ("%%docker build\nWOR", ("WORKDIR ",))],
)
def test_tab_offers(text: str, expected: tuple[str, ...] | None) -> None:
    lines = text.split("\n")
    found = offer(text, len(lines) - 1, len(lines[-1]), THERE)
    assert (found.texts if found else None) == expected


def test_tab_offers_files_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "settings.env").touch()
    (tmp_path / "src").mkdir()
    text = f"%%container --env-file {tmp_path}/s"
    found = offer(text, 0, len(text), THERE)
    assert found is not None
    assert found.texts == (f"{tmp_path}/settings.env", f"{tmp_path}/src/")
