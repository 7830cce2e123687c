"""The command `sandbox` as a person uses it: a process of its own, with a state directory of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # docker's JSON

from tests.support import leftovers

_PATIENCE = 60


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """stdout's lines."""
        return self.out.splitlines()


@dataclass(frozen=True)
class CommandLine:
    """Runs `sandbox --root ROOT …`; one that does not end within `patience` seconds fails. `prefix`: what runs it as somebody else, or
    elsewhere; `python`: whose it is."""

    root: Path
    patience: float = _PATIENCE
    prefix: tuple[str, ...] = ()
    python: str = sys.executable

    def argv(self, *words: str) -> list[str]:
        """The whole command line."""
        return [*self.prefix, self.python, "-m", "sandbox", "--root", str(self.root), *words]

    def __call__(self, *words: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None) -> Done:
        """To its end, whatever that is."""
        argv, environment = self.argv(*words), _environment(env)
        done = subprocess.run(argv, input=stdin or b"", capture_output=True, timeout=self.patience, env=environment, check=False)
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    def ok(self, *words: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None) -> Done:
        """To its end, which must be good."""
        done = self(*words, stdin=stdin, env=env)
        assert done.status == 0, f"sandbox {' '.join(words)}: {done}"
        return done

    def json(self, *words: str) -> Any:  # Any: docker's JSON
        """What it prints, as JSON."""
        return json.loads(self.ok(*words).out)

    @contextmanager
    def going(self, *words: str, stdin: int | None = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
        """While it runs; it is killed when it still does at the end."""
        process = subprocess.Popen(
            self.argv(*words), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(None), start_new_session=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=_PATIENCE)


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "SANDBOX_ROOT"}
    return {**kept, **(env or {})}


@contextmanager
def command_line(
    root: Path, *images: tuple[Path, str], prefix: tuple[str, ...] = (), python: str = sys.executable
) -> Iterator[CommandLine]:
    """A command line with these images imported; afterwards its containers are removed and nothing may be left."""
    made = CommandLine(root, prefix=prefix, python=python)
    for tar, name in images:
        made.ok("import", "-c", 'CMD ["sh"]', str(tar), name)
    try:
        yield made
    finally:
        if names := made.ok("ps", "-aq").lines:
            made.ok("rm", "-f", *names)
    leftovers.nothing_left(root)


def read_until(fd: int, wanted: bytes, patience: float = _PATIENCE) -> bytes:
    """What comes from `fd` up to and with `wanted`; fails when the other end closes or nothing more comes."""
    data = b""
    while wanted not in data:
        ready, _, _ = select.select([fd], [], [], patience)
        assert ready, f"nothing more after {data!r}, waiting for {wanted!r}"
        try:
            piece = os.read(fd, 65536)
        except OSError:  # EIO: a terminal's other end is gone
            piece = b""
        assert piece, f"ended after {data!r}, waiting for {wanted!r}"
        data += piece
    return data


def wait_all(processes: Sequence[subprocess.Popen[bytes]]) -> list[Done]:
    """How each of them ended."""
    ended = []
    for process in processes:
        out, err = process.communicate(timeout=_PATIENCE)
        ended.append(Done(process.returncode, out.decode(), err.decode()))
    return ended
