"""Tab in our cells: on magic lines whatever click offers for the same command line, in Dockerfiles instructions, their flags and names.

The rows from which the magics' parser and help are made are the only list of flags; of names `sandbox.cli.completing` knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from IPython.core.completer import CompletionContext, MatcherAPIv2, SimpleCompletion, SimpleMatcherResult, context_matcher

from magics.build_cells import BUILD_ROWS, INSTALL_ROWS, INSTALLERS
from magics.cells import DOCKER_EXEC_ROWS, DOCKER_ROWS, EXEC_ROWS, RUN_ROWS
from magics.dockerfile_completion import in_dockerfile
from magics.verbs import OWN, PASSES_FLAGS_ON
from sandbox.cli.completing import Complete, Names, complete_containers, complete_images, offered, offering
from sandbox.cli.flags import VerbCommand, option_of
from sandbox.cli.program import program
from sandbox.options import Option

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_MAGIC = re.compile(r"\s*(?:[A-Za-z_]\w*\s*=\s*)?(?P<magic>%{1,2}\w+|!docker)(?=\s)\s*")
_MOST_FILES = 200


class Offer(msgspec.Struct, frozen=True):
    """What may stand at the cursor instead of the `fragment` that stands there; `kinds`: of each text, in a word front ends show."""

    fragment: str
    texts: tuple[str, ...]
    kinds: tuple[str, ...]


def offer(text: str, line: int, column: int, names: Names) -> Offer | None:
    """What to offer at this place of a cell; None when the cell is none of ours, or Python's own completion knows better."""
    lines = text.split("\n")
    first = _MAGIC.match(lines[0] + " ")
    magic = first["magic"] if first and first.start("magic") == 0 else ""
    begun = _begin_of_line(lines, line)
    before = " ".join([*(each.rstrip()[:-1] for each in lines[begun:line]), lines[line][:column]])
    if begun == 0 or not magic.startswith("%%"):
        return _on_magic_line(before, names)
    if magic == "%%dockerfile" or (magic == "%%docker" and lines[0].split()[1:2] == ["build"]):
        found = in_dockerfile(lines[1:begun], before, names)
        return found and _offer(*found)
    return None


def _begin_of_line(lines: Sequence[str], line: int) -> int:
    """Where the line begins that goes on here after backslashes."""
    while line > 0 and lines[line - 1].rstrip().endswith("\\"):
        line -= 1
    return line


def _on_magic_line(before: str, names: Names) -> Offer | None:
    from click.shell_completion import split_arg_string

    match = _MAGIC.match(before)
    command = _COMMANDS.get(match["magic"]) if match else None
    if match is None or command is None:
        return None
    rest = before[match.end() :]
    fragment = "" if not rest or rest[-1].isspace() else rest.split()[-1]
    words = split_arg_string(rest[: len(rest) - len(fragment)])
    flag, equals, value = fragment.partition("=")
    incomplete = value if equals and flag.startswith("--") else fragment
    found = [each for item in command(words, fragment, names) for each in _spelled(item)]
    return _offer(incomplete, found) if found else None


def _spelled(item: CompletionItem) -> Iterable[tuple[str, str]]:
    """The item as text and kind; one that stands for files of this machine as those."""
    if item.type not in ("file", "dir"):
        kind = "flag" if item.value.startswith("-") else "text"
        return [(item.value, kind)]
    begun = Path(item.value or ".")
    place, start = (begun, "") if item.value.endswith("/") or not item.value else (begun.parent, begun.name)
    prefix = item.value[: len(item.value) - len(start)]
    try:
        entries = [each for each in sorted(place.expanduser().iterdir()) if each.name.startswith(start) and (start or each.name[0] != ".")]
    except OSError:  # no such directory: nothing to offer
        return []
    wanted = (each for each in entries if each.is_dir() or item.type == "file")
    return [(f"{prefix}{each.name}{'/' if each.is_dir() else ''}", "path") for each in wanted][:_MOST_FILES]


def _offer(fragment: str, found: Sequence[tuple[str, str]]) -> Offer:
    return Offer(fragment, tuple(text for text, _ in found), tuple(kind for _, kind in found))


# the magics as click commands


def _command(rows: Sequence[Option], *arguments: click.Parameter, interspersed: bool = False) -> click.Command:
    """What a magic's line looks like to click."""
    params = [*map(option_of, rows), *arguments]
    return VerbCommand(None, params=params, add_help_option=False, context_settings={"allow_interspersed_args": interspersed})


def _argument(complete: Complete) -> click.Argument:
    return click.Argument(["what"], required=False, shell_complete=complete)


@cache
def _cell_commands() -> Mapping[str, click.Command]:
    """Made when first asked for."""
    rest = click.Argument(["rest"], nargs=-1, type=click.UNPROCESSED)
    images = offering(lambda names: [*names.images(), "exec"])
    return {
        "": _command(RUN_ROWS, _argument(images), rest),
        "run": _command(RUN_ROWS, _argument(complete_images), rest),
        "docker run": _command(DOCKER_ROWS, _argument(complete_images), rest),
        "docker exec": _command(DOCKER_EXEC_ROWS, _argument(complete_containers), rest),
        "exec": _command(EXEC_ROWS, _argument(complete_containers), rest),
        "build": _command(BUILD_ROWS, click.Argument(["context"], required=False, type=click.Path(file_okay=False)), interspersed=True),
        "install": _command(INSTALL_ROWS, _argument(offering(lambda names: INSTALLERS)), rest),
    }


def _in_cell(words: Sequence[str], fragment: str, names: Names) -> Sequence[CompletionItem]:
    """`%%container`: run's flags and an image, or exec's and a container."""
    verb, rest = (words[0], words[1:]) if words and words[0] in ("run", "exec") else ("", words)
    return offered(_cell_commands()[verb], rest, fragment, names)


_DOCKER_CELLS = {"build": "build", "run": "docker run", "exec": "docker exec"}


def _in_docker_cell(words: Sequence[str], fragment: str, names: Names) -> Sequence[CompletionItem]:
    """`%%docker build|run|exec`."""
    if not words:
        return _one_of(*_DOCKER_CELLS)(words, fragment, names)
    known = _DOCKER_CELLS.get(words[0])
    return offered(_cell_commands()[known], words[1:], fragment, names) if known else ()


def _of_verbs(words: Sequence[str], fragment: str, names: Names) -> Sequence[CompletionItem]:
    """`%container VERB …`: the command line itself, and what it has in a notebook only."""
    from click.shell_completion import CompletionItem

    if words[:1] == ["reset"]:
        return [CompletionItem(name) for name in names.sessions() if name.startswith(fragment) and name not in words]
    if not words:
        return [*offered(program(), words, fragment, names), *_one_of(*OWN)(words, fragment, names)]
    whole = program()
    if words[0] not in whole.verbs and words[0] not in whole.groups:
        return ()
    found = offered(whole, words, fragment, names)
    tells_json = fragment.startswith("-") and "--json".startswith(fragment) and words[0] not in PASSES_FLAGS_ON
    return [*found, CompletionItem("--json")] if tells_json else found


def _of_cell(name: str) -> Asked:
    return lambda words, fragment, names: offered(_cell_commands()[name], words, fragment, names)


def _one_of(*known: str) -> Asked:
    def ask(words: Sequence[str], fragment: str, names: Names) -> Sequence[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(word) for word in known if word.startswith(fragment) and not words]

    return ask


Asked = Callable[[Sequence[str], str, Names], "Sequence[CompletionItem]"]
_COMMANDS: dict[str, Asked] = {
    "%%dockerfile": _of_cell("build"),
    "%%container": _in_cell,
    "%%sandbox": _of_cell("run"),
    "%%docker": _in_docker_cell,
    "%container": _of_verbs,
    "%docker": _of_verbs,
    "!docker": _of_verbs,
    "%install": _of_cell("install"),
    "%%install": _of_cell("install"),
    "%dockerfile": _one_of("export", "import"),
}


def make_matcher(names: Names) -> MatcherAPIv2:
    """The matcher IPython asks at every Tab; where it has an offer, Python's own matchers are left out."""

    @context_matcher(identifier="sandbox")
    def match(context: CompletionContext) -> SimpleMatcherResult:
        found = offer(context.full_text, context.cursor_line, context.cursor_position, names)
        if found is None:
            return {"completions": []}
        completions = [SimpleCompletion(text, type=kind) for text, kind in zip(found.texts, found.kinds, strict=True)]
        return {"completions": completions, "matched_fragment": found.fragment, "suppress": True, "ordered": True}

    return match
