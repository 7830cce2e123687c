"""RUN: the command, its environment and its heredocs, in a container above the layers so far."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from e2b_dockerfile_utils import parse_heredoc

from sandbox.build import instructions as ins
from sandbox.build.accounts import home_of
from sandbox.build.expand import PROXY_ARGS
from sandbox.build.site import Site
from sandbox.build.state import DEFAULT_PATH, BuildState, Change
from sandbox.errors import BuildError
from sandbox.image.store import Draft
from sandbox.image.tree import Tree, is_opaque
from sandbox.runtime.spec import Completed, ContainerSpec, Mount, Network, Process, Rootfs

_TAIL = 4096
_SCRIPTS = "/dev/pipes"
HOSTNAME = "buildkitsandbox"
"""The name BuildKit gives; programs that write it into files give the same layer here."""


class CommandFailed(BuildError):
    """A RUN whose program did not end well: how it ended, and the end of what it printed."""

    def __init__(self, message: str, *, completed: Completed, output: str) -> None:
        super().__init__(message)
        self.completed = completed
        self.output = output


@dataclass(frozen=True)
class _Script:
    """What is started: `argv`, with `scripts` (name, text) as executable files below /dev/pipes."""

    argv: tuple[str, ...]
    scripts: tuple[tuple[str, str], ...] = ()


def run_command(state: BuildState, i: ins.Run, site: Site) -> Change:
    """RUN. Its key: what is started, in which environment, as whom, where, with which network. Undeclared proxies do not count."""
    script = _script(state, i)
    network: Network = site.network if i.network == "default" else "none" if i.network == "none" else "host"
    env = state.scope
    inputs = ("run", *script.argv, repr(script.scripts), repr(sorted(env.items())), state.run.user, state.workdir, network)
    make = partial(_run, state=state, script=script, network=network, site=site)
    return Change(state, _history(state, script), inputs, make=make)


def _script(state: BuildState, i: ins.Run) -> _Script:
    """A RUN that is one heredoc alone is its body: run by the shell, or by itself when it begins with #!.
    Other heredocs go back into the text, for the shell to read."""
    if not i.command.shell:
        return _Script(i.command.argv)
    text = i.command.argv[0]
    if i.heredocs and parse_heredoc(text) is not None:
        body = i.heredocs[0]
        if body.content.startswith("#!"):
            return _Script((f"{_SCRIPTS}/{body.name}",), ((body.name, body.content),))
        text = body.content
    else:
        text += "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in i.heredocs)
    return _Script((*state.shell, text))


def _history(state: BuildState, script: _Script) -> str:
    scope = state.scope
    args = [f"{name}={scope[name]}" for name, value in state.args if value is not None]
    count = [f"|{len(args)}"] if args else []
    return " ".join(["RUN", *count, *args, *script.argv, *(text for _, text in script.scripts)])


def _environment(state: BuildState, site: Site, home: str) -> Mapping[str, str]:
    """docker's defaults, proxies given to the build, ARGs in scope, the image's ENV: the later wins."""
    proxies = {name: site.build_args[name] for name in PROXY_ARGS if name in site.build_args}
    return {"PATH": DEFAULT_PATH, "HOME": home} | proxies | state.scope


def _run(draft: Draft, *, state: BuildState, script: _Script, network: Network, site: Site) -> None:
    env = _environment(state, site, home_of(site.store.tree(state.top), state.run.user))
    spec = ContainerSpec(
        id=site.new_id(),
        rootfs=Rootfs(site.store.lowers(state.top), str(draft.upper), str(draft.work)),
        process=Process(script.argv, tuple(env.items()), state.workdir, state.run.user),
        hostname=HOSTNAME,
        network=network,
        mounts=_mounts(draft, script),
    )
    tail = _Tail(site)
    completed = site.runtime.run(spec, on_output=tail.take)
    if not completed.ok:
        message = completed.reason or f"exit code {completed.exit_code}"
        raise CommandFailed(message, completed=completed, output=tail.text())
    _forget_mount_points(draft, site.store.tree(state.top))


def _forget_mount_points(draft: Draft, below: Tree) -> None:
    """The runtime mounts files in /etc and takes the mount points back; the directory's copy in the layer, with the time of
    the build, would be left: a step that changes nothing would make a layer, and no two builds the same one."""
    directory = draft.upper / "etc"
    entry = below.lookup("/etc")
    if entry is None or not entry.is_dir or directory.is_symlink() or not directory.is_dir() or is_opaque(str(directory)):
        return
    status = directory.stat()
    if (status.st_mode, status.st_uid, status.st_gid) == (entry.stat.st_mode, entry.stat.st_uid, entry.stat.st_gid):
        with contextlib.suppress(OSError):  # not empty: the step did change something there
            directory.rmdir()


def _mounts(draft: Draft, script: _Script) -> tuple[Mount, ...]:
    if not script.scripts:
        return ()
    directory = draft.upper.parent / "scripts"
    directory.mkdir(mode=0o755)
    for name, text in script.scripts:
        path = directory / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    return (Mount("bind", _SCRIPTS, str(directory), read_only=True),)


class _Tail:
    """Passes output on and keeps the end of it for the error message."""

    def __init__(self, site: Site) -> None:
        self._output = site.output
        self._kept = b""

    def take(self, stream: str, data: bytes) -> None:
        self._kept = (self._kept + data)[-_TAIL:]
        self._output("stderr" if stream == "stderr" else "stdout", data)

    def text(self) -> str:
        """The last lines, without what terminals make of them."""
        return self._kept.decode("utf-8", "replace")
