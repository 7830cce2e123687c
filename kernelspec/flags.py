"""docker run's flags in a kernelspec: which of them a kernel can have, and which would mean something else wherever it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from kernelspec.container import options_from
from sandbox import RunOptions
from sandbox.errors import InvalidOption

_REFUSED = {
    "restart": ("--restart: Jupyter restarts a kernel that died", "its server's KernelManager.autorestart decides on that"),
    "entrypoint": ("--entrypoint: a kernel has its own command", "give that with --kernel-cmd"),
}
_IDLE = {"rm": "--rm", "detach": "-d", "interactive": "-i", "tty": "-t"}
"""A habit of docker's users, and true of every kernel, or of none."""


def image_and_flags(words: Sequence[str]) -> tuple[str, list[str]]:
    """The one word that is no flag nor a flag's value, and the rest, checked; InvalidOption."""
    from magics.cells import parse_words
    from sandbox.options import RUN

    _, rest = parse_words(words, RUN, interspersed=True)
    if len(rest) != 1:
        hint = "sandbox kernel install IMAGE [RUN FLAGS]; the container's user is -u"
        raise InvalidOption(f"expected one image, got {', '.join(rest) or 'none'}", hint=hint)
    place = len(words) - 1 - list(reversed(words)).index(rest[0])
    flags = [*words[:place], *words[place + 1 :]]
    _check(options_from(flags))
    return rest[0], flags


def _check(options: RunOptions) -> None:
    usual = RunOptions()
    for field, (message, hint) in _REFUSED.items():
        if getattr(options, field) != getattr(usual, field):
            raise InvalidOption(message, hint=hint)
    for flag, path in _files(options):
        if not path.startswith(("/", "~")):
            raise InvalidOption(f"{flag} {path}: a kernel starts in any directory", hint=f"write {os.path.abspath(path)}")


def _files(options: RunOptions) -> Iterator[tuple[str, str]]:
    """What names a file of the host's, by its flag. Of a volume only what docker takes for a path, not for a volume's name."""
    yield from (("--env-file", path) for path in options.env_file)
    yield from (("--volume", source) for text in options.volume if (source := text.partition(":")[0]).startswith("."))
    for text in options.mount:
        keys = dict(word.partition("=")[::2] for word in text.split(","))
        if keys.get("type") == "bind":
            yield "--mount", keys.get("source") or keys.get("src") or "/"  # none at all is told when it is used
    for name, value in options.security_opt:
        if name == "seccomp" and value not in ("unconfined", "builtin"):
            yield "--security-opt seccomp", value


def idle_flags(flags: Sequence[str]) -> list[str]:
    """Those that do nothing in a kernelspec."""
    options = options_from(flags)
    return [flag for field, flag in _IDLE.items() if getattr(options, field)]
