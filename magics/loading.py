"""Registering the magics with a shell, and taking out exactly what was brought."""

from __future__ import annotations

from contextlib import nullcontext

from IPython.core.interactiveshell import InteractiveShell

from magics import build_cells, cells
from magics.completion import make_matcher
from magics.magics import SandboxMagics
from magics.verbs import verbs_text
from sandbox.cli.completing import names_in

_CELL_MAGICS = ("%%dockerfile", "%%container", "%%sandbox", "%%install", "%%docker")
_ATTRIBUTE = "_sandbox_extension"
"""Where a shell keeps what was loaded into it: the shell owns it, so that no module has state."""


def load(shell: InteractiveShell) -> SandboxMagics:
    """Register with this shell; loading again starts afresh."""
    unload(shell)
    extension = _Loaded(shell)
    extension.attach()
    setattr(shell, _ATTRIBUTE, extension)
    return extension.magics


def loaded(shell: InteractiveShell) -> SandboxMagics | None:
    """The magics this shell has; None when they are not loaded."""
    extension = getattr(shell, _ATTRIBUTE, None)
    return None if extension is None else extension.magics


def unload(shell: InteractiveShell) -> None:
    """Take out what `load` brought; nothing when it is not there."""
    extension = getattr(shell, _ATTRIBUTE, None)
    if extension is not None:
        extension.detach()
        delattr(shell, _ATTRIBUTE)


class _Loaded:
    """Everything one `load` brought to a shell, so that `unload` takes out exactly that."""

    def __init__(self, shell: InteractiveShell) -> None:
        _describe()
        self.magics = SandboxMagics(shell)
        names = names_in(lambda: nullcontext(self.magics.engine), sessions=self.magics.session_names, variables=self.magics.variable_names)
        self.matcher = make_matcher(names)
        self._shell = shell

    def attach(self) -> None:
        """Register with the shell."""
        self._shell.register_magics(self.magics)
        self._shell.events.register("pre_run_cell", self.magics.begin_cell)
        self._shell.events.register("post_run_cell", self.magics.end_cell)
        self._shell.input_transformers_cleanup.append(give_body)
        self._shell.Completer.custom_matchers.append(self.matcher)

    def detach(self) -> None:
        """Undo `attach`."""
        self._shell.events.unregister("pre_run_cell", self.magics.begin_cell)
        self._shell.events.unregister("post_run_cell", self.magics.end_cell)
        self._shell.input_transformers_cleanup.remove(give_body)
        self._shell.Completer.custom_matchers.remove(self.matcher)
        for kind, names in SandboxMagics.magics.items():
            for name in names:
                self._shell.magics_manager.magics[kind].pop(name, None)
        self.magics.close()


def give_body(lines: list[str]) -> list[str]:
    """IPython refuses a cell magic without a body; ours mean something then (`--help`, an image's own command): give it an empty line."""
    if len(lines) == 1 and lines[0].split(None, 1)[:1] and lines[0].split(None, 1)[0] in _CELL_MAGICS:
        return [lines[0].rstrip("\n") + "\n", "\n"]
    return lines


def _describe() -> None:
    """What `%%container?` shows is what `--help` says. A front end that asks for the name at the cursor leaves the %% out and
    gets the line magic: it tells of both."""
    usages = {**build_cells.USAGES, **cells.USAGES}
    texts = {
        "dockerfile": usages["%%dockerfile"].text(),
        "dockerfile_line": f"{usages['%dockerfile'].text()}\n\nAs a cell magic:\n\n{usages['%%dockerfile'].text()}",
        "container_cell": usages["%%container"].text(),
        "sandbox": usages["%%sandbox"].text(),
        "install": usages["%install"].text(),
        "stages": usages["%stages"].text(),
        "container_line": f"{verbs_text()}\n\nAs a cell magic:\n\n{usages['%%container'].text()}",
    }
    for method, text in texts.items():
        getattr(SandboxMagics, method).__doc__ = text
