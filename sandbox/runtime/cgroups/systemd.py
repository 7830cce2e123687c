"""A group of our own from systemd, where the one we were started in is not ours to share out (cgroup v2).

A login session, a desktop's terminal or a plain service belongs to systemd, and nobody else may make groups there. Asked for a scope with
Delegate=yes, systemd makes one that is ours: the user's own manager does it for an ordinary user (systemd.resource-control(5);
https://systemd.io/CGROUP_DELEGATION). The spawner is started in one, and with it every supervisor and container. Such a scope ends with
its last process, and systemd removes what groups are left in it.

A group that was not delegated is left even where we are alone in it: systemd ends a whole unit when Linux kills a process below it for
want of memory, a container's too (OOMPolicy=stop, systemd.service(5)); only what is delegated goes on.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping

from sandbox.runtime.cgroups.discovery import discover, is_delegated
from sandbox.runtime.cgroups.layout import BASE, Layout
from sandbox.runtime.comeup import BOOTED

UNIT = "jupyter-sandbox-"
"""What the names of our scopes begin with."""


def scope_command(environ: Mapping[str, str], *, booted: str = BOOTED) -> tuple[str, ...]:
    """What to put before a program so that it runs in a scope of ours; empty where none is needed, or systemd is not there to be asked."""
    if not os.path.isdir(booted) or is_ours(discover()):
        return ()
    import shutil  # with bz2 and lzma: only where systemd is

    program = shutil.which("systemd-run", path=environ.get("PATH", "/usr/bin:/bin"))
    is_root = os.geteuid() == 0
    if program is None or not (is_root or _has_manager(runtime_directory(environ))):
        return ()
    unit = f"--unit={UNIT}{os.getpid()}-{os.urandom(4).hex()}"
    whose = () if is_root else ("--user",)
    return (program, *whose, "--scope", "--quiet", "--collect", unit, "--property=Delegate=yes", "--description=jupyter-sandbox", "--")


def runtime_directory(environ: Mapping[str, str]) -> str:
    """Where the user's manager listens; also for whoever came by cron or su, without XDG_RUNTIME_DIR."""
    return environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"


def is_ours(layout: Layout) -> bool:
    """Whether groups may be made below our own, or are made by v1's rules; else systemd is to be asked."""
    return layout.kind != "v2" or all(is_delegated(h.base) and not h.obstacle for h in layout.hierarchies)


def existing() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Id and groups of every container there is now, of whichever engine: below our own group, and in the scopes of this user's."""
    layout = discover()
    yield from layout.existing().items()
    uid = os.geteuid()
    whose = f"user.slice/user-{uid}.slice/user@{uid}.service/app.slice" if uid else "system.slice"
    for h in layout.hierarchies if os.path.isdir(BOOTED) else ():
        for group in sorted(h.mount.glob(f"{whose}/{UNIT}*.scope/{BASE}/*/")):
            yield group.name, (str(group),)


def _has_manager(directory: str) -> bool:
    """Whether a systemd of this user's runs: it listens there."""
    try:
        return stat.S_ISSOCK(os.stat(f"{directory}/systemd/private").st_mode)
    except OSError:
        return False
