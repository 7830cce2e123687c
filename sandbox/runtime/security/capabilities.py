"""Which capabilities a container's processes hold (capabilities(7)), inside its user namespace."""

from __future__ import annotations

from collections.abc import Iterable

from sandbox.errors import InvalidOption
from sandbox.runtime.init.names import CAPABILITIES

DEFAULT_CAPABILITIES = (
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID",
    "SETPCAP", "SETUID", "SYS_CHROOT",
)  # fmt: skip
"""docker's default set (moby, oci/caps/defaults.go)."""


def choose_capabilities(add: Iterable[str], drop: Iterable[str], *, privileged: bool = False) -> list[str]:
    """docker's rule: --privileged is everything, else the default set with --cap-add and --cap-drop applied; ALL is
    everything, and a dropped ALL leaves only what is added. Raises InvalidOption for a name that does not exist."""
    added, dropped = ({_name(name) for name in names} for names in (add, drop))
    everything = set(CAPABILITIES)
    if privileged or "ALL" in added:
        return sorted(everything - dropped)
    if "ALL" in dropped:
        return sorted(added)
    return sorted((set(DEFAULT_CAPABILITIES) | added) - dropped)


def _name(name: str) -> str:
    short = name.upper().removeprefix("CAP_")
    if short != "ALL" and short not in CAPABILITIES:
        raise InvalidOption(f"capability {name!r}: not known", hint="capabilities(7) lists them; write NET_ADMIN or CAP_NET_ADMIN")
    return short
