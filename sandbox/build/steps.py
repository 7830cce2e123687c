"""One function an instruction: BuildState → Change. The instructions come expanded; FROM is the builder's.

COPY, ADD, RUN and WORKDIR make layers (`copying.py` and `running.py` know how); everything else changes the config.
"""

from __future__ import annotations

import json
import posixpath
import re
import signal
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from sandbox.build import instructions as ins
from sandbox.build.accounts import resolve_owner
from sandbox.build.copying import add_files, copy_files
from sandbox.build.expand import overtaken
from sandbox.build.running import run_command
from sandbox.build.site import Site
from sandbox.build.state import BuildState, Change, with_env
from sandbox.build.transfer import LayerWriter
from sandbox.image.store import Draft
from sandbox.oci import Healthcheck, RunConfig

_PORT = re.compile(r"(?:.*:)?(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
"""An address and a host's port before it are legal and mean nothing; a check warns of them."""
_REALTIME = re.compile(r"RT(MIN(\+\d{1,2})?|MAX(-\d{1,2})?)")
_LONG_UNITS = ((3600 * 10**9, "h"), (60 * 10**9, "m"))


def change_of(state: BuildState, instruction: ins.Instruction, site: Site) -> Change:
    """What this instruction does to this state; DockerfileError, BuildError."""
    return STEPS[type(instruction)](state, instruction, site)


def _config_change(before: BuildState, after: BuildState, created_by: str) -> Change:
    """A step without a layer: remembered by the config it starts from, so that its time in the history is."""
    before_text = msgspec.json.encode(before.run).decode() + (before.author or "")
    return Change(after, created_by, ("config", before_text, created_by))


def _set(state: BuildState, created_by: str, **fields: Any) -> Change:  # Any: fields of RunConfig, by name
    return _config_change(state, state.with_run(msgspec.structs.replace(state.run, **fields)), created_by)


def _env(state: BuildState, i: ins.Env, site: Site) -> Change:
    for name, _ in i.pairs:
        if not name:
            raise site.error("ENV: expected a name before =", i)
    text = " ".join(f"{name}={value}" for name, value in i.pairs)
    after = state.with_run(with_env(state.run, dict(i.pairs)))
    return _config_change(state, replace(after, args=overtaken(state.args, dict(i.pairs))), f"ENV {text}")


def _arg(state: BuildState, i: ins.Arg, site: Site) -> Change:
    defined = site.define_args(state, i)
    names = {name for name, _ in defined}
    kept = tuple(pair for pair in state.args if pair[0] not in names)
    text = " ".join(name if value is None else f"{name}={value}" for name, value in defined)
    return _config_change(state, replace(state, args=kept + defined), f"ARG {text}")


def _label(state: BuildState, i: ins.Label, _: Site) -> Change:
    text = " ".join(f"{name}={value}" for name, value in i.pairs)
    return _set(state, f"LABEL {text}", labels={**(state.run.labels or {}), **dict(i.pairs)})


def _workdir(state: BuildState, i: ins.Workdir, site: Site) -> Change:
    if not i.path:
        raise site.error("WORKDIR: expected a path", i)
    path = "/" + posixpath.normpath(posixpath.join(state.workdir, i.path)).lstrip("/")
    after = state.with_run(msgspec.structs.replace(state.run, working_dir=path))

    def make(draft: Draft) -> None:
        lowers = site.store.lowers(state.top)
        writer = LayerWriter(lowers, draft.upper, site.now_ns)
        entry = writer.tree.lookup(path, follow=True)
        if entry is None or not entry.is_dir:
            owner = resolve_owner(writer.tree, state.run.user)
            writer.make_directory(writer.tree.resolve(path), owner)
            writer.finish()

    return Change(after, f"WORKDIR {path}", ("workdir", path, state.run.user), make=make)


def _user(state: BuildState, i: ins.User, site: Site) -> Change:
    if not i.user:
        raise site.error("USER: expected a user", i)
    return _set(state, f"USER {i.user}", user=i.user)


def _expose(state: BuildState, i: ins.Expose, site: Site) -> Change:
    ports = {port: dict[str, str]() for word in i.ports for port in _ports(word, i, site)}
    shown = " ".join(f"{port}:{{}}" for port in sorted(ports))
    return _set(state, f"EXPOSE map[{shown}]", exposed_ports={**(state.run.exposed_ports or {}), **ports})


def _ports(word: str, i: ins.Expose, site: Site) -> list[str]:
    found = _PORT.fullmatch(word)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not found or not 1 <= first <= last <= 65535:
        raise site.error(f"EXPOSE {word}: expected port, first-last, or either with /tcp, /udp or /sctp", i, word=word)
    protocol = (found[3] or "tcp").lower()
    return [f"{port}/{protocol}" for port in range(first, last + 1)]


def _volume(state: BuildState, i: ins.Volume, site: Site) -> Change:
    if not all(i.paths):
        raise site.error("VOLUME: expected a path, got an empty one", i)
    volumes = {path: dict[str, str]() for path in i.paths}
    return _set(state, f"VOLUME [{' '.join(i.paths)}]", volumes={**(state.run.volumes or {}), **volumes})


def _argv(state: BuildState, command: ins.Command) -> list[str]:
    return [*state.shell, *command.argv] if command.shell else list(command.argv)


def _quoted(argv: list[str]) -> str:
    """A list as Go prints it with %q."""
    return "[" + " ".join(json.dumps(word, ensure_ascii=False) for word in argv) + "]"


def _cmd(state: BuildState, i: ins.Cmd, _: Site) -> Change:
    argv = _argv(state, i.command)
    change = _set(state, f"CMD {_quoted(argv)}", cmd=argv)
    return replace(change, state=replace(change.state, has_cmd=True))


def _entrypoint(state: BuildState, i: ins.Entrypoint, _: Site) -> Change:
    argv = _argv(state, i.command)
    cmd = state.run.cmd if state.has_cmd else None  # an inherited CMD was meant for the inherited ENTRYPOINT
    return _set(state, f"ENTRYPOINT {_quoted(argv)}", entrypoint=argv, cmd=cmd)


def _shell(state: BuildState, i: ins.Shell, _: Site) -> Change:
    return _set(state, f"SHELL [{' '.join(i.argv)}]", shell=list(i.argv))


def _stop_signal(state: BuildState, i: ins.StopSignal, site: Site) -> Change:
    name = i.signal.upper().removeprefix("SIG")
    known = isinstance(getattr(signal, f"SIG{name}", None), signal.Signals) or _REALTIME.fullmatch(name)
    if not known and not (name.isascii() and name.isdigit() and len(name) < 3 and 1 <= int(name) <= 64):
        raise site.error(f"STOPSIGNAL {i.signal}: not a signal", i, word=i.signal)
    return _set(state, f"STOPSIGNAL {i.signal}", stop_signal=i.signal)


def _healthcheck(state: BuildState, i: ins.Healthcheck, _: Site) -> Change:
    if i.command is None:
        return _set(state, 'HEALTHCHECK &{["NONE"]}', healthcheck=Healthcheck(test=["NONE"]))
    test = ["CMD-SHELL", *i.command.argv] if i.command.shell else ["CMD", *i.command.argv]
    check = Healthcheck(test, i.interval, i.timeout, i.start_period, i.start_interval, i.retries)
    times = " ".join(f'"{_duration(value)}"' for value in (i.interval, i.timeout, i.start_period, i.start_interval))
    return _set(state, f"HEALTHCHECK &{{{_quoted(test)} {times} {i.retries}}}", healthcheck=check)


def _duration(nanoseconds: int) -> str:
    """Nanoseconds as Go prints them: 1m30s, 500ms, 0s."""
    if nanoseconds < 10**9:
        return f"{nanoseconds / 10**6:g}ms" if nanoseconds else "0s"
    text = ""
    for size, unit in _LONG_UNITS:
        if nanoseconds >= size or text:
            text += f"{nanoseconds // size}{unit}"
            nanoseconds %= size
    return f"{text}{nanoseconds / 10**9:.9g}s"


def _onbuild(state: BuildState, i: ins.Onbuild, _: Site) -> Change:
    return _set(state, f"ONBUILD {i.trigger_text}", on_build=[*(state.run.on_build or []), i.trigger_text])


def _maintainer(state: BuildState, i: ins.Maintainer, _: Site) -> Change:
    return _config_change(state, replace(state, author=i.name), f"MAINTAINER {i.name}")


def without_triggers(run: RunConfig) -> RunConfig:
    """A base image's config in its child: the triggers have been taken out to run."""
    return msgspec.structs.replace(run, on_build=None)


STEPS: dict[type[ins.Instruction], Callable[[BuildState, Any, Site], Change]] = {  # Any: each step takes its own class
    ins.Run: run_command,
    ins.Copy: copy_files,
    ins.Add: add_files,
    ins.Env: _env,
    ins.Arg: _arg,
    ins.Label: _label,
    ins.Workdir: _workdir,
    ins.User: _user,
    ins.Expose: _expose,
    ins.Volume: _volume,
    ins.Cmd: _cmd,
    ins.Entrypoint: _entrypoint,
    ins.Shell: _shell,
    ins.StopSignal: _stop_signal,
    ins.Healthcheck: _healthcheck,
    ins.Onbuild: _onbuild,
    ins.Maintainer: _maintainer,
}
