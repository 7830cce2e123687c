"""What RUN --mount puts into a step's container, and what of it the cache key knows.

As in BuildKit the content of a bind is part of the key, while of a cache, a tmpfs, a secret and an ssh agent only the
options are: what a secret holds goes into the container's memory and nowhere else.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from sandbox.build import instructions as ins
from sandbox.build.cachemounts import CacheMounts
from sandbox.build.context import Match, Source, TreeSource
from sandbox.build.copying import content_digest
from sandbox.build.mounts import RunMount
from sandbox.build.site import Origin, Site
from sandbox.build.state import BuildState
from sandbox.build.transfer import LayerWriter
from sandbox.errors import BuildError
from sandbox.image.tree import Tree, is_opaque
from sandbox.runtime.spec import Mount

_SSH_PLACE = "/run/buildkit/ssh_agent.{number}"


class Mounted(msgspec.Struct):
    """The mounts of one step, and the variables that come with them."""

    mounts: list[Mount] = msgspec.field(default_factory=list)
    env: dict[str, str] = msgspec.field(default_factory=dict)


def check_mounts(state: BuildState, i: ins.Run, site: Site) -> None:
    """DockerfileError for a mount that cannot stand where it should."""
    for mount in i.mounts:
        if mount.target is not None and target_of(mount, state) == "/":
            raise site.error("--mount: the target must not be /", i, word="--mount")
        if mount.type == "bind" and mount.origin is None and site.context is None:
            raise site.error("--mount: no build context to mount from", i, word="--mount", hint="give a directory to build in")


def target_of(mount: RunMount, state: BuildState) -> str:
    """Where it is mounted: below the working directory unless absolute."""
    return "/" + posixpath.normpath(posixpath.join(state.workdir, mount.target or "")).lstrip("/")


def options_key(state: BuildState, i: ins.Run) -> tuple[str, ...]:
    """What the key knows of the mounts beside contents."""
    return tuple(
        repr(
            (
                m.type,
                m.target and target_of(m, state),
                m.source,
                m.origin,
                m.read_only,
                m.id,
                m.sharing,
                m.mode,
                m.uid,
                m.gid,
                m.env,
                m.size,
            )
        )
        for m in i.mounts
    )


def contents_key(i: ins.Run, site: Site, *, quick: bool) -> tuple[str, ...]:
    """What the key knows of the binds' contents; `quick`: for a stage or an image its chain id says enough."""
    return tuple(_content(mount, site, quick=quick) for mount in i.mounts if mount.type == "bind")


def has_slow_contents(i: ins.Run, site: Site) -> bool:
    """Whether `quick` and the exact contents differ."""
    return any(m.type == "bind" and m.origin is not None and site.origin(m.origin).chain_id is not None for m in i.mounts)


def _content(mount: RunMount, site: Site, *, quick: bool) -> str:
    origin = _origin(mount, site)
    if quick and origin.chain_id is not None:
        return origin.chain_id
    return content_digest(origin.source, _match(mount, origin.source), site.memory)


def _origin(mount: RunMount, site: Site) -> Origin:
    if mount.origin is not None:
        return site.origin(mount.origin)
    if mount.type == "cache" or site.context is None:
        return Origin(Tree(()), "")
    return Origin(Tree(()), None, site.context)


def _match(mount: RunMount, source: Source) -> Match:
    entry = source.lookup(mount.source, follow=True)
    if entry is None:
        place = "" if mount.origin is None else f" in {mount.origin}"
        raise BuildError(f"--mount source={mount.source.lstrip('/') or '.'}: not found{place or ' in the build context'}")
    return Match(posixpath.basename(mount.source), entry)


@contextmanager
def mounted(state: BuildState, i: ins.Run, site: Site, directory: Path) -> Iterator[Mounted]:
    """The mounts made ready; `directory` is the step's own, below the engine's, and goes with it. BuildError."""
    with ExitStack() as opened:
        work = _Work(state, site, directory, opened)
        for number, mount in enumerate(i.mounts):
            _MAKE[mount.type](work, number, mount)
        yield work.made


class _Work(msgspec.Struct):
    state: BuildState
    site: Site
    directory: Path
    opened: ExitStack
    made: Mounted = msgspec.field(default_factory=Mounted)

    def bind(self, number: int, mount: RunMount) -> None:
        """From a stage or an image: its layers, and what is written goes to a directory that is thrown away. From a directory
        of the host: a copy of exactly what a COPY would see there."""
        origin, target = _origin(mount, self.site), target_of(mount, self.state)
        match = _match(mount, origin.source)
        lowers = self.site.store.lowers(origin.chain_id or None)
        if origin.chain_id is None or not lowers:
            source = self._copied(number, origin.source, match)
            self.made.mounts.append(Mount("bind", target, source, mount.read_only))
            return
        upper, work = ("", "") if mount.read_only else self._writable(number)
        self.made.mounts.append(Mount("layers", target, match.entry.path, mount.read_only, lowers=lowers, upper=upper, work=work))

    def _writable(self, number: int) -> tuple[str, str]:
        made = tuple(self.directory / f"mount-{number}-{name}" for name in ("upper", "work"))
        for path in made:
            path.mkdir(mode=0o755)
        return str(made[0]), str(made[1])

    def _copied(self, number: int, source: Source, match: Match) -> str:
        place = self.directory / f"mount-{number}"
        place.mkdir(mode=0o755)
        fill(place, source, match, self.site)
        return str(place if match.entry.is_dir else place / match.name)

    def cache(self, number: int, mount: RunMount) -> None:  # noqa: ARG002 (as the others of the table)
        target = target_of(mount, self.state)
        origin = _origin(mount, self.site)
        begin: Callable[[Path], None] | None = None
        if mount.origin is not None:
            match = _match(mount, origin.source)
            begin = lambda place: fill(place, origin.source, match, self.site)  # noqa: E731 (one of two)
        caches = CacheMounts(self.site.store.root, self.site.stop.poll)
        identity = (mount.id or target, origin.chain_id or "", mount.source)
        place = self.opened.enter_context(caches.hold(identity, mount.sharing, mount.owner, mount.file_mode, begin))
        self.made.mounts.append(Mount("bind", target, str(place), mount.read_only))

    def tmpfs(self, number: int, mount: RunMount) -> None:  # noqa: ARG002
        options = ("exec", *((f"size={mount.size}",) if mount.size else ()), *(("ro",) if mount.read_only else ()))
        self.made.mounts.append(Mount("tmpfs", target_of(mount, self.state), options=options))

    def secret(self, number: int, mount: RunMount) -> None:  # noqa: ARG002
        name = mount.id or ""
        value = self.site.secrets.get(name)
        if value is None:
            if mount.required:
                raise BuildError(f"secret {name}: not given", hint=f"build with --secret id={name},src=FILE or id={name},env=NAME")
            return
        text = value.decode("utf-8", "surrogateescape")
        if mount.env:
            if "\0" in text:
                raise BuildError(f"secret {name}: holds a NUL, which no environment variable can")
            self.made.env[mount.env] = text
        if mount.target is not None:
            uid, gid = mount.owner
            options = (f"mode={mount.file_mode:o}", f"uid={uid}", f"gid={gid}")
            self.made.mounts.append(Mount("file", target_of(mount, self.state), read_only=True, options=options, text=text))

    def ssh(self, number: int, mount: RunMount) -> None:
        name = mount.id or "default"
        agent = self.site.agents.get(name)
        if agent is None:
            if mount.required:
                raise BuildError(f"ssh agent {name}: not given", hint=f"build with --ssh {name}")
            return
        target = _SSH_PLACE.format(number=number) if mount.target is None else target_of(mount, self.state)
        place = self.directory / f"agent-{number}"
        from sandbox.build.sshagent import forwarded  # with socketserver and subprocess

        self.opened.enter_context(forwarded(agent, place, mount.owner, mount.file_mode))
        self.made.mounts.append(Mount("bind", target, str(place)))
        self.made.env.setdefault("SSH_AUTH_SOCK", target)


def fill(place: Path, source: Source, match: Match, site: Site) -> None:
    """Copy what was found into an empty directory: what a directory holds, or the file under its name."""
    writer = LayerWriter((), place, site.now_ns, site.warn)
    writer.copy(source, match, "/" if match.entry.is_dir else f"/{match.name}", into=False)
    writer.finish()


_MAKE: dict[str, Callable[[_Work, int, RunMount], None]] = {
    "bind": _Work.bind,
    "cache": _Work.cache,
    "tmpfs": _Work.tmpfs,
    "secret": _Work.secret,
    "ssh": _Work.ssh,
}


def forget_mount_points(upper: Path, below: Tree, targets: tuple[str, ...]) -> None:
    """The runtime takes its mount points back; a directory of the layers below that it had to write into is still copied up,
    with the time of the build: a step that changes nothing would make a layer, and no two builds the same one."""
    source = TreeSource(below)
    for target in targets:
        directory = posixpath.dirname(below.resolve(target))
        while directory != "/" and _forget(upper, below, source, directory):
            directory = posixpath.dirname(directory)


def _forget(upper: Path, below: Tree, source: TreeSource, directory: str) -> bool:
    """Remove the directory from the layer when it holds nothing and is as the layers below have it."""
    place = str(upper) + directory
    if not os.path.lexists(place):
        return True
    entry = below.lookup(directory)
    if entry is None or not entry.is_dir or _leads_astray(upper, directory) or not os.path.isdir(place) or is_opaque(place):
        return False
    status = os.lstat(place)
    same = (status.st_mode, status.st_uid, status.st_gid) == (entry.stat.st_mode, entry.stat.st_uid, entry.stat.st_gid)
    own = {name: os.getxattr(place, name) for name in os.listxattr(place) if not name.startswith("user.overlay.")}
    if not same or own != source.xattrs(entry):
        return False
    try:
        os.rmdir(place)
    except OSError:  # not empty: the step did change something there
        return False
    return True


def _leads_astray(upper: Path, directory: str) -> bool:
    """Whether the step put a link on the way: then it is not the directory it was."""
    path = upper
    for name in directory.strip("/").split("/"):
        path = path / name
        if path.is_symlink():
            return True
    return False
