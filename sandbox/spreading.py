"""Whether mounts can spread between a directory of the host and a container, as `-v SRC:DST:rslave` asks (mount_namespaces(7))."""

from __future__ import annotations

import os
from pathlib import Path

from sandbox.errors import InvalidOption, Unsupported

_MOUNTS = Path("/proc/self/mountinfo")


def check_propagation(propagation: str, source: Path, *, userns: str | None) -> None:
    """InvalidOption or Unsupported, with what would help."""
    kind = propagation.removeprefix("r")
    if kind == "private":
        return
    if os.geteuid() != 0:
        raise Unsupported(f"{propagation}: only root's containers can have it", feature=propagation)
    if kind == "shared" and userns != "host":
        raise InvalidOption(f"{propagation}: what the container mounts would be mounted on the host", hint="with --userns host it may")
    place, tags = _mount_of(os.path.realpath(source), _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape"))
    if not any(tag.startswith(("shared:",) if kind == "shared" else ("shared:", "master:")) for tag in tags):
        wanted = "a shared mount" if kind == "shared" else "a shared or slave mount"
        raise InvalidOption(f"{source}: is on {place}, which is not {wanted}", hint=f"mount --make-rshared {place}")


def _mount_of(path: str, table: str) -> tuple[str, list[str]]:
    """The mount `path` is on, and its optional fields (proc(5), /proc/pid/mountinfo); the last mounted of several at one place."""
    found: tuple[str, list[str]] = ("/", [])
    for fields in (line.split(" ") for line in table.splitlines()):
        place = _plain(fields[4])
        if (path == place or path.startswith(place.rstrip("/") + "/")) and len(place) >= len(found[0]):
            found = (place, fields[6 : fields.index("-")])
    return found


def _plain(text: str) -> str:
    """Without the octal escapes for blanks and backslashes."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
