"""What happens, one JSON object a line, in ROOT/events.jsonl: written by whoever does it, so nobody has to run for it to be known."""

from __future__ import annotations

import errno
import json
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "events.jsonl"
_LARGEST = 4 << 20
"""Bytes from which on a new file is begun; the one before is kept as NAME.1."""
_NOWHERE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""An event that cannot be written is lost; what it tells of is done."""


def note(root: str, kind: str, action: str, subject: str, attributes: Mapping[str, str] | None = None) -> None:
    """Write down that `action` was done to the `subject` (an id or name) of this `kind` (container, image, volume, network)."""
    row = {"time": time.time_ns(), "type": kind, "action": action, "id": subject, "attributes": dict(attributes or {})}
    path = f"{root}/{NAME}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, json.dumps(row).encode() + b"\n")  # one write, at the end: lines of two processes do not mix
            if os.fstat(fd).st_size > _LARGEST:
                os.replace(path, f"{path}.1")
        finally:
            os.close(fd)
    except OSError as err:
        if err.errno not in _NOWHERE:
            raise
