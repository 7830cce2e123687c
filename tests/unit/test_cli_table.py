"""The table of verbs, the lazy group, and the exit status of what is wrong on the command line."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from sandbox.cli import program as cli
from sandbox.cli.flags import VerbCommand

ISSUE_VERBS = [
    "capture", "import", "build", "run", "create", "start", "restart", "ps", "logs", "stop", "kill", "rm", "wait", "exec", "inspect",
    "images", "rmi", "tag", "history", "top", "stats", "cp", "diff", "commit", "prune", "save", "load", "export", "doctor", "version",
]  # fmt: skip
GROUP_VERBS = {
    "image": "ls rm inspect history tag prune save load import build",
    "container": "ls run rm prune create start stop kill logs exec cp diff commit export inspect restart stats top wait",
    "system": "prune info",
}


def command_at(*path: str) -> click.Command:
    group: click.Command = cli.program()
    for name in path:
        assert isinstance(group, cli.LazyGroup)
        found = group.get_command(click.Context(group), name)
        assert found is not None, path
        group = found
    return group


@pytest.mark.parametrize("verb", ISSUE_VERBS)
def test_every_verb_of_the_issue_is_a_command_with_help(verb: str) -> None:
    command = command_at(verb)
    assert isinstance(command, VerbCommand)
    assert command.help


@pytest.mark.parametrize(("group", "verb"), [(group, verb) for group, verbs in GROUP_VERBS.items() for verb in verbs.split()])
def test_dockers_groups_hold_the_same_verbs(group: str, verb: str) -> None:
    assert isinstance(command_at(group, verb), VerbCommand)


@pytest.mark.parametrize(
    ("group", "verb", "top"), [("image", "rm", "rmi"), ("image", "ls", "images"), ("container", "ls", "ps"), ("container", "run", "run")]
)
def test_a_groups_verb_is_the_same_command(group: str, verb: str, top: str) -> None:
    assert command_at(group, verb) is command_at(top)


@pytest.mark.parametrize("section", [*cli.VERBS.values(), *(verbs for _, verbs in cli.GROUPS.values())])
def test_every_row_of_the_tables_leads_to_a_command(section: dict[str, cli.Verb]) -> None:
    group = cli.LazyGroup("x", {"": section}, {})
    for name in section:
        assert group.get_command(click.Context(group), name) is not None


def test_help_imports_nothing_of_the_engine() -> None:
    script = (
        "import sys\nfrom sandbox.cli.program import run\nassert run(['--help']) == 0\n"
        "heavy = {'msgspec', 'rich', 'sandbox.engine', 'sandbox.options', 'sqlite3', 'asyncio', 'pyroute2', 'sandbox.cli.running'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Run a program in a new container" in done.stdout


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = cli.run(argv)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_an_unknown_verb_suggests_one(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "hisotry")
    assert (status, out) == (1, "")
    assert err.startswith("sandbox: 'hisotry': no such command (did you mean history?)\n")


def test_an_unknown_verb_of_a_group_suggests_one(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "image", "lss")
    assert status == 1
    assert "did you mean ls?" in err


def test_an_unknown_flag_suggests_one_and_gives_125(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "ps", "--quite")
    assert status == 125
    assert "--quiet" in err
    assert "Usage: sandbox ps" in err


def test_a_flag_value_that_cannot_be_read_gives_125_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "run", "-m", "lots", "busybox")
    assert status == 125
    assert "'lots'" in err
    assert "hint: write 512m or 2g" in err


def test_a_missing_argument_gives_1_and_125_for_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "rmi")[0] == 1
    assert run(capsys, "run")[0] == 125


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys)
    assert "Containers:" in out + err
    assert status in (0, 1)


def test_h_is_the_host_name_in_run_and_help_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for param in command_at("run").params if param.name == "hostname" for name in param.opts]
    assert names == ["-h", "--hostname"]
    status, out, _ = run(capsys, "run", "--help")
    assert status == 0
    assert "--hostname NAME" in out


def test_verbs_are_completed_without_importing_them() -> None:
    group = cli.program()
    found = [item.value for item in group.shell_complete(click.Context(group), "im")]
    assert found == ["import", "images", "image"]


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version")[1].startswith("sandbox version ")
