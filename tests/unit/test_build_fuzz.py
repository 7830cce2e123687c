"""A short run of the fuzz target, and that it would notice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.build import printing
from tests.support.dockerfile_meaning import check_text

ROOT = Path(__file__).parents[2]


def fuzz(corpus: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz.fuzz_dockerfile", f"-artifact_prefix={corpus.parent}/", *options, str(corpus)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.slow
def test_fuzz_target_finds_nothing_in_a_short_run(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    done = fuzz(tmp_path / "corpus", "-runs=6000", "-seed=1", "-max_total_time=60")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "cov:" in done.stderr  # it was guided
    assert "DONE" in done.stderr or "Done" in done.stderr


def test_the_property_notices_a_printer_that_loses_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printing, "_bodies", lambda _: "")
    with pytest.raises(Exception, match=r"heredoc|assert"):
        check_text("FROM a\nRUN <<EOF\nx\nEOF\n")


def test_the_property_notices_a_flag_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printing, "_on", lambda _: None)
    with pytest.raises(AssertionError):
        check_text("FROM a\nADD --unpack x /y\n")
