"""How errors look on stderr, and which exit status they give (docker's)."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from sandbox.cli.caller import invocation
from sandbox.errors import DockerfileError, InvalidOption, SandboxError, StepFailed

ENGINE_ERROR = 125
"""What `run` gives when the error is the engine's and not the program's."""
_OWN_STATUS = ("run", "create")
_LAST_LINES = 10


def show_error(error: SandboxError, argv: Sequence[str]) -> int:
    """Print it; the exit status for the command line `argv` (empty: a verb that goes on with its next name)."""
    if invocation().debug:
        import traceback

        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    click.echo("\n".join(error_lines(error)), err=True)
    return ENGINE_ERROR if verb_of(argv) in _OWN_STATUS else 1


def error_lines(error: SandboxError) -> list[str]:
    """`sandbox: message`, what belongs to it, `hint: …`."""
    hint = [f"hint: {error.hint}"] if error.hint else []
    return [f"sandbox: {error}", *_details(error), *hint]


def _details(error: SandboxError) -> list[str]:
    if isinstance(error, DockerfileError):
        return indented(error.excerpt)
    if isinstance(error, StepFailed):
        return step_details(error, place="")
    return []


def step_details(error: StepFailed, *, place: str, excerpt: str | None = None) -> list[str]:
    """What stands around the failed line, and the last it printed. `place` says which step of which stage; `excerpt`
    replaces the error's own (a cell numbers the lines its own way)."""
    from sandbox.cli.progress import last_state  # the events' types: no other verb needs them

    output = [shown for line in error.output.split("\n") if (shown := last_state(line).rstrip())][-_LAST_LINES:]
    last = ["  last output:", *(f"    {line}" for line in output)] if output else []
    return [*([f"  {place}"] if place else []), *indented(error.excerpt if excerpt is None else excerpt), *last]


def indented(excerpt: str) -> list[str]:
    """The lines of an excerpt below the message they belong to."""
    return [f"  {line}" for line in excerpt.splitlines()]


def as_ours(error: SandboxError | OSError) -> SandboxError:
    """The error, or what it is called when Linux raised it."""
    return error if isinstance(error, SandboxError) else SandboxError(system_text(error))


def system_text(error: OSError) -> str:
    """`x.tar: no such file or directory`."""
    reason = (error.strerror or os.strerror(error.errno or 0)).lower()
    return f"{error.filename}: {reason}" if error.filename else reason


def show_usage_error(error: click.UsageError) -> int:
    """Print what is wrong and how the verb is used. A wrong flag gives 125 as in docker, and so does anything wrong with
    `run`; wrong arguments elsewhere give 1."""
    ctx = error.ctx
    lines = [f"sandbox: {_uncapitalized(error.format_message())}"]
    if hint := getattr(error, "hint", None):
        lines.append(f"hint: {hint}")
    if ctx:
        lines += ["", ctx.get_usage(), f"Run '{ctx.command_path} --help' for more information"]
    click.echo("\n".join(lines), err=True)
    verb = ctx.info_name if ctx else None
    return ENGINE_ERROR if is_flag_error(error) or verb in _OWN_STATUS else 1


def as_invalid(error: click.UsageError) -> InvalidOption:
    """The same for a caller in this process."""
    usage = error.ctx.get_usage().partition("Usage: ")[2] if error.ctx and error.ctx.parent else "sandbox --help lists the verbs"
    hint = getattr(error, "hint", None) or " ".join(usage.split())
    return InvalidOption(_uncapitalized(error.format_message()), hint=hint)


def is_flag_error(error: click.UsageError) -> bool:
    """Whether a flag is wrong, and not an argument."""
    if isinstance(error, click.NoSuchOption | click.BadOptionUsage):
        return True
    return isinstance(error, click.BadParameter) and isinstance(error.param, click.Option)


def _uncapitalized(text: str) -> str:
    text = text.strip().removesuffix(".")
    return text[:1].lower() + text[1:]


def verb_of(argv: Sequence[str]) -> str | None:
    """The verb of a command line: its first word that is no global option (`image`, `container`, `system` are skipped)."""
    words = iter(argv)
    for word in words:
        if word == "--root":
            next(words, None)
        elif not word.startswith("-") and word not in ("image", "container", "system"):
            return word
    return None
