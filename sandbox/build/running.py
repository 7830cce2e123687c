"""RUN: the command, its environment and its heredocs, in a container above the layers so far."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import msgspec
from e2b_dockerfile_utils import parse_heredoc

from sandbox.build import instructions as ins
from sandbox.build.accounts import home_of
from sandbox.build.expand import PROXY_ARGS
from sandbox.build.mounting import check_mounts, contents_key, forget_mount_points, has_slow_contents, mounted, options_key
from sandbox.build.site import Site, Starts, StepLimits
from sandbox.build.state import DEFAULT_PATH, BuildState, Change
from sandbox.errors import BuildError
from sandbox.image.store import Draft
from sandbox.runtime import host_ca
from sandbox.runtime.plan import Handling
from sandbox.runtime.spec import Completed, ContainerSpec, Mount, Network, Process, Rootfs

_TAIL = 4096
_BUNDLE = 8 << 20
"""Bytes of certificates that are read of an image at most."""
_SCRIPTS = "/dev/pipes"
_RUNTIME_MOUNTS = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/sys/fs/cgroup")
"""Where the runtime mounts by itself below a directory of the image's."""
HOSTNAME = "buildkitsandbox"
"""The name BuildKit gives; programs that write it into files give the same layer here."""


class CommandFailed(BuildError):
    """A RUN whose program did not end well: how it ended, and the end of what it printed."""

    def __init__(self, message: str, *, completed: Completed, output: str) -> None:
        super().__init__(message)
        self.completed = completed
        self.output = output


class _Script(msgspec.Struct, frozen=True):
    """What is started: `argv`, with `scripts` (name, text) as executable files below /dev/pipes."""

    argv: tuple[str, ...]
    scripts: tuple[tuple[str, str], ...] = ()


def run_command(state: BuildState, i: ins.Run, site: Site) -> Change:
    """RUN. Its key: what is started, in which environment, as whom, where, with which network. Undeclared proxies do not count."""
    check_mounts(state, i, site)
    _check_security(i, site)
    script = _script(state, i)
    network: Network = site.network if i.network == "default" else "none" if i.network == "none" else "host"
    env = state.scope
    own = ("run", *script.argv, repr(script.scripts), repr(sorted(env.items())), state.run.user, state.workdir, network)
    own += (*_extra(i, site), *options_key(state, i))
    make = partial(_run, state=state, i=i, script=script, network=network, site=site)
    precise = (lambda: (*own, *contents_key(i, site, quick=False))) if has_slow_contents(i, site) else None
    return Change(state, _history(state, script), (*own, *contents_key(i, site, quick=True)), precise, make)


def _extra(i: ins.Run, site: Site) -> tuple[str, ...]:
    """What counts only where it is not the usual."""
    return (*(("insecure",) if i.security == "insecure" else ()), *(site.limits.key if site.limits.key != StepLimits().key else ()))


def _check_security(i: ins.Run, site: Site) -> None:
    if i.security == "insecure" and not site.limits.insecure:
        hint = "build with --allow security.insecure"
        raise site.error("RUN: --security=insecure is not allowed", i, word="--security=insecure", hint=hint)


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


def _run(draft: Draft, *, state: BuildState, i: ins.Run, script: _Script, network: Network, site: Site) -> None:
    with site.runtime.reserve() as place, mounted(state, i, site, draft.upper.parent) as extra:
        below = site.store.tree(state.top)
        env = _environment(state, site, home_of(below, state.run.user))
        mounts = [*_script_mount(draft, script), *extra.mounts]
        if site.limits.host_ca and network != "none" and (authorities := host_ca.added()):
            place_of_them = host_ca.deliver(site.store.root, host_ca.trusted(partial(below.read, limit=_BUNDLE)), authorities)
            mounts.append(host_ca.mount(place_of_them))
            env = host_ca.with_variables(env)
        spec = ContainerSpec(
            id=place.container_id,
            rootfs=Rootfs(site.store.lowers(state.top), str(draft.upper), str(draft.work)),
            process=Process(script.argv, tuple({**env, **extra.env}.items()), state.workdir, state.run.user),
            hostname=HOSTNAME,
            network=network,
            mounts=tuple(mounts),
            limits=site.limits.limits,
            ulimits=site.limits.ulimits,
            extra_hosts=site.limits.hosts,
            shm_size=site.limits.shm_size,
            privileged=i.security == "insecure",
        )
        _complete(spec, place, site)
    forget_mount_points(draft.upper, below, (*_RUNTIME_MOUNTS, *(mount.target for mount in mounts)))


def _complete(spec: ContainerSpec, place: Starts, site: Site) -> None:
    """Run it to its end; CommandFailed when that is not a good one."""
    tail = _Tail(site)
    with place.start(spec, Handling()) as running, site.stop.watching(running):
        completed = running.wait(tail.take)
    if not completed.ok:
        message = completed.reason or f"exit code {completed.exit_code}"
        raise CommandFailed(message, completed=completed, output=tail.text())


def _script_mount(draft: Draft, script: _Script) -> tuple[Mount, ...]:
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
