"""Bundle containers on disk: one directory each below `--root`, gone with `delete`; what is alive is asked of /proc.

`config.json` is the config as it was at create; `state.json` is ours; `start.sock` exists until somebody starts the container.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from sandbox.errors import ContainerError, ContainerNotFound, InvalidInput
from sandbox.hashing import sha256_hex
from sandbox.runtime.bundle.config import Config, decode_config
from sandbox.runtime.init import files

Status = Literal["creating", "created", "running", "paused", "stopped"]
_ID = re.compile(r"[A-Za-z0-9_+.-]{1,1024}")
SOCKET = "start.sock"


def process_start(pid: int) -> int | None:
    """When this process began, in clock ticks since boot (proc_pid_stat(5)): with the pid it names one process. None: it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    parts = text.rpartition(")")[2].split()
    return None if parts[0] in ("Z", "X") else int(parts[19])


class Record(msgspec.Struct, frozen=True):
    """What is known of a container. `groups` and `places` are its cgroups, `annotations` the bundle's."""

    id: str
    bundle: str
    rootfs: str
    pid: int
    process_start: int
    created: str
    owner: str = ""
    version: int = 1
    groups: tuple[str, ...] = ()
    places: Mapping[str, str] = msgspec.field(default_factory=dict)
    annotations: Mapping[str, str] = msgspec.field(default_factory=dict)
    oci_version: str = "1.0.2"


class States:
    """The containers below one `--root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, container_id: str) -> Path:
        """Where a container's files are; InvalidInput for an id that is no file name."""
        if not _ID.fullmatch(container_id) or container_id in (".", ".."):
            raise InvalidInput(f"container id {container_id!r}: expected letters, digits and _+-.")
        return self.root / container_id

    def group_name(self, container_id: str) -> str:
        """A cgroup's name for it, which a container of the same id below another root does not have."""
        return f"{container_id}.{sha256_hex(os.fsencode(self.root.absolute()))[:8]}"

    def make(self, container_id: str) -> Path:
        """A directory for a new container; ContainerError when the id is taken."""
        directory = self.directory(container_id)
        self.root.mkdir(parents=True, exist_ok=True, mode=0o711)
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError as err:
            raise ContainerError(f"container {container_id}: exists already") from err
        return directory

    def write(self, record: Record) -> None:
        """Remember a container."""
        files.write_json(str(self.directory(record.id) / "state.json"), msgspec.to_builtins(record))

    def read(self, container_id: str) -> Record:
        """The container of exactly this id; ContainerNotFound."""
        found = files.read_json(str(self.directory(container_id) / "state.json"))
        if found is None:
            raise ContainerNotFound(f"container {container_id}: does not exist")
        return Record(**{**found, "groups": tuple(found["groups"])})

    def config(self, container_id: str) -> Config:
        """Its config as it was when it was created."""
        return decode_config((self.directory(container_id) / "config.json").read_bytes())

    def remove(self, container_id: str) -> None:
        """Forget it."""
        files.remove_tree(str(self.directory(container_id)))

    def ids(self) -> Iterator[str]:
        """Every container that was created, in order."""
        try:
            names = sorted(os.listdir(self.root))
        except FileNotFoundError:
            return
        yield from (name for name in names if (self.root / name / "state.json").exists())

    def status(self, record: Record) -> Status:
        """What it does now."""
        if process_start(record.pid) != record.process_start:
            return "stopped"
        if (self.directory(record.id) / SOCKET).exists():
            return "created"
        return "paused" if _is_frozen(record) else "running"

    def state(self, record: Record) -> dict[str, Any]:
        """The state as the specification words it (runtime.md, State), and runc's additions."""
        status = self.status(record)
        return {
            "ociVersion": record.oci_version,
            "id": record.id,
            "pid": 0 if status == "stopped" else record.pid,
            "status": status,
            "bundle": record.bundle,
            "rootfs": record.rootfs,
            "created": record.created,
            **({"annotations": dict(record.annotations)} if record.annotations else {}),
            "owner": record.owner,
        }


def _is_frozen(record: Record) -> bool:
    name = ("freezer", "freezer.state") if record.version == 1 else ("", "cgroup.freeze")
    directory = record.places.get(name[0])
    if directory is None:
        return False
    try:
        return Path(directory, name[1]).read_text().strip() in ("FROZEN", "FREEZING", "1")
    except FileNotFoundError:
        return False


def hook_state(record: Record, status: Status) -> dict[str, Any]:
    """What hooks get on stdin."""
    state = {"ociVersion": record.oci_version, "id": record.id, "status": status, "pid": record.pid, "bundle": record.bundle}
    return {**state, "annotations": dict(record.annotations)}


def dumps(value: Any) -> str:
    """JSON as the commands print it."""
    return json.dumps(value, indent=2)
