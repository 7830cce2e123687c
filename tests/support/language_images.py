"""An image with Python, bash and Node.js, made of this machine's own programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from sandbox.engine import Engine

IMAGE = "localhost/languages"


def add_languages(engine: Engine, python_tar: Path, directory: Path) -> str:
    """Load the captured Python, put bash and node with their libraries over it; the image's name."""
    engine.load(python_tar)
    root = directory / "root"
    for program in ("bash", "node"):
        place_program(program, root)
    (directory / ".dockerignore").write_text("Dockerfile\n")
    (directory / "Dockerfile").write_text(
        "FROM localhost/python\nCOPY root/usr/bin/ /usr/bin/\nCOPY root/usr/local/lib/ /usr/local/lib/\n"
        "ENV LD_LIBRARY_PATH=/usr/local/lib/languages\n"
    )
    engine.build(directory, tags=[IMAGE])
    shutil.rmtree(root)
    return IMAGE


def place_program(program: str, root: Path) -> None:
    """A program of this machine's, with its libraries in a directory of their own (LD_LIBRARY_PATH)."""
    found = shutil.which(program)
    assert found, f"{program}: not installed"
    _place(Path(found).resolve(), root / "usr/bin" / program)
    for library in libraries(found):
        _place(library.resolve(), root / "usr/local/lib/languages" / library.name)


def _place(source: Path, target: Path) -> None:
    """A hard link where that is possible: node has a hundred megabytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        try:
            os.link(source, target)
        except OSError:
            shutil.copy(source, target)


def libraries(program: str) -> list[Path]:
    """The libraries a program is linked with, the C library's own excepted: they must suit the image's loader."""
    text = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    paths = [Path(line.partition("=> ")[2].split()[0]) for line in text.splitlines() if "=> /" in line]
    own = ("libc.", "libm.", "libdl.", "libpthread.", "librt.", "ld-linux")
    return [path for path in paths if not path.name.startswith(own)]
