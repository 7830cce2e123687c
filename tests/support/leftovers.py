"""The oracle of every test that starts something: nothing of an engine may be left on the host.

`left(root)` lists what is; `nothing_left(root)` fails with that list. `everything_left()` looks for leftovers of any engine.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from kernelspec.engines import shared_engines
from sandbox.runtime import cgroups
from sandbox.runtime.container import engine_mark
from sandbox.runtime.network.networks import bridge_prefix

_PATIENCE = 2.0
_RTMGRP_LINK = 1
_LINK = "network device: v"
_BRIDGES = "sbx"
"""How our bridges and nftables' tables begin; a link of ours is in a bridge, or called by it."""


def nothing_left(root: Path) -> None:
    """No mount below `root`, no process that uses it, no cgroup of a container in it, no network device, no nftables rule; once this
    process has closed the engines that it keeps for the next kernel."""
    if "jupyter_client.provisioning.factory" in sys.modules:  # it keeps them
        shared_engines().close()
    found = left(root)
    if found and _ended([int(line.split()[1].rstrip(":")) for line in found if line.startswith("process ")]):
        found = left(root)
    if any(line.startswith(_LINK) for line in found):
        found = _once_links_are_gone(root)
    assert not found, "left behind:\n  " + "\n  ".join(found)


def _once_links_are_gone(root: Path) -> list[str]:
    """Linux takes a link away a moment after the network namespace at its other end (rtnetlink(7), RTMGRP_LINK)."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as changes:
        changes.bind((0, _RTMGRP_LINK))
        found = left(root)
        while any(line.startswith(_LINK) for line in found) and select.select([changes], [], [], _PATIENCE)[0]:
            changes.recv(1 << 16)
            found = left(root)
    return found


def _ended(pids: list[int]) -> bool:
    """Wait for processes on their way out: a supervisor reports the end a moment before its own. False when one stays."""
    return all(_ends(pid) for pid in pids)


def _ends(pid: int) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], _PATIENCE)[0])
    finally:
        os.close(fd)


def left(root: Path) -> list[str]:
    """What the engine with this root has left behind; a line each."""
    ids = frozenset(os.listdir(root / "containers")) if (root / "containers").is_dir() else frozenset()
    return [*_mounts(root), *_processes(root), *_groups(ids | {f"{engine_mark(root)}."}), *_network(bridge_prefix(root))]


def everything_left(before: frozenset[str] = frozenset()) -> list[str]:
    """What any engine has left behind since `before` (an earlier answer, for a machine where others run engines too)."""
    found = [*_groups(None), *_network(_BRIDGES)]
    return [line for line in found if line not in before]


def _mounts(root: Path) -> Iterator[str]:
    """Mounts at or from below `root`, in our own mount namespace."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if any(_is_below(word, root) for word in line.replace("\\040", " ").split()) or f"={root}/" in line:
            yield f"mount: {line}"


def _is_below(path: str, root: Path) -> bool:
    return path == str(root) or path.startswith(f"{root}/")


def _processes(root: Path) -> Iterator[str]:
    """Processes whose command line, root, working directory or open files are below `root` (not our own, nor our ancestors)."""
    ours = {str(pid) for pid in _ancestors(os.getpid())}
    for pid in (name for name in os.listdir("/proc") if name.isdigit()):
        if pid in ours:
            continue
        reason = next((text for text in _traces(pid) if text == str(root) or f"{root}/" in text + "/"), None)
        if reason:
            yield f"process {pid}: {reason}"


def _traces(pid: str) -> Iterator[str]:
    try:
        yield Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        for name in ("cwd", "root"):
            yield os.readlink(f"/proc/{pid}/{name}")
        for fd in os.listdir(f"/proc/{pid}/fd"):
            yield os.readlink(f"/proc/{pid}/fd/{fd}")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return


def _ancestors(pid: int) -> Iterator[int]:
    while pid:
        yield pid
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _groups(ids: frozenset[str] | None) -> Iterator[str]:
    """Groups of containers: with one of these ids, or all. A group name may carry more than the id."""
    for name, directories in cgroups.discover().existing().items():
        if ids is None or any(id in name for id in ids):
            yield from (f"cgroup: {directory}" for directory in directories)


def _network(bridges: str) -> Iterator[str]:
    """Bridges and tables that begin so, and the links that go with them."""
    links = "v" + bridges.removeprefix(_BRIDGES)
    for _, device in socket.if_nameindex():
        if device.startswith(bridges) or (device.startswith(links) and len(device) == 15):
            yield f"network device: {device}"
    if shutil.which("nft"):
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
        yield from (f"nftables: {line}" for line in tables.splitlines() if line.split()[-1].startswith(bridges))
