"""`events`: what is done is written down by whoever does it, and is told as it happens."""

from __future__ import annotations

import json
import select
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sandbox.engine import Engine
from sandbox.runtime.init import journal
from tests.support.command_line import CommandLine, read_until
from tests.support.host import requires

pytestmark = pytest.mark.anybody
PAST = ("events", "--since", "1h", "--until", "0s")


def told(sandbox: CommandLine, *flags: str) -> list[tuple[str, str]]:
    """(type, action) of everything so far."""
    lines = sandbox.ok(*PAST, "--format", "json", *flags).lines
    return [(row["Type"], row["Action"]) for row in map(json.loads, lines)]


def of_containers(sandbox: CommandLine, *flags: str) -> list[str]:
    return [action for kind, action in told(sandbox, *flags) if kind == "container"]


def test_the_life_of_a_container(sandbox: CommandLine) -> None:
    sandbox.ok("run", "-d", "--name", "web", "-l", "a=b", "busybox", "sleep", "1000")
    sandbox.ok("exec", "web", "true")
    sandbox.ok("pause", "web")
    sandbox.ok("unpause", "web")
    sandbox.ok("kill", "web")
    sandbox.ok("wait", "web")
    sandbox.ok("rename", "web", "other")
    sandbox.ok("rm", "other")
    assert of_containers(sandbox) == ["create", "start", "exec_start: true", "pause", "unpause", "kill", "die", "rename", "destroy"]
    row = json.loads(sandbox.ok(*PAST, "--format", "json", "-f", "event=die").out)
    assert row["Actor"]["Attributes"] == {"image": "busybox", "name": "web", "a": "b", "exitCode": "137"}
    line = sandbox.ok(*PAST, "-f", "event=destroy").out
    assert line.endswith(f" container destroy {row['id']} (a=b, image=busybox, name=other)\n")
    assert datetime.fromisoformat(line.split()[0][:26] + line.split()[0][29:]) > datetime.now(UTC) - timedelta(minutes=5)


@pytest.mark.parametrize(
    ("verb", "ends"),
    [
        (("kill",), ["kill 9", "die"]),
        (("kill", "-s", "USR1"), ["kill 10", "die"]),
        (("stop",), ["kill 15", "die", "stop"]),
        (("stop", "-s", "USR2"), ["kill 12", "die", "stop"]),
        (("restart", "-s", "HUP"), ["kill 1", "die", "stop", "start", "restart"]),
        (("rm", "-f"), ["kill 9", "die", "destroy"]),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_a_signal_is_told_before_the_end_it_brings(sandbox: CommandLine, verb: tuple[str, ...], ends: list[str]) -> None:
    sandbox.ok("run", "-d", "--name", "web", "--init", "busybox", "sleep", "1000")
    sandbox.ok(*verb, "web")
    if verb[0] == "kill":
        sandbox.ok("wait", "web")
    rows = [json.loads(line) for line in sandbox.ok(*PAST, "-f", "type=container", "--format", "json").lines]
    said = [f"{row['Action']} {row['Actor']['Attributes'].get('signal', '')}".strip() for row in rows]
    assert said == ["create", "start", *ends]


def test_a_signal_to_nobody_is_not_told(sandbox: CommandLine) -> None:
    sandbox.ok("run", "--name", "web", "busybox", "true")
    assert sandbox("kill", "web").status == 1
    assert of_containers(sandbox) == ["create", "start", "die"]


def test_a_run_that_is_removed(sandbox: CommandLine) -> None:
    sandbox("run", "--rm", "busybox", "sh", "-c", "exit 3")
    assert of_containers(sandbox) == ["create", "start", "die", "destroy"]
    assert sandbox.ok(*PAST, "-f", "event=die", "--format", "{{.Actor.Attributes.exitCode}}").out == "3\n"


def test_a_container_that_ran_out_of_memory(sandbox: CommandLine) -> None:
    sandbox("run", "--rm", "-m", "32m", "--memory-swap", "32m", "busybox", "sh", "-c", "x=$(tail -c 60m /dev/zero)")
    assert "oom" in of_containers(sandbox)


def test_steps_of_a_build_are_no_events(sandbox: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN true > /x\n")
    sandbox.ok("build", "-t", "made", str(tmp_path))
    assert of_containers(sandbox) == []


def test_images_and_volumes(sandbox: CommandLine) -> None:
    sandbox.ok("tag", "busybox", "other:1")
    sandbox.ok("rmi", "other:1")
    sandbox.ok("rmi", "busybox")
    sandbox.ok("volume", "create", "data")
    sandbox.ok("volume", "rm", "data")
    assert told(sandbox, "-f", "type=image") == [("image", each) for each in ("import", "tag", "untag", "untag", "delete")]
    assert told(sandbox, "-f", "volume=data") == [("volume", "create"), ("volume", "destroy")]
    assert sandbox("events", "-f", "colour=red").status == 1


@requires("root")
def test_networks(sandbox: CommandLine) -> None:
    sandbox.ok("network", "create", "lab")
    sandbox.ok("network", "rm", "lab")
    assert told(sandbox, "-f", "network=lab") == [("network", "create"), ("network", "destroy")]


def test_what_happens_is_told_as_it_happens(sandbox: CommandLine) -> None:
    sandbox.ok("run", "--rm", "--name", "before", "busybox", "true")  # what was is not told
    with sandbox.going("events", "-f", "event=die", "--format", "{{.Actor.Attributes.name}}") as going:
        assert going.stdout
        poll = select.poll()
        poll.register(going.stdout.fileno(), select.POLLIN)
        while not poll.poll(0):  # until it listens
            sandbox.ok("run", "--rm", "--name", "one", "busybox", "true")
        sandbox.ok("run", "--rm", "--name", "two", "busybox", "true")
        heard = read_until(going.stdout.fileno(), b"two\n")
    assert set(heard.split()) == {b"one", b"two"}


def test_the_end_may_be_a_moment_ahead(sandbox: CommandLine) -> None:
    moment = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    assert sandbox.ok("events", "--until", moment).out == ""


def test_a_journal_that_is_full_begins_anew(sandbox: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_LARGEST", 1000)
    root = str(sandbox.root)
    for number in range(30):
        journal.note(root, "volume", "create", f"v{number}")
    with Engine(sandbox.root) as engine:
        names = [event.id for event in engine.events() if event.type == "volume"]
    assert names == [f"v{number}" for number in range(30 - len(names), 30)]
    assert 5 < len(names) < 30


def test_a_journal_that_cannot_be_written_is_no_error(sandbox: CommandLine) -> None:
    (sandbox.root / journal.NAME).unlink()
    (sandbox.root / journal.NAME).symlink_to("/dev/full")
    sandbox.ok("run", "--rm", "busybox", "true")
    (sandbox.root / journal.NAME).unlink()
