"""docker run's flags in a kernelspec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from kernelspec.flags import idle_flags, image_and_flags
from sandbox.errors import InvalidOption


@pytest.mark.parametrize(
    "flags",
    [
        ["-m", "512m", "--cpus", "1.5", "--pids-limit", "100", "--timeout", "30m"],
        ["--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "-u", "1000:1000"],
        ["-v", "/srv/data:/data:ro", "-v", "named:/named"],
        ["--mount", "type=bind,source=/srv,target=/srv", "--mount", "type=volume,source=a,target=/a"],
        ["--env-file", "/etc/environment", "--security-opt", "seccomp=unconfined", "--allow-net", "example.org"],
        [],
    ],
)
def test_flags_are_kept_as_they_are_wherever_the_image_stands(flags: Sequence[str]) -> None:
    assert image_and_flags([*flags, "image:tag"]) == ("image:tag", flags)
    assert image_and_flags(["image:tag", *flags]) == ("image:tag", flags)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--restart", "always", "i"], "--restart: Jupyter restarts"),
        (["--entrypoint", "sh", "i"], "--entrypoint: a kernel has its own"),
        (["-v", "./data:/data", "i"], "--volume ./data: a kernel starts in any directory"),
        (["--env-file", "env", "i"], "--env-file env: "),
        (["--mount", "type=bind,src=data,dst=/data", "i"], "--mount data: "),
        (["--security-opt", "seccomp=mine.json", "i"], "--security-opt seccomp mine.json: "),
        (["--gpus", "all", "i"], "--gpus: not supported"),
        (["-m", "lots", "i"], "-m: size"),
        (["i", "1000"], "expected one image, got i, 1000"),
        ([], "expected one image, got none"),
    ],
)
def test_what_a_kernel_cannot_have_is_refused(words: Sequence[str], told: str) -> None:
    with pytest.raises(InvalidOption, match=told):
        image_and_flags(words)


def test_path_to_write_is_in_the_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidOption) as refused:
        image_and_flags(["-v", "./data:/data", "i"])
    assert refused.value.hint == f"write {tmp_path}/data"


def test_habits_that_do_nothing_are_told() -> None:
    assert idle_flags(["-it", "--rm", "-m", "1g"]) == ["--rm", "-i", "-t"]
    assert idle_flags(["-m", "1g"]) == []
