"""A pytest plugin for nbval: what differs from run to run in our outputs (times, sizes, ids) is not compared.

pytest loads it by entry point, so it imports nothing; it touches only notebooks that load `sandbox`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SKIP_COMPARE = ("text/html",)
"""The text/plain beside it says the same."""

SANITIZE_PATTERNS = {
    r"\b\d+ min \d+ s\b|\b\d+(?:\.\d+)? (?:ms|s)\b|\bCACHED\b": "TIME",
    r"\b\d+(?:\.\d+)?(?: / \d+(?:\.\d+)?)? ?(?:[KMG]iB|[kMG]?B)\b": "SIZE",
    r"(?<=  )–(?=  )": "SIZE",
    r"\bsha256:[0-9a-f]{12,64}\b|\b[0-9a-f]{12}\b|\b[0-9a-f]{64}\b": "DIGEST",
    r"\b\d+ procs?\b": "PROCS",
    r"\bPython 3\.\d+\.\d+\b": "PYTHON",
    r"\b\d+ cached\b": "N cached",
    r"\bnet (?:off|bridge)\b": "net NET",
    r"\b(?:Less than a second|About an? (?:minute|hour)|\d+ (?:seconds?|minutes?|hours?|days?|weeks?)) ago\b": "TIME ago",
    r"\bUp (?:Less than a second|About an? (?:minute|hour)|\d+ (?:seconds?|minutes?|hours?|days?|weeks?))": "Up TIME",
    r"(?: · (?:cpu TIME|peak SIZE|PROCS))+": "",
    r"[ \t]{2,}": "  ",
}
"""In this order: the last ones see what the first ones left. Figures a machine may be unable to give (cpu, peak, procs) are left out;
which network is the default depends on the host."""


def pytest_collectstart(collector: Any) -> None:  # Any: nbval's IPyNbFile when it is one; nbval may not even be installed
    """Called by pytest for every collector: extend nbval's tables for notebooks that use the extension."""
    path = getattr(collector, "path", None)
    if not isinstance(path, Path) or path.suffix != ".ipynb" or not hasattr(collector, "sanitize_patterns"):
        return
    if "%load_ext sandbox" in path.read_text(encoding="utf-8", errors="replace"):
        collector.skip_compare += SKIP_COMPARE
        collector.sanitize_patterns.update(SANITIZE_PATTERNS)
