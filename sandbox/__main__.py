"""`python -m sandbox`, and the console scripts `sandbox` and `jupyter-sandbox`."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys

from sandbox import modulecache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

_STARTERS = ("run", "exec")
"""Verbs that start one program."""


def main(*, is_module: bool = False) -> NoReturn:
    """Run the command line and exit with its status. `is_module`: it was started by -m, so modules may come from the working directory."""
    gc.set_threshold(50_000)  # tens of thousands of objects come with the imports, and all of them stay
    modules = None if is_module else modulecache.use()
    status = None
    if is_to_start(sys.argv[1:]):
        from sandbox.runtime import comeup

        helper = comeup.come_up(sys.argv[1:])  # while the rest is imported
        from sandbox import lean

        lean.import_lean()
        from sandbox.runtime import spawner

        spawner.come_up_ahead(helper)
        from sandbox.cli import plain

        status = plain.run(sys.argv[1:])
    if status is None:
        from sandbox.cli import program

        status = program.run(sys.argv[1:])
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # of a run that succeeded it was flushed, and told; after an error that is what counts
            stream.flush()
    if modules is not None:
        modules.save()
    os._exit(status)  # Python would take every object apart first, for 4 ms


def is_to_start(argv: Sequence[str]) -> bool:
    """Whether this command line starts a program, as far as its first words tell."""
    words = iter(argv)
    for word in words:
        if word == "--root":
            next(words, None)
        elif not word.startswith("-") and word != "container":
            return word in _STARTERS and "--help" not in argv
    return False


if __name__ == "__main__":
    main(is_module=True)
