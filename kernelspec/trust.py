"""Which notebooks' `metadata.sandbox` may give a kernel more than its kernelspec does: `ROOT/trust/KEY`, one file a decision.

A decision is about one notebook at its place and about what its metadata says: when either changes, it has to be made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any  # JSON of a notebook


def _file(root: Path, notebook: Path, asked: Mapping[str, Any]) -> Path:
    text = json.dumps([str(notebook.resolve()), asked], sort_keys=True)
    return root / "trust" / hashlib.sha256(text.encode()).hexdigest()


def is_trusted(root: Path, notebook: Path, asked: Mapping[str, Any]) -> bool:
    """Whether somebody who can write to `root` trusts this notebook to ask for exactly this."""
    return bool(asked) and _file(root, notebook, asked).is_file()


def trust(root: Path, notebook: Path, asked: Mapping[str, Any]) -> None:
    """Decide so."""
    file = _file(root, notebook, asked)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.write_text(f"{notebook.resolve()}\n", encoding="utf-8")


def listed(root: Path) -> list[str]:
    """The notebooks somebody trusts, by path."""
    return sorted({file.read_text(encoding="utf-8").rstrip("\n") for file in (root / "trust").glob("*")})


def forget(root: Path, notebook: Path) -> int:
    """Take back every decision about this notebook; how many there were."""
    place = f"{notebook.resolve()}\n"
    found = [file for file in (root / "trust").glob("*") if file.read_text(encoding="utf-8") == place]
    for file in found:
        file.unlink()
    return len(found)
