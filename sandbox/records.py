"""Containers on disk: one directory each below ROOT/containers, their names as symbolic links below ROOT/names.

`config.json` is written once at creation; `state.json` by the supervisor, at once; `lock` is held by the supervisor for
as long as it lives. So every process, also after a reboot, reads the same truth: "running" is the lock, not a row.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal  # Any: state.json is the supervisor's JSON

import msgspec

from sandbox.decoders import Decoder
from sandbox.errors import ContainerError, ContainerNotFound, InvalidOption
from sandbox.patterns import Pattern
from sandbox.runtime.init import cgroup, files, naming
from sandbox.runtime.plan import REMOVED
from sandbox.runtime.spec import ContainerSpec

Status = Literal["created", "running", "paused", "restarting", "exited"]
ALIVE: frozenset[Status] = frozenset({"running", "paused", "restarting"})
"""A supervisor has it: it can be stopped, and not removed."""

_NAME = Pattern(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_ADJECTIVES = (
    "amber", "bold", "brave", "calm", "clever", "deft", "eager", "fair", "fleet", "gentle", "happy", "keen", "kind", "lucid", "mellow",
    "nimble", "patient", "quick", "quiet", "ready", "sharp", "steady", "sunny", "swift", "tidy", "vivid", "warm", "wise", "witty", "zesty",
)  # fmt: skip
_SURNAMES = (
    "abel", "bell", "bohr", "cerf", "curie", "darwin", "dijkstra", "euler", "fermi", "gauss", "goodall", "hamilton", "hopper", "hypatia",
    "kepler", "knuth", "lamarr", "liskov", "lovelace", "maxwell", "meitner", "mirzakhani", "newton", "noether", "pascal", "ritchie",
    "sagan", "shannon", "torvalds", "turing",
)  # fmt: skip


class LogSettings(msgspec.Struct, frozen=True):
    """Where a container's output goes: docker's driver; `max_size` bytes fill a file (0: no limit), `max_file` of them are kept."""

    driver: Literal["json-file", "none"] = "json-file"
    max_size: int = 0
    max_file: int = 1

    def config(self) -> dict[str, str]:
        """The options as docker's inspect shows them."""
        return {"max-size": str(self.max_size), "max-file": str(self.max_file)} if self.max_size else {}


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is fixed when a container is created. `chain`: the image's top snapshot; times are seconds since 1970."""

    id: str
    name: str
    image_name: str
    image_id: str
    chain: str | None
    created: float
    labels: dict[str, str]
    auto_remove: bool
    interactive: bool
    ports: list[str]
    spec: ContainerSpec
    restart: tuple[str, int] = ("no", 0)
    log: LogSettings = LogSettings()
    stop_timeout: float = 10.0


_RECORD = Decoder(Record)
_ENCODER = msgspec.json.Encoder()


class State(msgspec.Struct, frozen=True):
    """How a container stands now. `facts`: the supervisor's last report (empty before the first start)."""

    status: Status
    facts: dict[str, Any]
    lost: bool = False
    """The supervisor was killed: the end was not seen."""

    @property
    def has_processes(self) -> bool:
        """Whether it runs or is paused."""
        return self.status in ("running", "paused")


class Records:
    """The containers below one engine root."""

    def __init__(self, root: Path) -> None:
        self._containers = root / "containers"
        self._names = root / "names"

    def directory(self, container_id: str) -> Path:
        """Where a container's files are."""
        return self._containers / container_id

    def name_link(self, name: str) -> Path:
        """The link that reserves a name."""
        return self._names / name

    def claim_name(self, container_id: str, name: str | None) -> str:
        """Reserve `name` (or a made-up one) for the container, whose directory is there: a name without one is nobody's.
        ContainerError when another has it, InvalidOption."""
        self._names.mkdir(mode=0o700, parents=True, exist_ok=True)
        if name is not None and not _NAME.fullmatch(name):
            raise InvalidOption(f"--name {name!r}: begins with a letter or digit, then letters, digits, _ . -, at least two")
        for candidate in [name] if name else _made_up_names():
            if self._take(candidate, container_id):
                return candidate
        raise ContainerError(
            f"name {name}: already used by container {self._owner(name or '')[:12]}",
            hint="remove it with `sandbox rm`, or choose another name",
        )

    def _take(self, name: str, container_id: str) -> bool:
        link = str(self.name_link(name))
        while not naming.take(link, container_id):
            other = naming.owner(link)
            if other and self.directory(other).is_dir():
                return False
            naming.give_up(link, other)  # the container behind it is gone (a killed `rm`)
        return True

    def _owner(self, name: str) -> str:
        return naming.owner(str(self.name_link(name)))

    def _give_up_name(self, name: str, container_id: str) -> None:
        naming.give_up(str(self.name_link(name)), container_id)

    def write(self, record: Record) -> None:
        """Make the container exist: from now on others see it."""
        path = self.directory(record.id) / "config.json"
        temporary = path.with_suffix(".new")
        temporary.write_bytes(_ENCODER.encode(record))
        temporary.rename(path)

    def rename(self, record: Record, name: str) -> Record:
        """Give it another name; ContainerError when another has that, InvalidOption."""
        renamed = msgspec.structs.replace(record, name=self.claim_name(record.id, name))
        try:
            self.write(renamed)
        except BaseException:
            self._give_up_name(name, record.id)
            raise
        self._give_up_name(record.name, record.id)
        return renamed

    def change(self, record: Record, spec: ContainerSpec, restart: tuple[str, int]) -> Record:
        """What `update` changes."""
        changed = msgspec.structs.replace(record, spec=spec, restart=restart)
        self.write(changed)
        return changed

    def read(self, container_id: str) -> Record:
        """What was written at creation; ContainerNotFound."""
        try:
            return _RECORD.decode((self.directory(container_id) / "config.json").read_bytes())
        except FileNotFoundError as err:
            raise ContainerNotFound(f"{container_id[:12]}: no such container") from err

    def all(self) -> list[Record]:
        """Every container, newest first."""
        found = []
        for container_id in self.ids():
            try:
                found.append(self.read(container_id))
            except ContainerNotFound:  # a build's step, or removed meanwhile
                continue
        return sorted(found, key=lambda record: record.created, reverse=True)

    def ids(self) -> list[str]:
        """The ids of all directories, also of build steps and of containers half made or half removed."""
        try:
            return os.listdir(self._containers)
        except FileNotFoundError:
            return []

    def find(self, name: str) -> Record:
        """By name, id, or unique prefix of an id; ContainerNotFound says what is close."""
        if _NAME.fullmatch(name) and (owner := self._owner(name)):
            return self.read(owner)
        matches = [record for record in self.all() if record.id.startswith(name)] if name else []
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise ContainerNotFound(f"{name}: begins the ids of {len(matches)} containers", hint="write more of the id")
        raise ContainerNotFound(f"{name}: no such container", hint=self._suggest(name))

    def _suggest(self, name: str) -> str:
        import difflib  # only on this way out

        close = difflib.get_close_matches(name, [record.name for record in self.all()], n=1)
        return f"did you mean {close[0]}?" if close else "`sandbox ps -a` lists what there is"

    def state(self, container_id: str) -> State:
        """How it stands now."""
        directory = self.directory(container_id)
        facts = files.read_json(str(directory / "state.json")) or {}
        if facts.get("status") not in ("running", "restarting"):
            return State("exited" if facts else "created", facts)
        if self.is_supervised(container_id):
            return State("restarting" if facts["status"] == "restarting" else "paused" if _is_frozen(facts) else "running", facts)
        # It may have ended between the two looks.
        facts = files.read_json(str(directory / "state.json")) or {}
        return State("exited", facts, lost=facts.get("status") in ("running", "restarting"))

    @contextmanager
    def alone(self, container_id: str, drive_out: Callable[[], object] | None = None) -> Iterator[State]:
        """Within the block nobody else starts it, starts our own programs in it or removes it; how it stands. Only its supervisor goes
        on. Waits for whoever is at that, `drive_out` first if it is given. ContainerNotFound."""
        directory = self.directory(container_id)
        gone = ContainerNotFound(f"{container_id[:12]}: no such container")
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise gone from None
        try:
            if drive_out is not None and files.is_held(str(directory)):
                drive_out()
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not directory.is_dir():  # an id is given once: it cannot be another's
                raise gone
            yield self.state(container_id)
        finally:
            os.close(fd)

    def wait_unsupervised(self, container_id: str) -> None:
        """Until no supervisor lives: one that is still there when its container has ended, or one of our own programs'."""
        files.wait_released(str(self.directory(container_id) / "lock"))

    def is_supervised(self, container_id: str) -> bool:
        """Whether a supervisor lives: only it holds this lock."""
        return files.is_locked(str(self.directory(container_id)))

    def remove(self, container_id: str, names: Sequence[str]) -> None:
        """Remove the directory, then the name; both may be gone already."""
        files.remove_tree(str(self.directory(container_id)))
        for name in names:
            self._give_up_name(name, container_id)

    def graves(self) -> list[Path]:
        """Directories of removed containers whose supervisor was killed before it had deleted them."""
        place = self._containers.parent / REMOVED
        return [path for path in place.iterdir() if not files.is_locked(str(path))] if place.is_dir() else []

    def give_up_stale_names(self) -> None:
        """Those whose container is gone."""
        for name in os.listdir(self._names) if self._names.is_dir() else []:
            owner = self._owner(name)
            if not self.directory(owner).is_dir():
                self._give_up_name(name, owner)


def _is_frozen(facts: dict[str, Any]) -> bool:
    """Whether its processes are stopped by the freezer of its cgroup."""
    switch = (facts.get("cgroup") or {}).get("freezer")
    return cgroup.is_frozen(switch) if switch else False


def _made_up_names() -> Iterator[str]:
    """docker's kind of names; a number is added once the plain ones keep being taken."""
    for attempt in range(100):
        number = int.from_bytes(os.urandom(8))  # by hand: secrets brings base64, hmac and random along
        number, first = divmod(number, len(_ADJECTIVES))
        number, last = divmod(number, len(_SURNAMES))
        name = f"{_ADJECTIVES[first]}_{_SURNAMES[last]}"
        yield name if attempt < 10 else f"{name}{number % 10**6}"
