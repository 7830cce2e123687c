"""Build cells that go on from one another, installs and files made of variables: all without an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from magics.build_cells import parse_build, parse_install
from magics.building import content_of
from magics.builds import BuildCells, Given
from magics.stage_list import list_stages
from sandbox.build.dockerfile import parse
from sandbox.errors import InvalidInput, InvalidOption


def _run(cells: BuildCells, key: str, body: str, *flags: str, context: str | None = None) -> str:
    """Compose and remember one cell; the whole text it stands for."""
    cell = parse_build(flags, body)
    given = Given(options=cell.options, context=context)
    composed = cells.compose(key, cell, given)
    cells.remember(composed, cell, given, f"image of {key}")
    return composed.text


def test_a_cell_without_from_goes_on_from_the_one_before() -> None:
    cells = BuildCells()
    _run(cells, "a", "FROM x\n")
    assert _run(cells, "b", "RUN one\n") == "FROM x\nRUN one\n"
    assert _run(cells, "c", "RUN two\n") == "FROM x\nRUN one\nRUN two\n"


def test_a_cell_run_again_replaces_its_layer_and_those_after_it_see_that() -> None:
    cells = BuildCells()
    _run(cells, "a", "FROM x\n")
    _run(cells, "b", "RUN one\n")
    _run(cells, "c", "RUN two\n")
    assert _run(cells, "b", "RUN other\n") == "FROM x\nRUN other\n"
    assert _run(cells, "c", "RUN two\n") == "FROM x\nRUN other\nRUN two\n"


def test_a_cell_that_builds_no_more_is_taken_out_of_the_chain() -> None:
    cells = BuildCells()
    _run(cells, "a", "FROM x\n")
    _run(cells, "b", "RUN one\n")
    _run(cells, "c", "RUN two\n")
    cells.forget("b")
    assert cells.whole()[0] == "FROM x\nRUN two\n"
    cells.forget("a")
    assert cells.whole()[0] == "FROM x\nRUN two\n", "what others stand on stays"


def test_flags_of_the_cells_below_hold_for_their_steps() -> None:
    cells = BuildCells()
    _run(cells, "a", "FROM x\n", "--secret", "id=t,env=T", "--network", "none", "-t", "one", context="app")
    cell = parse_build(["--secret", "id=u,env=U"], "RUN y\n")
    given = cells.compose("b", cell, Given(options=cell.options)).given
    assert given.options.secret == ("id=t,env=T", "id=u,env=U")
    assert given.options.network == "none"
    assert given.options.tag == ()
    assert given.context == "app"


def test_two_contexts_in_one_chain_are_refused() -> None:
    cells = BuildCells()
    _run(cells, "a", "FROM x\n", context="app")
    with pytest.raises(InvalidInput, match="context web: the cell it goes on from has app"):
        _run(cells, "b", "RUN y\n", context="web")


def test_nothing_to_go_on_from_is_said() -> None:
    with pytest.raises(InvalidInput, match="does not begin with FROM"):
        _run(BuildCells(), "a", "RUN x\n")


def test_install_quotes_versions_and_reads_more_from_the_body() -> None:
    cell = parse_install(["pip", "numpy>=2"], "pandas  # a table\n")
    assert cell.body.startswith("RUN --mount=type=cache,target=/root/.cache/pip")
    assert cell.body.endswith("-m pip install 'numpy>=2' pandas\n")


def test_flags_after_the_package_manager_are_its_own() -> None:
    cell = parse_install(["-t", "localhost/x", "apt", "-t", "stable", "curl"])
    assert cell.options.tag == ("localhost/x",)
    assert cell.body.rstrip().endswith("--no-install-recommends -t stable curl")


@pytest.mark.parametrize("words", [[], ["brew", "x"], ["pip"]])
def test_an_install_of_nothing_or_by_nobody_is_refused(words: list[str]) -> None:
    with pytest.raises(InvalidOption, match="%install"):
        parse_install(words)


def test_a_kernel_wants_a_name_for_its_image() -> None:
    with pytest.raises(InvalidOption, match="no name"):
        parse_build(["--kernel"], "FROM x\n")
    assert parse_build(["--kernel=lab"], "FROM x\n").kernel == "lab"
    assert parse_build(["--kernel", "-t", "a"], "FROM x\n").kernel is True


def test_variables_become_files_by_their_name(tmp_path: Path) -> None:
    import pandas

    table = pandas.DataFrame({"x": [1, 2]})
    assert content_of(table, "t.csv") == b"x\n1\n2\n"
    assert content_of(table, "t.json") == b'[{"x":1},{"x":2}]'
    assert content_of("ä", "t") == "ä".encode()
    assert content_of(b"\0", "t") == b"\0"
    with pytest.raises(InvalidInput, match="a dict is neither"):
        content_of({}, "t")


def test_stages_say_what_they_take_from_others() -> None:
    text = "FROM a AS one\nRUN x\nFROM b\nCOPY --from=0 /x /\nRUN --mount=type=bind,from=one,target=/m true\n"
    rows = [dict(row) for row in list_stages(parse(text), "made:latest")]
    assert rows == [
        {"Stage": "one", "From": "a", "Steps": "2", "Uses": "", "Image": ""},
        {"Stage": "1", "From": "b", "Steps": "3", "Uses": "one", "Image": "made:latest"},
    ]
