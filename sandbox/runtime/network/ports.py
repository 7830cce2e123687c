"""Who has a port of this machine: for the error when it is taken."""

from __future__ import annotations

import os
from glob import glob
from pathlib import Path

from sandbox.runtime.init import files


def owner_of(root: Path, port: int, protocol: str, proc: Path = Path("/proc")) -> str:
    """`container NAME`, `process NAME (pid)`, or nothing when nobody can be named."""
    return _container(root, port, protocol) or _process(port, protocol, proc)


def _container(root: Path, port: int, protocol: str) -> str:
    for directory in (root / "containers").glob("*"):
        network = (files.read_json(str(directory / "state.json")) or {}).get("network") or {}
        published = {(each["host"], each["protocol"]) for each in network.get("ports", ())}
        if (port, protocol) in published and files.is_locked(str(directory)):
            record = files.read_json(str(directory / "config.json")) or {}
            return f"container {record.get('name', directory.name[:12])}"
    return ""


def _process(port: int, protocol: str, proc: Path) -> str:
    inodes = {f"socket:[{inode}]" for inode in _inodes(port, protocol, proc)}
    for directory in proc.glob("[0-9]*") if inodes else ():
        if any(_target(fd) in inodes for fd in glob(f"{directory}/fd/*")):
            return f"process {(directory / 'comm').read_text().strip()} ({directory.name})"
    return ""


def _target(fd: str) -> str:
    try:
        return os.readlink(fd)
    except OSError:  # it was closed just now
        return ""


def _inodes(port: int, protocol: str, proc: Path) -> list[str]:
    """Of the sockets bound to it (proc_net(5)); state 0A is LISTEN, 07 what an unconnected datagram socket has."""
    found = []
    for table in (protocol, f"{protocol}6"):
        try:
            lines = (proc / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        words = (line.split() for line in lines)
        found += [each[9] for each in words if each[3] in ("0A", "07") and int(each[1].rpartition(":")[2], 16) == port]
    return found
