"""What every verb needs of the command line it was called by: the engine, several names at once, a question."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sandbox.cli.caller import invocation, is_taken
from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from sandbox.engine import Engine

INTERRUPTED = 130


@contextmanager
def engine() -> Iterator[Engine]:
    """The engine of `--root`, closed afterwards."""
    from sandbox.engine import Engine

    with Engine(invocation().root) as opened:
        yield opened


@contextmanager
def starting_engine() -> Iterator[Engine]:
    """As `engine`, for a verb that starts one program: the helper comes up while the engine is imported, which takes as long."""
    from sandbox.runtime.spawner import single

    spawner = single()
    try:
        spawner.warm()
        from sandbox.engine import Engine

        with Engine(invocation().root, spawner=spawner) as opened:
            yield opened
    finally:
        spawner.close()


def guarded(run: Callable[[], object], argv: Sequence[str]) -> int:
    """Run the verb of this command line; its exit status. Errors become text on stderr here, or are raised for a caller in this
    process; an OSError is one of ours then."""
    try:
        result = run()
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_gone()
    except (SandboxError, OSError) as err:
        from sandbox.cli.failures import as_ours, show_error

        found = as_ours(err)
        if not is_taken():
            return show_error(found, argv)
        if found is err:
            raise
        raise found from err


def _reader_gone() -> int:
    """`sandbox ps | head -1`: what is left in the buffer has no reader; the interpreter must not try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def each(names: Sequence[str], action: Callable[[str], str | None]) -> int:
    """Do `action` for each name and print what it answers (docker prints the name back); a failure is reported and the
    rest still done. The status is 1 when one failed. A caller in this process gets the error of the only one raised."""
    from sandbox.cli.failures import show_error

    status = 0
    for name in names:
        try:
            if (answer := action(name)) is not None:
                print(answer, flush=True)
        except SandboxError as err:
            if len(names) == 1 and is_taken():
                raise
            status = show_error(err, ())
    return status


def confirm(question: str) -> bool:
    """docker's `[y/N]` question; when nobody can be asked it is a no. A notebook asks through input()."""
    if is_taken():
        try:
            answer = input(f"{question} [y/N] ")
        except (EOFError, NotImplementedError):  # this front end allows no questions
            print(f"{question}\nnobody can be asked here: nothing was removed; add -f", file=sys.stderr)
            return False
    else:
        print(f"{question} [y/N] ", end="", flush=True)
        answer = sys.stdin.readline() if not sys.stdin.closed else ""
    return answer.strip().lower() in ("y", "yes")


def write_bytes(data: bytes, fd: int = 1) -> None:
    """Everything to the descriptor, unbuffered; a caller in this process has a sys.stdout of its own (a cell), which gets text."""
    if is_taken():
        print(data.decode("utf-8", "replace"), end="", file=sys.stderr if fd == 2 else sys.stdout, flush=True)
        return
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
