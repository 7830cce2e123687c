"""`%container VERB …`: the command line's verbs, run in this process, printing into the cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sandbox.errors import ContainerError


def verbs() -> Iterable[str]:
    """Every verb of the command line."""
    from sandbox.cli import VERBS

    return tuple(VERBS)


def run_verb(words: Sequence[str]) -> None:
    """Run a verb; what it prints is the cell's output. ContainerError when its exit status is not 0 (it has said why)."""
    from sandbox.cli import run

    code = run(list(words) or ["--help"])
    if code:
        raise ContainerError(f"%container {words[0]}: exit status {code}")
