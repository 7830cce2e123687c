"""docker's own words in a notebook: `%docker VERB`, `%%docker build|run|exec`, and lines that begin with `!docker`."""

from __future__ import annotations

import re
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import no_var_expand

from magics import loading
from magics.magics import shown_plainly
from sandbox.errors import InvalidOption

_SHELL_LINE = re.compile(r"^(\s*(?:[A-Za-z_]\w*\s*=\s*)?)!docker(?=\s|$)")


def say_docker(lines: list[str]) -> list[str]:
    """`!docker ps` and `x = !docker ps` as `%docker ps`; the bodies of cell magics stay as they are."""
    if lines and lines[0].startswith("%%"):
        return lines
    return [_SHELL_LINE.sub(r"\1%docker", line) for line in lines]


def load(shell: InteractiveShell) -> None:
    """Register with this shell, with all that `%load_ext sandbox` brings."""
    unload(shell)
    own: Any = loading.loaded(shell) or loading.load(shell)  # Any: IPython's decorators have no types

    @no_var_expand
    def docker(line: str, cell: str | None = None) -> object:
        """docker's verbs: `%docker VERB …`; `%%docker build|run|exec …` with the cell as Dockerfile or program."""
        if cell is None:
            return own.container_line(line)
        verb, _, rest = line.strip().partition(" ")
        if verb == "build":
            return own.dockerfile(rest, cell)
        if verb in ("run", "exec"):
            return own.container_cell(line.strip(), cell)
        with shown_plainly():
            raise InvalidOption(f"%%docker {verb}: takes no body", hint="%%docker build, run or exec; all else is %docker VERB")

    register: Any = shell.register_magic_function
    register(docker, "line_cell", "docker")
    shell.input_transformers_cleanup.append(say_docker)


def unload(shell: InteractiveShell) -> None:
    """Undo `load`; the other magics stay."""
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("docker", None)
    if say_docker in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.remove(say_docker)
