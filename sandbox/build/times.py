"""SOURCE_DATE_EPOCH in layers: no time of the build, nor of the host's files, stays in one.

What a step brings from a host directory gets the time itself, as a checkout's times say nothing about its content. What a
program or another image brought keeps its time unless that is later (BuildKit's rewrite-timestamp).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from sandbox.errors import InvalidOption

_NANO = 10**9


def fix_times(upper: Path, epoch: int, *, every: bool) -> None:
    """Give what lies below `upper` the time `epoch` (seconds): everything, or what is later."""
    stamp = (epoch * _NANO, epoch * _NANO)
    for base, directories, files in os.walk(os.fsencode(upper)):
        for name in (*directories, *files):
            path = os.path.join(base, name)
            if every or os.lstat(path).st_mtime_ns > stamp[0]:
                os.utime(path, ns=stamp, follow_symlinks=False)


def now(environ: Mapping[str, str]) -> datetime:
    """SOURCE_DATE_EPOCH when set (reproducible-builds.org), else now; InvalidOption when it is not a number of seconds."""
    if epoch := environ.get("SOURCE_DATE_EPOCH"):
        if not epoch.isdigit():
            raise InvalidOption(f"SOURCE_DATE_EPOCH={epoch!r}: not a number of seconds")
        return datetime.fromtimestamp(int(epoch), UTC)
    return datetime.now(UTC)
