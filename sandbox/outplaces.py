"""Directories below ROOT/out, mounted as /out into a cell's container. Each belongs to whoever holds its lock, so a kill leaves one
that `prune` may take."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from sandbox.runtime.init import files
from sandbox.runtime.spec import Mount

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class OutPlace:
    """One such directory, writable by every user of a container. Removed by `close`."""

    def __init__(self, root: Path) -> None:
        self.path, self._fd = _make(root / "out")

    @property
    def mount(self) -> Mount:
        """What the container gets."""
        return Mount("bind", "/out", str(self.path))

    def empty(self) -> None:
        """Remove what is in it."""
        for each in list(self.path.iterdir()):
            files.remove_tree(str(each)) if each.is_dir() and not each.is_symlink() else each.unlink()

    def close(self) -> None:
        """Remove it with all that is in it."""
        files.remove_tree(str(self.path))
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _make(above: Path) -> tuple[Path, int]:
    """A new directory and the fd that holds its lock."""
    above.mkdir(parents=True, exist_ok=True)
    while True:
        import tempfile

        path = Path(tempfile.mkdtemp(dir=above))
        with ExitStack() as undo:
            try:
                fd = os.open(path, _DIRECTORY)
            except FileNotFoundError:  # pruned before it was ours
                continue
            undo.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if path.exists():
                path.chmod(0o777)
                undo.pop_all()
                return path, fd


def abandoned(root: Path) -> Iterator[Path]:
    """The directories nobody holds; while the caller looks at one, it is the caller's."""
    above = root / "out"
    for path in sorted(above.iterdir()) if above.is_dir() else ():
        try:
            fd = os.open(path, _DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path
        except BlockingIOError:
            continue
        finally:
            os.close(fd)
