"""Rows of sandbox.options as click options, and switches with a value."""

from __future__ import annotations

import click
import pytest

from sandbox.cli.flags import plain_switches, verb
from sandbox.cli.programs import run_options
from sandbox.errors import InvalidOption
from sandbox.options import BUILD, RUN, BuildOptions, RunOptions, given

SWITCHES, VALUED = {"--rm", "-i", "-t", "-d"}, {"-e", "--env", "--name", "-m"}


def parsed(*argv: str) -> tuple[RunOptions, tuple[str, ...]]:
    seen: list[tuple[RunOptions, tuple[str, ...]]] = []

    @verb("run", RUN, interspersed=False)
    @click.argument("image")
    @click.argument("command", nargs=-1, type=click.UNPROCESSED)
    def run(image: str, command: tuple[str, ...], **values: object) -> None:
        """Collect."""
        seen.append((given(RunOptions(), values), (image, *command)))

    run.main(list(argv), standalone_mode=False)
    return seen[0]


def test_nothing_given_is_the_default() -> None:
    assert parsed("busybox") == (RunOptions(), ("busybox",))


def test_flags_after_the_image_belong_to_the_program() -> None:
    options, words = parsed("--rm", "-it", "busybox", "ls", "--rm", "-l", "--name", "x")
    assert options == RunOptions(rm=True, interactive=True, tty=True)
    assert words == ("busybox", "ls", "--rm", "-l", "--name", "x")


def test_values_are_converted_and_repeated_flags_keep_their_order() -> None:
    options, _ = parsed(
        "-m", "64m", "--cpus=1.5", "-eA=1", "-e", "B=2", "--env", "A=3", "--ulimit", "nofile=5:6", "--timeout", "1m30s", "busybox"
    )
    assert options.memory == 64 << 20
    assert options.cpus == 1.5
    assert options.env == ("A=1", "B=2", "A=3")
    assert options.ulimit == (("nofile", 5, 6),)
    assert options.timeout == 90


def test_switches_take_true_and_false_as_dockers_do() -> None:
    options, words = parsed("--rm=true", "--detach=false", "-i=false", "busybox", "--rm=false")
    assert options == RunOptions(rm=True)
    assert words == ("busybox", "--rm=false")


@pytest.mark.parametrize(
    ("argv", "plain"),
    [
        (["--rm=true", "x"], ["--rm", "x"]),
        (["--rm=false", "x"], ["x"]),
        (["-e", "--rm=true", "x"], ["-e", "--rm=true", "x"]),
        (["-ie", "--rm=true", "x"], ["-ie", "--rm=true", "x"]),
        (["-eA", "--rm=true", "x"], ["-eA", "--rm", "x"]),
        (["--name=a", "--rm=true", "x"], ["--name=a", "--rm", "x"]),
        (["--name", "--rm=true", "x"], ["--name", "--rm=true", "x"]),
        (["--", "--rm=true"], ["--", "--rm=true"]),
        (["x", "--rm=true"], ["x", "--rm=true"]),
        (["--rm=maybe", "x"], ["--rm=maybe", "x"]),
        (["--name"], ["--name"]),
    ],
)
def test_only_real_switches_are_rewritten(argv: list[str], plain: list[str]) -> None:
    assert plain_switches(argv, SWITCHES, VALUED, interspersed=False) == plain


def test_flags_may_follow_arguments_where_they_are_interspersed() -> None:
    assert plain_switches(["x", "--rm=true"], SWITCHES, VALUED, interspersed=True) == ["x", "--rm"]


def test_a_false_switch_in_a_build_stays_false() -> None:
    seen: list[BuildOptions] = []

    @verb("build", BUILD)
    @click.argument("context")
    def build(context: str, **values: object) -> None:
        """Collect."""
        seen.append(given(BuildOptions(), values))

    build.main([".", "--no-cache=false", "-t", "a", "-t", "b"], standalone_mode=False)
    assert seen == [BuildOptions(tag=("a", "b"))]


def test_env_files_come_before_env_and_names_are_taken_from_here(tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "env"  # type: ignore[operator]
    file.write_text("\ufeffA=file\nHERE\n")
    monkeypatch.setenv("HERE", "outside")
    monkeypatch.delenv("GONE", raising=False)
    options = run_options({"env_file": (str(file),), "env": ("A=flag", "GONE")})
    assert options.env == ("A=file", "HERE=outside", "A=flag")
    assert options.env_file == ()


def test_a_missing_env_file_is_named(tmp_path: pytest.TempPathFactory) -> None:
    with pytest.raises(InvalidOption, match="nope: no such file"):
        run_options({"env_file": (f"{tmp_path}/nope",)})
