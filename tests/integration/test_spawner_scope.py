"""The spawner by way of a command that puts it into a scope, as systemd-run does: it greets from there, or what was said is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.runtime.cgroups import systemd
from sandbox.runtime.cgroups.layout import Hierarchy, Layout
from sandbox.runtime.spawner import Spawner


@pytest.fixture
def spawner() -> Iterator[Spawner]:
    made = Spawner()
    yield made
    made.close()


def command(place: Path, text: str) -> tuple[str, ...]:
    """A program with a flag before what it starts."""
    program = place / "systemd-run"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return str(program), "--scope"


def test_helper_runs_behind_the_command(spawner: Spawner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "scope_command", lambda _: command(tmp_path, 'shift; exec "$@"'))
    spawner.warm()
    assert spawner.has_scope
    assert spawner.place == str(spawner.pid)
    assert Path(f"/proc/{spawner.pid}/environ").read_bytes() == b""
    assert os.readlink(f"/proc/{spawner.pid}/fd/2") == "/dev/null"
    spawner.reserve().close()


def test_refusal_is_kept_and_the_helper_runs_without(spawner: Spawner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "scope_command", lambda _: command(tmp_path, "echo 'Failed to connect to bus' >&2; exit 1"))
    spawner.warm()
    assert not spawner.has_scope
    assert spawner.place == "self"
    assert spawner.complaint == "systemd-run: Failed to connect to bus"
    spawner.reserve().close()


def layout(base: Path, obstacle: str = "", version: int = 2) -> Layout:
    assert version in (1, 2)
    return Layout((Hierarchy(2 if version == 2 else 1, frozenset({"memory"}), base, base, base, obstacle=obstacle),))


def test_only_what_was_delegated_is_ours(tmp_path: Path) -> None:
    """Alone in a group is not enough: systemd ends a unit below which a process was killed for want of memory."""
    assert not systemd.is_ours(layout(tmp_path))
    os.setxattr(tmp_path, "user.delegate", b"1")
    assert systemd.is_ours(layout(tmp_path))
    assert not systemd.is_ours(layout(tmp_path, obstacle="not writable"))
    assert systemd.is_ours(layout(tmp_path / "none", version=1))


def test_systemd_is_asked_where_it_is_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, "")
    environ = {"PATH": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    monkeypatch.setattr(systemd, "discover", lambda: layout(tmp_path))
    assert systemd.scope_command(environ, booted=str(tmp_path / "none")) == ()
    asked = systemd.scope_command(environ, booted=str(tmp_path))
    assert asked[0] == str(tmp_path / "systemd-run")
    assert {"--scope", "--property=Delegate=yes"} < set(asked)
    assert systemd.scope_command({"PATH": "/nowhere"}, booted=str(tmp_path)) == ()
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    assert systemd.scope_command(environ, booted=str(tmp_path)) == (), "no manager of the user's listens"
