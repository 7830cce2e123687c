"""How our SQLite files begin."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path


def create_database(path: Path, schema: str) -> None:
    """An SQLite file of this schema, in WAL mode, unless there is one already. It is made beside its place: two processes that switch one
    file to WAL at once would find it locked."""
    new = path.with_name(f"{path.name}.new-{os.urandom(8).hex()}")
    try:
        db = sqlite3.connect(new, isolation_level=None)
        try:
            db.execute("pragma journal_mode = wal")
            db.executescript(schema)
        finally:
            db.close()
        with contextlib.suppress(FileExistsError):
            os.link(new, path)
    finally:
        for suffix in ("", "-wal", "-shm"):
            new.with_name(new.name + suffix).unlink(missing_ok=True)
