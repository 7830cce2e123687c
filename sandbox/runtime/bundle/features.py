"""What this runtime understands, as the specification's features structure (features.md): made from the tables that do it."""

from __future__ import annotations

from typing import Any  # it is JSON

from sandbox.runtime.bundle.config import Config
from sandbox.runtime.bundle.mounts import ATTRIBUTES, PROPAGATION
from sandbox.runtime.bundle.plan import NAMESPACES, hooks_of
from sandbox.runtime.init.names import CAPABILITIES
from sandbox.runtime.security import bpf
from sandbox.runtime.security.seccomp import ACTIONS


def features() -> dict[str, Any]:
    """For `sandbox-oci features`."""
    options = {*ATTRIBUTES, *(f"r{name}" for name in ATTRIBUTES), *PROPAGATION, "bind", "rbind", "tmpcopyup"}
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": list(hooks_of(Config("1.0.0"))),
        "mountOptions": sorted(options),
        "linux": {
            "namespaces": sorted(NAMESPACES),
            "capabilities": [f"CAP_{name}" for name in CAPABILITIES],
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": False},
            "seccomp": {
                "enabled": True,
                "actions": sorted(ACTIONS),
                "operators": sorted(bpf.OPERATORS),
                "archs": sorted(bpf.NATIVE.values()),
            },
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
    }
