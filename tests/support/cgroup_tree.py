"""Made-up hosts for the cgroup tests: a /proc and mounted trees in a directory, as v1, v2 and hybrid hosts show them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Tree:
    """One mount: type, controllers (v1 super options), our path in it, the root that is mounted, and files of our own group."""

    version: int
    controllers: str
    path: str = "/"
    root: str = "/"
    files: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "unified" if self.version == 2 else self.controllers


def fake_host(tmp_path: Path, *trees: Tree, parents: dict[int, int] | None = None) -> Path:
    """Write the host; returns its /proc. `parents`: pid → parent pid of the processes there; ours is 100."""
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    lines, groups = ["21 1 8:1 / / rw - ext4 /dev/vda rw"], []
    for number, tree in enumerate(trees, start=1):
        mount = tmp_path / "cg" / tree.name
        own = Path(f"{mount}{tree.path.removeprefix(tree.root.rstrip('/')).rstrip('/')}")
        own.mkdir(parents=True, exist_ok=True)
        for name, text in tree.files.items():
            (own / name).parent.mkdir(parents=True, exist_ok=True)
            (own / name).write_text(text)
        kind = "cgroup2" if tree.version == 2 else "cgroup"
        options = "rw" if tree.version == 2 else f"rw,{tree.controllers}"
        lines.append(f"{30 + number} 21 0:{number} {tree.root} {_escaped(mount)} rw,nosuid shared:{number} - {kind} {kind} {options}")
        groups.append(f"0::{tree.path}" if tree.version == 2 else f"{number}:{tree.controllers}:{tree.path}")
    (proc / "self/mountinfo").write_text("\n".join(lines) + "\n")
    (proc / "self/cgroup").write_text("".join(group + "\n" for group in groups))
    _write_processes(proc, {100: 50, **(parents or {})})
    return proc


def _write_processes(proc: Path, parents: dict[int, int]) -> None:
    for pid, parent in parents.items():
        (proc / str(pid)).mkdir()
        (proc / str(pid) / "stat").write_text(f"{pid} (a ) b) S {parent} 1 1 0\n")
    (proc / "self/stat").write_text("100 (python) S 50 1 1 0\n")


def _escaped(path: Path) -> str:
    return os.fspath(path).replace("\\", "\\134").replace(" ", "\\040")


V2_FILES = {"cgroup.controllers": "cpuset cpu io memory pids", "cgroup.subtree_control": "", "cgroup.procs": ""}
"""The real root's files: no cgroup.events there."""


def v2_files(procs: str) -> dict[str, str]:
    """The files of a v2 group that is not the real root."""
    return {**V2_FILES, "cgroup.procs": procs, "cgroup.events": "populated 1\n"}
