"""OCI bundles for tests: a busybox root file system, a config to change, and `sandbox-oci` as a command."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sandbox.runtime.bundle.template import default_config

Json = dict[str, Any]


@dataclass(frozen=True)
class Bundle:
    """A bundle directory; `write` saves its config."""

    path: Path

    @property
    def rootfs(self) -> Path:
        """Its root file system."""
        return self.path / "rootfs"

    def write(self, *argv: str, change: Callable[[Json], None] | None = None) -> Json:
        """Save the default config with this program and no terminal, after `change` has had it; the config."""
        config = copy.deepcopy(default_config())
        config["process"] |= {"terminal": False, "args": list(argv)}
        config["root"]["readonly"] = False
        if change:
            change(config)
        (self.path / "config.json").write_text(json.dumps(config))
        return config


def make_bundle(path: Path, rootfs_tar: Path) -> Bundle:
    """A bundle with the tar's content as root file system."""
    rootfs = path / "rootfs"
    rootfs.mkdir(parents=True)
    subprocess.run(["tar", "-xf", rootfs_tar, "-C", rootfs], check=True)
    return Bundle(path)


@dataclass(frozen=True)
class Oci:
    """`sandbox-oci --root ROOT` as a program. `used`: the ids it was given to make."""

    root: Path
    used: set[str] = field(default_factory=set)

    @property
    def argv(self) -> list[str]:
        """The command up to its own arguments."""
        return [sys.executable, "-m", "sandbox.runtime.bundle", "--root", str(self.root)]

    def __call__(self, *arguments: str | Path, check: bool = True, output: IO[str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run it to its end. A created container keeps its output: give a file for that."""
        argv = [*self.argv, *map(str, arguments)]
        if arguments[0] in ("create", "run"):
            self.used.add(str(arguments[-1]))
        sink = subprocess.PIPE if output is None else output
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, text=True, check=False, timeout=60)
        assert not check or done.returncode == 0, f"{arguments}: {done.returncode}: {done.stderr}"
        return done

    def state(self, container_id: str) -> Json:
        """What `state` prints."""
        found: Json = json.loads(self("state", container_id).stdout)
        return found

    def ids(self) -> Sequence[str]:
        """What `list -q` prints."""
        return self("list", "-q").stdout.split()


def created(oci: Oci, bundle: Bundle, container_id: str, output: Path) -> None:
    """Create a container that prints into a file."""
    with output.open("w") as file:
        oci("create", "--bundle", bundle.path, container_id, output=file)
