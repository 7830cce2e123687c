"""The config.json that `sandbox-oci spec` writes: a container with docker's defaults of isolation, as runc's begins."""

from __future__ import annotations

import os
from typing import Any  # it is JSON

from sandbox.runtime.security.kernel_files import MASKED, PROTECTED

_CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
_QUIET = ["nosuid", "noexec", "nodev"]


def default_config(*, rootless: bool = False) -> dict[str, Any]:
    """A config to start from; `rootless`: with a user namespace in which only the caller is mapped."""
    namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup", *(["user"] if rootless else [])]
    linux: dict[str, Any] = {
        "namespaces": [{"type": name} for name in namespaces],
        "maskedPaths": list(MASKED),
        "readonlyPaths": list(PROTECTED),
    }
    if rootless:
        linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    else:
        linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "sandbox",
        "mounts": _mounts(rootless=rootless),
        "linux": linux,
    }


def _mounts(*, rootless: bool) -> list[dict[str, Any]]:
    terminals = [] if rootless else ["gid=5"]
    mounts = [
        ("/proc", "proc", []),
        ("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *terminals]),
        ("/dev/shm", "tmpfs", [*_QUIET, "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", _QUIET),
        ("/sys", "sysfs", [*_QUIET, "ro"]),
        ("/sys/fs/cgroup", "cgroup", [*_QUIET, "relatime", "ro"]),
    ]
    return [{"destination": target, "type": kind, "source": kind, "options": options} for target, kind, options in mounts]
