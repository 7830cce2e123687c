"""The network of a container for which none was named."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sandbox.errors import InvalidOption

VARIABLE = "SANDBOX_NETWORK"
_NET_ADMIN = 12


def default_network(env: Mapping[str, str] = os.environ, *, publishes: bool = False, status: Path = Path("/proc/self/status")) -> str:
    """What SANDBOX_NETWORK says; else `bridge` for root that may make one (CAP_NET_ADMIN), and `none` for others: what an ordinary user's
    network needs may not be there, and makes a start several times as long. A container that `publishes` ports asks for `bridge` by
    that, but for a variable that names a network with addresses. InvalidOption for a variable that is no name."""
    named = env.get(VARIABLE)
    if named is not None and (not named or named.split() != [named]):
        raise InvalidOption(f"{VARIABLE}={named}: not a network", hint="none, host, bridge, or the name of a network")
    if publishes and named in (None, "none", "host"):
        return "bridge"
    return named or ("bridge" if os.geteuid() == 0 and _may_make_one(status) else "none")


def _may_make_one(status: Path) -> bool:
    """proc(5)."""
    held = next(line for line in status.read_text().splitlines() if line.startswith("CapEff:"))
    return bool(int(held.split()[1], 16) >> _NET_ADMIN & 1)
