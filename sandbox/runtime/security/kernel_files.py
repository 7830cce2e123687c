"""What a container sees of /proc, /sys and /dev, and which of Linux' settings it may be given (--sysctl)."""

from __future__ import annotations

from collections.abc import Iterable

from sandbox.errors import InvalidOption

MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
)  # fmt: skip
PROTECTED = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""docker's masked and read-only paths (moby, oci/defaults.go)."""
SYSCTLS = "/proc/sys"
"""The one of them that is written to before (--sysctl)."""
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

_IPC_SETTINGS = frozenset(
    {
        "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
        "kernel.shm_rmid_forced", "kernel.domainname",
    }
)  # fmt: skip


def check_sysctls(settings: Iterable[tuple[str, str]], *, own_network: bool) -> None:
    """Raise InvalidOption for a setting that is not the container's own: it would change the host."""
    for name, _ in settings:
        if name in _IPC_SETTINGS or name.startswith("fs.mqueue."):
            continue
        if not name.startswith("net.") or "/" in name or ".." in name:
            raise InvalidOption(
                f"--sysctl {name}: not a setting of the container's own namespaces", hint="net.*, fs.mqueue.* and IPC limits are"
            )
        if not own_network:
            raise InvalidOption(f"--sysctl {name}: the network is the host's", hint="use --network none")


def sysctl_file(name: str) -> str:
    """Where a setting is: `net.ipv4.ip_forward` below /proc/sys."""
    return "/proc/sys/" + name.replace(".", "/")
