"""A user without privileges, with a subordinate id range, made and removed by root."""

from __future__ import annotations

import fcntl
import os
import pwd
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OrdinaryUser:
    """`home` is theirs alone; it lies below /var/tmp so that every directory above may be passed by them."""

    name: str
    uid: int
    gid: int
    home: Path

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run it as this user, in a new session, with no group or capability of ours."""
        drop = ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups", "--inh-caps=-all", "--reset-env"]
        settings = {"HOME": str(self.home), "PATH": os.environ["PATH"], **(env or {})}
        words = [f"{name}={value}" for name, value in settings.items()]
        return subprocess.run(
            [*drop, "--", "env", *words, *argv], cwd=cwd or self.home, capture_output=True, text=True, timeout=timeout, check=False
        )


@contextmanager
def ordinary_user() -> Iterator[OrdinaryUser]:
    """useradd … userdel; parallel workers take turns, since the password files have one lock that does not wait."""
    name = f"jsbtest{os.getpid()}"
    home = Path(tempfile.mkdtemp(prefix="jsb-", dir="/var/tmp"))
    with _taking_turns():
        subprocess.run(["useradd", "--home-dir", home, "--no-create-home", "--shell", "/bin/sh", name], check=True, capture_output=True)
    try:
        entry = pwd.getpwnam(name)
        os.chown(home, entry.pw_uid, entry.pw_gid)
        yield OrdinaryUser(name, entry.pw_uid, entry.pw_gid, home)
    finally:
        with _taking_turns():
            subprocess.run(["userdel", "--force", name], check=True, capture_output=True)
        subprocess.run(["rm", "-rf", "--one-file-system", home], check=True)


@contextmanager
def _taking_turns() -> Iterator[None]:
    with open("/var/tmp/jsb-users.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
