"""cgroup v1, v2 and both at once: what this host offers, which groups a container gets, and how its limits are written.

`discover()` looks, `Layout.plan()` decides (pure), `create()` acts. All groups of ours are made below the cgroup the
engine itself is in, as OWN/jupyter-sandbox/ID: a place that others manage is never written to. What differs between v1
and v2 is the tables of `limits`.
"""

from sandbox.runtime.cgroups.acting import Cgroup, Reading, create, reading, refused
from sandbox.runtime.cgroups.discovery import Discovery, discover
from sandbox.runtime.cgroups.layout import BASE, ENGINE, Hierarchy, Layout, Plan
from sandbox.runtime.cgroups.limits import REPORTS, V1, V2, Control, Places, Version

__all__ = [
    "BASE",
    "ENGINE",
    "REPORTS",
    "V1",
    "V2",
    "Cgroup",
    "Control",
    "Discovery",
    "Hierarchy",
    "Layout",
    "Places",
    "Plan",
    "Reading",
    "Version",
    "create",
    "discover",
    "reading",
    "refused",
]
