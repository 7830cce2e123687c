"""docker's own words in a notebook: `%docker VERB`, `%%docker build|run|exec`, and lines that begin with `!docker`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import no_var_expand

from magics import cells, display, loading
from magics.magics import shown_plainly
from magics.verbs import verbs_text
from sandbox.errors import InvalidOption

_SHELL_LINE = re.compile(r"^(?P<before>\s*(?:[A-Za-z_]\w*\s*=\s*)?)!docker(?=\s|$)(?P<rest>.*)", re.DOTALL)
_FOR_A_SHELL = ("|", "|&", "||", "&", "&&", ";", ">", ">>", ">&", "&>", "<", "<<", "<<<")


def say_docker(lines: list[str]) -> list[str]:
    """`!docker ps` and `x = !docker ps` as `%docker ps`; the bodies of cell magics stay as they are."""
    if lines and lines[0].startswith("%%"):
        return lines
    return [_SHELL_LINE.sub(_said, line) for line in lines]


def _said(match: re.Match[str]) -> str:
    """A line that pipes or redirects stays a shell's, to which docker is this program."""
    rest = match["rest"]
    if not _wants_shell(rest):
        return f"{match['before']}%docker{rest}"
    program = f"{shlex.quote(sys.executable)} -m sandbox"
    doubled = rest.replace("{{", "{{{{").replace("}}", "}}}}")  # of a template's braces IPython takes half away
    return f'{match["before"]}!docker() ({program} "$@"); docker{doubled}'


def _wants_shell(text: str) -> bool:
    words = shlex.shlex(text, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    try:
        return any(word in _FOR_A_SHELL for word in words)
    except ValueError:  # a quote that is never closed: the magic says so
        return False


def load(shell: InteractiveShell) -> None:
    """Register with this shell, with all that `%load_ext sandbox` brings."""
    unload(shell)
    own: Any = loading.loaded(shell) or loading.load(shell)  # Any: IPython's decorators have no types
    in_cells: dict[str, Callable[[str, str], object]] = {
        "build": own.dockerfile,
        "run": partial(own.docker_cell, "run"),
        "exec": partial(own.docker_cell, "exec"),
    }

    @no_var_expand
    def docker(line: str, cell: str | None = None) -> object:
        if cell is None:
            return own.container_line(line)
        verb, _, rest = line.strip().partition(" ")
        if verb in ("", "-h", "--help"):
            display.say(_help())
            return None
        if verb in in_cells:
            return in_cells[verb](rest, cell)
        with shown_plainly():
            raise InvalidOption(f"%%docker {verb}: takes no body", hint="%%docker build, run or exec; all else is %docker VERB")

    docker.__doc__ = _help()
    register: Any = shell.register_magic_function
    register(docker, "line_cell", "docker")
    shell.input_transformers_cleanup.append(say_docker)


def _help() -> str:
    """What `%docker?` shows."""
    lines = verbs_text().replace("%container", "%docker")
    in_cells = (
        "As a cell magic: %%docker build [FLAGS] [CONTEXT] with the Dockerfile as the cell's body, %%docker run [FLAGS] IMAGE [CMD…] and\n"
        "%%docker exec [FLAGS] NAME [CMD…] with a program, or a program's stdin. `!docker …` means the same; with pipes it is a shell's."
    )
    return f"{lines}\n\n{in_cells}\n\n{cells.USAGES['%%docker run'].text()}"


def unload(shell: InteractiveShell) -> None:
    """Undo `load`; the other magics stay."""
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("docker", None)
    if say_docker in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.remove(say_docker)
